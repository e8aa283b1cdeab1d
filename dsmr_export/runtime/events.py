"""Token ids from key events and back, by the manifest's event table alone (no miditok).

Encoding is the same stream of ids that miditok's MIDILike makes of the canonical score, one event at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dsmr_export.errors import BundleError
from dsmr_export.runtime.performance import KeyEvent, Performance, to_events, to_notes

if TYPE_CHECKING:
    from dsmr_export.manifest import EventEntry


@dataclass(frozen=True)
class EventTable:
    """What each id means. ``kinds[i]`` is on, off, velocity, shift or special; ``values[i]`` a pitch (on,
    off), a MIDI velocity, a number of steps of ``step_ms`` (shift) or a name (special).

    Raises ``BundleError`` for a table that cannot say every performance.
    """

    step_ms: int
    kinds: tuple[str, ...]
    values: tuple[int | str, ...]

    @classmethod
    def from_json(cls, events: Mapping[str, Any]) -> EventTable:
        """From the manifest's ``events`` as plain JSON (also what ``model.tokenizer.event_table`` gives)."""
        tokens = events["tokens"]
        return cls(
            events["step_ms"],
            tuple(token["kind"] for token in tokens),
            tuple(token["value"] for token in tokens),
        )

    @classmethod
    def from_entry(cls, events: EventEntry) -> EventTable:
        """From a ``Manifest``'s ``events``."""
        kinds = tuple(token.kind for token in events.tokens)
        # A step that is no whole number is refused below.
        return cls(events.step_ms, kinds, tuple(token.value for token in events.tokens))  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.step_ms != int(self.step_ms) or self.step_ms < 1:
            raise BundleError(
                f"events.step_ms is {self.step_ms}, not a whole number of milliseconds; export again"
            )
        object.__setattr__(self, "step_ms", int(self.step_ms))
        if set(self.on_ids) != set(self.off_ids) or not self.on_ids:
            raise BundleError("events: the pitches of on and off differ or are none; export the bundle again")
        if not self.velocities or 1 not in self.shift_ids:
            raise BundleError("events: there is no velocity or no shift of one step; export the bundle again")

    def __len__(self) -> int:
        return len(self.kinds)

    def _by_value(self, kind: str) -> dict[int, int]:
        pairs = zip(self.kinds, self.values, strict=True)
        return {int(value): token for token, (k, value) in enumerate(pairs) if k == kind}

    @cached_property
    def on_ids(self) -> dict[int, int]:
        """Pitch to the id of its note-on."""
        return self._by_value("on")

    @cached_property
    def off_ids(self) -> dict[int, int]:
        """Pitch to the id of its note-off."""
        return self._by_value("off")

    @cached_property
    def shift_ids(self) -> dict[int, int]:
        """Number of steps to the id of that shift."""
        return self._by_value("shift")

    @cached_property
    def velocities(self) -> dict[int, int]:
        """MIDI velocity to its id."""
        return self._by_value("velocity")

    @cached_property
    def velocity_ids(self) -> tuple[int, ...]:
        """Id of the nearest velocity for every MIDI velocity 0-127; ties go to the louder, as in miditok."""
        bins = sorted(self.velocities)
        nearest = (min(bins, key=lambda bin_: (abs(bin_ - velocity), -bin_)) for velocity in range(128))
        return tuple(self.velocities[velocity] for velocity in nearest)

    @cached_property
    def longest_shift(self) -> int:
        """Steps of the longest shift; longer silences are chained from it."""
        return max(self.shift_ids)

    @property
    def pitch_range(self) -> tuple[int, int]:
        """Lowest and highest pitch that has a token, both inclusive: for ``read_midi`` and ``Recorder``."""
        return min(self.on_ids), max(self.on_ids)

    def special_id(self, name: str) -> int | None:
        """Id of ``pad``, ``bos`` or ``eos``; None if there is none."""
        for token, kind in enumerate(self.kinds):
            if kind == "special" and self.values[token] == name:
                return token
        return None


class Encoder:
    """Ids of key events as they happen. Feed it what a ``Recorder`` returns: events in canonical order.

    ``frame`` is the moment up to which time was said.
    """

    def __init__(self, table: EventTable, frame: int = 0) -> None:
        self.table = table
        self.frame = frame

    def push(self, event: KeyEvent) -> list[int]:
        """The ids of one event: the shifts up to it, then off, or on and its velocity."""
        ids = self.wait(event.frame) if event.frame > self.frame else []
        if event.kind == "on":
            ids.append(self.table.on_ids[event.pitch])
            ids.append(self.table.velocity_ids[event.velocity])
        else:
            ids.append(self.table.off_ids[event.pitch])
        return ids

    def advance(self, frame: int) -> list[int]:
        """What silence up to ``frame`` makes certain: longest shifts only, so the chain is the same."""
        count = max(frame - self.frame, 0) // self.table.longest_shift
        self.frame += count * self.table.longest_shift
        return [self.table.shift_ids[self.table.longest_shift]] * count

    def wait(self, frame: int) -> list[int]:
        """The ids of the whole time up to ``frame``: where somebody else goes on from that very moment."""
        ids = self.advance(frame)
        rest = frame - self.frame
        if rest > 0:
            exact = self.table.shift_ids.get(rest)
            ids += [exact] if exact is not None else self._pieces(rest)
            self.frame = frame
        return ids

    def _pieces(self, rest: int) -> list[int]:
        """A gap that has no token of its own, said by the largest shifts that fit."""
        ids: list[int] = []
        for steps in sorted(self.table.shift_ids, reverse=True):
            ids += [self.table.shift_ids[steps]] * (rest // steps)
            rest %= steps
        return ids


def encode(performance: Performance, table: EventTable) -> list[int]:
    """Ids of a canonical performance within the table's pitches, without BOS and EOS."""
    encoder = Encoder(table)
    ids: list[int] = []
    for event in to_events(performance):
        ids += encoder.push(event)
    return ids


class Decoder:
    """Key events of ids as they come. Any ids do: what makes no sense is passed over, and every note that
    begins can end.

    A note-on counts once its velocity came. A note struck again while it sounds ends at that frame. A
    note-off in the frame of its own note-on takes effect a frame later. BOS and EOS let go of everything.
    ``frame`` is the present, ``sounding`` the pitches that sound.
    """

    def __init__(self, table: EventTable, frame: int = 0) -> None:
        self.table = table
        self.frame = frame
        self._began: dict[int, int] = {}  # pitch: frame of its onset
        self._due: list[int] = []  # let go in their first frame
        self._pending: int | None = None  # a note-on that waits for its velocity

    @property
    def sounding(self) -> frozenset[int]:
        return frozenset(self._began) - frozenset(self._due)

    def push(self, token: int) -> list[KeyEvent]:
        """The events that one id causes: none (an on waits for its velocity), one, or more."""
        if not 0 <= token < len(self.table):
            return []
        kind, value = self.table.kinds[token], self.table.values[token]
        if value == "pad":
            return []
        pending, self._pending = self._pending, None
        if not isinstance(value, int):  # BOS, EOS
            return [event for pitch in list(self._began) for event in self._let_go(pitch)]
        if kind == "shift":
            return self._shift(value)
        if kind == "velocity":
            return [] if pending is None else self._strike(pending, value)
        if kind == "on":
            self._pending = value
            return []
        return self._let_go(value)

    def close(self, frame: int | None = None) -> list[KeyEvent]:
        """End every sounding note at ``frame`` (default: now), yet not before its first frame is over."""
        self.frame = max(self.frame, self.frame if frame is None else frame)
        ends = sorted((max(self.frame, began + 1), began, pitch) for pitch, began in self._began.items())
        self._began, self._due, self._pending = {}, [], None
        return [KeyEvent(end, "off", pitch, 0) for end, _, pitch in ends]

    def copy(self) -> Decoder:
        """Another decoder at the same point."""
        twin = Decoder(self.table, self.frame)
        twin._began, twin._due, twin._pending = dict(self._began), list(self._due), self._pending
        return twin

    def _shift(self, steps: int) -> list[KeyEvent]:
        events = [KeyEvent(self.frame + 1, "off", pitch, 0) for pitch in self._due]
        for pitch in self._due:
            del self._began[pitch]
        self._due = []
        self.frame += steps
        return events

    def _strike(self, pitch: int, velocity: int) -> list[KeyEvent]:
        began = self._began.get(pitch)
        if began == self.frame:
            if pitch in self._due:
                self._due.remove(pitch)  # struck twice in one frame: one note, not yet let go
            return []
        self._began[pitch] = self.frame
        on = KeyEvent(self.frame, "on", pitch, velocity)
        return [on] if began is None else [KeyEvent(self.frame, "off", pitch, 0), on]

    def _let_go(self, pitch: int) -> list[KeyEvent]:
        began = self._began.get(pitch)
        if began is None or pitch in self._due:
            return []
        if began == self.frame:
            self._due.append(pitch)
            return []
        del self._began[pitch]
        return [KeyEvent(self.frame, "off", pitch, 0)]


def decode(ids: Iterable[int] | Sequence[int], table: EventTable) -> Performance:
    """The performance that ids say; what still sounds at their end ends there."""
    decoder = Decoder(table)
    events: list[KeyEvent] = []
    for token in ids:
        events += decoder.push(token)
    return to_notes(events + decoder.close())
