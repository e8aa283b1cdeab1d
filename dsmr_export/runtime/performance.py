"""The canonical performance: piano notes on a grid of frames, the same from a MIDI file and from live events.

Rules: frame = floor(seconds / step + 1/2); the pedal of a channel (CC64 >= 64) holds a note until it is
lifted; a note struck again while it sounds ends at that frame; a note lasts at least one frame; strikes of
one pitch within one frame are one note, as loud as the loudest, released with the last of them. A file reader
and a live input feed the same ``Recorder``, so a model hears on the device exactly what it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import floor
from typing import Literal, NamedTuple

STEP_MS = 10
PIANO_RANGE = (21, 108)
PEDAL_DOWN = 64


class Note(NamedTuple):
    """One note. ``start`` and ``end`` in frames (``end > start``), ``pitch`` 0-127, ``velocity`` 1-127."""

    start: int
    end: int
    pitch: int
    velocity: int


class KeyEvent(NamedTuple):
    """A note that begins or ends at a frame. ``velocity`` is 0 for ``off``."""

    frame: int
    kind: Literal["on", "off"]
    pitch: int
    velocity: int


Performance = list[Note]
"""Notes sorted by (start, pitch): at most one per (frame, pitch), none overlapping another of its pitch."""


def frame_at(seconds: float, step_ms: int = STEP_MS) -> int:
    """The frame of a moment in seconds; halves go up."""
    return floor(seconds * (1000 / step_ms) + 0.5)


class _Voice:
    """A note under way: who struck it, whether the key is still down, whether its end is decided."""

    __slots__ = ("channel", "held", "pitch", "released", "start", "track", "velocity")

    def __init__(self, start: int, pitch: int, velocity: int, channel: int, track: int) -> None:
        self.start, self.pitch, self.velocity = start, pitch, velocity
        self.channel, self.track = channel, track
        self.held, self.released = True, False


class Recorder:
    """Raw key and pedal events in, canonical ``KeyEvent`` out, in token order, each as soon as it is certain.

    A frame is certain once a later one begins, so every method returns the events that became final by moving
    on to its ``frame``: offs by (onset, pitch), then ons by pitch. Frames that run backwards (a jittering
    clock) count as now. A release belongs to the ``track`` and ``channel`` that struck the note: with two
    hands in two tracks, the left hand letting go of a key does not end the note that the right hand struck on
    it since.

    ``pitch_range`` (inclusive) is what the vocabulary can say; notes outside are counted in ``dropped`` and
    left out.
    """

    def __init__(self, pitch_range: tuple[int, int] = PIANO_RANGE) -> None:
        self.dropped = 0
        self.frame = 0
        self._low, self._high = pitch_range
        self._sounding: dict[int, _Voice] = {}  # began before this frame
        self._struck: dict[int, _Voice] = {}  # began in this frame
        self._ended: dict[int, _Voice] = {}  # began before, ends in this frame
        self._pedals: set[int] = set()  # channels with the pedal down

    def note_on(
        self, frame: int, pitch: int, velocity: int, channel: int = 0, track: int = 0
    ) -> list[KeyEvent]:
        """A key goes down. Velocity 0 is a release, as MIDI has it."""
        if velocity <= 0:
            return self.note_off(frame, pitch, channel, track)
        final = self.advance(frame)
        if not self._low <= pitch <= self._high:
            self.dropped += 1
            return final
        voice = self._struck.get(pitch)
        if voice is None:
            previous = self._sounding.pop(pitch, None)
            if previous is not None:
                self._ended[pitch] = previous
            self._struck[pitch] = _Voice(self.frame, pitch, min(velocity, 127), channel, track)
        else:
            voice.velocity = max(voice.velocity, min(velocity, 127))
            voice.channel, voice.track = channel, track
            voice.held, voice.released = True, False
        return final

    def note_off(self, frame: int, pitch: int, channel: int = 0, track: int = 0) -> list[KeyEvent]:
        """A key comes up; its note ends here unless the channel's pedal holds it."""
        final = self.advance(frame)
        voice = self._struck.get(pitch) or self._sounding.get(pitch)
        if voice is not None and voice.held and voice.channel == channel and voice.track == track:
            voice.held = False
            if channel not in self._pedals:
                self._release(voice)
        return final

    def pedal(self, frame: int, value: int, channel: int = 0) -> list[KeyEvent]:
        """The sustain pedal (CC64) moves: down from 64 on; lifting it ends the notes whose keys are up."""
        final = self.advance(frame)
        if value >= PEDAL_DOWN:
            self._pedals.add(channel)
        elif channel in self._pedals:
            self._pedals.remove(channel)
            self._release_all(channel, held=False)
        return final

    def all_off(self, frame: int, channel: int = 0) -> list[KeyEvent]:
        """Every note of the channel ends, pedal or not (CC120 and CC123: a sender's cure for stuck notes)."""
        final = self.advance(frame)
        self._release_all(channel, held=True)
        return final

    def advance(self, frame: int) -> list[KeyEvent]:
        """Time goes on to ``frame``; nothing else happened before it."""
        final: list[KeyEvent] = []
        while self.frame < frame and (self._struck or self._ended):
            final += self._close_frame()  # twice when a note of this frame must end in the next
        self.frame = max(self.frame, frame)
        return final

    def finish(self, frame: int | None = None) -> list[KeyEvent]:
        """The input ends at ``frame`` (default: now), and all that sounds with it; then it may start anew."""
        final = self.advance(self.frame if frame is None else frame)
        for voice in [*self._sounding.values(), *self._struck.values()]:
            self._release(voice)
        final += self.advance(self.frame + 2)
        self._pedals.clear()
        self.frame = 0
        return final

    @property
    def settled(self) -> bool:
        """Whether everything that came is final: nothing of the present frame waits for its end."""
        return not (self._struck or self._ended)

    def owners(self) -> dict[int, int]:
        """The pitches that sound, each with the track that struck it."""
        return {voice.pitch: voice.track for voice in [*self._sounding.values(), *self._struck.values()]}

    def resume(self, frame: int, onsets: Mapping[int, int], tracks: Mapping[int, int]) -> None:
        """Begin anew at ``frame`` with notes that sound already: pitch to frame of onset, pitch to track."""
        self.frame = frame
        self._struck, self._ended = {}, {}
        self._pedals.clear()
        self._sounding = {pitch: _Voice(onset, pitch, 1, 0, tracks[pitch]) for pitch, onset in onsets.items()}

    def release_track(self, frame: int, track: int) -> list[KeyEvent]:
        """Every note of a track ends, pedal or not, and all pedals are up."""
        final = self.advance(frame)
        self._pedals.clear()
        for voice in [*self._sounding.values(), *self._struck.values()]:
            if voice.track == track:
                voice.held = False
                self._release(voice)
        return final

    def _release_all(self, channel: int, held: bool) -> None:
        for voice in [*self._sounding.values(), *self._struck.values()]:
            if voice.channel == channel and (held or not voice.held):
                voice.held = False
                self._release(voice)

    def _release(self, voice: _Voice) -> None:
        if voice.start == self.frame:
            voice.released = True  # ends in the next frame: a note lasts at least one
        else:
            del self._sounding[voice.pitch]
            self._ended[voice.pitch] = voice

    def _close_frame(self) -> list[KeyEvent]:
        """Everything of the current frame, then step to the next, where this frame's shortest notes end."""
        now, ended, struck = self.frame, self._ended, self._struck
        offs = (
            sorted(ended.values(), key=lambda voice: (voice.start, voice.pitch))
            if len(ended) > 1
            else ended.values()
        )
        ons = [struck[pitch] for pitch in sorted(struck)] if len(struck) > 1 else struck.values()
        final = [KeyEvent(now, "off", voice.pitch, 0) for voice in offs]
        final += [KeyEvent(now, "on", voice.pitch, voice.velocity) for voice in ons]
        self._ended, self._struck = {}, {}
        for pitch, voice in struck.items():
            (self._ended if voice.released else self._sounding)[pitch] = voice
        self.frame = now + 1
        return final


def to_notes(events: Iterable[KeyEvent]) -> Performance:
    """Notes from canonical key events (every ``on`` has its ``off`` later)."""
    open_notes: dict[int, KeyEvent] = {}
    notes: Performance = []
    for event in events:
        if event.kind == "on":
            open_notes[event.pitch] = event
        else:
            began = open_notes.pop(event.pitch)
            notes.append(Note(began.frame, event.frame, event.pitch, began.velocity))
    notes.sort(key=lambda note: (note.start, note.pitch))
    return notes


def to_events(performance: Performance) -> Iterator[KeyEvent]:
    """A canonical performance in token order: by frame; offs by (onset, pitch), then ons by pitch."""
    offs = sorted(performance, key=lambda note: (note.end, note.start, note.pitch))
    position = 0
    for note in performance:
        while offs[position].end <= note.start:
            yield KeyEvent(offs[position].end, "off", offs[position].pitch, 0)
            position += 1
        yield KeyEvent(note.start, "on", note.pitch, note.velocity)
    for ended in offs[position:]:
        yield KeyEvent(ended.end, "off", ended.pitch, 0)


def canonical(performance: Iterable[Note], pitch_range: tuple[int, int] = PIANO_RANGE) -> Performance:
    """Any notes (transposed, stretched, edited: overlapping, out of range) as a canonical performance."""
    raw: list[tuple[int, int, int, int, int]] = []
    for index, note in enumerate(performance):
        start = max(note.start, 0)
        raw.append((start, 1, note.pitch, note.velocity, index))
        raw.append((max(note.end, start + 1), 0, note.pitch, 0, index))
    recorder = Recorder(pitch_range)
    events: list[KeyEvent] = []
    for frame, is_on, pitch, velocity, index in sorted(raw):
        # The index as the track: the end of a note that was cut short must not end the one that cut it.
        if is_on:
            events += recorder.note_on(frame, pitch, velocity, track=index)
        else:
            events += recorder.note_off(frame, pitch, track=index)
    return to_notes(events + recorder.finish())
