"""What each matrix's quantization costs alone, and the smallest file whose cost stays inside a bound.

The reference is the bundle's own fp32 graph, which parity has tied to PyTorch. A sweep quantizes one matrix
at a time, at every level its recipe has, and streams the same pieces through the result. `choose` starts from
every matrix at its lowest level and raises those first whose divergence falls most for the bytes it takes;
how far it must go is measured, not added up."""

from __future__ import annotations

import heapq
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dsmr_export import parity, quantize
from dsmr_export.errors import BundleError, DsmrError
from dsmr_export.export import EMBEDDING, HEAD
from dsmr_export.quantize import FLOAT
from dsmr_export.runtime import metrics
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.runner import FusedRunner
from dsmr_export.runtime.session import open_session
from dsmr_export.targets.loader import Recipe

PIECES, TOKENS = 4, 1024
"""What is streamed unless told otherwise: so many tokens of each of the longest validation pieces."""
SEGMENT = 128
"""Tokens of a call: long enough to be quick, short enough that activations are rounded as in play."""

Ids = NDArray[np.integer[Any]]
Plan = dict[str, str]
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Cost:
    """One matrix quantized alone, everything else in float.

    change: of perplexity, relative; kl: mean in nats; saved: bytes that it takes less than in float; sqnr_db:
    of the weights."""

    tensor: str
    level: str
    change: float
    kl: float
    saved: int
    sqnr_db: float


@dataclass(frozen=True)
class Weighed:
    """A plan and what it costs: relative change of perplexity, mean KL in nats, top-1 agreement, bytes of its
    file, and the error of every quantized matrix, worst first.
    """

    plan: Plan
    change: float
    kl: float
    top1: float
    bytes: int
    errors: list[quantize.TensorError]

    @property
    def levels(self) -> dict[str, int]:
        """How many matrices have each level."""
        return {level: list(self.plan.values()).count(level) for level in quantize.LEVELS}


@dataclass(frozen=True)
class Choice:
    """The plan chosen, the one with every matrix at its lowest level, and how many were measured."""

    best: Weighed
    lowest: Weighed
    measured: int


class Scale:
    """Weighs plans: each becomes a graph and streams the pieces beside the fp32 graph's logits."""

    def __init__(self, bundle: Bundle, recipe: Recipe, pieces: Sequence[Ids], folder: Path) -> None:
        """folder: where graphs are written. Raises BundleError for a bundle that holds no fp32 graph."""
        if "fp32" not in bundle.manifest.graphs:
            raise BundleError(
                f"{bundle.path} has no fp32 graph, which a sweep starts from: "
                "make a bundle with dsmr-export and give that"
            )
        self.recipe = recipe
        self.entry = bundle.graph("fp32")
        self.source = bundle.path / self.entry.file
        self.weights = quantize.matrices(onnx.load(self.source))
        self.measured = 0
        self._model = bundle.manifest.model
        self._pieces = [np.asarray(ids, np.int64) for ids in pieces]
        self._targets = np.concatenate([ids[1:] for ids in self._pieces])
        self._path = folder / "plan.onnx"
        self._reference = self._stream(self.source)
        self._reference_nll = metrics.nll(self._reference, self._targets)

    @property
    def tokens(self) -> int:
        """Predictions that every plan is judged by."""
        return len(self._targets)

    def levels(self, tensor: str) -> tuple[str, ...]:
        """What the recipe can make of a matrix, fewest bits first, float last."""
        return quantize.levels_of(self.recipe, tensor, self.weights[tensor].shape)

    def weigh(self, plan: Plan) -> Weighed:
        errors = quantize.quantize(self.source, self._path, self.recipe, plan)
        logits = self._stream(self._path)
        self.measured += 1
        change = np.expm1((metrics.nll(logits, self._targets) - self._reference_nll).mean())
        kl = metrics.kl_divergence(self._reference, logits).mean()
        top1 = metrics.top1_agreement(self._reference, logits)
        return Weighed(plan, float(change), float(kl), top1, self._path.stat().st_size, errors)

    def _stream(self, path: Path) -> NDArray[np.float32]:
        runner, parts = FusedRunner(open_session(path), self.entry, self._model), []
        for ids in self._pieces:
            runner.reset()
            for start in range(0, len(ids) - 1, SEGMENT):
                segment = ids[start : min(start + SEGMENT, len(ids) - 1)]
                parts.append(runner.run(segment, start).copy())
        return np.concatenate(parts)


@contextmanager
def weighing(bundle: Bundle, recipe: Recipe, pieces: Sequence[Ids]) -> Iterator[Scale]:
    """A scale with a folder of its own. pieces: ids [N] each. Raises BundleError without an fp32 graph."""
    with tempfile.TemporaryDirectory() as folder:
        yield Scale(bundle, recipe, pieces, Path(folder))


def sweep(scale: Scale, progress: Progress = lambda *_: None) -> list[Cost]:
    """Every matrix alone at every level below float, the costliest first."""
    floats = dict.fromkeys(scale.weights, FLOAT)
    wanted = [(name, level) for name in scale.weights for level in scale.levels(name) if level != FLOAT]
    costs = []
    for done, (name, level) in enumerate(wanted, 1):
        found = scale.weigh({**floats, name: level})
        [error] = found.errors
        saved = scale.weights[name].nbytes - error.bytes
        costs.append(Cost(name, level, found.change, found.kl, saved, error.sqnr_db))
        progress("sweeping", done, len(wanted))
    return sorted(costs, key=lambda cost: -cost.kl)


def require_bound(max_change: float) -> None:
    """Raises DsmrError for a bound that nothing can be inside of."""
    if not 0 < max_change < math.inf:
        raise DsmrError(f"--max-change {max_change:g}: give a bound above 0, as in 0.001")


def choose(
    scale: Scale,
    name: str,
    costs: Sequence[Cost],
    max_change: float,
    progress: Progress = lambda *_: None,
) -> Choice:
    """The smallest file found whose perplexity changes by at most `max_change`, relative, either way.

    name: of the graph (int8, int4), whose other gates must hold too. costs: what `sweep` found. First the
    order of raising is cut by bisection; then, from the last raised back, each matrix is tried one level
    lower. Raises DsmrError for a bound that is not above 0."""
    require_bound(max_change)
    gate = parity.gate_of({"weights": name})

    def inside(found: Weighed) -> bool:
        figures = {"relative_change": found.change, "kl_mean": found.kl, "top1_agreement": found.top1}
        return abs(found.change) <= max_change and not any(gate.failures(figures))

    before = scale.measured
    plans = list(_raised(scale, costs))
    lowest = best = scale.weigh(plans[0])
    low, high = 0, 0 if inside(lowest) else len(plans) - 1  # the last is all float, inside any bound
    if high:
        best = scale.weigh(plans[high])
    while high - low > 1:
        middle = (low + high) // 2
        found = scale.weigh(plans[middle])
        low, high, best = (low, middle, found) if inside(found) else (middle, high, best)
        progress("choosing", len(plans) - (high - low), len(plans))
    raised = _last_raised(plans[: high + 1])
    for done, tensor in enumerate(raised, 1):
        levels = scale.levels(tensor)
        if (place := levels.index(best.plan[tensor])) > 0:
            found = scale.weigh({**best.plan, tensor: levels[place - 1]})
            best = found if found.bytes < best.bytes and inside(found) else best
        progress("trimming", done, len(raised))
    return Choice(best, lowest, scale.measured - before)


def _raised(scale: Scale, costs: Sequence[Cost]) -> Iterator[Plan]:
    """Plans from all lowest to all float, one matrix raised by one level each time.

    The next is the one whose KL falls most for a byte that the file grows.
    """
    known = {(cost.tensor, cost.level): cost for cost in costs}
    plan: Plan = {name: scale.levels(name)[0] for name in scale.weights}
    queue: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        levels = scale.levels(name)
        if plan[name] == levels[-1]:
            return
        now, then = known[name, plan[name]], known.get((name, levels[levels.index(plan[name]) + 1]))
        fall = now.kl - (then.kl if then else 0.0)
        grown = now.saved - (then.saved if then else 0)
        heapq.heappush(queue, (-fall / max(grown, 1), name))

    for name in plan:
        offer(name)
    yield dict(plan)
    while queue:
        _, name = heapq.heappop(queue)
        levels = scale.levels(name)
        if plan[name] == levels[-1]:  # the embedding, raised with the head
            continue
        plan[name] = levels[levels.index(plan[name]) + 1]
        if name == HEAD and plan[name] == FLOAT and EMBEDDING in plan:
            plan[EMBEDDING] = FLOAT  # one matrix serves both, if both are float
        offer(name)
        yield dict(plan)


def _last_raised(plans: Sequence[Plan]) -> list[str]:
    """Matrices that are above their lowest level in the last plan, the last raised first."""
    order: list[str] = []
    for before, after in zip(plans, plans[1:], strict=False):
        order += [name for name in after if after[name] != before[name]]
    return list(dict.fromkeys(reversed(order)))
