"""A live session in simulated time: one thread, hours in minutes, inference as slow as a test wants it.

Inputs and playback happen at their own moments; inference takes `cost()` seconds for each look and what it
does is there when they are over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from dsmr_export.runtime.live.engine import Live
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.memory import MODEL, Memory
from dsmr_export.runtime.performance import KeyEvent

START = 1000.0


class Simulation:
    """`sent`: (moment, message) of everything that went out; `sounded`: (moment, by, event) as it was heard;
    `committed`: the events that the memory took for certain. sink: gets each message instead of `sent`, and
    nothing is kept: for hours."""

    def __init__(
        self,
        memory: Memory,
        settings: LiveSettings,
        cost: Callable[[], float] = lambda: 0.002,
        sink: Callable[[bytes], None] | None = None,
    ) -> None:
        self.now = START
        self.sent: list[tuple[float, bytes]] = []
        self.sounded: list[tuple[float, int, KeyEvent]] = []
        self.committed: list[KeyEvent] = []
        self.memory = memory
        self.live = Live(memory, settings, sink or self._keep, lambda: self.now)
        if sink is None:
            memory.committed = self.committed.append
            self.live.heard = lambda moment, by, event: self.sounded.append((moment, by, event))
        self._cost = cost
        self._sleeps_until = self._work_at = self.now

    def _keep(self, message: bytes) -> None:
        self.sent.append((self.now, message))

    def run(self, seconds: float, inputs: Iterable[tuple[float, bytes]] = ()) -> None:
        """So many seconds; inputs are (seconds from now, bytes), in order."""
        until, base = self.now + seconds, self.now
        waiting: Iterator[tuple[float, bytes]] = iter(inputs)
        coming = next(waiting, None)
        playback, live_input = self.live.playback, self.live.input
        while True:
            due = playback.run_due(self.now)  # what became due by the last step
            moments = [(self._work_at, 2), (until, 3)]
            if due is not None:
                moments.append((max(due, self.now), 1))
            if coming is not None:
                moments.append((max(base + coming[0], self.now), 0))
            moment, what = min(moments)
            self.now = max(moment, self.now)
            if what == 3:
                return
            if what == 0:
                assert coming is not None
                live_input.push(coming[1], self.now)
                if self.live.wake.is_set() and self.now < self._sleeps_until:  # one at work is not hurried
                    self._sleeps_until, self._work_at = self.now, self.now + self._cost()
                self.live.wake.clear()
                coming = next(waiting, None)
            elif what == 2:
                self._sleeps_until = self.now + self.live.work(self.now)
                self._work_at = self._sleeps_until + self._cost()


def stuck(sent: Iterable[tuple[float, bytes]]) -> dict[tuple[int, int], int]:
    """(channel, pitch) of every note that sounds at the end, as a synthesizer would have it."""
    sounding: dict[tuple[int, int], int] = defaultdict(int)
    for _, message in sent:
        kind, channel = message[0] & 0xF0, message[0] & 0x0F
        if kind == 0x90 and message[2]:
            sounding[channel, message[1]] = 1
        elif kind in (0x80, 0x90):
            sounding[channel, message[1]] = 0
        elif kind == 0xB0 and message[1] in (120, 123):
            for key in list(sounding):
                if key[0] == channel:
                    sounding[key] = 0
    return {key: count for key, count in sounding.items() if count}


def rhythm_kept(sounded: Iterable[tuple[float, int, KeyEvent]], step_s: float, jitter_s: float) -> bool:
    """Whether no two notes of the model came closer than they were meant."""
    ons = [(moment, event.frame) for moment, by, event in sounded if by == MODEL and event.kind == "on"]
    return all(
        later[0] - earlier[0] >= (later[1] - earlier[1]) * step_s - jitter_s
        for earlier, later in zip(ons, ons[1:], strict=False)
        if later[1] >= earlier[1]
    )
