"""An instrument for a host of one's own: MIDI in, events out, and a memory of all of it.

    from dsmr_export.runtime import Instrument

    with Instrument.open("my-bundle", seed=1) as instrument:
        for message, seconds in played:              # bytes, or mido messages, as they come
            instrument.feed(message, seconds)
        for event in instrument.generate(10.0):      # from the last moment on, ten seconds
            print(event)

Nothing here waits or looks at a clock: seconds are the host's, any origin, never running back. For one thread
at a time.
`runtime.live` is what `dsmr play` puts around the same memory: threads, ports, an exact playback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from dsmr_export.errors import DsmrError
from dsmr_export.runtime import saved_state
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.live import wire
from dsmr_export.runtime.live.clock import MusicClock
from dsmr_export.runtime.memory import MODEL, PLAN_TOKENS, Memory
from dsmr_export.runtime.performance import KeyEvent
from dsmr_export.runtime.performer import SAMPLING
from dsmr_export.runtime.play import frames_of
from dsmr_export.runtime.sampling import Sampling
from dsmr_export.runtime.saved_state import SavedState

_HEARD = (wire.SUSTAIN, wire.RESET_CONTROLLERS, wire.ALL_SOUND_OFF, wire.ALL_NOTES_OFF)
"""The controllers that mean something to notes."""


class Message(Protocol):
    """What `mido.Message` has."""

    def bytes(self) -> list[int]: ...


class Event(NamedTuple):
    """A note of the model's that begins or ends: seconds by the host's clock, velocity 0 for `off`."""

    seconds: float
    kind: Literal["on", "off"]
    pitch: int
    velocity: int


class Instrument:
    """See the module. `memory` is what lies below, for who needs more."""

    def __init__(self, memory: Memory, longest_rest_s: float = 10.0) -> None:
        """longest_rest_s: a longer silence between two messages is remembered as one of this length."""
        self.memory: Memory = memory
        self.seconds = 0.0
        """The latest moment that was fed or generated."""
        self._clock = MusicClock(memory.table.step_ms)
        self._decoder = wire.Decoder()
        self._longest_rest = memory.frames(longest_rest_s)
        self._closed = False
        self._fresh = memory.position <= 1  # the piece begins with the first message that is heard

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | os.PathLike[str] | None = None,
        *,
        seed: int = 0,
        sampling: Sampling = SAMPLING,
        pace: float | None = None,
        graph: str | None = None,
        threads: int | None = None,
        undo_s: float = 0.0,
        longest_rest_s: float = 10.0,
    ) -> Instrument:
        """Opens a bundle (its folder; None: the prebuilt one) and begins a piece.

        seed, sampling, pace: how it chooses; None: the bundle's pace. graph, threads: None: what this machine
        runs best, and the bundle's. undo_s: how much can be taken back, for a copy of the state every 5 s.
        Raises ``BundleError``, ``GraphError``, and ``DsmrError`` for a seed below 0.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        return cls(Memory(opened, sampling, seed, graph, threads, pace, undo_s), longest_rest_s)

    def feed(self, message: bytes | Message, seconds: float) -> None:
        """Hears MIDI that somebody else played: one message, or bytes cut anywhere. What is no note and no
        sustain pedal is passed over; moments before the latest one count as that one.

        Raises ``DsmrError`` once the instrument is closed.
        """
        self._require_open()
        self.seconds = max(self.seconds, seconds)
        for data in self._decoder.push(message if isinstance(message, bytes) else message.bytes()):
            kind = data[0] & 0xF0
            if kind in (wire.NOTE_ON, wire.NOTE_OFF) or (kind == wire.CONTROL and data[1] in _HEARD):
                self._hear(kind, data[0] & 0x0F, data)

    def generate(self, seconds: float | None = None) -> Iterator[Event]:
        """What the model plays from the latest moment on, each event heard by itself when it is yielded.

        seconds: so much music, at whose end what sounds is ended; None: without end. In between the host may
        feed; what the model meant to play then is thought over. A host that stops early calls `silence`.
        Raises ``DsmrError`` for seconds that are not a step or more, or once the instrument is closed.
        """
        self._require_open()
        return self._generate(None if seconds is None else frames_of(seconds, self.memory.table.step_ms))

    def silence(self) -> list[Event]:
        """Ends what the model has left sounding, at the latest moment."""
        self._require_open()
        return self._end(max(self._frame(self.seconds), self.memory.frame))

    def undo(self, seconds: float) -> float:
        """Takes back so many seconds of what was heard and generated; returns how many it were.

        Raises ``DsmrError`` where that is further than `undo_s` reaches.
        """
        self._require_open()
        gone = self.memory.undo(seconds)
        self._clock.align(self.seconds, self.memory.frame)
        return gone

    def reset(self) -> None:
        """A new piece, which begins with the next message; all is forgotten but the random generator."""
        self._require_open()
        self.memory.begin()
        self._clock.align(self.seconds, self.memory.frame)
        self._fresh = True

    def snapshot(self) -> SavedState:
        """Everything remembered now, copied; the present frame is over with it."""
        self._require_open()
        self._settle()
        moment, player = self.memory.snapshot()
        return SavedState(moment, extra={"player": player, "frame": self.memory.frame})

    def restore(self, state: SavedState) -> None:
        """Goes to a snapshot, this instrument's or another's of the same bundle and graph; what the player
        held then is let go.

        Raises ``BundleError``, with nothing forgotten, for one of another bundle or graph.
        """
        self._require_open()
        self.memory.restore(state.moment, state.extra.get("player", ()))
        self.memory.advance(int(state.extra.get("frame", 0)))  # the silence since the last token
        self._clock.align(self.seconds, self.memory.frame)

    def save(self, path: str | os.PathLike[str], name: str = "") -> None:
        """Writes a snapshot, whole or not at all. Raises ``OutputError``."""
        state = self.snapshot()
        saved_state.write(Path(path), SavedState(state.moment, name, state.extra))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes to a saved state, of `dsmr play` too. Raises ``StateError``, ``BundleError``."""
        self.restore(saved_state.read(Path(path), self.memory.bundle))

    def close(self) -> None:
        """The end; what the model has left sounding is the host's to end (`silence`, before)."""
        self._closed = True

    def __enter__(self) -> Instrument:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise DsmrError("this instrument is closed: open another one")

    def _frame(self, seconds: float) -> int:
        return self._clock.frame(seconds)

    def _hear(self, kind: int, channel: int, data: bytes) -> None:
        memory = self.memory
        if self._fresh:
            self._clock.align(self.seconds, memory.frame)
            self._fresh = False
        # What ended the silence before is an event only when its frame is over; then this one is measured.
        memory.advance(min(self._frame(self.seconds), memory.frame + 2))
        latest = max(memory.frame, memory.last_event + self._longest_rest)
        if self._frame(self.seconds) > latest:
            self._clock.align(self.seconds, latest)
        frame = self._frame(self.seconds)
        if kind == wire.NOTE_ON and data[2]:
            memory.note_on(frame, data[1], data[2], channel)
        elif kind in (wire.NOTE_ON, wire.NOTE_OFF):
            memory.note_off(frame, data[1], channel)
        elif data[1] == wire.SUSTAIN:
            memory.pedal(frame, data[2], channel)
        elif data[1] == wire.RESET_CONTROLLERS:
            memory.pedal(frame, 0, channel)
        else:
            memory.all_off(frame, channel)

    def _generate(self, frames: int | None) -> Iterator[Event]:
        memory, self._fresh = self.memory, False
        self._settle()
        earliest = memory.frame
        end = None if frames is None else earliest + frames
        while not self._closed:
            if not memory.planned:  # the beginning, or the host has fed something
                self._settle()
                earliest = memory.frame
            events = memory.plan(1, earliest)
            if end is not None and memory.plan_frame >= end:
                break
            if memory.planned >= PLAN_TOKENS:  # a silence that is longer than a plan can be: it passes
                memory.advance(memory.plan_frame)
            for event in events:
                if event.kind == "on":
                    memory.note_on(event.frame, event.pitch, event.velocity, by=MODEL)
                else:
                    memory.note_off(event.frame, event.pitch, by=MODEL)
                yield self._timed(event)
        if end is not None and not self._closed:
            memory.forget_plan()
            yield from self._end(max(end, memory.frame))

    def _end(self, frame: int) -> list[Event]:
        pitches = sorted(pitch for pitch, by in self.memory.sounding.items() if by == MODEL)
        self.memory.release(frame, MODEL)
        self.memory.advance(frame + 1)
        return [self._timed(KeyEvent(frame, "off", pitch, 0)) for pitch in pitches]

    def _timed(self, event: KeyEvent) -> Event:
        self.seconds = max(self.seconds, self._clock.seconds(event.frame))
        return Event(self._clock.seconds(event.frame), event.kind, event.pitch, event.velocity)

    def _settle(self) -> None:
        """Time passes until everything heard is certain, and as far as the host said."""
        self.memory.advance(max(self._frame(self.seconds), self.memory.frame))
        if not self.memory.settled:
            self.memory.advance(self.memory.frame + 1)
