"""What was heard and played, kept to be written as a MIDI file."""

from __future__ import annotations

import os
from array import array

from dsmr_export.runtime.memory import PLAYER
from dsmr_export.runtime.midi import write_midi
from dsmr_export.runtime.performance import KeyEvent, Performance, Recorder, to_notes

_ON, _OFF, _PEDAL = range(3)


class Recording:
    """Events as they sounded, eleven bytes each, so that hours are no burden."""

    def __init__(self) -> None:
        self._moments = array("d")
        self._bytes = array("B")

    def add(self, moment: float, by: int, event: KeyEvent) -> None:
        """moment in seconds; `by` keeps the player's and the model's notes of one pitch apart."""
        self._add(moment, by << 2 | (_ON if event.kind == "on" else _OFF), event.pitch, event.velocity)

    def pedal(self, moment: float, value: int) -> None:
        """The player's sustain pedal, which holds the player's notes."""
        self._add(moment, PLAYER << 2 | _PEDAL, 0, value)

    def performance(self, pitch_range: tuple[int, int], step_ms: int) -> Performance:
        """The notes from the first event on, held by the pedal; what still sounds ends with the last."""
        if not self._moments:
            return []
        recorder, events = Recorder(pitch_range), []
        start, frame = min(self._moments), 0
        for index in sorted(range(len(self._moments)), key=self._moments.__getitem__):
            frame = round((self._moments[index] - start) * 1000 / step_ms)
            what, pitch, value = self._bytes[3 * index : 3 * index + 3]
            by = what >> 2  # a channel of each one's own: the pedal holds no note of the model's
            if what & 3 == _ON:
                events += recorder.note_on(frame, pitch, value, channel=by, track=by)
            elif what & 3 == _OFF:
                events += recorder.note_off(frame, pitch, channel=by, track=by)
            else:
                events += recorder.pedal(frame, value, channel=by)
        return to_notes(events + recorder.finish(frame))

    def _add(self, moment: float, what: int, number: int, value: int) -> None:
        self._moments.append(moment)
        self._bytes.extend((what, number, value))

    def save(self, path: str | os.PathLike[str], pitch_range: tuple[int, int], step_ms: int) -> int:
        """Writes a MIDI file; how many notes it has. Raises ``OutputError``."""
        notes = self.performance(pitch_range, step_ms)
        write_midi(notes, path, step_ms=step_ms)
        return len(notes)
