"""Sessions in simulated time on the tiny bundle, and what a player does in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dsmr_export.runtime import Bundle, Sampling
from dsmr_export.runtime.live import wire
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.memory import MODEL, Memory
from dsmr_export.runtime.performance import KeyEvent
from tests.simulation import Simulation
from tests.test_memory import assert_same_state, offline

Inputs = list[tuple[float, bytes]]


def session(
    bundle: Bundle,
    mode: str,
    seed: int = 1,
    cost: Callable[[], float] = lambda: 0.002,
    undo_s: float = 0.0,
    **options: Any,
) -> Simulation:
    return Simulation(
        Memory(bundle, Sampling(), seed, undo_s=undo_s, undo_every_s=1.0),
        LiveSettings(mode=mode, **options),  # type: ignore[arg-type]
        cost,
    )


def note(at: float, pitch: int, seconds: float = 0.2, velocity: int = 64, channel: int = 0) -> Inputs:
    """A key, down and up."""
    return [(at, wire.note_on(channel, pitch, velocity)), (at + seconds, wire.note_off(channel, pitch))]


def pedal(at: float, value: int) -> Inputs:
    return [(at, wire.control(0, wire.SUSTAIN, value))]


def phrase(at: float = 0.0, count: int = 6, every: float = 0.25) -> Inputs:
    """Some keys, one after the other."""
    return [move for i in range(count) for move in note(at + i * every, 60 + (5 * i) % 12)]


def stalls(seed: int, shortest: float, longest: float, share: float = 0.05) -> Callable[[], float]:
    """Looks of milliseconds, of which some take much longer."""
    rng = np.random.default_rng(seed)
    return lambda: float(rng.uniform(shortest, longest) if rng.random() < share else rng.uniform(0.001, 0.01))


def model_ons(simulation: Simulation) -> list[tuple[float, KeyEvent]]:
    return [(at, event) for at, by, event in simulation.sounded if by == MODEL and event.kind == "on"]


def ends_have_beginnings(sent: list[tuple[float, bytes]]) -> bool:
    """Whether every note-off that went out ended a note."""
    sounding: set[tuple[int, int]] = set()
    for _, message in sent:
        key = (message[0] & 0x0F, message[1]) if len(message) > 1 else (0, 0)
        if message[0] & 0xF0 == 0x90:
            sounding.add(key)
        elif message[0] & 0xF0 == 0x80:
            if key not in sounding:
                return False
            sounding.remove(key)
    return True


def assert_remembered(simulation: Simulation) -> None:
    """After `close` and some time: the state is, bit for bit, that of the committed events offline."""
    memory = simulation.memory
    assert memory.settled
    memory.forget_plan()
    assert_same_state(memory, offline(memory.bundle, simulation.committed, memory.frame))
