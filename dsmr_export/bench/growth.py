"""What a token costs against horizon, stream position, model size, threads and schedule.

Every step is one as played: mask, sampling, host and onnxruntime. Within a table all take turns, and each is
compared with the first of its graph, round by round.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export import schedule as schedules
from dsmr_export.bench import turns
from dsmr_export.bench.architecture import Arithmetic, parameters
from dsmr_export.bench.graphs import filling
from dsmr_export.bench.limit import weights_read
from dsmr_export.bench.process import Remote
from dsmr_export.bench.turns import Contestant, Progress, Turn
from dsmr_export.errors import DsmrError, ScheduleError, nearest
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.performer import PROMPT_SEGMENT, SAMPLING, Paced
from dsmr_export.runtime.stream import Snapshot, Stream
from dsmr_export.state import SLACK, read_bytes
from dsmr_export.terminal import require

WHAT = ("horizon", "position", "size", "threads", "schedules")
NEED_EXPORT = {"horizon", "size", "schedules"}
"""Their graphs are made here."""


@dataclass(frozen=True)
class Size:
    """A model of random weights: d_ff is 4 · d_model, head dimension 64."""

    layers: int
    d_model: int


@dataclass(frozen=True)
class Plan:
    """What is compared. horizons: of every layer alike. position: of the first timed token. horizon: of every
    layer, whatever the size. rounds, steps: turns of each, and its timed steps in a turn. In `position` there
    are more turns and shorter ones, each a whole period of the state's layout: differences of a hundredth are
    looked for there, and what is a second apart finds another machine."""

    horizons: Sequence[int] = (256, 512, 1024, 2048, 4096, 8192, 16384)
    positions: Sequence[int] = (10_000, 100_000, 1_000_000)
    sizes: Sequence[Size] = (Size(4, 256), Size(7, 384), Size(8, 512), Size(10, 640))
    horizon: int = 512
    threads: Sequence[int] = (1, 2, 4)
    schedules: Sequence[str] = (
        "two_scale",
        "reverse_two_scale",
        "uniform",
        "progressive_ascending",
        "progressive_descending",
        "interleaved",
        "selective_uniform",
        "perceiver_ar_like",
    )
    rounds: int = 20
    steps: int = 40
    position_rounds: int = 100
    position_steps: int = SLACK + 1


def growth(
    bundle: Bundle,
    what: Collection[str] = WHAT,
    progress: Progress = lambda what, done, total: None,
    plan: Plan | None = None,
    graphs: Sequence[str] = (),
    threads: int | None = None,
    walk: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """The tables asked for, {"horizon": rows, "position": …, "size": …, "threads": …, "schedules": …}.

    graphs: names (none: fp32 and the quantized graph that the bundle prefers). threads: of all tables but
    that of threads (None: the bundle's). A row has graph, its table's own value (horizon; position; size
    {layers, d_model} and parameters; threads; schedule), horizons, step_ms {p50, p90, p99, max},
    tokens_per_s, ratio to the first row of its graph (median over rounds), ratio_min and ratio_max (least and
    largest of a round), ratio_95 (what the median lies within, see `interval`), state_bytes, bytes_per_token
    and multiply_adds. In `position` a row `control` is the first position a second time: what its ratio is
    away from 1 is noise. walk: the stream is fed every token up to the last position, which takes minutes;
    else it starts a full state before each.

    horizon and schedules have the bundle's own weights, size has random ones (variants.py); these three need
    the extra `export`. Raises DsmrError for an unknown table, where that extra is missing, or for a bundle
    without a fused graph; ScheduleError for a schedule that its budget or depth does not allow.
    """
    check(what)
    plan = plan or Plan()
    names = list(graphs) or _usual(bundle)
    run = Run(bundle, plan, names, bundle.threads if threads is None else threads, progress)
    tables: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "horizon": run.horizon,
        "position": lambda: run.position(walk),
        "size": run.size,
        "threads": run.by_threads,
        "schedules": run.schedules,
    }
    return {name: tables[name]() for name in WHAT if name in what}


def check(what: Collection[str]) -> None:
    """Raises DsmrError for an unknown table, or where one needs an extra that is missing."""
    for name in what:
        if name not in WHAT:
            raise DsmrError(f"growth has no {name!r}{nearest(name, WHAT)}: there are {', '.join(WHAT)}")
    if NEED_EXPORT & set(what):
        for package in ("torch", "onnx", "onnxscript"):
            require(package, "export")


def _usual(bundle: Bundle) -> list[str]:
    """fp32 and the first quantized graph in the order of preference, of those that are fused."""
    fused = [name for name in bundle.manifest.preference or bundle.manifest.graphs]
    fused = [name for name in fused if bundle.graph(name).ops == "fused"]
    if not fused:
        raise DsmrError(f"{bundle.path} has no fused graph: export it with --ops fused to measure growth")
    whole = [name for name in fused if bundle.graph(name).quantization is None]
    quantized = [name for name in fused if name not in whole]
    return whole[:1] + quantized[:1]


@dataclass(frozen=True)
class Case:
    """One row before it is timed: its own values, and the bundle that is timed for it."""

    values: Mapping[str, Any]
    folder: Path
    threads: int


@dataclass(frozen=True)
class Run:
    """Makes the tables one by one."""

    bundle: Bundle
    plan: Plan
    graphs: Sequence[str]
    threads: int
    progress: Progress

    def horizon(self) -> list[dict[str, Any]]:
        layers = self.bundle.manifest.model.layers
        wanted = [({"horizon": horizon}, (horizon,) * layers) for horizon in self.plan.horizons]
        return [row for graph in self.graphs for row in self._rescheduled("horizon", graph, wanted)]

    def schedules(self) -> list[dict[str, Any]]:
        """At the bundle's budget, as each rule rounds it; those that it does not allow are left out, but the
        first is needed."""
        layers, budget = self.bundle.manifest.model.layers, self.bundle.manifest.schedule.budget_tokens
        wanted = []
        for text in self.plan.schedules:
            try:
                schedule = schedules.build(text, layers, budget)
                wanted.append(({"schedule": schedule.name}, schedule.horizons))
            except ScheduleError:
                if not wanted:
                    raise
        return [row for graph in self.graphs for row in self._rescheduled("schedules", graph, wanted)]

    def size(self) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="dsmr-growth-") as folder:
            cases = []
            for number, size in enumerate(self.plan.sizes):
                self.progress("by size: export", number, len(self.plan.sizes))
                cases.append(self._sized(size, Path(folder) / f"{number}"))
            self.progress("by size: export", 1, 1)
            return [row for graph in self.graphs for row in self._timed("size", graph, cases)]

    def by_threads(self) -> list[dict[str, Any]]:
        cases = [Case({"threads": count}, self.bundle.path, count) for count in self.plan.threads]
        return [row for graph in self.graphs for row in self._timed("threads", graph, cases)]

    def position(self, walk: bool = False) -> list[dict[str, Any]]:
        """One process a graph, which goes from position to position: all the same memory."""
        full = len(filling(self.bundle))  # before that, windows are not full
        positions = [position for position in self.plan.positions if position >= full]
        if not positions:
            raise DsmrError(f"no position is past the longest horizon: windows are full from {full:,} on")
        return [row for graph in self.graphs for row in self._positions(graph, positions, walk)]

    def _positions(self, graph: str, positions: Sequence[int], walk: bool) -> list[dict[str, Any]]:
        label = f"{graph} by position"
        remote = Remote(Contestant, PlaceSteps, self.bundle.path, graph, self.threads)
        with ExitStack() as stack:
            stack.callback(remote.close)
            remote.wait()
            for number, position in enumerate(positions):
                self.progress(f"{label}: {'walk' if walk else 'fill'}", number, len(positions))
                remote.ask("call", "go", position, walk)
            self.progress(f"{label}: {'walk' if walk else 'fill'}", 1, 1)
            places = [*range(len(positions)), 0]  # the first again: the control
            times: list[list[NDArray[np.float64]]] = [[] for _ in places]
            for number in range(self.plan.position_rounds):
                for own, place in zip(times, places, strict=True):
                    remote.ask("call", "at", place)
                    found: Turn = remote.ask("turn", self.plan.position_steps)
                    own.append(found.step_ms)
                self.progress(label, number + 1, self.plan.position_rounds)
        case = Case({}, self.bundle.path, self.threads)
        first, rows = np.stack(times[0]), []
        for number, (own, place) in enumerate(zip(times, places, strict=True)):
            control = number == len(positions)
            values = {"position": positions[place], "walked": walk, "control": control}
            rows.append(_row(replace(case, values=values), graph, np.stack(own), first))
        return rows

    def _rescheduled(
        self, table: str, graph: str, wanted: Sequence[tuple[Mapping[str, Any], Sequence[int]]]
    ) -> list[dict[str, Any]]:
        from dsmr_export.bench import variants

        with tempfile.TemporaryDirectory(prefix="dsmr-growth-") as folder:
            cases = []
            for number, (values, horizons) in enumerate(wanted):
                self.progress(f"{graph} by {table}: graphs", number, len(wanted))
                path = variants.rescheduled(self.bundle, [graph], horizons, Path(folder) / f"{number}")
                cases.append(Case(values, path, self.threads))
            self.progress(f"{graph} by {table}: graphs", 1, 1)
            return self._timed(table, graph, cases)

    def _sized(self, size: Size, folder: Path) -> Case:
        from dsmr_export.bench import variants
        from dsmr_export.model.config import ModelConfig

        heads = max(1, size.d_model // 64)
        config = ModelConfig(
            layers=size.layers,
            heads=heads,
            kv_heads=heads,
            head_dim=size.d_model // heads,
            d_model=size.d_model,
            d_ff=4 * size.d_model,
            vocab_size=self.bundle.manifest.model.vocab_size,
        )
        path = variants.sized(self.bundle, self.graphs, config, (self.plan.horizon,) * size.layers, folder)
        shape = Bundle.open(path).manifest.model
        values = {"layers": size.layers, "d_model": size.d_model, "parameters": parameters(shape)}
        return Case(values, path, self.threads)

    def _timed(self, table: str, graph: str, cases: Sequence[Case]) -> list[dict[str, Any]]:
        with ExitStack() as stack:
            running = {}
            for number, case in enumerate(cases):
                remote = Remote(Contestant, FullSteps, case.folder, graph, case.threads)
                stack.callback(remote.close)
                running[str(number)] = remote.wait()  # one by one: a long state is filled in twice its memory
            label = f"{graph} by {table}"
            found = turns.take_turns(running, self.plan.rounds, self.plan.steps, self.progress, label)
        first = found["0"].step_ms
        return [_row(case, graph, found[str(number)].step_ms, first) for number, case in enumerate(cases)]


def _row(
    case: Case, graph: str, step_ms: NDArray[np.float64], first_ms: NDArray[np.float64]
) -> dict[str, Any]:
    bundle = Bundle.open(case.folder)
    entry, horizons = bundle.graph(graph), bundle.manifest.schedule.horizons
    return {
        "graph": graph,
        **case.values,
        "horizons": list(horizons),
        **turns.figures(step_ms),
        **turns.ratio(step_ms, first_ms),
        "ratio_95": list(interval(np.median(step_ms, axis=1) / np.median(first_ms, axis=1))),
        "state_bytes": entry.state_bytes,
        "bytes_per_token": weights_read(bundle, graph) + read_bytes(entry.state),
        "multiply_adds": Arithmetic.of(bundle.manifest.model, horizons).total,
    }


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % confidence interval of the median of values [N], from their order alone, whatever they are
    distributed like: the ranks N/2 ± 1.96 √N/2 (normal approximation of the sign test's binomial; Conover,
    Practical Nonparametric Statistics, section 3.2). Least and largest where N is too small for that."""
    ordered, half = np.sort(values), 1.96 * np.sqrt(len(values)) / 2
    low, high = int(np.floor(len(values) / 2 - half)) - 1, int(np.ceil(len(values) / 2 + half))
    return float(ordered[max(low, 0)]), float(ordered[min(high, len(values) - 1)])


class FullSteps:
    """Played steps of a graph whose windows are full, of random keys and values: what a step costs does not
    depend on them, and to feed the tokens of a long horizon takes minutes."""

    kernel_ns = None

    def __init__(self, folder: Path, graph: str, threads: int) -> None:
        bundle = Bundle.open(folder)
        stream = Stream(bundle, graph, threads)
        stream.restore(_full(stream))
        self._tokens = _play(bundle, stream)

    def step(self) -> None:
        next(self._tokens)


class PlaceSteps:
    """Played steps of one stream at several places, gone to beforehand."""

    kernel_ns = None

    def __init__(self, folder: Path, graph: str, threads: int) -> None:
        self._bundle = Bundle.open(folder)
        self._ids = filling(self._bundle)
        self._stream = Stream(self._bundle, graph, threads)
        self._stream.feed(self._ids[:PROMPT_SEGMENT])
        self._places: list[Snapshot] = []
        self._tokens = _play(self._bundle, self._stream)

    def go(self, position: int, walk: bool = False) -> None:
        """To a position and remember it as a place. walk: from the last place (the first time from 0), every
        token fed; else from a full state before. Raises DsmrError for a place that lies behind."""
        if not walk:
            self._stream.reset(max(0, position - len(self._ids)))
        elif self._places:
            self._stream.restore(self._places[-1])
        else:
            self._stream.reset()
        if position <= self._stream.position:
            raise DsmrError(f"position {position:,} lies behind another one: give them in order, from 1 on")
        while (left := position - self._stream.position) > 0:
            start = self._stream.position % len(self._ids)
            self._stream.feed(self._ids[start : start + min(left, PROMPT_SEGMENT)])
        self._places.append(self._stream.snapshot())

    def at(self, place: int) -> None:
        """Continues from a place, by its number."""
        self._stream.restore(self._places[place])

    def step(self) -> None:
        next(self._tokens)


def _play(bundle: Bundle, stream: Stream) -> Iterator[int]:
    """As a performer plays, wherever the stream is."""
    return stream.generate(SAMPLING, np.random.default_rng(0), Paced(bundle.grammar()))


def _full(stream: Stream) -> Snapshot:
    empty, rng = stream.snapshot(), np.random.default_rng(0)
    for array in empty.state.values():
        if array.dtype == np.int8:
            array[...] = rng.integers(-100, 100, array.shape, np.int8)
        else:
            rng.standard_normal(dtype=np.float32, out=array)  # type: ignore[arg-type]
    entry = stream.bundle.graph(stream.graph)
    count = entry.stream.wrap_at if entry.ops == "fused" else max(tensor.horizon for tensor in entry.state)
    return replace(empty, position=count, consumed=count, count=count)
