"""Taking turns: everybody's steps are timed in blocks, A B A B, in one run.

What else the machine does then hits all of them, and a ratio is taken between blocks of one round. Everybody
lives in a process of its own (``process.Remote``); while it is not its turn, it waits and takes no time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dsmr_export.bench.process import LostError, Remote
from dsmr_export.bench.system import memory_bytes

WARM_STEPS = 20
"""Untimed steps of everybody before the first round."""
SETTLE_STEPS = 3
"""Untimed steps at the start of a turn: caches and threads are still the last one's."""

Progress = Callable[[str, float, float], None]
"""Called with what is being measured, how much of it is done, and how much there is."""


class Steps(Protocol):
    """Somebody whose steps are timed."""

    def step(self) -> None:
        """One token, everything included."""

    @property
    def kernel_ns(self) -> int | None:
        """Nanoseconds spent so far inside the inference library; None where that is not known."""


class Turn(NamedTuple):
    """step_ms: milliseconds [count] of each step; kernel_ms: of them inside the inference library, in all."""

    step_ms: NDArray[np.float64]
    kernel_ms: float | None


class Contestant:
    """What lives in a contestant's process: steps, a clock, and the process's memory."""

    def __init__(self, make: Callable[..., Steps], *arguments: Any) -> None:
        self._steps = make(*arguments)
        self.turn(WARM_STEPS)

    def turn(self, count: int, settle: int = SETTLE_STEPS) -> Turn:
        """So many timed steps, one by one, after some that are not."""
        clock, step = perf_counter_ns, self._steps.step
        for _ in range(settle):
            step()
        before = self._steps.kernel_ns
        stamps = np.empty(count + 1, np.int64)
        stamps[0] = clock()
        for i in range(count):
            step()
            stamps[i + 1] = clock()
        after = self._steps.kernel_ns
        kernel = None if before is None or after is None else (after - before) / 1e6
        return Turn(np.diff(stamps) / 1e6, kernel)

    def peak_mb(self) -> float:
        """Megabytes (10^6 bytes) that the process had in memory at most."""
        return memory_bytes("VmHWM") / 1e6

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of one of the steps' own methods."""
        return getattr(self._steps, method)(*arguments)


class Times(NamedTuple):
    """step_ms [rounds, size]; outside: the share of them spent outside the inference library, None where it
    is not known."""

    step_ms: NDArray[np.float64]
    outside: float | None


def take_turns(
    contestants: Mapping[str, Remote],
    rounds: int,
    size: int,
    progress: Progress = lambda what, done, total: None,
    what: str = "steps",
    lost: dict[str, str] | None = None,
) -> dict[str, Times]:
    """Everybody's steps: ``rounds`` turns of ``size``, in the order given, each a ``Contestant`` far away.

    lost: gets the names of those whose process was lost, and why, and the others go on; without it that
    raises LostError.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(turns):
            try:
                turns[name].append(contestants[name].ask("turn", size))
            except LostError as error:
                if lost is None:
                    raise LostError(f"{name}: {error}") from error
                lost[name] = str(error)
                del turns[name]
        progress(what, number + 1, rounds)
    return {name: _joined(found) for name, found in turns.items()}


def _joined(turns: list[Turn]) -> Times:
    step_ms = np.stack([turn.step_ms for turn in turns])
    kernels = [turn.kernel_ms for turn in turns if turn.kernel_ms is not None]
    return Times(step_ms, 1 - sum(kernels) / float(step_ms.sum()) if kernels else None)


def figures(step_ms: NDArray[np.float64]) -> dict[str, Any]:
    """{step_ms: {p50, p90, p99, max}, tokens_per_s} of steps in milliseconds, of any shape."""
    p50, p90, p99 = (float(q) for q in np.quantile(step_ms, (0.5, 0.9, 0.99)))
    summary = {"p50": p50, "p90": p90, "p99": p99, "max": float(step_ms.max())}
    return {"step_ms": summary, "tokens_per_s": 1000 * step_ms.size / float(step_ms.sum())}


def histogram(step_ms: NDArray[np.float64], bins: int = 40) -> dict[str, list[float]]:
    """{edges_ms [bins + 1], counts [bins]}: how often a step took how long; edges in equal ratios, from the
    fastest step to the slowest.
    """
    low, high = float(step_ms.min()), float(step_ms.max())
    edges = np.geomspace(low, max(high, low * 1.0001), bins + 1)
    edges[0], edges[-1] = low, max(high, edges[-1])  # rounding must not leave the extremes out
    counts, _ = np.histogram(step_ms, edges)
    return {"edges_ms": edges.tolist(), "counts": counts.tolist()}


def ratio(step_ms: NDArray[np.float64], reference_ms: NDArray[np.float64]) -> dict[str, float]:
    """Median time over the reference's, round by round ([rounds, size] both): {ratio, ratio_min, ratio_max},
    the median, the least and the largest of these ratios.
    """
    ratios = np.median(step_ms, axis=1) / np.median(reference_ms, axis=1)
    return {
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
    }
