"""Plays planned events when they are due, on a thread that never waits for inference.

When an event comes too late, because inference fell behind or the thread was not woken, it and everything
after it moves by as much: the music pauses and goes on, its rhythm kept. Events are never bunched, and none
is left out. What is late by no more than `LATE_S` is jitter: it is played at once and moves nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from dsmr_export.runtime.live.clock import MusicClock
from dsmr_export.runtime.live.timings import Timings
from dsmr_export.runtime.live.voices import Voices
from dsmr_export.runtime.memory import MODEL
from dsmr_export.runtime.performance import KeyEvent

LATE_S = 0.015
"""One and a half frames, less than an ear hears in a rhythm: the most that two events come closer."""

Played = Callable[[float, KeyEvent], None]
"""Told of everything that sounded or ended: the moment, and the event in frames."""

log = logging.getLogger("dsmr")


class Playback:
    """The queue of what is to come, and the model's notes that sound.

    played: called with everything that was sent, under the lock: it must not wait. max_note_s: a note that
    sounds so long is ended. Threads: `put` by inference, `run_due` by playback, the others by any.
    """

    def __init__(
        self, clock: MusicClock, voices: Voices, played: Played, channel: int = 0, max_note_s: float = 10.0
    ) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.lateness = Timings()
        self.shifts, self.shifted_s = 0, 0.0
        self.notes = 0
        self.cut_short = 0
        self._clock, self._voices, self._played = clock, voices, played
        self._channel, self._max_note_s = channel, max_note_s
        self._queue: deque[KeyEvent] = deque()
        self._began: dict[int, float] = {}  # the model's notes that sound: pitch to moment
        self._take = 0

    @property
    def take(self) -> int:
        """Counts how often the queue was thrown away: events that were planned before belong to none."""
        return self._take

    @property
    def queued(self) -> list[KeyEvent]:
        with self.changed:
            return list(self._queue)

    @property
    def sounding(self) -> list[int]:
        with self.changed:
            return list(self._began)

    @property
    def next_frame(self) -> int | None:
        """The frame of the next event; None where nothing is planned."""
        with self.changed:
            return self._queue[0].frame if self._queue else None

    def put(self, events: Sequence[KeyEvent], take: int) -> bool:
        """More events, in order; False, and nothing happens, if the queue was thrown away since `take`."""
        with self.changed:
            if take != self._take:
                return False
            self._queue.extend(events)
            self.changed.notify()
            return True

    def clear(self) -> None:
        """What is to come is thrown away; what sounds goes on."""
        with self.changed:
            self._queue.clear()
            self._take += 1

    def cut(self, moment: float) -> int:
        """Throws away what is to come and ends what sounds, now; how many notes that were."""
        with self.changed:
            self.clear()
            ended = len(self._began)
            for pitch in list(self._began):
                self._end(pitch, moment, self._clock.frame(moment))
            return ended

    def give_up(self, pitch: int, moment: float) -> None:
        """The player strikes this key: if the model's note sounds there, it ends."""
        with self.changed:
            if pitch in self._began:
                self._end(pitch, moment, self._clock.frame(moment))

    def run_due(self, now: float) -> float | None:
        """Plays what is due; the moment of the next thing to do, None where there is nothing."""
        with self.changed:
            while self._queue and self._clock.seconds(self._queue[0].frame) <= now:
                self._play(self._queue.popleft(), now)
            for pitch, began in list(self._began.items()):
                if now >= began + self._max_note_s:
                    self.cut_short += 1
                    log.debug("a note of pitch %d sounded for %g s and was ended", pitch, self._max_note_s)
                    self._end(pitch, now, self._clock.frame(now))
            moments = [began + self._max_note_s for began in self._began.values()]
            if self._queue:
                moments.append(self._clock.seconds(self._queue[0].frame))
            return min(moments, default=None)

    def _play(self, event: KeyEvent, now: float) -> None:
        late = now - self._clock.seconds(event.frame)
        self.lateness.add(late)
        if late > LATE_S:
            self._clock.delay(late)
            self.shifts += 1
            self.shifted_s += late
            log.warning("inference was %.0f ms late: the music goes on so much later", late * 1000)
        ended = self._end(event.pitch, now, event.frame)
        if event.kind == "off":
            if not ended:  # the player took it over, or it had been too long: the memory knows, or learns it
                self._played(now, event)
            return
        self._began[event.pitch] = now
        self.notes += 1
        self._voices.note_on(MODEL, self._channel, event.pitch, event.velocity)
        self._played(now, event)

    def _end(self, pitch: int, now: float, frame: int) -> bool:
        """Whether there was such a note."""
        if self._began.pop(pitch, None) is None:
            return False
        self._voices.note_off(MODEL, self._channel, pitch)
        self._played(now, KeyEvent(frame, "off", pitch, 0))
        return True
