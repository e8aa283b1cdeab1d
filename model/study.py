"""A study: several schedules in the same bytes of state, each trained with several seeds, judged, compared.

    dsmr study --data maestro-v3.0.0-midi.zip --out studies/first --steps 4000

`model/study_plan.py` says what is compared. A study's folder holds

    study.json                      what was asked for
    SCHEDULE-seedN/                 one training run each (model/run_folder.py)
      failure.json                  why it broke down, if it did
      evaluation-SPLIT.json         figures of its best checkpoint on that split
    profile.json                    speed and memory of training, measured side by side
    study.md study.csv runs.csv     the comparison (model/study_report.py), and plots/SPLIT/

Every stage goes on where it stopped: a finished run is recognised, one that was interrupted is resumed, an
evaluation is kept as long as checkpoint, data and limit are those it was made with.

The checkpoint that is judged is `best/`, the one of the lowest validation perplexity, as one would keep it;
where `validation` is among the splits that are judged, its figures are therefore slightly too good, for all
schedules alike, and `test` is the fair one.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from dsmr_export import corpus
from dsmr_export.bench import system
from dsmr_export.errors import FailedRunError, StoppedError, TrainingError
from dsmr_export.model import checkpoint, data, distributed, history, profile, run_folder
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model import train as training
from dsmr_export.model.study_plan import Run, Study
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.progress import stages
from dsmr_export.runtime.bundle import file_sha256

FAILURE, PROFILE = "failure.json", "profile.json"
EVALUATION_FORMAT = 1
"""Raise it when the figures of `history.judge` change their meaning: kept ones are then made anew."""


@dataclass(frozen=True)
class Progress:
    """How far a run is. best_perplexity: of its validations so far, None before the first."""

    state: Literal["missing", "unfinished", "failed", "finished"]
    step: int = 0
    tokens: int = 0
    best_perplexity: float | None = None
    reason: str | None = None


def prepare(study: Study, out: Path, reads_data: bool = True) -> None:
    """Checks that everything asked for can be done, and writes study.json.

    reads_data: whether a stage will be run that needs the data; a report does not.

    Raises DataError for a split that the data lacks; TrainingError if a run in `out` is another one, or if
    this is one of several processes; OutputError if `out` cannot be written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("dsmr study runs in one process: start it without torchrun")
    for split in ("train", "validation", *study.eval_splits) if reads_data else ():
        corpus.pieces(study.data, split)
    for run in study.runs():
        _require_same(run, out / run.name)
    with run_folder.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        study.save(out)


def train(study: Study, out: Path, device: str, console: Console, command: str | None = None) -> None:
    """Trains what is not finished, one run after the other. A run that breaks down is noted; the rest go on.

    Raises StoppedError when a signal ends a run, which is saved; what `train.train` raises for anything else.
    """
    runs = study.runs()
    for number, run in enumerate(runs, 1):
        folder, title = out / run.name, f"[{number}/{len(runs)}] {run.entry.text}, seed {run.seed}"
        if progress(run, folder).state == "finished":
            console.print(f"{title}: finished before", markup=False)
            continue
        console.print(title, markup=False)
        (folder / FAILURE).unlink(missing_ok=True)
        resume = (folder / run_folder.TRAINING).exists()
        try:
            training.train(
                run.config, folder, study.data, study.limit, device, resume, console, command=command
            )
        except StoppedError as error:
            raise StoppedError(
                f"{title}: stopped by a signal and saved; dsmr study --out {out} goes on from there"
            ) from error
        except FailedRunError as error:
            console.print(f"{title}: {error}", markup=False, soft_wrap=True)
            with run_folder.writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                checkpoint.write_json(folder / FAILURE, {"reason": str(error)})


def evaluate(study: Study, out: Path, device: str, console: Console) -> None:
    """Judges the best checkpoint of every finished run on every split, as far as that is not done.

    Raises what `history.judge` and `data.load` raise.
    """
    finished = [run for run in study.runs() if progress(run, out / run.name).state == "finished"]
    with distributed.join(device) as here:
        for split in study.eval_splits if finished else ():
            pieces = data.load(study.data, split, tokens.default_tokenizer(), limit=study.eval_limit)
            for run in finished:
                folder, title = out / run.name, f"{run.entry.text}, seed {run.seed}"
                known = evaluation(study, folder, split)
                if known is None or known["data"]["fingerprint"] != pieces.fingerprint:
                    source = checkpoint.load(folder / "best")
                    with stages("tokens") as told:
                        figures = history.judge(source, pieces.pieces, device=str(here.device), progress=told)
                    about = {"name": study.data_name, "split": split, "fingerprint": pieces.fingerprint}
                    known = {
                        "format": EVALUATION_FORMAT,
                        "checkpoint": source.sha256,
                        "data": {**about, "limit": study.eval_limit},
                        "made_with": made_with(device),
                        "figures": figures,
                    }
                    checkpoint.write_json(_evaluation_file(folder, split), known)
                shown = known["figures"]["perplexity"]
                console.print(f"{title}: {split} perplexity {shown:.4f}", markup=False, highlight=False)


def evaluation(study: Study, folder: Path, split: str) -> dict[str, Any] | None:
    """What `evaluate` kept of a run; None if there is nothing, or it is of another checkpoint or limit.

    Keys: checkpoint (sha256 of its weights), data {name, split, fingerprint, limit}, made_with, and figures,
    which are those of `history.judge`.
    """
    try:
        known = json.loads(_evaluation_file(folder, split).read_text(encoding="utf-8"))
        fits = (
            known["format"] == EVALUATION_FORMAT
            and known["checkpoint"] == file_sha256(folder / "best" / checkpoint.WEIGHTS)
            and known["data"]["limit"] == study.eval_limit
            and known["data"]["name"] == study.data_name
        )
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: it is made anew
        return None
    return dict(known) if fits else None


def measure(study: Study, out: Path, device: str) -> None:
    """Measures speed and memory of every schedule's training beside the others', unless that is done.

    In the runs themselves they could not be compared: each has its own hours on a machine that does other
    things too. Raises what `profile.compare` raises.
    """
    known = _read_profile(out)
    configs = {entry.text: entry.config(study.base, study.seeds[0]) for entry in study.entries}
    asked = {name: _cost(config) for name, config in configs.items()}
    if (
        known is not None
        and known["configs"] == asked
        and known["made_with"]["device"] == device
        and not any(row.get("error") for row in known["schedules"].values())  # what failed is tried again
    ):
        return
    with stages("turns") as told:
        found = profile.compare(configs, device, progress=lambda done, total: told("measuring", done, total))
    checkpoint.write_json(
        out / PROFILE, {"configs": asked, "made_with": made_with(device), "schedules": found}
    )


def measured(study: Study, out: Path) -> dict[str, Any] | None:
    """What `measure` kept: {made_with, schedules: what `profile.compare` found for each}.

    None if it is of other schedules or options.
    """
    known = _read_profile(out)
    asked = {entry.text: _cost(entry.config(study.base, 0)) for entry in study.entries}
    return known if known is not None and known["configs"] == asked else None


def _cost(config: TrainConfig) -> dict[str, Any]:
    """The options that speed and memory may depend on."""
    without = ("steps", "minutes", "seed", "save_every")
    return {name: value for name, value in asdict(config).items() if name not in without}


def _read_profile(out: Path) -> dict[str, Any] | None:
    try:
        known = json.loads((out / PROFILE).read_text(encoding="utf-8"))
        return dict(known) if {"configs", "made_with", "schedules"} <= known.keys() else None
    except (OSError, ValueError, AttributeError):  # absent or damaged: it is made anew
        return None


def made_with(device: str) -> dict[str, Any]:
    """Versions, git revision and machine, for what is written about a result."""
    machine = system.machine()
    return {
        "versions": run_folder.versions(),
        "git": run_folder.git_revision(),
        "processor": machine["processor"],
        "cores": machine["cores"],
        "device": device,
    }


def _evaluation_file(folder: Path, split: str) -> Path:
    return folder / f"evaluation-{split}.json"


def progress(run: Run, folder: Path) -> Progress:
    """How far a run is, from its folder alone. Raises TrainingError if what is there is not this run."""
    _require_same(run, folder)
    reason = _failure(folder)
    saved = _metadata(folder)
    if saved is None:
        return Progress("missing" if reason is None else "failed", reason=reason)
    meter = json.loads(saved["meter"])
    best = meter["best_perplexity"] if meter["validations"] else None
    done = meter["step"] >= (run.config.steps or 0)
    state: Literal["finished", "failed", "unfinished"]
    state = "finished" if done else "unfinished" if reason is None else "failed"
    return Progress(state, meter["step"], meter["tokens"], best, reason if state == "failed" else None)


def _failure(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / FAILURE).read_text(encoding="utf-8"))["reason"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder / FAILURE} cannot be read ({error})"


def _metadata(folder: Path) -> dict[str, str] | None:
    """Of training.safetensors, without its tensors; None if there is none, or none that can be gone on from.

    What is wrong with the file is said by `run_folder.read_saved`, when the run is resumed.
    """
    try:
        return run_folder.read_metadata(folder)
    except TrainingError:
        return None


def _require_same(run: Run, folder: Path) -> None:
    """Raises TrainingError if the folder holds a run with other options."""
    saved = _metadata(folder)
    if saved is None:
        return
    try:
        before = TrainConfig(**json.loads(saved["config"]))
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"{folder} was trained by another version of dsmr-export ({error}): choose another --out"
        ) from error
    for option, now, then in run.config.differences(before):
        raise TrainingError(
            f"{folder} was trained with {option} {then}, the study asks for {now}: "
            f"leave {option} as it was or choose another --out"
        )
