"""Processes of their own, and turns."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsmr_export.bench import turns
from dsmr_export.bench.process import LostError, Remote
from dsmr_export.bench.system import memory_bytes
from dsmr_export.errors import CheckpointError, DsmrError, GraphError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _known_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh process finds this module by its name."""
    monkeypatch.syspath_prepend(ROOT)


class Counting:
    """Steps that do nothing but count."""

    def __init__(self, kernel: bool = False) -> None:
        self.count = 0
        self._kernel = kernel

    def step(self) -> None:
        self.count += 1

    @property
    def kernel_ns(self) -> int | None:
        return 10 * self.count if self._kernel else None

    def double(self, number: int) -> int:
        return 2 * number

    def refuse(self) -> None:
        raise GraphError("this cannot run here")

    def break_down(self) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def be_killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def process(self) -> int:
        return os.getpid()

    def grow(self) -> int:
        block = np.ones(100_000_000, np.uint8)
        return int(block[-1])


def refusing() -> None:
    raise CheckpointError("damaged: export it again")


def test_an_object_lives_elsewhere() -> None:
    remote = Remote(Counting).wait()
    try:
        assert remote.ask("process") != os.getpid()
        assert remote.ask("double", 21) == 42
        with pytest.raises(GraphError, match="this cannot run here"):
            remote.ask("refuse")
        with pytest.raises(LostError, match="^ZeroDivisionError: first line$"):
            remote.ask("break_down")
        assert remote.ask("double", 1) == 2  # it bore all that
    finally:
        remote.close()


@pytest.mark.parametrize(
    ("method", "says"), [("crash", "its process ended with -11"), ("be_killed", "most likely out of memory")]
)
def test_a_process_that_ends_is_lost(method: str, says: str) -> None:
    remote = Remote(Counting).wait()
    with pytest.raises(LostError, match=says):
        remote.ask(method)
    with pytest.raises(LostError):
        remote.ask("double", 1)
    remote.close()


def test_what_cannot_be_made_says_why() -> None:
    remote = Remote(refusing)
    with pytest.raises(CheckpointError, match="damaged: export it again"):
        remote.wait()
    remote.close()


def test_closing_ends_the_process() -> None:
    remote = Remote(Counting).wait()
    process = remote.ask("process")
    remote.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_peak_memory_is_the_processes_own() -> None:
    ours = memory_bytes("VmHWM") / 1e6
    remote = Remote(turns.Contestant, Counting).wait()
    before = remote.ask("peak_mb")
    assert remote.ask("call", "grow") == 1
    after = remote.ask("peak_mb")
    remote.close()
    assert before < 100 and after - before == pytest.approx(100, abs=20)
    assert memory_bytes("VmHWM") / 1e6 < ours + 50
    assert memory_bytes("VmRSS") <= memory_bytes("VmHWM")


class Near:
    """A contestant in this process, which writes down when it was asked."""

    def __init__(self, name: str, order: list[str], kernel: bool = False) -> None:
        self._name, self._order = name, order
        self.steps = Counting(kernel)
        self._contestant = turns.Contestant(lambda: self.steps)

    def ask(self, method: str, *arguments: int) -> object:
        self._order.append(self._name)
        return getattr(self._contestant, method)(*arguments)


def test_they_take_turns() -> None:
    order: list[str] = []
    seen: list[tuple[str, float, float]] = []
    near = {"A": Near("A", order), "B": Near("B", order, kernel=True)}
    times = turns.take_turns(near, 3, 2, lambda *call: seen.append(call))  # type: ignore[arg-type]
    assert order == ["A", "B"] * 3
    assert seen == [("steps", 1, 3), ("steps", 2, 3), ("steps", 3, 3)]
    assert times["A"].step_ms.shape == times["B"].step_ms.shape == (3, 2)
    assert times["A"].outside is None
    each = turns.SETTLE_STEPS + 2
    assert near["A"].steps.count == turns.SETTLE_STEPS + turns.WARM_STEPS + 3 * each
    within = 10 * 2 * 3 / 1e6  # milliseconds: 10 ns for each of the timed steps, and no other
    assert times["B"].outside == pytest.approx(1 - within / times["B"].step_ms.sum())


class Dying(Near):
    """Its process ends in its second turn."""

    def ask(self, method: str, *arguments: int) -> object:
        if self._order.count(self._name) == 1:
            raise LostError("killed by the system")
        return super().ask(method, *arguments)


def test_one_that_is_lost_costs_the_others_nothing() -> None:
    order: list[str] = []
    near = {"A": Near("A", order), "B": Dying("B", order), "C": Near("C", order)}
    lost: dict[str, str] = {}
    times = turns.take_turns(near, 3, 2, lost=lost)  # type: ignore[arg-type]
    assert list(times) == ["A", "C"] and times["C"].step_ms.shape == (3, 2)
    assert lost == {"B": "killed by the system"} and order == ["A", "B", "C", "A", "C", "A", "C"]
    near["B"] = Dying("B", order := ["B"])
    with pytest.raises(LostError, match="^B: killed by the system$"):
        turns.take_turns(near, 3, 2)  # type: ignore[arg-type]


class Sleeping(Counting):
    def step(self) -> None:
        super().step()
        time.sleep(0.002 if self.count % 5 else 0.02)


def test_a_step_is_as_long_as_it_takes() -> None:
    """Sleeping is never shorter than asked for; so no step may be, and the 25th and 30th are slow."""
    found = turns.Contestant(Sleeping).turn(10, settle=0)
    slow = found.step_ms >= 20
    assert (found.step_ms >= 2).all() and slow[[1, 6]].all()
    assert found.kernel_ms is None


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is ten times slower in one round changes no ratio."""
    noise = np.array([[1.0], [10.0], [1.0]])
    found = turns.ratio(np.full((3, 4), 6.0) * noise, np.full((3, 4), 2.0) * noise)
    assert found == {"ratio": 3.0, "ratio_min": 3.0, "ratio_max": 3.0}


def test_figures_and_their_histogram() -> None:
    step_ms = np.arange(1.0, 101.0).reshape(4, 25)
    found = turns.figures(step_ms)
    assert found["step_ms"] == pytest.approx({"p50": 50.5, "p90": 90.1, "p99": 99.01, "max": 100.0})
    assert found["tokens_per_s"] == pytest.approx(1000 / 50.5)
    bars = turns.histogram(step_ms, bins=10)
    assert sum(bars["counts"]) == 100 and len(bars["edges_ms"]) == 11
    assert bars["edges_ms"][0] == 1 and bars["edges_ms"][-1] == 100
    for low, high, count in zip(bars["edges_ms"], bars["edges_ms"][1:], bars["counts"], strict=False):
        last = high == 100
        assert count == sum(low <= value < high or (last and value == high) for value in range(1, 101))


def test_a_histogram_of_equal_steps() -> None:
    assert sum(turns.histogram(np.full(7, 0.25))["counts"]) == 7


@pytest.mark.parametrize("error", [GraphError, LostError])
def test_errors_travel(error: Callable[[str], DsmrError]) -> None:
    import pickle

    again = pickle.loads(pickle.dumps(error("what, where, what to do")))
    assert str(again) == "what, where, what to do" and type(again) is error
