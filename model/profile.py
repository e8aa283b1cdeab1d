"""What a step of training costs under a schedule: time, memory, arithmetic; several schedules side by side.

    dsmr train --profile --schedule two_scale --beside full:cap=4096

Every schedule trains in a process of its own, so that its peak memory is its own; they take turns of a few
steps, A B A B, so that what else the machine does hits all of them. A step is the trainer's own, on random
tokens (their values change no cost), and its recurrent state is full from the first one: as in the middle of
a long piece, where a step costs most. Warm-up is apart.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dsmr_export import schedule as schedules
from dsmr_export.bench import system
from dsmr_export.bench.process import LostError, Remote
from dsmr_export.errors import DsmrError, TrainingError
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.distributed import Workers
from dsmr_export.model.lanes import Batch
from dsmr_export.model.network import RecurrentState
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.model.trainer import Trainer, first_line, is_out_of_memory, model_config
from dsmr_export.tables import size

if TYPE_CHECKING:
    from rich.console import Console

ROUNDS = 7
STEPS = 2
"""Steps of a turn; every schedule has one turn a round."""
WARM_STEPS = 2
"""Untimed: allocators settle, torch.compile compiles."""

PEAK_SIDE = 512
PEAK_S = 0.05
"""How long matrix products are timed beside every turn; the fastest of all is the machine's peak."""

CUDA_PEAKS = (("H100 PCIe", 756e12), ("H100 80GB HBM3", 989e12), ("A100", 312e12))
"""Dense bf16 FLOP/s with float32 sums as NVIDIA publishes them for these products (A100: 312; H100 SXM: 989,
PCIe: 756 TFLOP/s); the first name that a device's name contains counts, and any other device is measured.
"""

Progress = Callable[[int, int], None]
"""Called with the turns done and the turns in all."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of training on one token, forward and backward, by what needs them.

    PaLM (arXiv 2204.02311), appendix B: 6 for each parameter of a matrix, and 12 · heads · head_dim for each
    key that a query sees, in each layer; here it sees horizon + 1. Norms, rotations and the optimizer are
    left out, and so is what an implementation computes in vain (masked keys, recomputation).
    """

    layers: int
    head: int
    attention: int

    @classmethod
    def of(cls, config: ModelConfig, horizons: Sequence[int]) -> Flops:
        width = config.heads * config.head_dim
        qkv = config.d_model * (width + 2 * config.kv_heads * config.head_dim)
        each = qkv + width * config.d_model + 2 * config.d_model * config.d_ff
        return cls(
            6 * config.layers * each,
            6 * config.d_model * config.vocab_size,
            12 * width * sum(horizon + 1 for horizon in horizons),
        )

    @property
    def total(self) -> int:
        return self.layers + self.head + self.attention

    @property
    def parameters(self) -> int:
        """Of all matrices; the norms' weights are left out."""
        return (self.layers + self.head) // 6


def compare(
    configs: Mapping[str, TrainConfig],
    device: str = "cpu",
    rounds: int = ROUNDS,
    progress: Progress | None = None,
    steps: int = STEPS,
) -> dict[str, dict[str, Any]]:
    """Trains every config for `rounds` turns of `steps` steps, beside the others; the first is the reference.

    Returns for each name: schedule, horizons, budget_tokens, parameters, lanes, precision; state_bytes (keys
    and values of one lane as training keeps them), all_state_bytes (of all lanes); attention_flops_per_token,
    flops_per_token (see `Flops`); tokens_per_s (median over rounds); ratio, ratio_low, ratio_high (tokens/s
    over the first config's in the same round: median, least, largest); mfu (share of peak_flops that the
    model's arithmetic takes); peak_flops (FLOP/s of a matrix product in the run's precision: the data sheet's
    for the GPUs in CUDA_PEAKS, else measured in the same processes, on the same threads); peak_bytes
    (resident set of the process on a CPU, what torch allocated on a GPU), base_bytes (the same before the
    network was made); error (None, or why there are no figures: what was to be measured is then None).

    Raises ScheduleError or TrainingError for a config that cannot be run at all.
    """
    if rounds < 1 or steps < 1:
        raise TrainingError(f"rounds and steps must be 1 or more, got {rounds} and {steps}")
    vocabulary = len(tokens.default_tokenizer())
    rows = {name: _costs(config, vocabulary) for name, config in configs.items()}
    contestants: dict[str, _Contestant] = {}
    try:
        for name, config in configs.items():
            contestants[name] = _Contestant(config, device)
        for contestant in contestants.values():
            contestant.begin()
        for turn in range(rounds):
            for index, contestant in enumerate(contestants.values()):
                contestant.take_turn(steps)
                if progress:
                    progress(turn * len(contestants) + index + 1, rounds * len(contestants))
        for contestant in contestants.values():
            contestant.end()
    finally:
        for contestant in contestants.values():
            contestant.close()
    first = next(iter(contestants.values()), None)
    peaks: dict[str, float] = {}
    for contestant in contestants.values():
        found = contestant.facts
        peaks[found.get("precision", "")] = max(
            peaks.get(found.get("precision", ""), 0.0), found.get("peak_flops", 0.0)
        )
    for name, contestant in contestants.items():
        assert first is not None
        rows[name] |= _measured(contestant, first, rows[name], peaks)
    return rows


def report(
    configs: Mapping[str, TrainConfig], device: str = "cpu", progress: Progress | None = None
) -> dict[str, Any]:
    """What `dsmr train --profile --json` prints: {schedules: what `compare` returns, explanation, rounds,
    steps, segment, accumulate, compile, device, threads, machine, versions}.

    Raises what `compare` raises.
    """
    rows = compare(configs, device, progress=progress)
    config = next(iter(configs.values()))
    return {
        "schedules": rows,
        "explanation": explain(rows),
        "rounds": ROUNDS,
        "steps": STEPS,
        **{name: getattr(config, name) for name in ("segment", "accumulate", "compile")},
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": system.machine(),
        "versions": system.versions(),
    }


def explain(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence for each schedule but the first: its memory and time by its state bytes and arithmetic."""
    (first, own), *others = rows.items()
    said = []
    for name, row in others:
        if row["error"] or own["error"]:
            continue
        state = row["all_state_bytes"] - own["all_state_bytes"]
        taken = row["peak_bytes"] - row["base_bytes"] - own["peak_bytes"] + own["base_bytes"]
        times = f", {taken / state:.1f} times that" if state else ""
        arithmetic = row["flops_per_token"] / own["flops_per_token"]
        said.append(
            f"{name} against {first}: {_signed(state)} of keys and values in {row['lanes']} lanes, "
            f"{_signed(taken)} at the peak{times}; {arithmetic:.2f} times the arithmetic of a token, "
            f"{1 / row['ratio']:.2f} times the time"
        )
    return said


def render(result: Mapping[str, Any], console: Console) -> None:
    """Prints what `report` returned."""
    from rich import box
    from rich.table import Table

    rows: Mapping[str, Mapping[str, Any]] = result["schedules"]
    own = next(iter(rows.values()))
    compiled, accumulated = (
        ", compiled" if result["compile"] else "",
        f" × {result['accumulate']}" if result["accumulate"] > 1 else "",
    )
    title = (
        f"{own['parameters']:,} parameters; {own['lanes']} lanes × {result['segment']} tokens{accumulated} a "
        f"step, {own['precision'] or 'no precision'}{compiled}; state full; "
        f"{result['rounds']} rounds of {result['steps']} steps"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True  # ten columns and a name have to fit
    table.add_column("schedule", overflow="fold")
    headings = ("tokens", "state MB", "× lanes", "attention", "MFLOPs", "tokens/s", "ratio", "MFU", "peak MB")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(name, *_cells(row))
    console.print(table)
    for name, row in rows.items():
        if row["error"]:
            console.print(f"{name}: {row['error']}", highlight=False, soft_wrap=True)
    for line in result["explanation"]:
        console.print(line, highlight=False, soft_wrap=True)
    against = "" if own["error"] else f" (MFU: of {own['peak_flops'] / 1e9:,.0f} GFLOP/s, a matrix product's)"
    before = "" if own["error"] else f", {own['base_bytes'] / 1e6:,.0f} MB of it before the network was made"
    console.print(
        "state: keys and values of one lane; attention, MFLOPs: the model's arithmetic to train on a token"
        f"{against}; peak: memory of the schedule's own process{before}",
        highlight=False,
        soft_wrap=True,
    )
    found = result["machine"]
    load = "" if found["load_average"] is None else f", load {found['load_average']:.1f}"
    console.print(
        f"{result['device']}, {result['threads']} thread(s); {found['processor']}, {found['cores']} cores"
        f"{load}; torch {result['versions']['torch']}",
        highlight=False,
        soft_wrap=True,
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    known = [
        f"{row['budget_tokens']:,}",
        f"{row['state_bytes'] / 1e6:.2f}",
        f"{row['all_state_bytes'] / 1e6:.2f}",
        f"{row['attention_flops_per_token'] / 1e6:.1f}",
        f"{row['flops_per_token'] / 1e6:.1f}",
    ]
    if row["error"]:
        return [*known, "–", "–", "–", "–"]
    ratio = "–"
    if row["ratio"] is not None:
        ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
    peak = f"{row['peak_bytes'] / 1e6:,.0f}"
    return [*known, f"{row['tokens_per_s']:,.0f}", ratio, f"{row['mfu']:.0%}", peak]


def _signed(count: int) -> str:
    return ("–" if count < 0 else "+") + size(abs(count))


def beside(config: TrainConfig, schedule: str) -> TrainConfig:
    """The same run with another schedule, whose own horizons may exceed the budget. Raises ScheduleError."""
    built = schedules.build(schedule, config.layers, default_budget=config.budget)
    return replace(config, schedule=built.text, budget=max(config.budget, built.budget_tokens))


def default_beside(config: TrainConfig) -> str:
    """`full` as far as the schedule's farthest layer: what the same reach costs when every layer has it.

    Where all layers are alike already, each gets the whole budget.
    """
    built = schedules.build(config.schedule, config.layers, config.budget)
    cap = max(built.horizons)
    if cap == min(built.horizons):
        cap = built.budget_tokens
    return f"full:cap={cap}" + (f",floor={cap}" if cap < schedules.FLOOR else "")


def _costs(config: TrainConfig, vocabulary: int) -> dict[str, Any]:
    """What follows from the config alone."""
    schedule = schedules.build(config.schedule, config.layers, config.budget)
    shape = model_config(config, vocabulary)
    flops = Flops.of(shape, schedule.horizons)
    return {
        "schedule": schedule.text,
        "horizons": list(schedule.horizons),
        "budget_tokens": schedule.budget_tokens,
        "parameters": flops.parameters + (2 * config.layers + 1) * config.d_model,
        "lanes": config.lanes,
        "precision": None,
        "state_bytes": schedule.budget_tokens * shape.kv_bytes_per_token,
        "all_state_bytes": config.lanes * schedule.budget_tokens * shape.kv_bytes_per_token,
        "attention_flops_per_token": flops.attention,
        "flops_per_token": flops.total,
    }


def _measured(
    contestant: _Contestant, first: _Contestant, row: Mapping[str, Any], peaks: Mapping[str, float]
) -> dict[str, Any]:
    names = (
        "tokens_per_s",
        "ratio",
        "ratio_low",
        "ratio_high",
        "mfu",
        "peak_flops",
        "peak_bytes",
        "base_bytes",
    )
    found: dict[str, Any] = {**dict.fromkeys(names), "error": contestant.error}
    facts = contestant.facts
    found |= {name: facts[name] for name in ("precision", "state_bytes", "all_state_bytes") if name in facts}
    if contestant.error is not None:
        return found
    speed = statistics.median(contestant.speeds)
    peak = peaks[facts["precision"]]
    found |= {
        "tokens_per_s": speed,
        "mfu": speed * row["flops_per_token"] / peak,
        "peak_flops": peak,
        "peak_bytes": facts["peak_bytes"],
        "base_bytes": facts["base_bytes"],
    }
    if first.error is None:
        ratios = [own / other for own, other in zip(contestant.speeds, first.speeds, strict=True)]
        found |= {
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
    return found


# Each schedule's own process


class _Contestant:
    """A process that trains one config, seen from outside; once it failed it takes no more turns."""

    def __init__(self, config: TrainConfig, device: str) -> None:
        self._remote = Remote(_Training, config, device, torch.get_num_threads())
        self.error: str | None = None
        self.facts: dict[str, Any] = {}
        self.speeds: list[float] = []

    def begin(self) -> None:
        """Waits until it has warmed up."""
        self.facts |= self._try(lambda: self._remote.wait().ask("facts")) or {}

    def take_turn(self, steps: int) -> None:
        if answer := self._try(lambda: self._remote.ask("turn", steps)):
            speed, peak = answer
            self.speeds.append(speed)
            self.facts["peak_flops"] = max(self.facts.get("peak_flops", 0.0), peak)

    def end(self) -> None:
        if peak := self._try(lambda: self._remote.ask("peak_bytes")):
            self.facts["peak_bytes"] = peak

    def close(self) -> None:
        self._remote.close()

    def _try(self, ask: Callable[[], Any]) -> Any:
        """The answer, or None from one that failed, now or earlier."""
        if self.error is not None:
            return None
        try:
            return ask()
        except DsmrError as error:
            self.error = str(error)
            return None


class _Training:
    """What lives in a contestant's process: a trainer that has warmed up."""

    def __init__(self, config: TrainConfig, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device, self._config = torch.device(device), config
        self._base = _memory(self._device, peak=False)
        with _saying_why():
            self._steps = RandomSteps(config, self._device)
            for _ in range(WARM_STEPS):
                self._steps.step()

    def facts(self) -> dict[str, Any]:
        state = self._steps.state.nbytes
        return {
            "precision": self._steps.precision,
            "base_bytes": self._base,
            "state_bytes": state // self._config.lanes,
            "all_state_bytes": state,
        }

    def turn(self, count: int) -> tuple[float, float]:
        """Tokens per second of so many steps, and FLOP/s of a matrix product."""
        began = time.perf_counter()
        with _saying_why():
            for _ in range(count):
                self._steps.step()  # ends with a figure of the host's, so nothing is still running on a GPU
            took = time.perf_counter() - began
            peak = _peak_flops(self._device, self._steps.precision)
        return count * self._config.lanes * self._config.segment * self._config.accumulate / took, peak

    def peak_bytes(self) -> int:
        return _memory(self._device, peak=True)


@contextmanager
def _saying_why() -> Iterator[None]:
    """What breaks a run down, as one line that says if it was memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = first_line(error)
        raise LostError(f"out of memory ({text})" if is_out_of_memory(error) else text) from error


class RandomSteps(Trainer):
    """The trainer on random tokens, with every lane's state full; it saves nothing.

    Raises what `Trainer` raises.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        endless = replace(config, steps=1_000_000, minutes=None)
        piece: Any = SimpleNamespace(name="random", ids=np.zeros(2, np.uint16), performance=None)
        tokenizer, worker = tokens.default_tokenizer(), Workers(device=device)
        super().__init__(endless, Path(), [piece], tokenizer, worker, fingerprint="random tokens")
        generator = torch.Generator().manual_seed(config.seed)
        self._random = generator
        age = torch.full_like(self.state.length, max(self.schedule.horizons))
        self.state = RecurrentState(
            [(_like(keys, generator), _like(values, generator)) for keys, values in self.state.layers],
            age,
            age.clone(),
        )

    def _batch(self) -> Batch:
        lanes, segment = self.config.lanes, self.config.segment
        ids = torch.randint(self.network.config.vocab_size, (lanes, segment + 1), generator=self._random)
        return Batch(ids[:, :-1], ids[:, 1:], torch.zeros(lanes, dtype=torch.bool), [0] * lanes)


def _like(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows.shape, generator=generator).to(rows)


def _memory(device: torch.device, peak: bool) -> int:
    """Bytes that this process uses now, or has used at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    return system.memory_bytes("VmHWM" if peak else "VmRSS")


def _peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a square matrix product in the run's precision."""
    bf16 = precision == "bf16"
    if device.type == "cuda" and bf16:
        name = torch.cuda.get_device_name(device)
        for known, peak in CUDA_PEAKS:
            if re.search(rf"\b{known}\b", name):
                return peak
    side = PEAK_SIDE * (16 if device.type == "cuda" else 1)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best, until = float("inf"), time.perf_counter() + PEAK_S
    while (began := time.perf_counter()) < until:
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
