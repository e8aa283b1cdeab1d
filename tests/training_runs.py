"""Small training runs for the tests: made-up pieces, a tiny network, and `dsmr train` as its own process."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsmr_export.model.train_config import TrainConfig
from dsmr_export.runtime import midi
from dsmr_export.runtime.performance import Note

TINY: dict[str, Any] = {
    "schedule": "12,5",
    "budget": 17,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 16,
    "d_model": 16,
    "d_ff": 24,
    "lanes": 2,
    "segment": 16,
    "warmup_steps": 4,
    "learning_rate": 1e-2,
    "save_every": 4,
}


def tiny(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**TINY, "steps": 8, **changes})


def write_scales(folder: Path) -> Path:
    """Four scales to train on and one to validate with, as a folder with a split."""
    rows = ["split,midi_filename"]
    for index, split in enumerate(["train"] * 4 + ["validation"]):
        scale = [Note(20 * i, 20 * i + 15, 55 + (5 * index + 2 * i) % 20, 64) for i in range(12)]
        midi.write_midi(scale, folder / f"{index}.mid")
        rows.append(f"{split},{index}.mid")
    (folder / "split.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_walks(folder: Path, pieces: int = 7) -> Path:
    """Random walks of 20 to 80 notes; the last two validate."""
    rng = np.random.default_rng(0)
    rows = ["split,midi_filename"]
    for index in range(pieces):
        steps = rng.integers(-3, 4, size=int(rng.integers(20, 80)))
        pitches = 60 + np.clip(np.cumsum(steps), -30, 30)
        notes = [Note(12 * i, 12 * i + 10, int(pitch), 64) for i, pitch in enumerate(pitches)]
        midi.write_midi(notes, folder / f"{index}.mid")
        rows.append(f"{'train' if index < pieces - 2 else 'validation'},{index}.mid")
    (folder / "split.csv").write_text("\n".join(rows) + "\n")
    return folder


def options(config: Mapping[str, Any]) -> list[str]:
    """A configuration as options of the command line."""
    return [text for name, value in config.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def command(out: Path, corpus: Path, *more: str, workers: int = 1, restarts: int = 0) -> list[str]:
    """`dsmr train` on the CPU, by one process or by torchrun."""
    start = [sys.executable, "-m", "dsmr_export.model.train"]
    if workers > 1 or restarts:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc-per-node", str(workers), "--max-restarts", str(restarts)]
        start += ["-m", "dsmr_export.model.train"]
    return [*start, "--out", str(out), "--data", str(corpus), "--device", "cpu", *more]


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """One thread a process: with more, sums are rounded in another order, and the cores are few."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=environment, text=True, stdout=pipe, stderr=pipe, **options)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said on stderr."""
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def log_of(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))
