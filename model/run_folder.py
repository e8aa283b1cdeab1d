"""The folder of a training run: what it was asked for, what it did, and all that an exact resume needs.

    best/ last/            checkpoints: of the lowest validation perplexity, and of the last save
    run.json               configuration, versions, git revision, data fingerprint, every start of the run
    log.csv                one row a step
    tensorboard/           the same for TensorBoard, if asked for
    training.safetensors   weights, optimizer, recurrent state and lanes; replaced whole

Every file is complete under its name or not there, so a run killed at any moment goes on from its last save.
"""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

import dsmr_export
from dsmr_export.errors import OutputError, TrainingError
from dsmr_export.model import checkpoint
from dsmr_export.runtime.files import write_atomically

TRAINING, RUN, LOG, TENSORBOARD = "training.safetensors", "run.json", "log.csv", "tensorboard"
FORMAT = "2"
"""Of training.safetensors; raise it when a run of an older version cannot be resumed exactly."""

BEGINNING = ("device", "precision", "versions", "git", "init")
"""Facts of run.json that may change when a run is resumed."""

COLUMNS = (
    "step",
    "epoch",
    "tokens",
    "elapsed_s",
    "learning_rate",
    "loss",
    "grad_norm",
    "tokens_per_s",
    "validation_perplexity",
)


def versions() -> dict[str, str]:
    """Of everything that a result may depend on, and of this machine."""
    found = {"dsmr-export": dsmr_export.__version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "miditok"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # pragma: no cover  (a torch that was not installed by pip)
            found[name] = "unknown"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return {**found, "platform": platform.platform()}


def git_revision() -> str | None:
    """The commit that this package is run from, with "+" if files were changed; None outside a repository."""
    home = Path(dsmr_export.__file__).resolve().parents[1]

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", str(home), *command], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if git("rev-parse", "--show-toplevel") != str(home):  # installed into somebody else's repository
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.TimeoutExpired):
        return None


def write_facts(out: Path, facts: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """Writes run.json: the facts, and every start of the run, this one last (`start` has its `step`).

    How a run began stays as it was; what is otherwise at a later start stands with that start.
    """
    began: dict[str, Any] = {}
    if start["step"]:
        with suppress(TrainingError):  # a damaged run.json does not keep a run from going on
            began = read_facts(out)
    kept = {name: began[name] for name in BEGINNING if name in began}
    changed = {name: facts[name] for name, value in kept.items() if facts[name] != value and name != "init"}
    starts = [*(one for one in began.get("starts", []) if one["step"] < start["step"]), {**start, **changed}]
    checkpoint.write_json(out / RUN, {**facts, **kept, "starts": starts})


def read_facts(out: Path) -> dict[str, Any]:
    """run.json. Raises TrainingError if it is missing or damaged."""
    try:
        facts = json.loads((out / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{out / RUN} cannot be read ({error}): is {out} a training run?") from error
    if not isinstance(facts, dict):
        raise TrainingError(f"{out / RUN} must hold a JSON object: is {out} a training run?")
    return facts


def read_metadata(out: Path) -> dict[str, str]:
    """What training.safetensors says besides its tensors. Raises TrainingError as `read_saved` does."""
    return _read(out, tensors=False)[1]


def read_saved(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of training.safetensors. Raises TrainingError if a run cannot go on from it."""
    return _read(out, tensors=True)


def _read(out: Path, tensors: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    path = out / TRAINING
    if not path.is_file():
        raise TrainingError(f"nothing to resume: {path} is missing; start the run without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else ()
            found = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise TrainingError(
            f"{path} is damaged ({error}): the checkpoints beside it are whole, but the run must begin anew"
        ) from error
    if not {"config", "meter"} <= metadata.keys():
        raise TrainingError(f"{path} is not the state of a training run: the run must begin anew")
    if metadata.get("format") != FORMAT:
        raise TrainingError(
            f"{path} was written by another version of dsmr-export: resume with that one, or begin anew "
            "(--init takes its checkpoints)"
        )
    return found, metadata


def require_tensorboard() -> None:
    """Raises TrainingError if it is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ModuleNotFoundError as error:
        raise TrainingError("--tensorboard needs the tensorboard package: pip install tensorboard") from error


def clear_leftovers(out: Path) -> None:
    """Removes the temporary files of a process that was killed while it wrote."""
    for folder in (out, out / "best", out / "last"):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turns what the disk says into OutputError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{out}: cannot be written ({reason}); choose another --out or make room"
        ) from error


@contextmanager
def log(out: Path, step: int, tensorboard: bool = False) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Gives a function that appends a row to log.csv, and to TensorBoard's files if asked for.

    The log is cut first to the rows up to `step`: a killed run may have gone further.
    """
    path = out / LOG
    rows: list[dict[str, str]] = []
    if step and path.exists():
        whole, end, _ = path.read_text(encoding="utf-8").rpartition("\n")  # the last line may be torn
        found = csv.DictReader(io.StringIO(whole + end))
        rows = [row for row in found if row["step"].isdigit() and int(row["step"]) <= step]
    kept = io.StringIO(newline="")
    writer = csv.DictWriter(kept, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, kept.getvalue().encode())
    with path.open("a", newline="", encoding="utf-8") as file, _board(out, step, tensorboard) as draw:
        appended = csv.DictWriter(file, COLUMNS)

        def append(row: Mapping[str, float]) -> None:
            appended.writerow(row)
            file.flush()
            draw(row)

        yield append


@contextmanager
def _board(out: Path, step: int, wanted: bool) -> Iterator[Callable[[Mapping[str, float]], None]]:
    if not wanted:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    # Points of a killed run that lie beyond its last save are hidden by purge_step.
    with SummaryWriter(str(out / TENSORBOARD), purge_step=step + 1) as board:

        def draw(row: Mapping[str, float]) -> None:
            for name in COLUMNS[3:]:
                if name in row and math.isfinite(row[name]):
                    board.add_scalar(name, row[name], int(row["step"]))

        yield draw
