"""MIDI 1.0 as bytes: messages from any stream, and back.

Running status, real-time bytes in the middle of a message, SysEx of any length, stray data: as the MIDI 1.0
Detailed Specification (document version 4.2, appendix "receiver's decision tree") has it. mido's parser knows
no running status.
"""

from __future__ import annotations

from collections.abc import Iterable

NOTE_OFF, NOTE_ON, CONTROL, PROGRAM = 0x80, 0x90, 0xB0, 0xC0
CLOCK, START, ACTIVE_SENSING = 0xF8, 0xFA, 0xFE
SUSTAIN, ALL_SOUND_OFF, RESET_CONTROLLERS, ALL_NOTES_OFF = 64, 120, 121, 123

_DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}
_COMMON_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}


class Decoder:
    """Bytes in, in pieces of any size; whole messages out. SysEx and what is undefined is passed over."""

    def __init__(self) -> None:
        self._status = 0  # 0: data bytes mean nothing
        self._data: list[int] = []

    def push(self, data: Iterable[int]) -> list[bytes]:
        """The messages that these bytes complete: channel messages, system common ones, real-time ones."""
        messages = []
        for byte in data:
            if byte >= 0xF8:  # real time: may come anywhere, and changes nothing
                messages.append(bytes([byte]))
            elif byte >= 0x80:
                self._status = byte if byte < 0xF0 or byte in _COMMON_DATA_BYTES else 0
                self._data = []
                if byte == 0xF6:
                    messages.append(b"\xf6")
            elif self._status:
                self._data.append(byte)
                if len(self._data) == self._wanted():
                    messages.append(bytes([self._status, *self._data]))
                    self._data = []
                    if self._status >= 0xF0:
                        self._status = 0  # running status is for channel messages
        return messages

    def _wanted(self) -> int:
        if self._status >= 0xF0:
            return _COMMON_DATA_BYTES[self._status]
        return _DATA_BYTES[self._status & 0xF0]


def note_on(channel: int, pitch: int, velocity: int) -> bytes:
    return bytes([NOTE_ON | channel, pitch, velocity])


def note_off(channel: int, pitch: int, velocity: int = 64) -> bytes:
    """64 is what MIDI gives to "no release velocity measured"."""
    return bytes([NOTE_OFF | channel, pitch, velocity])


def control(channel: int, controller: int, value: int) -> bytes:
    return bytes([CONTROL | channel, controller, value])


def program(channel: int, number: int) -> bytes:
    return bytes([PROGRAM | channel, number])
