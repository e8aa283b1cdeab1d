"""MIDI ports: real messages through real ports, lost and back, names, and one line for every lack."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from dsmr_export.cli import main
from dsmr_export.errors import PortError
from dsmr_export.runtime.live import midi_api, ports, receive
from dsmr_export.runtime.live.midi_api import Api
from dsmr_export.runtime.live.ports import InputPort, OutputPort, Watcher, find_port, list_ports
from tests.jack import JackServer, jack_server

NOTES = [
    bytes(message)
    for pitch in range(21, 109)
    for message in ((0x90, pitch, 64), (0xB0, 64, pitch), (0xC0, pitch), (0x80, pitch, 0))
]
"""Messages of three and of two bytes."""


@pytest.fixture(scope="module")
def midi() -> Iterator[JackServer | None]:
    with jack_server(period_frames=1024) as server:  # a busy machine may stall for long
        yield server


@pytest.fixture
def own_server() -> Iterator[JackServer]:
    """One that a test may kill."""
    with jack_server(period_frames=1024) as server:
        if server is None:
            pytest.skip("ALSA's sequencer cannot be stopped: DSMR_MIDI_API=jack has a server that can")
        yield server


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.002)


class Ear:
    """Collects what a port hears."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.times_s: list[float] = []

    def __call__(self, message: bytes, at_s: float) -> None:
        self.messages.append(message)
        self.times_s.append(at_s)

    def hears(self, *messages: bytes) -> bool:
        wait_for(lambda: len(self.messages) >= len(messages))
        return self.messages == list(messages)


def greet(send: Callable[[bytes], object], ear: Ear) -> None:
    """Until something is heard: JACK makes a connection in its next period, or later on a busy machine."""

    def heard() -> bool:
        send(b"\xf8")
        time.sleep(0.02)
        return bool(ear.messages)

    wait_for(heard)
    time.sleep(0.1)
    ear.messages.clear()
    ear.times_s.clear()


class Diary:
    """Collects what a watcher says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def watch(self, *watched: InputPort | OutputPort, every_s: float = 0.5) -> Watcher:
        return Watcher(
            watched,
            lambda name: self.lines.append(f"lost {ports._lasting(name)}"),
            lambda name: self.lines.append(f"back {ports._lasting(name)}"),
            every_s,
        )

    def since(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


def peer(kind: midi_api.Kind, name: str) -> Any:
    """Another program's virtual port, by rtmidi alone."""
    rtmidi = midi_api.load()
    number = rtmidi.API_LINUX_ALSA if find() is Api.ALSA else rtmidi.API_UNIX_JACK
    client = (rtmidi.MidiIn if kind == "input" else rtmidi.MidiOut)(number, f"{name}{os.getpid()}")
    client.open_virtual_port(name)
    return client


def find() -> Api:
    return Api(os.environ[midi_api.API_VARIABLE])


# --- messages -----------------------------------------------------------------------------------------------


def test_another_program_plays_into_a_virtual_input(midi: JackServer | None) -> None:
    ear = Ear()
    before_s = time.monotonic()
    with InputPort(None, "dsmr in", ear) as port, OutputPort("dsmr in", None) as program:
        assert port.virtual and port.connected and port.name == "dsmr in"
        greet(program.send, ear)
        assert all([program.send(message) for message in NOTES])
        assert ear.hears(*NOTES)
    assert sorted(ear.times_s) == ear.times_s
    assert before_s < ear.times_s[0] and ear.times_s[-1] < time.monotonic()


def test_a_virtual_output_plays_into_another_program(midi: JackServer | None) -> None:
    ear = Ear()
    with OutputPort(None, "dsmr out") as port, InputPort("DSMR OUT", None, ear) as program:
        assert program.name.startswith(f"{os.environ[midi_api.CLIENT_VARIABLE]}:dsmr out")
        greet(port.send, ear)
        assert all([port.send(message) for message in NOTES])
        assert ear.hears(*NOTES)


def test_a_burst_is_not_lost_while_python_is_busy(midi: JackServer | None) -> None:
    """JACK's thread must not wait for the GIL: see receive.by_polling."""
    ear = Ear()
    notes = [bytes((0x90, number % 128, 1 + number // 128)) for number in range(600)]
    with InputPort(None, "dsmr in", ear), OutputPort("dsmr in", None) as program:
        greet(program.send, ear)
        for message in notes:
            program.send(message)
        busy_until = time.monotonic() + 0.2
        while time.monotonic() < busy_until:
            pass
        assert ear.hears(*notes)


def test_clock_is_heard_and_sysex_and_active_sensing_are_not(midi: JackServer | None) -> None:
    ear = Ear()
    with InputPort(None, "dsmr in", ear), OutputPort("dsmr in", None) as program:
        greet(program.send, ear)
        for message in (b"\xf0\x7e\x7f\x06\x01\xf7", b"\xfe", b"\xf8", b"\xfa", b"\x90\x3c\x40"):
            assert program.send(message)
        assert ear.hears(b"\xf8", b"\xfa", b"\x90\x3c\x40")


def test_many_threads_send_whole_messages(midi: JackServer | None) -> None:
    ear = Ear()

    def play(channel: int) -> None:
        for pitch in range(128):
            assert program.send(bytes((0x90 | channel, pitch, 64)))

    with InputPort(None, "dsmr in", ear), OutputPort("dsmr in", None) as program:
        greet(program.send, ear)
        threads = [threading.Thread(target=play, args=(channel,)) for channel in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda: len(ear.messages) == 8 * 128)
    for channel in range(8):
        assert [m[1] for m in ear.messages if m[0] == 0x90 | channel] == list(range(128))


def test_what_on_message_raises_is_logged_and_the_next_is_heard(
    midi: JackServer | None, caplog: pytest.LogCaptureFixture
) -> None:
    ear = Ear()

    def refuse_program_changes(message: bytes, at_s: float) -> None:
        if message[0] == 0xC0:
            raise RuntimeError("no programs here")
        ear(message, at_s)

    with InputPort(None, "dsmr in", refuse_program_changes), OutputPort("dsmr in", None) as program:
        greet(program.send, ear)
        program.send(b"\xc0\x05")
        program.send(b"\x90\x3c\x40")
        assert ear.hears(b"\x90\x3c\x40")
    (record,) = [record for record in caplog.records if record.name == "dsmr"]
    assert record.levelno == logging.ERROR and "dsmr in" in record.getMessage()
    assert record.exc_info and "no programs here" in str(record.exc_info[1])


def test_what_is_no_message_is_the_callers_mistake(midi: JackServer | None) -> None:
    with OutputPort(None, "dsmr out") as port, pytest.raises(ValueError, match="longer than 3"):
        port.send(b"\x90\x3c\x40\x40")


def test_closing_twice_and_sending_afterwards(midi: JackServer | None) -> None:
    port, heard = OutputPort(None, "dsmr out"), InputPort(None, "dsmr in", Ear())
    for each in (port, heard):
        each.close()
        each.close()
        assert not each.connected and each.poll() is None
    assert port.send(b"\x90\x3c\x40") is False
    assert not [name for name in (*list_ports().inputs, *list_ports().outputs) if "dsmr" in name]


def test_what_was_sent_last_is_heard_though_the_port_closes_at_once(midi: JackServer | None) -> None:
    """On a busy machine, where a hearer is late."""
    if midi is None:
        pytest.skip("ALSA hands a message over when it is sent: what is tested is JACK's")
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 2))
    ]
    try:
        for number in range(12):
            ear = Ear()
            sender = OutputPort(None, f"last {number}")
            with InputPort(f"last {number}", None, ear):
                greet(sender.send, ear)
                for message in NOTES[:8]:
                    sender.send(message)
                sender.close()
                assert ear.hears(*NOTES[:8])
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize("way", [receive.by_callback, receive.by_polling])
def test_an_input_closes_in_a_flood_of_messages(
    midi: JackServer | None, way: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways, whichever the machine has: ALSA's is rtmidi's callback."""
    for each in ("by_callback", "by_polling"):
        monkeypatch.setattr(receive, each, way)
    with OutputPort(None, "dsmr out") as program:
        ended = threading.Event()

        def flood() -> None:
            while not ended.wait(0.0002):
                program.send(b"\xf8")

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for _ in range(10):
                ear = Ear()
                with InputPort("dsmr out", None, ear):
                    wait_for(lambda ear=ear: ear.messages)  # type: ignore[misc]
                heard = len(ear.messages)
                time.sleep(0.01)
                assert len(ear.messages) == heard
        finally:
            ended.set()
            thread.join()


def test_an_input_may_be_called_by_rtmidi(
    midi: JackServer | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with ALSA; one message at a time, and again if need be, for JACK's sake."""
    monkeypatch.setattr(receive, "by_polling", receive.by_callback)
    ear = Ear()
    with InputPort(None, "dsmr in", ear), OutputPort("dsmr in", None) as program:
        greet(program.send, ear)
        for message in NOTES[:8]:
            wait_for(lambda message=message: program.send(message) and message in ear.messages)  # type: ignore[misc]


def test_a_port_is_named_or_virtual() -> None:
    for name, virtual in ((None, None), ("a", "b")):
        with pytest.raises(ValueError, match="one of the two"):
            OutputPort(name, virtual, Api.JACK)


# --- lost and back ------------------------------------------------------------------------------------------


def test_an_output_is_lost_and_back(midi: JackServer | None) -> None:
    diary = Diary()
    synth = peer("input", "synth")
    with OutputPort("synth", None) as port:
        watcher = diary.watch(port)
        watcher.poll()
        assert diary.since() == [] and port.send(b"\x90\x3c\x40")
        synth.delete()
        assert port.send(b"\x80\x3c\x00") in (True, False)  # nobody has noticed yet
        watcher.poll()
        watcher.poll()
        assert diary.since() == [f"lost {ports._lasting(port.name)}"]
        assert not port.connected and not port.send(b"\x80\x3c\x00")
        synth = peer("input", "synth")
        watcher.poll()
        watcher.poll()
        assert diary.since() == [f"back {ports._lasting(port.name)}"]
        assert port.connected
        wait_for(lambda: port.send(b"\x90\x3d\x40") and (synth.get_message() or [0])[0] == [0x90, 0x3D, 0x40])
        synth.delete()


def test_an_input_is_lost_and_back(midi: JackServer | None) -> None:
    diary, ear = Diary(), Ear()
    keys = peer("output", "keys")
    with InputPort("keys", None, ear) as port:
        watcher = diary.watch(port)
        greet(keys.send_message, ear)
        keys.send_message([0x90, 60, 64])
        assert ear.hears(b"\x90\x3c\x40")
        keys.delete()
        watcher.poll()
        keys = peer("output", "keys")
        watcher.poll()
        assert diary.since() == [f"{what} {ports._lasting(port.name)}" for what in ("lost", "back")]
        greet(keys.send_message, ear)
        keys.send_message([0x80, 60, 0])
        assert ear.hears(b"\x80\x3c\x00")
        keys.delete()


def test_the_watcher_polls_by_itself(midi: JackServer | None) -> None:
    diary = Diary()
    synth = peer("input", "synth")
    with OutputPort("synth", None) as port, diary.watch(port, every_s=0.01).start() as watcher:
        synth.delete()
        wait_for(lambda: not port.connected)
        synth = peer("input", "synth")
        wait_for(lambda: port.connected)
        watcher.close()
        watcher.close()
    synth.delete()
    assert [line.split()[0] for line in diary.lines] == ["lost", "back"]


def test_the_watcher_outlives_what_it_calls(
    midi: JackServer | None, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("no screen")

    synth = peer("input", "synth")
    with OutputPort("synth", None) as port, Watcher([port], fail, fail, every_s=0.01).start():
        synth.delete()
        wait_for(lambda: not port.connected)
        synth = peer("input", "synth")
        wait_for(lambda: port.connected)
    synth.delete()
    assert "the MIDI ports could not be looked at" in caplog.text


class Listing:
    """A client whose list a test sets: ALSA's numbers, which the machine of the tests may not have."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.opened: list[str] = []

    def get_ports(self) -> list[str]:
        return self.names

    def open_port(self, index: int, name: str) -> None:
        self.opened.append(self.names[index])

    def close_port(self) -> None:
        pass

    def delete(self) -> None:
        pass


def test_a_keyboard_comes_back_with_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing("Through:Through 14:0", "Keys:Keys MIDI 1 20:0", "Keys:Keys MIDI 1 24:0")
    monkeypatch.setattr(midi_api, "client", lambda api, kind: listing)
    port = OutputPort("Keys:Keys MIDI 1 20:0", None, Api.ALSA)
    listing.names = ["Through:Through 14:0", "Keys:Keys MIDI 1 24:0"]
    # Its twin, which was there all the time, is not taken for it.
    assert [port.poll(), port.poll(), port.connected] == ["lost", None, False]
    listing.names = ["Keys:Keys MIDI 1 24:0", "Keys:Keys MIDI 1 28:0"]
    assert [port.poll(), port.name] == ["back", "Keys:Keys MIDI 1 28:0"]
    assert listing.opened == ["Keys:Keys MIDI 1 20:0", "Keys:Keys MIDI 1 28:0"]


def test_a_port_that_cannot_be_opened_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing("Keys:Keys 20:0")
    monkeypatch.setattr(midi_api, "client", lambda api, kind: listing)
    port = OutputPort("keys", None, Api.ALSA)
    listing.names = []
    assert port.poll() == "lost"
    listing.names = ["Keys:Keys 20:0"]

    def refuse(index: int, name: str) -> None:
        raise OSError("ALSA error making port connection.")

    with monkeypatch.context() as patch:
        patch.setattr(listing, "open_port", refuse, raising=False)
        assert [port.poll(), port.connected] == [None, False]
        with pytest.raises(PortError, match="Keys:Keys 20:0 cannot be opened .*: is it in use"):
            OutputPort("keys", None, Api.ALSA)
        patch.setattr(listing, "get_ports", lambda: refuse(0, ""))
        assert port.poll() is None
    assert [port.poll(), port.connected] == ["back", True]


@pytest.mark.parametrize("kill", [False, True])
def test_the_server_goes_and_comes_back(
    own_server: JackServer, kill: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    diary, ear = Diary(), Ear()
    synth = peer("input", "synth")
    with (
        OutputPort("synth", None) as out,
        OutputPort(None, "dsmr out") as virtual,
        InputPort(None, "dsmr in", ear) as heard,
    ):
        watcher = diary.watch(out, virtual, heard)
        watcher.poll()
        own_server.stop(kill)
        synth.delete()
        # rtmidi would wait for ever in a full buffer of 16 KiB.
        assert not all([virtual.send(b"\x90\x3c\x40") for _ in range(3000)])
        watcher.poll()
        watcher.poll()
        assert diary.since() == ["lost the JACK server"]
        assert not any(port.connected or port.send(b"\xf8") for port in (out, virtual))
        own_server.start()
        watcher.poll()
        assert diary.since() == ["back the JACK server", f"lost {out.name}"]
        synth = peer("input", "synth")
        watcher.poll()
        assert diary.since() == [f"back {out.name}"]
        with OutputPort("dsmr in", None) as program:
            greet(program.send, ear)
            assert program.send(b"\x90\x3c\x40") and ear.hears(b"\x90\x3c\x40")
        synth.delete()
    assert capfd.readouterr() == ("", "")


def test_what_is_there_again_with_the_server_is_connected_before_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever is told makes the output ready (`play_live.Session.back`): it must be there by then."""
    listing, server = Listing("synth:in"), frozenset({"1"})
    monkeypatch.setattr(midi_api, "client", lambda api, kind: listing)
    monkeypatch.setattr(midi_api, "server", lambda api: server)
    port, connected = OutputPort("synth", None, Api.JACK), []
    watcher = Watcher([port], lambda name: None, lambda name: connected.append((name, port.connected)))
    server = frozenset({"2"})
    watcher.poll()
    assert connected == [("the JACK server", True)]


# --- names --------------------------------------------------------------------------------------------------

NAMES = (
    "Midi Through:Midi Through Port-0 14:0",
    "LPK25:LPK25 MIDI 1 20:0",
    "Keys:Keys MIDI 1 24:0",
    "Keys:B 24:1",
)
TWINS = ("X:Y 20:0", "X:Y 24:0")


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("LPK25:LPK25 MIDI 1 20:0", NAMES[1]),
        ("LPK25:LPK25 MIDI 1", NAMES[1]),
        ("lpk", NAMES[1]),
        ("Keys:B", NAMES[3]),
        ("24:1", NAMES[3]),
    ],
)
def test_a_name_or_part_of_one_is_enough(wanted: str, name: str) -> None:
    assert find_port(wanted, NAMES, "input") == name


def test_the_whole_name_wins_over_a_part_of_another() -> None:
    assert find_port("a:b", ("a:b c", "a:b"), "input") == "a:b"


@pytest.mark.parametrize(
    ("wanted", "names", "message"),
    [
        (
            "keys",
            NAMES[2:],
            f"more than one MIDI input is called keys: give one of '{NAMES[2]}', '{NAMES[3]}'",
        ),
        ("X:Y", TWINS, "more than one MIDI input is called X:Y: give one of 'X:Y 20:0', 'X:Y 24:0'"),
        ("LPK52", NAMES[1:2], f"no MIDI input is called LPK52 (did you mean LPK25?): there is '{NAMES[1]}'"),
        ("piano", NAMES[1:3], f"no MIDI input is called piano: there is '{NAMES[1]}', '{NAMES[2]}'"),
        ("piano", (), "no MIDI input is called piano, there is none at all: plug one in, or use --virtual"),
    ],
)
def test_a_name_that_does_not_do(wanted: str, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(PortError) as refusal:
        find_port(wanted, names, "input")
    assert str(refusal.value) == message


# --- the command --------------------------------------------------------------------------------------------


def test_command_lists_ports(midi: JackServer | None, capfd: pytest.CaptureFixture[str]) -> None:
    keys, synth = peer("output", "keys"), peer("input", "synth")
    run = CliRunner().invoke(main, ["ports"])
    as_json = CliRunner().invoke(main, ["ports", "--json"])
    keys.delete()
    synth.delete()
    assert run.exit_code == 0 and as_json.stdout.count("\n") == 1
    found = json.loads(as_json.stdout)
    assert found["api"] == find() and list(found) == ["api", "inputs", "outputs"]
    assert [name for name in found["inputs"] if "keys" in name]
    assert [name for name in found["outputs"] if "synth" in name]
    lines = [f"inputs ({find().name})", *(f"  {name}" for name in found["inputs"])]
    lines += [f"outputs ({find().name})", *(f"  {name}" for name in found["outputs"])]
    assert run.stdout.splitlines() == lines
    assert capfd.readouterr().err == ""


def test_command_says_where_there_are_none(midi: JackServer | None) -> None:
    if midi is None:
        pytest.skip("ALSA has a port of its own, Midi Through")
    run = CliRunner().invoke(main, ["ports"])
    assert run.stdout.splitlines() == ["inputs (JACK)", "  none", "outputs (JACK)", "  none"]
