"""Time of one step: each graph of a bundle as an instrument runs it, against PyTorch eager on the same
weights.

A graph's step is everything that a played token costs: the grammar mask, sampling, the host's work and
onnxruntime. PyTorch's step is its forward alone (S = 1, no gradients, same horizons, same threads), so the
ratio leaves out what sampling would add there. Every state is full before anything is timed. All take turns
in blocks, A B A B, in one run, and ratios are taken between blocks of one round: what else the machine does
then hits both.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsmr_export import parity
from dsmr_export.errors import DsmrError
from dsmr_export.runtime import cpu
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.play import SAMPLING, Performer

if TYPE_CHECKING:
    from rich.console import Console

    from dsmr_export.model.checkpoint import Checkpoint

STEPS = 1000
BLOCKS = 20
"""Rounds in which everybody takes one turn; each gives one ratio."""
WARM_STEPS = 20
"""Untimed steps of everybody before the first round."""
SETTLE_STEPS = 3
"""Untimed steps at the start of a turn: caches and threads are still the last one's."""

Progress = Callable[[int, int], None]
"""Called with the rounds done and the rounds in all."""


class Contestant(Protocol):
    """Somebody whose steps are timed."""

    def step(self) -> None:
        """One token, everything included."""

    @property
    def kernel_ns(self) -> int | None:
        """Nanoseconds spent so far inside onnxruntime; None where there is none."""


def run(
    bundle: Bundle,
    checkpoint: Path | None = None,
    steps: int = STEPS,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Times `steps` steps of every graph, and of PyTorch eager with the checkpoint the bundle was made from.

    checkpoint: its folder; None is the bundled one. Returns {graphs: {name: {step_ms {p50, p90, p99, max},
    tokens_per_s, python_share}}, ratios: {A_over_B: …}, peers: {pytorch_eager: {step_ms, tokens_per_s, ratio,
    ratio_min, ratio_max} or {absent: why}}, default_graph, steps, rounds, threads, filled, machine,
    versions}. A ratio is the time of A over that of B, the median over rounds; a peer's is over the default
    graph. python_share is the part of a step spent outside onnxruntime.

    Raises DsmrError for steps or threads below 1, CheckpointError for a `checkpoint` that is damaged or not
    the bundle's, GraphError for a graph that cannot run here. Without torch or the bundled checkpoint, the
    peer is absent and says why.
    """
    if steps < 1:
        raise DsmrError(f"steps is {steps}: give 1 or more")
    source, reason = parity.find_reference(bundle, checkpoint)
    threads = bundle.threads if threads is None else threads
    ids = filling(bundle)
    contestants: dict[str, Contestant] = {
        name: GraphSteps(bundle, name, threads, ids) for name in bundle.manifest.graphs
    }
    peer = "pytorch_eager"
    if source is not None:
        contestants[peer] = EagerSteps(source, bundle.manifest.schedule.horizons, threads, ids)
    rounds = min(BLOCKS, steps)
    try:
        times, shares = _take_turns(contestants, rounds, -(-steps // rounds), progress)
    finally:
        for contestant in contestants.values():
            if isinstance(contestant, EagerSteps):
                contestant.close()

    default = bundle.default_graph
    graphs = {
        name: {**_figures(times[name]), "python_share": shares[name]} for name in bundle.manifest.graphs
    }
    ratios = {
        f"{name}_over_{default}": _ratio(times[name], times[default])["ratio"]
        for name in graphs
        if name != default
    }
    timed_peer = peer in times and {**_figures(times[peer]), **_ratio(times[peer], times[default])}
    return {
        "graphs": graphs,
        "ratios": ratios,
        "peers": {peer: timed_peer or {"absent": reason}},
        "default_graph": default,
        "steps": times[default].size,
        "rounds": rounds,
        "threads": threads,
        "filled": len(ids),
        "machine": machine(),
        "versions": versions(),
    }


def filling(bundle: Bundle) -> NDArray[np.int64]:
    """Real tokens [N], the golden ones again and again: enough that every layer has evicted some."""
    rules = [graph.stream for graph in bundle.manifest.graphs.values()]
    golden = bundle.golden.input_ids
    count = max(rule.wrap_at + rule.period for rule in rules)
    return np.resize(golden, max(count, len(golden)))


class _MeteredSession:
    """An onnxruntime session that counts the time it computes."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.io_binding = session.io_binding
        self.ns = 0

    def run_with_iobinding(self, binding: Any) -> None:
        begin = perf_counter_ns()
        self._session.run_with_iobinding(binding)
        self.ns += perf_counter_ns() - begin


class _MeteredBundle(Bundle):
    """A bundle whose session of one graph is metered."""

    def __init__(self, bundle: Bundle, graph: str, threads: int | None) -> None:
        super().__init__(bundle.path, bundle.manifest, bundle.identity, bundle.warnings)
        self.metered = _MeteredSession(bundle.session(graph, threads))

    def session(self, name: str | None = None, threads: int | None = None, safe: bool | None = None) -> Any:
        return self.metered


class GraphSteps:
    """Steps of a graph through the runtime, as `dsmr play` makes them."""

    def __init__(self, bundle: Bundle, graph: str, threads: int, ids: NDArray[np.int64]) -> None:
        metered = _MeteredBundle(bundle, graph, threads)
        performer = Performer(metered, SAMPLING, graph=graph, threads=threads)
        performer.begin(ids.tolist())
        self._session = metered.metered
        self._tokens = performer.play()

    def step(self) -> None:
        next(self._tokens)

    @property
    def kernel_ns(self) -> int:
        return self._session.ns


class EagerSteps:
    """Steps of the network in PyTorch eager: S = 1, under no_grad, its state as full as the graphs'."""

    kernel_ns = None

    def __init__(
        self, source: Checkpoint, horizons: tuple[int, ...], threads: int, ids: NDArray[np.int64]
    ) -> None:
        import torch

        from dsmr_export import schedule as schedules

        self._torch = torch
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self._network = source.network(schedules.explicit(horizons))
        self._state = self._network.empty_state()
        self._ids = torch.from_numpy(ids)[None]
        self._next = 0
        with torch.no_grad():
            for part in self._ids.split(512, dim=1):
                _, self._state = self._network(part, self._state)

    def step(self) -> None:
        with self._torch.no_grad():
            token = self._ids[:, self._next : self._next + 1]
            _, self._state = self._network(token, self._state)
        self._next = (self._next + 1) % self._ids.shape[1]

    def close(self) -> None:
        """PyTorch's number of threads is the process's: as it was."""
        self._torch.set_num_threads(self._threads_before)


def _take_turns(
    contestants: Mapping[str, Contestant], rounds: int, size: int, progress: Progress
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float | None]]:
    """Milliseconds [rounds, size] of each, and the share of them spent outside onnxruntime."""
    for contestant in contestants.values():
        _time(contestant, WARM_STEPS)
    times = {name: np.empty((rounds, size)) for name in contestants}
    kernels = dict.fromkeys(contestants, 0)
    for turn in range(rounds):
        for name, contestant in contestants.items():
            _time(contestant, SETTLE_STEPS)
            before = contestant.kernel_ns or 0
            times[name][turn] = _time(contestant, size)
            kernels[name] += (contestant.kernel_ns or 0) - before
        progress(turn + 1, rounds)
    shares = {
        name: None if contestant.kernel_ns is None else 1 - kernels[name] / 1e6 / float(times[name].sum())
        for name, contestant in contestants.items()
    }
    return times, shares


def _time(contestant: Contestant, count: int) -> NDArray[np.float64]:
    """Milliseconds [count] of so many steps, one by one."""
    clock, step = perf_counter_ns, contestant.step
    stamps = np.empty(count + 1, np.int64)
    stamps[0] = clock()
    for i in range(count):
        step()
        stamps[i + 1] = clock()
    return np.diff(stamps) / 1e6


def _figures(times: NDArray[np.float64]) -> dict[str, Any]:
    p50, p90, p99 = (float(q) for q in np.quantile(times, (0.5, 0.9, 0.99)))
    step_ms = {"p50": p50, "p90": p90, "p99": p99, "max": float(times.max())}
    return {"step_ms": step_ms, "tokens_per_s": 1000 * times.size / float(times.sum())}


def _ratio(times: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, float]:
    """Median time over the reference's, round by round: the median, the least and the largest of these
    ratios.
    """
    ratios = np.median(times, axis=1) / np.median(reference, axis=1)
    return {
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": cpu.read().model,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str | None]:
    """Of what the figures depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("dsmr-export", "numpy", "onnxruntime", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def render(result: Mapping[str, Any], console: Console) -> None:
    """Prints what `run` returned."""
    from rich import box
    from rich.table import Table

    default = result["default_graph"]
    title = (
        f"{result['steps']:,} steps each in {result['rounds']} rounds, {result['threads']} thread(s), "
        f"state full ({result['filled']:,} tokens)"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step", no_wrap=True)
    headings = ("p50 ms", "p90 ms", "p99 ms", "max ms", "tokens/s", "outside onnxruntime", f"/ {default}")
    for column in headings:
        table.add_column(column, justify="right", no_wrap=True)
    for name, figures in result["graphs"].items():
        ratio = "1" if name == default else f"{result['ratios'][f'{name}_over_{default}']:.2f}"
        table.add_row(name, *_cells(figures), f"{figures['python_share']:.1%}", ratio)
    for name, figures in result["peers"].items():
        if "absent" not in figures:
            spread = f"{figures['ratio']:.2f} ({figures['ratio_min']:.2f}–{figures['ratio_max']:.2f})"
            table.add_row(name, *_cells(figures), "", spread)
    console.print(table)
    for name, figures in result["peers"].items():
        if "absent" in figures:
            console.print(f"{name}: absent, {figures['absent']}", highlight=False)
    console.print("graphs with mask, sampling and host; pytorch_eager its forward alone", highlight=False)
    found = result["machine"]
    load = "" if found["load_average"] is None else f", load {found['load_average']:.1f}"
    console.print(f"{found['processor']}, {found['cores']} cores{load}; {found['system']}", highlight=False)
    installed = (f"{name} {text or 'absent'}" for name, text in result["versions"].items())
    console.print(", ".join(installed), highlight=False)


def _cells(figures: Mapping[str, Any]) -> list[str]:
    milliseconds = [f"{figures['step_ms'][key]:.3f}" for key in ("p50", "p90", "p99", "max")]
    return [*milliseconds, f"{figures['tokens_per_s']:,.0f}"]
