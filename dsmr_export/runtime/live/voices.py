"""Everything that sounds on the output, and who began it: the one place that sends, so nothing sticks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from dsmr_export.runtime.live import wire
from dsmr_export.runtime.memory import PLAYER

ECHO_S = 0.030
"""What comes in as it went out no longer than this ago is our own output, heard back through a loop."""

Send = Callable[[bytes], object]


class Voices:
    """Notes by (PLAYER or MODEL, channel, pitch). Safe for threads.

    A note-off goes out when the last that holds a (channel, pitch) lets go, so that neither ends the other's.
    """

    def __init__(
        self, send: Send, now: Callable[[], float], program: int | None = None, channel: int = 0
    ) -> None:
        self._send_bytes = send
        self._now = now
        self._program, self._channel = program, channel
        self._lock = threading.RLock()
        self._sounding: dict[tuple[int, int, int], float] = {}
        self._pedals: set[int] = set()
        self._channels: set[int] = {channel}
        self._recent: deque[tuple[float, bytes]] = deque(maxlen=256)
        self._closed = False

    @property
    def sounding(self) -> dict[tuple[int, int, int], float]:
        """(by, channel, pitch) of every note that sounds, with the moment it began."""
        with self._lock:
            return dict(self._sounding)

    def start(self) -> None:
        """What a port needs that is new, or back: silence, and the program."""
        with self._lock:
            self._silence_port()
            if self._program is not None:
                self._send(wire.program(self._channel, self._program))

    def note_on(self, by: int, channel: int, pitch: int, velocity: int) -> None:
        with self._lock:
            if self._closed:
                return
            self._sounding[by, channel, pitch] = self._now()
            self._channels.add(channel)
            self._send(wire.note_on(channel, pitch, velocity))

    def note_off(self, by: int, channel: int, pitch: int, velocity: int = 64) -> bool:
        """Whether there was such a note."""
        with self._lock:
            if self._sounding.pop((by, channel, pitch), None) is None:
                return False
            if not any(key[1:] == (channel, pitch) for key in self._sounding):
                self._send(wire.note_off(channel, pitch, velocity))
            return True

    def through(self, message: bytes) -> None:
        """Any other channel message of the player's."""
        with self._lock:
            if self._closed:
                return
            channel = message[0] & 0x0F
            self._channels.add(channel)
            if message[0] & 0xF0 == wire.CONTROL and message[1] == wire.SUSTAIN:
                (self._pedals.add if message[2] >= 64 else self._pedals.discard)(channel)
            self._send(message)

    def end(self, by: int) -> int:
        """Ends every note of PLAYER (and lifts the pedals) or of MODEL; how many there were."""
        with self._lock:
            ended = [key for key in self._sounding if key[0] == by]
            for key in ended:
                self.note_off(*key)
            if by == PLAYER:
                for channel in sorted(self._pedals):
                    self._send(wire.control(channel, wire.SUSTAIN, 0))
                self._pedals.clear()
            return len(ended)

    def panic(self) -> None:
        """Ends everything, by each of the ways that a synthesizer may know."""
        with self._lock:
            for key in list(self._sounding):
                self.note_off(*key)
            self._pedals.clear()
            self._silence_port()

    def close(self) -> None:
        """Ends everything, and lets nothing begin any more: a thread that is late finds the door shut."""
        with self._lock:
            self.panic()
            self._closed = True

    def lost(self) -> None:
        """The port is gone, and with it what sounded there."""
        with self._lock:
            self._sounding.clear()
            self._pedals.clear()

    def echoes(self, message: bytes, moment: float) -> bool:
        """Whether this message that came in is one that went out just now; each accounts for one."""
        with self._lock:
            while self._recent and moment - self._recent[0][0] > ECHO_S:
                self._recent.popleft()
            for sent in self._recent:
                if sent[1] == message:
                    self._recent.remove(sent)
                    return True
            return False

    def _silence_port(self) -> None:
        for channel in sorted(self._channels):
            for controller in (wire.SUSTAIN, wire.ALL_NOTES_OFF, wire.ALL_SOUND_OFF):
                self._send(wire.control(channel, controller, 0))

    def _send(self, message: bytes) -> None:
        self._recent.append((self._now(), message))
        self._send_bytes(message)
