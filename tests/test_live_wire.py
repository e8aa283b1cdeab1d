"""The decoder of MIDI bytes, against mido's parser where that is right, and against the rules of MIDI 1.0
where it knows no running status."""

from __future__ import annotations

import mido
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export.runtime.live import wire
from dsmr_export.runtime.live.wire import Decoder

ON, OFF = b"\x90\x3c\x40", b"\x80\x3c\x40"

data_byte = st.integers(0, 127)
channel_message = st.builds(
    lambda kind, channel, first, second: (
        bytes([kind | channel, first, second]) if kind not in (0xC0, 0xD0) else bytes([kind | channel, first])
    ),
    st.sampled_from([0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0]),
    st.integers(0, 15),
    data_byte,
    data_byte,
)
common_message = st.one_of(
    st.builds(lambda value: bytes([0xF1, value]), data_byte),
    st.builds(lambda first, second: bytes([0xF2, first, second]), data_byte, data_byte),
    st.builds(lambda value: bytes([0xF3, value]), data_byte),
    st.just(b"\xf6"),
)
real_time = st.sampled_from([b"\xf8", b"\xfa", b"\xfb", b"\xfc", b"\xfe", b"\xff"])
sysex = st.binary(max_size=20).map(lambda content: b"\xf0" + bytes(b & 0x7F for b in content) + b"\xf7")


@pytest.mark.parametrize(
    ("stream", "messages"),
    [
        (ON + b"\x3e\x41", [ON, b"\x90\x3e\x41"]),  # running status
        (b"\xc3\x05\x06", [b"\xc3\x05", b"\xc3\x06"]),
        (b"\x90\xf8\x3c\xfe\x40", [b"\xf8", b"\xfe", ON]),  # real time in a message
        (ON + b"\xf8\x3e\x41", [ON, b"\xf8", b"\x90\x3e\x41"]),  # and in running status
        (b"\xf0\x01\xf8\x02\xf7", [b"\xf8"]),  # and in SysEx
        (b"\xf0\x01\x02" + ON, [ON]),  # SysEx that nobody ends: the next status does
        (ON + b"\xf0\x01\xf7\x3e\x41", [ON]),  # SysEx ends running status
        (ON + b"\xf7\x3e\x41", [ON]),  # so does an end without a beginning
        (ON + b"\xf4\x3e\x41" + OFF, [ON, OFF]),  # undefined: with its data passed over
        (ON + b"\xf5\x3e", [ON]),
        (ON + b"\xf6\x3e\x41", [ON, b"\xf6"]),  # tune request
        (ON + b"\xf1\x05\x3e\x41", [ON, b"\xf1\x05"]),  # system common ends running status
        (b"\xf2\x01\x02\x03", [b"\xf2\x01\x02"]),
        (b"\x3c\x40\x01" + ON, [ON]),  # data that belongs to nothing
        (b"\x90\x3c" + OFF, [OFF]),  # a message that was cut off
        (b"\xf2\x01" + ON, [ON]),
    ],
)
def test_the_rules_of_midi(stream: bytes, messages: list[bytes]) -> None:
    assert Decoder().push(stream) == messages


@given(st.lists(st.one_of(channel_message, common_message, real_time, sysex)))
def test_whole_messages_are_what_mido_makes_of_them(messages: list[bytes]) -> None:
    stream = b"".join(messages)
    parser = mido.Parser()
    parser.feed(stream)
    theirs = [bytes(message.bytes()) for message in parser if message.type != "sysex"]
    assert Decoder().push(stream) == theirs == [m for m in messages if m[0] != 0xF0]


@given(
    st.lists(st.tuples(channel_message, st.lists(real_time, max_size=2)), min_size=1),
    st.randoms(use_true_random=False),
)
def test_running_status_and_real_time_anywhere_change_nothing(messages, random) -> None:
    """What a thrifty sender makes of the messages: repeated status bytes left out, clock bytes strewn in."""
    stream, status = bytearray(), -1
    for message, clocks in messages:
        part = bytearray(message if message[0] != status else message[1:])
        status = message[0]
        for clock in clocks:
            part.insert(random.randint(0, len(part)), clock[0])
        stream += part
    found = Decoder().push(stream)
    assert [m for m in found if m[0] < 0xF8] == [message for message, _ in messages]
    assert len([m for m in found if m[0] >= 0xF8]) == sum(len(clocks) for _, clocks in messages)


@given(st.lists(st.binary(max_size=6)))
def test_any_bytes_in_any_pieces(pieces: list[bytes]) -> None:
    whole, cut = Decoder().push(b"".join(pieces)), Decoder()
    assert [message for piece in pieces for message in cut.push(piece)] == whole
    for message in whole:
        assert message[0] >= 0x80 and all(byte < 0x80 for byte in message[1:])
        assert len(message) == len(mido.Message.from_bytes(message).bytes() if message[0] < 0xF0 else message)


@given(st.binary())
def test_after_anything_a_message_is_understood(noise: bytes) -> None:
    decoder = Decoder()
    decoder.push(noise)
    assert decoder.push(ON) == [ON]


def test_what_is_sent_is_what_mido_would_send() -> None:
    def mido_bytes(kind: str, **fields: int) -> bytes:
        return bytes(mido.Message(kind, **fields).bytes())

    assert wire.note_on(3, 60, 5) == mido_bytes("note_on", channel=3, note=60, velocity=5)
    assert wire.note_off(15, 60) == mido_bytes("note_off", channel=15, note=60, velocity=64)
    assert wire.control(2, 64, 127) == mido_bytes("control_change", channel=2, control=64, value=127)
    assert wire.program(1, 9) == mido_bytes("program_change", channel=1, program=9)
