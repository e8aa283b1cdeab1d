"""What comes in from the player: what goes through, what the memory is told, what is left out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export.runtime.live import wire
from dsmr_export.runtime.live.input import INBOX_ITEMS, Heard, Input
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.live.voices import ECHO_S, Voices
from dsmr_export.runtime.memory import MODEL, PLAYER


class Desk:
    """An input and what it leads to. `sent`: bytes; `heard`: (kind, channel, number, value, name)."""

    def __init__(self, **options: Any) -> None:
        self.now = 100.0
        self.sent: list[bytes] = []
        self.items: list[Heard] = []
        self.struck: list[int] = []
        self.unread = 0
        settings = LiveSettings(**options)
        self.voices = Voices(self.sent.append, lambda: self.now, settings.program, settings.channel)
        self.input = Input(
            settings,
            self.voices,
            self.items.append,
            lambda moment, pitch: self.struck.append(pitch),
            lambda: self.unread,
        )

    def push(self, *messages: bytes, after: float = 0.1) -> Desk:
        """Each so many seconds after the one before."""
        for message in messages:
            self.now += after
            self.input.push(message, self.now)
        return self

    @property
    def heard(self) -> list[tuple]:
        return [tuple(item)[1:] for item in self.items]


ON, OFF = b"\x90\x3c\x40", b"\x80\x3c\x20"


def test_keys_go_through_as_they_are_and_are_heard() -> None:
    desk = Desk().push(ON, OFF)
    assert desk.sent == [ON, OFF]
    assert desk.heard == [("on", 0, 60, 64, ""), ("off", 0, 60, 0, "")]
    assert desk.struck == [60] and desk.input.notes == 1 and desk.input.held == 0
    assert desk.items[1].moment == desk.input.last_key == desk.now


def test_a_note_on_of_velocity_0_is_a_note_off() -> None:
    desk = Desk().push(ON, b"\x90\x3c\x00")
    assert desk.sent == [ON, wire.note_off(0, 60)] and desk.heard[-1] == ("off", 0, 60, 0, "")


def test_without_thru_everything_is_heard_and_nothing_sent() -> None:
    desk = Desk(thru=False).push(ON, OFF, b"\xb0\x40\x7f", b"\xe0\x00\x40", b"\xb0\x7b\x00")
    assert desk.sent == []
    assert [kind for kind, *_ in desk.heard] == ["on", "off", "pedal", "all_off"]


def test_a_key_struck_twice_came_up_in_between() -> None:
    desk = Desk().push(ON, b"\x90\x3c\x41", OFF, OFF)
    assert desk.sent == [ON, wire.note_off(0, 60), b"\x90\x3c\x41", OFF]
    assert [kind for kind, *_ in desk.heard] == ["on", "off", "on", "off"]


def test_only_one_channel_where_that_was_asked_for() -> None:
    desk = Desk(in_channel=2).push(ON, b"\x92\x3c\x40", b"\x80\x3c\x40", b"\xb0\x40\x7f", b"\x82\x3c\x40")
    assert desk.sent == [b"\x92\x3c\x40", b"\x82\x3c\x40"]
    assert desk.input.left_out == {"channel": 3} and len(desk.items) == 2


@given(st.integers(-48, 48), st.integers(0, 127))
def test_transposed_within_midi_or_left_out(transpose: int, key: int) -> None:
    desk = Desk(transpose=transpose).push(bytes([0x90, key, 64]), bytes([0x80, key, 64]))
    pitch = key + transpose
    if 0 <= pitch <= 127:
        assert desk.sent == [bytes([0x90, pitch, 64]), bytes([0x80, pitch, 64])]
        assert [item.number for item in desk.items] == [pitch, pitch]
    else:
        assert desk.sent == [] == desk.items and desk.input.left_out == {"pitch": 1}
        assert desk.input.held == 0 and desk.struck == []


def test_a_velocity_curve_is_heard_and_sent() -> None:
    desk = Desk(velocity="fixed:99").push(ON)
    assert desk.sent == [b"\x90\x3c\x63"] and desk.heard == [("on", 0, 60, 99, "")]


def test_a_controller_turns_a_control_and_goes_no_further() -> None:
    desk = Desk(cc={"temperature": 20}).push(b"\xb3\x14\x05", b"\xb3\x15\x05")
    assert desk.heard == [("control", 0, 0, 5, "temperature")] and desk.sent == [b"\xb3\x15\x05"]


def test_an_action_comes_when_its_controller_passes_64_upwards() -> None:
    desk = Desk(cc={"undo": 64})
    desk.push(*(bytes([0xB0, 64, value]) for value in (63, 64, 127, 65, 63, 0, 64)))
    assert desk.heard == [("action", 0, 0, 0, "undo")] * 2 and desk.sent == []


def test_pedal_sound_off_and_notes_off() -> None:
    desk = Desk().push(ON, b"\x91\x3e\x40", b"\xb0\x40\x7f", b"\xb0\x7b\x00", OFF)
    assert desk.heard == [
        ("on", 0, 60, 64, ""),
        ("on", 1, 62, 64, ""),
        ("pedal", 0, 0, 127, ""),
        ("off", 0, 60, 0, ""),
        ("all_off", 0, 0, 0, ""),
    ]
    assert desk.input.held == 1  # the other channel's
    assert desk.sent[-2:] == [wire.note_off(0, 60), b"\xb0\x7b\x00"]  # then OFF has nothing to end


@pytest.mark.parametrize("controller", [120, 123, 124, 125, 126, 127])
def test_every_message_that_ends_notes_ends_notes(controller: int) -> None:
    """MIDI 1.0: mode messages 124 to 127 end all notes too."""
    desk = Desk().push(ON, bytes([0xB0, controller, 0]))
    assert [kind for kind, *_ in desk.heard] == ["on", "off", "all_off"] and desk.input.held == 0


def test_controllers_at_rest_lift_the_pedal() -> None:
    assert Desk().push(b"\xb5\x79\x00").heard == [("pedal", 5, 0, 0, "")]


def test_what_is_no_key_goes_through() -> None:
    messages = [b"\xc0\x05", b"\xe0\x00\x20", b"\xd0\x30", b"\xa0\x3c\x30", b"\xb0\x01\x11", b"\xb0\x78\x00"]
    desk = Desk().push(*messages)
    assert desk.sent == messages and [kind for kind, *_ in desk.heard] == ["all_off"]


# Feedback: an output that is cabled back into the input


def test_our_own_notes_heard_back_are_ignored_and_never_sent_again() -> None:
    desk = Desk()
    desk.voices.note_on(MODEL, 0, 60, 64)
    desk.push(ON, after=ECHO_S - 0.001)
    assert desk.items == [] and desk.sent == [ON] and desk.input.left_out == {"echo": 1}
    desk.voices.note_off(MODEL, 0, 60)
    desk.push(wire.note_off(0, 60), after=0.01)
    assert desk.items == [] and len(desk.sent) == 2 and desk.input.held == 0


def test_later_than_that_it_is_the_player() -> None:
    desk = Desk()
    desk.voices.note_on(MODEL, 0, 60, 64)
    desk.push(ON, after=ECHO_S + 0.001)
    assert desk.heard == [("on", 0, 60, 64, "")]


def test_an_echo_accounts_for_one_message() -> None:
    desk = Desk()
    desk.voices.note_on(MODEL, 0, 60, 64)
    desk.push(ON, ON, after=0.01)
    assert desk.heard == [("on", 0, 60, 64, "")]


def test_another_velocity_channel_or_pitch_is_no_echo() -> None:
    desk = Desk()
    desk.voices.note_on(MODEL, 0, 60, 64)
    desk.push(b"\x90\x3c\x41", b"\x91\x3c\x40", b"\x90\x3d\x40", after=0.001)
    assert len(desk.items) == 3 and not desk.input.left_out


def test_a_genuine_release_is_never_taken_for_an_echo() -> None:
    desk = Desk().push(ON, after=0.001)
    desk.voices.note_on(MODEL, 0, 60, 30)
    desk.voices.note_off(MODEL, 0, 60)
    desk.push(wire.note_off(0, 60), after=0.001)
    assert desk.input.held == 0 and desk.sent[-1] == wire.note_off(0, 60)
    assert desk.heard[-1] == ("off", 0, 60, 0, "")


def test_a_pedal_that_trembles_is_not_left_down() -> None:
    """Down to 63, up to 64 and down again within the echo's time: the last one is not our own first."""
    desk = Desk().push(b"\xb0\x40\x3f", b"\xb0\x40\x40", b"\xb0\x40\x3f", after=0.005)
    assert desk.heard[-1] == ("pedal", 0, 0, 63, "") and desk.sent[-1] == b"\xb0\x40\x3f"


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.029])
def test_a_loop_comes_to_rest(delay: float) -> None:
    """Everything that is sent comes back in; no message may go round."""
    desk, played = (
        Desk(),
        [ON, b"\xb0\x40\x7f", b"\xe0\x00\x30", b"\xb0\x01\x10", OFF, b"\xb0\x40\x00", b"\xc0\x07"],
    )
    returned = 0
    for message in played:
        desk.push(message, after=0.1)
        for _ in range(5):
            coming, returned = desk.sent[returned:], len(desk.sent)
            desk.now += delay
            for echo in coming:
                desk.input.push(echo, desk.now)
    assert desk.sent == played and desk.input.notes == 1


# A bar, a lost port, a flood


def clocks(desk: Desk, count: int, every_s: float) -> None:
    desk.push(*[b"\xf8"] * count, after=every_s)


def test_a_bar_is_what_the_midi_clock_says() -> None:
    desk = Desk(bar_s=3.0)
    assert desk.input.bar_s(desk.now) == 3.0
    clocks(desk, 96, 60 / 90 / 24)
    assert desk.input.bar_s(desk.now) == 3.0  # not yet one whole
    clocks(desk, 1, 60 / 90 / 24)
    assert desk.input.bar_s(desk.now) == pytest.approx(4 * 60 / 90)
    assert desk.input.bar_s(desk.now + 1.0) == 3.0  # it has stopped


def test_a_clock_that_stops_and_goes_on_is_not_averaged_over_the_rest() -> None:
    desk = Desk()
    clocks(desk, 97, 0.02)
    desk.now += 20
    clocks(desk, 96, 0.01)
    assert desk.input.bar_s(desk.now) == 2.0
    clocks(desk, 1, 0.01)
    assert desk.input.bar_s(desk.now) == pytest.approx(0.96)
    desk.push(b"\xfa")
    assert desk.input.bar_s(desk.now) == 2.0


def test_a_lost_port_lets_go_of_everything() -> None:
    desk = Desk(cc={"undo": 20}).push(ON, b"\x91\x3e\x40", b"\xb0\x40\x7f", b"\xb0\x14\x7f", b"\x90\x40")
    desk.items.clear()
    desk.now += 1
    desk.input.release(desk.now)
    assert desk.heard == [("off", 0, 60, 0, ""), ("off", 1, 62, 0, ""), ("lost", 0, 0, 0, "")]
    assert desk.sent[-3:] == [wire.note_off(0, 60), wire.note_off(1, 62), wire.control(0, 64, 0)]
    assert desk.input.held == 0 and desk.input.last_key == desk.now  # a pause begins here
    desk.items.clear()
    desk.push(b"\x7f", b"\xb0\x14\x7f")  # half a message of before is none; the pedal is a new one
    assert desk.heard == [("action", 0, 0, 0, "undo")]


def test_beyond_a_full_inbox_keys_are_left_out_and_nothing_else() -> None:
    desk = Desk().push(b"\x90\x3e\x40")
    desk.unread = INBOX_ITEMS + 1
    desk.push(ON, OFF, b"\x80\x3e\x40", b"\xb0\x40\x7f")
    assert [kind for kind, *_ in desk.heard] == ["on", "off", "pedal"]
    assert desk.input.left_out == {"flood": 1} and desk.input.held == 0
    assert desk.sent == [b"\x90\x3e\x40", b"\x80\x3e\x40", b"\xb0\x40\x7f"]


# Voices: nobody ends what another holds


def test_a_note_ends_when_the_last_lets_go() -> None:
    desk = Desk()
    desk.voices.note_on(PLAYER, 0, 60, 50)
    desk.voices.note_on(MODEL, 0, 60, 60)
    assert desk.voices.note_off(PLAYER, 0, 60) and len(desk.sent) == 2
    assert desk.voices.note_off(MODEL, 0, 60) and desk.sent[-1] == wire.note_off(0, 60)
    assert not desk.voices.note_off(MODEL, 0, 60) and len(desk.sent) == 3


def test_panic_tells_every_channel_that_was_used() -> None:
    desk = Desk(channel=4, program=7)
    desk.voices.start()
    assert desk.sent == [wire.control(4, number, 0) for number in (64, 123, 120)] + [wire.program(4, 7)]
    desk.push(b"\x92\x3c\x40", b"\xb3\x40\x7f")
    desk.sent.clear()
    desk.voices.panic()
    assert desk.sent[0] == wire.note_off(2, 60)
    assert {message for message in desk.sent[1:]} == {
        wire.control(channel, number, 0) for channel in (2, 3, 4) for number in (64, 120, 123)
    }
    assert desk.voices.sounding == {}


def test_after_the_end_nothing_begins() -> None:
    desk = Desk().push(ON)
    desk.voices.close()
    desk.sent.clear()
    desk.push(b"\x90\x3e\x40", b"\xb0\x40\x7f", b"\x80\x3e\x40", OFF)
    desk.voices.note_on(MODEL, 0, 64, 64)
    assert desk.sent == [] and desk.voices.sounding == {}


@given(
    st.lists(st.binary(max_size=8), max_size=40), st.sampled_from([{}, {"thru": False}, {"transpose": -30}])
)
def test_any_bytes_are_survived_and_nothing_is_left(pieces: list[bytes], options: dict[str, Any]) -> None:
    desk = Desk(**options).push(*pieces, after=0.04)
    desk.input.release(desk.now)
    assert desk.voices.sounding == {} and desk.input.held == 0
    keys = [(item.channel, item.number, item.kind) for item in desk.items if item.kind in ("on", "off")]
    for place, (channel, pitch, kind) in enumerate(keys):  # on and off take turns, per key
        before = [k for c, p, k in keys[:place] if (c, p) == (channel, pitch)]
        assert kind == ("off" if before and before[-1] == "on" else "on")
