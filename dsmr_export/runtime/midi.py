"""Standard MIDI files: read one as a canonical performance, write a performance as one."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from dsmr_export.errors import MidiError
from dsmr_export.runtime.files import write_atomically
from dsmr_export.runtime.performance import PIANO_RANGE, STEP_MS, Performance, Recorder, to_events, to_notes

MAX_HOURS = 24
"""A longer file is damaged (a broken delta time) or hostile: each second of silence becomes a token."""

_DEFAULT_TEMPO = 500_000  # microseconds per quarter note
_SUSTAIN, _ALL_SOUND_OFF, _RESET, _ALL_NOTES_OFF = 64, 120, 121, 123
_CONTROLS = frozenset({_SUSTAIN, _ALL_SOUND_OFF, _RESET, _ALL_NOTES_OFF})


@dataclass(frozen=True)
class Reading:
    """A performance and how many notes were left out because the vocabulary has no word for their pitch."""

    performance: Performance
    dropped: int


def read_midi(
    source: str | os.PathLike[str] | bytes | IO[bytes],
    pitch_range: tuple[int, int] = PIANO_RANGE,
    step_ms: int = STEP_MS,
    name: str | None = None,
) -> Performance:
    """The canonical performance of a Standard MIDI File (a path, its bytes, or an open binary file).

    ``pitch_range`` is inclusive; ``name`` is what messages call the file. Raises ``MidiError`` for what is
    missing, empty, not MIDI, cut short, endless, or without a note in range.
    """
    return read(source, pitch_range, step_ms, name).performance


def read(
    source: str | os.PathLike[str] | bytes | IO[bytes],
    pitch_range: tuple[int, int] = PIANO_RANGE,
    step_ms: int = STEP_MS,
    name: str | None = None,
) -> Reading:
    """As ``read_midi``, with the count of notes outside ``pitch_range``."""
    data, name = _bytes_of(source, name)
    midi = _parse(data, name)
    recorder = Recorder(pitch_range)
    events = []
    end = 0
    for frame, track, message in _timed(midi, step_ms, name):
        end = frame
        if message.type == "note_on":
            events += recorder.note_on(frame, message.note, message.velocity, message.channel, track)
        elif message.type == "note_off":
            events += recorder.note_off(frame, message.note, message.channel, track)
        elif message.type == "control_change":
            if message.control == _SUSTAIN:
                events += recorder.pedal(frame, message.value, message.channel)
            elif message.control == _RESET:
                events += recorder.pedal(frame, 0, message.channel)
            else:
                events += recorder.all_off(frame, message.channel)
    events += recorder.finish(end)
    if not events and recorder.dropped:
        low, high = pitch_range
        raise MidiError(
            f"{name}: all {recorder.dropped} notes lie outside the pitches {low}-{high} of the vocabulary; "
            "transpose it"
        )
    if not events:
        raise MidiError(f"{name}: holds no notes; give a MIDI file with at least one")
    return Reading(to_notes(events), recorder.dropped)


def write_midi(
    performance: Performance, path: str | os.PathLike[str], program: int = 0, step_ms: int = STEP_MS
) -> None:
    """Write a performance as a one-track MIDI file; the old file, if any, stays until the new one is
    complete.

    One tick is one millisecond (500 ticks per quarter note at 120 bpm), so reading it back gives the same
    performance. ``program`` is the General MIDI program, 0 = grand piano. Raises ``OutputError`` if it cannot
    be written.
    """
    import mido

    track = mido.MidiTrack(
        [mido.MetaMessage("set_tempo", tempo=_DEFAULT_TEMPO), mido.Message("program_change", program=program)]
    )
    now = 0
    for event in to_events(performance):
        # A release carries 64, the value MIDI gives to "no release velocity measured".
        velocity = event.velocity if event.kind == "on" else 64
        delta = (event.frame - now) * step_ms
        track.append(mido.Message(f"note_{event.kind}", note=event.pitch, velocity=velocity, time=delta))
        now = event.frame
    data = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=500, tracks=[track]).save(file=data)
    write_atomically(Path(path), data.getvalue())


def _bytes_of(source: str | os.PathLike[str] | bytes | IO[bytes], name: str | None) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, name or "MIDI data"
    if isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
        try:
            return Path(source).read_bytes(), name
        except OSError as error:
            raise MidiError(f"{name}: cannot be read ({error.strerror or error}); check the path") from error
    return source.read(), name or str(getattr(source, "name", "MIDI data"))


def _parse(data: bytes, name: str) -> Any:
    """A ``mido.MidiFile``; data above 127 clipped, text as latin-1: only broken structure is refused."""
    import mido

    if not data:
        raise MidiError(f"{name}: is empty (0 bytes); give a Standard MIDI File")
    if not data.startswith(b"MThd"):
        raise MidiError(
            f"{name}: is not a MIDI file (it does not begin with MThd); give a Standard MIDI File (.mid)"
        )
    try:
        midi = mido.MidiFile(file=io.BytesIO(data), clip=True)
    except EOFError as error:
        raise MidiError(f"{name}: is cut short (the data end inside a track); get the file again") from error
    except (
        Exception
    ) as error:  # mido names no base class: OSError, ValueError, KeyError, IndexError, struct.error ...
        raise MidiError(
            f"{name}: is a damaged MIDI file ({error}); get the file again or re-save it in an editor"
        ) from error
    if midi.ticks_per_beat == 0 or (midi.ticks_per_beat < 0 and midi.ticks_per_beat & 0xFF == 0):
        raise MidiError(
            f"{name}: is a damaged MIDI file (its header gives no time division); re-save it in an editor"
        )
    return midi


def _timed(midi: Any, step_ms: int, name: str) -> Iterator[tuple[int, int, Any]]:
    """(frame, track, message) in order of time, of what ``_merged`` gives; whole numbers: no drift."""
    unit, per_second, smpte = 1, midi.ticks_per_beat * 1_000_000, midi.ticks_per_beat < 0
    if smpte:
        rate = -(midi.ticks_per_beat >> 8)  # frames of film per second
        # 29 means 30 drop-frame: 30000/1001 a second.
        unit, per_second = (1001, 30_000) if rate == 29 else (1, rate)
        per_second *= midi.ticks_per_beat & 0xFF
    tempo, last_tick, elapsed = _DEFAULT_TEMPO, 0, 0
    limit = MAX_HOURS * 3600 * per_second
    for tick, track, message in _merged(midi):
        elapsed += (tick - last_tick) * (unit if smpte else tempo)
        last_tick = tick
        if elapsed > limit:
            raise MidiError(
                f"{name}: lasts more than {MAX_HOURS} hours (a damaged time?); cut it into shorter files"
            )
        if message.type == "set_tempo":
            tempo = message.tempo
        else:
            # floor(seconds / step + 1/2), seconds = elapsed / per_second
            yield (2000 * elapsed + step_ms * per_second) // (2 * step_ms * per_second), track, message


def _merged(midi: Any) -> list[tuple[int, int, Any]]:
    """(tick, track, message) of all tracks by tick, for what matters here; type 2: track after track."""
    merged: list[tuple[int, int, Any]] = []
    begin = 0
    for index, track in enumerate(midi.tracks):
        tick = begin
        for message in track:
            tick += message.time
            kind = message.type
            if (
                (
                    kind == "note_on"
                    or kind == "note_off"
                    or (kind == "control_change" and message.control in _CONTROLS)
                )
                or kind == "set_tempo"
                or kind == "end_of_track"
            ):
                merged.append((tick, index, message))
        if midi.type == 2:
            begin = tick
    merged.sort(key=itemgetter(0))
    return merged
