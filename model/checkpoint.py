"""A checkpoint: one folder with `model.safetensors`, `config.json` and `tokenizer.json`; never a pickle.

The tensors and keys are fixed so that another trainer can write one; docs/checkpoint.md lists them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dsmr_export import schedule as schedules
from dsmr_export.errors import CheckpointError, OutputError, ScheduleError
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.network import DSMR
from dsmr_export.runtime.bundle import file_sha256
from dsmr_export.runtime.files import write_atomically
from dsmr_export.schedule import Schedule

if TYPE_CHECKING:
    from miditok import MIDILike

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
FORMAT_VERSION = 1
DTYPES = {torch.float32, torch.float16, torch.bfloat16}
DEFAULT = Path(__file__).parent / "default"
"""The bundled checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint folder.

    weights: the tensors by name, float32. data, licence: what config.json says of the training data.
    """

    path: Path
    config: ModelConfig
    schedule: Schedule
    weights: dict[str, torch.Tensor]
    sha256: str
    data: str = "unknown"
    licence: str = "unknown"
    pace: float = 0.0

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER

    def tokenizer(self) -> MIDILike:
        """Raises CheckpointError if it is damaged, or of another vocabulary than the weights."""
        tokenizer = tokens.load(self.tokenizer_path)
        if len(tokenizer) != self.config.vocab_size:
            raise CheckpointError(
                f"{self.tokenizer_path} has {len(tokenizer)} tokens, {CONFIG} a vocab_size of "
                f"{self.config.vocab_size}: they do not belong together"
            )
        return tokenizer

    def network(self, schedule: Schedule | None = None, dropout: float = 0.0) -> DSMR:
        """The network under the checkpoint's own schedule or another one: horizons have no weights."""
        network = DSMR(self.config, (schedule or self.schedule).horizons, dropout)
        network.load_state_dict(self.weights)
        return network.eval()


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that a checkpoint holds ([out, in], as torch Linear)."""
    with torch.device("meta"):
        network = DSMR(config, [1] * config.layers)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def load(folder: str | Path | None = None) -> Checkpoint:
    """Loads and checks a checkpoint folder (default: the bundled one).

    Raises CheckpointError naming the file, tensor, expected and found shape.
    """
    path = Path(folder) if folder is not None else DEFAULT
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (path / name).is_file():
            raise CheckpointError(
                f"checkpoint {path}: {name} is missing; a checkpoint is a folder with {CONFIG}, {WEIGHTS} "
                f"and {TOKENIZER}"
            )
    values = _read_config(path / CONFIG)
    try:
        config = ModelConfig.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from error
    text = values.get("schedule")
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path / CONFIG}: schedule must be a text such as 2048x2,256x6, got {json.dumps(text)}"
        )
    try:
        schedule = schedules.build(text, config.layers)
    except ScheduleError as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from error
    weights = _read_weights(path / WEIGHTS, expected_shapes(config))
    about = {key: str(values[key]) for key in ("data", "licence") if key in values}
    pace = values.get("pace", 0.0)
    if not isinstance(pace, (int, float)) or not math.isfinite(pace):
        raise CheckpointError(f"{path / CONFIG}: pace must be a number, got {pace!r}")
    return Checkpoint(path, config, schedule, weights, file_sha256(path / WEIGHTS), **about, pace=float(pace))


def save(
    folder: Path,
    network: DSMR,
    schedule: Schedule,
    tokenizer_json: str,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, str | float] = MappingProxyType({}),
) -> None:
    """Writes a checkpoint folder; each file is complete under its final name or not there at all.

    about: `data`, `licence` and `pace`, kept in config.json and passed on to the bundle.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format_version": FORMAT_VERSION,
        **network.config.to_dict(),
        "schedule": schedule.text,
        **about,
    }
    write_json(folder / CONFIG, config)
    write_atomically(folder / TOKENIZER, tokenizer_json.encode())
    save_tensors(
        folder / WEIGHTS,
        {n: t.detach().to("cpu", dtype).contiguous() for n, t in network.state_dict().items()},
    )


def save_tensors(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Replaces a safetensors file in one step. Raises OutputError; then `path` is as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.touch()
            mode = temporary.stat().st_mode & 0o777  # the user's own; safetensors would make it 0600
            save_file(tensors, temporary, metadata)
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # the library wraps what the disk says
        raise OutputError(
            f"{path}: cannot be written ({error}); choose another place or make room"
        ) from error


def write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(values).__name__}")
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {version}; this version of dsmr-export reads {FORMAT_VERSION}: "
            "upgrade it"
        )
    return values


def _read_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or not safetensors ({error}): copy or download it again"
        ) from error
    for name, shape in shapes.items():
        if name not in found:
            raise CheckpointError(f"{path} lacks tensor {name} {list(shape)}")
        if tuple(found[name].shape) != shape:
            raise CheckpointError(
                f"{path}: tensor {name} should be {list(shape)}, got {list(found[name].shape)}: "
                f"does {CONFIG} belong to it?"
            )
        if found[name].dtype not in DTYPES:
            raise CheckpointError(
                f"{path}: tensor {name} is {found[name].dtype}; write float32, float16 or bfloat16"
            )
    unknown = sorted(set(found) - set(shapes))
    if unknown:
        raise CheckpointError(
            f"{path} has tensors that this architecture does not know: {', '.join(unknown[:4])}"
        )
    return {name: tensor.float() for name, tensor in found.items()}
