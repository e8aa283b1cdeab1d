"""What comes in from the player: bytes become keys, pedals and controls, and go through to the output.

Runs on the thread that MIDI input calls back on; the model hears what is put into the inbox.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from dsmr_export.runtime.live import wire
from dsmr_export.runtime.live.settings import ACTIONS, LiveSettings, velocity_table
from dsmr_export.runtime.live.voices import Voices
from dsmr_export.runtime.memory import PLAYER
from dsmr_export.runtime.performance import PEDAL_DOWN

INBOX_ITEMS = 20_000
"""Beyond so many things unread, which is a flood and no music, note-ons are left out."""

CLOCKS_PER_BAR = 96
"""24 MIDI clocks a quarter note (MIDI 1.0), four quarters."""

CLOCK_GONE_S = 1.0
"""A MIDI clock that was silent for so long has stopped: its slowest beats are closer (30 a minute: 83 ms)."""


class Heard(NamedTuple):
    """Something that happened: `moment` in seconds of `time.monotonic`; number and value by kind: pitch and
    velocity, pedal value, control's name (in `name`) and its value 0-127."""

    moment: float
    kind: Literal["on", "off", "pedal", "all_off", "lost", "control", "action"]
    channel: int = 0
    number: int = 0
    value: int = 0
    name: str = ""


class Input:
    """One MIDI input. `struck` is told of every key before it goes through: (moment, pitch)."""

    def __init__(
        self,
        settings: LiveSettings,
        voices: Voices,
        put: Callable[[Heard], object],
        struck: Callable[[float, int], object],
        unread: Callable[[], int] = lambda: 0,
    ) -> None:
        self.left_out: Counter[str] = Counter()
        self.last_key = 0.0
        """The moment of the last key that went down or up."""
        self.notes = 0
        self._settings, self._voices = settings, voices
        self._put, self._struck, self._unread = put, struck, unread
        self._decoder = wire.Decoder()
        self._velocities = velocity_table(settings.velocity)
        self._held: dict[tuple[int, int], int] = {}  # (channel, key) to the pitch that it sounds
        self._controls = {number: name for name, number in settings.cc.items()}
        self._down: set[str] = set()  # actions whose controller is at 64 or above
        self._pedals: set[int] = set()  # channels whose sustain pedal is down
        self._clocks: deque[float] = deque(maxlen=CLOCKS_PER_BAR + 1)

    @property
    def held(self) -> int:
        """How many keys are down."""
        return len(self._held)

    def bar_s(self, now: float) -> float:
        """Seconds of a bar: by the MIDI clock if one runs, else what was set."""
        clocks = list(self._clocks)
        if len(clocks) == CLOCKS_PER_BAR + 1 and now - clocks[-1] < CLOCK_GONE_S:
            return clocks[-1] - clocks[0]
        return self._settings.bar_s

    def push(self, data: bytes, moment: float) -> None:
        """Bytes from the port, whole messages or not. Never raises for what they hold."""
        for message in self._decoder.push(data):
            if message[0] < 0xF0:
                self._channel_message(message, moment)
            elif message[0] == wire.CLOCK:
                if self._clocks and moment - self._clocks[-1] > CLOCK_GONE_S:
                    self._clocks.clear()
                self._clocks.append(moment)
            elif message[0] == wire.START:
                self._clocks.clear()

    def release(self, moment: float) -> None:
        """The port is gone: its keys come up."""
        self._all_up(moment)
        self._down.clear()
        self._pedals.clear()
        self._clocks.clear()
        self._decoder = wire.Decoder()
        self._voices.end(PLAYER)
        self._put(Heard(moment, "lost"))

    def _channel_message(self, message: bytes, moment: float) -> None:
        kind, channel = message[0] & 0xF0, message[0] & 0x0F
        if self._settings.in_channel not in (None, channel):
            self.left_out["channel"] += 1
        elif kind == wire.NOTE_ON and message[2]:
            self._key_down(message, channel, moment)
        elif kind in (wire.NOTE_ON, wire.NOTE_OFF):
            self._key_up(channel, message[1], message[2] if kind == wire.NOTE_OFF else 64, moment)
        elif not self._lifts_pedal(message) and self._voices.echoes(message, moment):
            self.left_out["echo"] += 1
        elif kind == wire.CONTROL:
            self._control(message, channel, moment)
        else:
            self._through(message)

    def _key_down(self, message: bytes, channel: int, moment: float) -> None:
        if self._voices.echoes(message, moment):
            self.left_out["echo"] += 1
            return
        pitch, velocity = message[1] + self._settings.transpose, self._velocities[message[2]]
        if not 0 <= pitch <= 127:
            self.left_out["pitch"] += 1
            return
        if self._unread() > INBOX_ITEMS:
            self.left_out["flood"] += 1
            return
        self._key_up(channel, message[1], 64, moment)  # struck twice: then it has come up in between
        self._held[channel, message[1]] = pitch
        self.last_key = moment
        self.notes += 1
        self._struck(moment, pitch)
        if self._settings.thru:
            self._voices.note_on(PLAYER, channel, pitch, velocity)
        self._put(Heard(moment, "on", channel, pitch, velocity))

    def _key_up(self, channel: int, key: int, velocity: int, moment: float) -> None:
        pitch = self._held.pop((channel, key), None)
        if pitch is None:
            return  # nothing to end: a stray one, or our own, heard back
        self.last_key = moment
        self._voices.note_off(PLAYER, channel, pitch, velocity)
        self._put(Heard(moment, "off", channel, pitch))

    def _control(self, message: bytes, channel: int, moment: float) -> None:
        _, controller, value = message
        name = self._controls.get(controller)
        if name in ACTIONS:
            if value >= 64 and name not in self._down:
                self._put(Heard(moment, "action", name=name))
            (self._down.add if value >= 64 else self._down.discard)(name)
            return
        if name is not None:
            self._put(Heard(moment, "control", value=value, name=name))
            return
        if controller == wire.ALL_SOUND_OFF or controller >= wire.ALL_NOTES_OFF:  # 124-127 end notes too
            self._all_up(moment, channel)
            self._put(Heard(moment, "all_off", channel))
        elif controller in (wire.SUSTAIN, wire.RESET_CONTROLLERS):
            down = value if controller == wire.SUSTAIN else 0
            (self._pedals.add if down >= PEDAL_DOWN else self._pedals.discard)(channel)
            self._put(Heard(moment, "pedal", channel, value=down))
        self._through(message)

    def _all_up(self, moment: float, channel: int | None = None) -> None:
        for on, key in list(self._held):
            if channel in (None, on):
                self._key_up(on, key, 64, moment)

    def _lifts_pedal(self, message: bytes) -> bool:
        """Whether a pedal that is down comes up: like a note-off that is never taken for an echo, for what
        would be held then would be held for ever."""
        up = message[0] & 0xF0 == wire.CONTROL and message[1] == wire.SUSTAIN and message[2] < PEDAL_DOWN
        return up and message[0] & 0x0F in self._pedals

    def _through(self, message: bytes) -> None:
        if self._settings.thru:
            self._voices.through(message)
