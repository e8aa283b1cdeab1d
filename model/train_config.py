"""Everything that a training run depends on: the options of `dsmr train`, and what run.json keeps.

Needs no torch, so that the command line can print its options on a device.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from dsmr_export.errors import TrainingError

PRECISIONS = ("auto", "fp32", "bf16")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Defaults are those of the bundled model. Raises TrainingError for a run that cannot be."""

    steps: int | None = _option(None, "Length of the run in optimizer steps.")
    minutes: float | None = _option(None, "Length of the run in minutes of training, instead of --steps.")
    schedule: str = _option("two_scale", "NAME, LIST or NAME:key=value,…")
    budget: int = _option(4096, "Tokens, the sum of all horizons.")
    layers: int = _option(8, "Layers.")
    heads: int = _option(4, "Query heads.")
    kv_heads: int = _option(2, "Key and value heads; fewer than --heads is grouped-query attention.")
    head_dim: int = _option(32, "Width of a head, a multiple of 16.")
    d_model: int = _option(160, "Width of the residual stream.")
    d_ff: int = _option(640, "Width of the MLP.")
    lanes: int = _option(8, "Pieces read side by side.")
    segment: int = _option(256, "Tokens of each lane per segment; gradients stop at its start.")
    accumulate: int = _option(1, "Segments of every lane per optimizer step.")
    learning_rate: float = _option(2e-3, "Peak of the learning rate.")
    final_learning_rate: float = _option(0.02, "Its end, as a fraction of the peak.")
    warmup_steps: int = _option(200, "Steps of linear warm-up; a cosine follows.")
    weight_decay: float = _option(0.1, "AdamW's, on matrices only.")
    dropout: float = _option(0.1, "On the embedding and on both branches of every layer.")
    clip_norm: float = _option(1.0, "Largest norm of the gradient.")
    transpose: int = _option(6, "Augmentation: semitones up or down, at most.")
    tempo: float = _option(0.1, "Augmentation: fraction faster or slower, at most.")
    velocity: int = _option(8, "Augmentation: MIDI velocity louder or softer, at most.")
    precision: str = _option("auto", "fp32, bf16 (autocast), or auto: bf16 on a GPU that has it.")
    compile: bool = _option(False, "Let torch.compile make the network faster (needs a C++ compiler).")
    save_every: int = _option(500, "Steps between validations; each one saves the run.")
    validation_pieces: int | None = _option(None, "Pieces to validate with, evenly picked.  [default: all]")
    seed: int = _option(0, "Of weights, dropout, order and augmentation.")

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise TrainingError("give the length of the run either in --steps or in --minutes")
        for name in (
            "steps",
            "minutes",
            "lanes",
            "segment",
            "accumulate",
            "save_every",
            "validation_pieces",
            "learning_rate",
            "warmup_steps",
            "clip_norm",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TrainingError(f"--{name.replace('_', '-')} must be positive, got {value}")
        for name in ("final_learning_rate", "weight_decay", "transpose", "tempo", "velocity", "seed"):
            value = getattr(self, name)
            if not value >= 0:
                raise TrainingError(f"--{name.replace('_', '-')} must be 0 or more, got {value}")
        if self.tempo > 1:
            raise TrainingError(f"--tempo must be at most 1, twice as fast or half, got {self.tempo}")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"--precision must be one of {', '.join(PRECISIONS)}, got {self.precision}")
        if not 0 <= self.dropout < 1:
            raise TrainingError(f"--dropout must be at least 0 and below 1, got {self.dropout}")

    def differences(self, other: TrainConfig) -> list[tuple[str, Any, Any]]:
        """(option as on the command line, its value here, its value there) of all that differ."""
        return [
            (f"--{field.name.replace('_', '-')}", here, there)
            for field in fields(self)
            if (here := getattr(self, field.name)) != (there := getattr(other, field.name))
        ]
