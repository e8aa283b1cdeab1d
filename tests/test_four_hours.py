"""Four hours on stage, in simulated time: a pianist who plays the bundled pieces and lets the model answer.

What has to hold at the end: no note stuck, no event later than the policy says, memory flat, and a state that
is, bit for bit, the one that the same events make offline (fed here while they become certain, so that the
test itself keeps nothing).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dsmr_export import corpus
from dsmr_export.runtime import Bundle, Stream
from dsmr_export.runtime.events import Encoder
from dsmr_export.runtime.live.playback import LATE_S
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.memory import Memory
from dsmr_export.runtime.midi import read_midi
from dsmr_export.runtime.performance import KeyEvent, Performance
from dsmr_export.runtime.sampling import Sampling
from tests.simulation import Simulation
from tests.tiny_bundle import make_bundle

HOUR = 3600.0


def rss_mb() -> float:
    text = Path("/proc/self/status").read_text()
    found = re.search(r"^VmRSS:\s*(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found[1]) / 1024


class Synthesizer:
    """What would sound at the other end, and in how many pieces it has been told."""

    def __init__(self) -> None:
        self.sounding: set[tuple[int, int]] = set()
        self.notes = 0

    def hear(self, message: bytes) -> None:
        kind, channel = message[0] & 0xF0, message[0] & 0x0F
        if kind == 0x90 and message[2]:
            self.sounding.add((channel, message[1]))
            self.notes += 1
        elif kind in (0x80, 0x90):
            self.sounding.discard((channel, message[1]))


class Offline:
    """The stream that is fed, event by event, what became certain."""

    def __init__(self, bundle: Bundle) -> None:
        self.stream, self._encoder = Stream(bundle), Encoder(bundle.event_table)
        self.stream.step(bundle.manifest.special.bos)
        self.events = 0

    def hear(self, event: KeyEvent) -> None:
        self.events += 1
        for token in self._encoder.push(event):
            self.stream.step(token)

    def wait(self, frame: int) -> None:
        for token in self._encoder.advance(frame):
            self.stream.step(token)


@dataclass
class Pianist:
    """Plays half a minute to two of a piece, waits for an answer, breaks into it, and so on."""

    pieces: list[Performance]
    rng: random.Random
    fold: bool = False
    """Into one octave: for a vocabulary that has no more."""

    def moves(self, seconds: float) -> Iterator[tuple[float, bytes]]:
        now = 1.0
        while now < seconds:
            piece = self.rng.choice(self.pieces)
            begin = self.rng.randrange(0, max(1, piece[-1].start - 3000))
            length = self.rng.randint(3000, 12_000)
            keys: list[tuple[int, int, int, int]] = []
            for note in piece:
                if begin <= note.start < begin + length:
                    pitch = 60 + note.pitch % 12 if self.fold else note.pitch
                    keys.append((note.start - begin, 1, pitch, note.velocity))
                    keys.append((min(note.end - begin, length), 0, pitch, 64))
            for frame, is_on, pitch, velocity in sorted(keys):
                yield now + frame / 100, bytes([0x90 if is_on else 0x80, pitch, velocity])
            now += length / 100 + self.rng.uniform(2, 40)


def perform(bundle: Bundle, pieces: list[Performance], hours: float, fold: bool) -> None:
    memory, rng = Memory(bundle, Sampling(top_p=0.98), seed=1, undo_s=30), random.Random(7)
    synthesizer, offline = Synthesizer(), Offline(bundle)
    memory.committed = offline.hear

    def cost() -> float:
        """A look takes milliseconds; some meet a stall, of which a plan of a second survives but a part."""
        if simulation.live.phase == "answering" and rng.random() < 0.01:
            return rng.uniform(0.2, 3.0)
        return rng.uniform(0.0005, 0.006)

    simulation = Simulation(memory, LiveSettings(), cost, synthesizer.hear)
    simulation.live.begin(simulation.now)
    moves = Pianist(pieces, rng, fold).moves(hours * HOUR)
    coming, resident = next(moves), []
    for minute in range(0, int(hours * 60), 5):
        batch = []
        while coming is not None and coming[0] < (minute + 5) * 60:
            batch.append((coming[0] - minute * 60, coming[1]))
            coming = next(moves, None)
        simulation.run(300, batch)
        resident.append(rss_mb())
    simulation.live.close()
    simulation.run(1)
    memory.forget_plan()

    status = simulation.live.status()
    assert synthesizer.sounding == set() and synthesizer.notes > 3000 * hours
    assert status.heard_notes > 2000 * hours and status.played_notes > 500 * hours
    # Late by more than LATE_S is only what moved the music: as many as were counted, and none in between.
    late = simulation.live.playback.lateness.above(LATE_S)
    assert late <= status.shifts and status.shifts > 0
    # Frame for frame and bit for bit what the events say.
    offline.wait(memory.frame)
    assert offline.events > 5000 * hours and memory.stream.position == offline.stream.position
    assert np.array_equal(memory.stream.logits, offline.stream.logits)
    ours, theirs = memory.stream.snapshot(), offline.stream.snapshot()
    assert ours.count == theirs.count
    assert all(np.array_equal(array, theirs.state[name]) for name, array in ours.state.items())
    if hours < 1:
        return  # too short to tell a leak from what is reserved once
    # Megabytes an hour, by least squares, after the first quarter.
    settled = resident[len(resident) // 4 :]
    slope = float(np.polyfit(np.arange(len(settled)) / 12, settled, 1)[0])
    assert slope < 1.0, f"{slope:.2f} MB an hour: {resident}"


def pieces(count: int) -> list[Performance]:
    return [read_midi(piece.read(), name=piece.name) for piece in corpus.pieces(None, "test", count)]


def test_some_minutes(tmp_path: Path) -> None:
    perform(make_bundle(tmp_path / "tiny"), pieces(3), 0.12, fold=True)


@pytest.mark.slow
def test_four_hours_of_the_prebuilt_bundle() -> None:
    perform(Bundle.open(), pieces(12), 4.0, fold=False)
