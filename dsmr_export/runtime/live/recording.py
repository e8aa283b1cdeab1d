"""What was heard and played, kept to be written as a MIDI file."""

from __future__ import annotations

import os
from array import array

from dsmr_export.runtime.midi import write_midi
from dsmr_export.runtime.performance import KeyEvent, Performance, Recorder, to_notes


class Recording:
    """Events as they sounded, ten bytes each, so that hours are no burden."""

    def __init__(self) -> None:
        self._moments = array("d")
        self._bytes = array("B")

    def add(self, moment: float, by: int, event: KeyEvent) -> None:
        """moment in seconds; `by` keeps the player's and the model's notes of one pitch apart."""
        self._moments.append(moment)
        self._bytes.extend((by << 7 | event.pitch, event.velocity if event.kind == "on" else 0))

    def performance(self, pitch_range: tuple[int, int], step_ms: int) -> Performance:
        """The notes from the first on; what still sounds ends with the last event."""
        recorder, events = Recorder(pitch_range), []
        if not self._moments:
            return []
        start, frame = min(self._moments), 0
        order = sorted(range(len(self._moments)), key=self._moments.__getitem__)
        for index in order:
            frame = round((self._moments[index] - start) * 1000 / step_ms)
            who, velocity = self._bytes[2 * index] >> 7, self._bytes[2 * index + 1]
            pitch = self._bytes[2 * index] & 0x7F
            if velocity:
                events += recorder.note_on(frame, pitch, velocity, track=who)
            else:
                events += recorder.note_off(frame, pitch, track=who)
        return to_notes(events + recorder.finish(frame))

    def save(self, path: str | os.PathLike[str], pitch_range: tuple[int, int], step_ms: int) -> int:
        """Writes a MIDI file; how many notes it has. Raises ``OutputError``."""
        notes = self.performance(pitch_range, step_ms)
        write_midi(notes, path, step_ms=step_ms)
        return len(notes)
