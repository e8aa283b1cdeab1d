"""The shape of a DSMR network, as `config.json` and the manifest's `model` spell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dsmr_export.errors import CheckpointError


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network; the schedule (horizons) is kept apart, because an export may change it.

    Raises CheckpointError on sizes that cannot make a network.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    d_model: int
    d_ff: int
    vocab_size: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
                raise CheckpointError(f"model config: {field.name} must be a positive number, got {value!r}")
            if field.type == "int" and not isinstance(value, int):
                raise CheckpointError(f"model config: {field.name} must be a whole number, got {value!r}")
        if self.head_dim % 16:
            raise CheckpointError(f"model config: head_dim must be a multiple of 16, got {self.head_dim}")
        if self.heads % self.kv_heads:
            raise CheckpointError(
                f"model config: heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Picks the model's keys out of a larger mapping. Raises CheckpointError naming the missing ones."""
        missing = [f.name for f in fields(cls) if f.name not in values]
        if missing:
            raise CheckpointError(
                f"model config lacks {', '.join(missing)}: add them as docs/checkpoint.md says"
            )
        return cls(**{f.name: values[f.name] for f in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of float32 recurrent state that one token of horizon costs in one layer."""
        return 2 * self.kv_heads * self.head_dim * 4
