"""`dsmr play` with real MIDI ports, in a process of its own: what a keyboard and a synthesizer would meet."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsmr_export.errors import DsmrError
from dsmr_export.runtime.live import midi_api
from dsmr_export.runtime.live.ports import InputPort, OutputPort, list_ports
from dsmr_export.runtime.live.status_socket import ask
from dsmr_export.runtime.midi import read_midi, write_midi
from dsmr_export.runtime.performance import Note
from tests.jack import JackServer, jack_server
from tests.simulation import stuck

DSMR = (sys.executable, "-m", "dsmr_export.cli", "play")
PATIENCE_S = 60.0
"""A busy machine may take its time; nothing here is measured."""

PHRASE = (60, 64, 67, 72)


@pytest.fixture(scope="module")
def midi() -> Iterator[JackServer | None]:
    pytest.importorskip("rtmidi", reason="python-rtmidi is the extra `live`")
    with jack_server(period_frames=1024) as server:
        yield server


def until(happened: Callable[[], Any], what: str) -> Any:
    give_up_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_at:
        if found := happened():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen")


class Player:
    """A keyboard and a synthesizer at a session's ports."""

    def __init__(self, ends: tuple[InputPort, OutputPort] | None = None) -> None:
        self.heard: list[tuple[float, bytes]] = []
        self.synthesizer: InputPort | None = None
        self.keyboard: OutputPort | None = None

    def connect(self) -> None:
        names = until(lambda: _both(list_ports()), "the session's ports")
        self.keyboard = OutputPort(names[0], None)
        self.synthesizer = InputPort(
            names[1], None, lambda message, moment: self.heard.append((moment, message))
        )

    def offer(self) -> None:
        """Ports of our own, to be named by the session."""
        self.keyboard = OutputPort(None, f"keys {os.getpid()}")
        self.synthesizer = InputPort(None, f"synth {os.getpid()}", self._hear)

    def _hear(self, message: bytes, moment: float) -> None:
        self.heard.append((moment, message))

    def press(self, *pitches: int, seconds: float = 0.05) -> None:
        assert self.keyboard is not None
        for pitch in pitches:
            self.keyboard.send(bytes([0x90, pitch, 70]))
            time.sleep(seconds)
            self.keyboard.send(bytes([0x80, pitch, 64]))
            time.sleep(0.02)

    def ons(self, channel: int = 0) -> list[int]:
        return [message[1] for _, message in list(self.heard) if message[0] == 0x90 | channel and message[2]]

    def close(self) -> None:
        for port in (self.keyboard, self.synthesizer):
            if port is not None:
                port.close()


def _both(ports: Any) -> tuple[str, str] | None:
    """Our output's other end is their input: (where to play to, where to hear from)."""
    ins = [name for name in ports.outputs if "dsmr in" in name]
    outs = [name for name in ports.inputs if "dsmr out" in name]
    return (ins[0], outs[0]) if ins and outs else None


@pytest.fixture
def player(midi: JackServer | None) -> Iterator[Player]:
    found = Player()
    yield found
    found.close()


@contextmanager
def session(folder: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A running `dsmr play` with the status socket `sock` in the folder; killed at the end if it must be."""
    command = [*DSMR, "--status-socket", str(folder / "sock"), *map(str, arguments)]
    environment = os.environ | {midi_api.CLIENT_VARIABLE: f"dsmr{os.getpid()}session"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: _answers(folder / "sock") or process.poll() is not None, "the start")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _answers(socket: Path) -> bool:
    with suppress(DsmrError):
        return "phase" in ask(socket)
    return False  # not yet, or the file of one that was killed


def end(process: subprocess.Popen[str], kind: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
    process.send_signal(kind)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out, err


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])  # SIGHUP: tests/test_play_session.py
def test_a_session_answers_stops_and_ends_in_silence(
    player: Player, tmp_path: Path, kind: signal.Signals
) -> None:
    arguments = (
        "--virtual",
        "--pause",
        "0.3",
        "--channel",
        "2",
        "--save",
        "out.mid",
        "--json",
        "--seed",
        "1",
    )
    with session(tmp_path, *arguments, "--bank", "bank") as process:
        player.connect()
        player.press(*PHRASE)
        until(lambda: player.ons() == list(PHRASE), "thru")
        until(lambda: len(player.ons(1)) >= 3, "an answer")
        assert ask(tmp_path / "sock")["phase"] == "answering"
        player.press(48)
        until(lambda: ask(tmp_path / "sock")["phase"] == "listening", "the stop")
        quiet_from = time.monotonic()
        until(lambda: 48 in player.ons(), "the key, through")
        assert not [key for key in stuck(list(player.heard)) if key[0] == 1]
        assert not [m for moment, m in player.heard if moment > quiet_from + 0.05 and m[0] == 0x91]
        assert ask(tmp_path / "sock", "save the theme") == {"ok": True, "said": "saved as the theme"}
        assert (tmp_path / "bank" / "the%20theme.dsmr").exists()
        assert ask(tmp_path / "sock", "save another")["ok"] and ask(tmp_path / "sock", "delete another")["ok"]
        assert ask(tmp_path / "sock", "bank") == {"ok": True, "said": "the theme"}
        until(lambda: len(player.ons(1)) >= 6, "a second answer")
        out, _ = end(process, kind)
    until(lambda: not stuck(list(player.heard)), f"silence after {player.heard[-24:]}")
    found = json.loads(out)
    assert found["heard_notes"] == 5 and found["played_notes"] >= 6
    assert found["answer_ms"]["count"] >= 1 and found["answer_ms"]["p50"] >= 300
    assert found["lateness_ms"]["count"] and found["stop_ms"]["count"] == 1
    notes = read_midi(tmp_path / "out.mid")
    assert [note.pitch for note in notes[:4]] == list(PHRASE)
    assert len(notes) == found["saved_notes"] >= 8
    # The state that was kept goes on, in a file.
    command = [*DSMR, "--bank", "bank", "--load-state", "the theme", "--save", "on.mid", "--seconds", "3"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert read_midi(tmp_path / "on.mid")


def test_a_port_that_is_lost_and_comes_back(player: Player, tmp_path: Path) -> None:
    player.offer()
    with session(tmp_path, "--midi-in", "keys", "--midi-out", "synth", "--pause", "0.3") as process:
        assert player.keyboard is not None
        player.keyboard.send(bytes([0x90, 60, 70]))
        until(lambda: player.ons() == [60], "thru")
        before = ask(tmp_path / "sock")["position"]
        player.keyboard.close()
        until(lambda: "(lost)" in ask(tmp_path / "sock")["ports"]["in"], "the loss")
        until(lambda: not stuck(list(player.heard)), "the end of the held note")
        player.keyboard = OutputPort(None, f"keys {os.getpid()}")
        until(lambda: "(lost)" not in ask(tmp_path / "sock")["ports"]["in"], "the return")
        until(lambda: (player.press(62), 62 in player.ons())[1], "a note after it")
        assert ask(tmp_path / "sock")["position"] > before, "the memory is kept"
        assert ask(tmp_path / "sock", "quit") == {"ok": True, "said": "ending"}
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    assert "is gone; waiting for it" in err and "is back" in err


def test_a_prompt_played_on_from_a_file(player: Player, tmp_path: Path) -> None:
    """Everything from a TOML file; `loop` ends by itself after --seconds, and hears nobody."""
    player.offer()
    (tmp_path / "play.toml").write_text(
        f'midi-out = "synth {os.getpid()}"\nmode = "loop"\nseconds = 4\nprogram = 5\ncc = ["density=23"]\n'
        'prompt = "song.mid"\nseed = 3\n'
    )
    write_midi([Note(20 * i, 20 * i + 18, 60 + 2 * (i % 5), 70) for i in range(24)], tmp_path / "song.mid")
    command = [*DSMR, "--config", "play.toml", "--json"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    until(lambda: not stuck(list(player.heard)), "silence")
    # A busy machine may lose a period of JACK's, and what came in it.
    assert 0 < len(player.ons()) <= json.loads(run.stdout)["played_notes"]
    assert b"\xc0\x05" in [message for _, message in player.heard]


def test_killed_it_goes_on_where_it_was(player: Player, tmp_path: Path) -> None:
    arguments = ("--virtual", "--mode", "loop", "--autosave", "0.2", "--autosave-file", "auto.dsmr")
    with session(tmp_path, *arguments) as process:
        until(lambda: (tmp_path / "auto.dsmr").exists(), "an autosave")
        until(lambda: ask(tmp_path / "sock")["position"] > 20, "some music")
        time.sleep(0.5)
        process.kill()
        process.communicate()
    with session(tmp_path, *arguments) as process:
        assert ask(tmp_path / "sock")["position"] > 5
        _, err = end(process)
    assert "going on from" in err


def test_the_view_and_its_keys(midi: JackServer | None, tmp_path: Path) -> None:
    """On a terminal: a screen of its own that is given back; q ends the session."""
    primary, secondary = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        [*DSMR, "--virtual", "--mode", "loop"],
        cwd=tmp_path,
        env=environment,
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its foreground job
    )
    os.close(secondary)
    seen = b""

    def read() -> bytes:
        nonlocal seen
        with suppress(OSError):
            while select.select([primary], [], [], 0)[0]:
                if not (more := os.read(primary, 65536)):
                    break
                seen += more
        return seen

    try:
        until(lambda: b"playing" in read() and b"temperature" in seen, "the view")
        os.write(primary, b" ")
        until(lambda: b"paused" in read(), "the pause")
        os.write(primary, b"q")
        until(lambda: (read(), process.poll() is not None)[1], "the end")
    finally:
        process.kill()
        os.close(primary)
    assert process.returncode == 0
    assert b"\x1b[?1049h" in seen and b"\x1b[?1049l" in seen


def test_fluidsynth_makes_sound_of_it(midi: JackServer | None, tmp_path: Path) -> None:
    """Music out as it is made, into a synthesizer that writes what it plays."""
    fonts = [*Path("/usr/share/sounds/sf2").glob("*.sf2"), *Path("/usr/share/soundfonts").glob("*.sf2")]
    if shutil.which("fluidsynth") is None or not fonts:
        pytest.skip("no fluidsynth or no sound font here: run tests/setup-midi.sh")
    driver = "alsa_seq" if midi is None else "jack"
    options = {"audio.file.name": "out.raw", "audio.file.type": "raw", "midi.jack.id": "fluidsynth"}
    if midi is not None:
        options["midi.jack.server"] = midi.name
    synthesizer = subprocess.Popen(
        [
            *("fluidsynth", "-i", "-s", "-m", driver, "-a", "file"),
            *(part for name, value in options.items() for part in ("-o", f"{name}={value}")),
            str(fonts[0]),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.PIPE,
    )
    try:
        name = until(
            lambda: (
                next((n for n in list_ports().outputs if "fluid" in n.lower()), None)
                or (synthesizer.poll() is not None and synthesizer.stdout.read())
            ),  # type: ignore[union-attr]
            "fluidsynth's port",
        )
        assert isinstance(name, str), name
        command = [*DSMR, "--midi-out", name, "--mode", "loop", "--seconds", "4", "--seed", "2"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
    finally:
        synthesizer.terminate()
        synthesizer.wait(timeout=PATIENCE_S)
    samples = np.fromfile(tmp_path / "out.raw", np.int16)
    assert np.abs(samples).max() > 500, "silence"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--midi-in", "x"], 2, "--midi-in alone would not be heard"),
        (["--midi-out", "x"], 2, "--mode continue listens: give --midi-in"),
        (["--virtual", "--midi-out", "x"], 2, "--virtual makes ports of its own"),
        (
            ["play.mid", "--save", "x.mid"],
            1,
            "is a file and no bundle; to continue a MIDI file give --prompt",
        ),
        (["--virtual", "--events"], 2, "--events is for files"),
        (["--virtual", "--variations", "2"], 2, "--variations is for files"),
        (["--virtual", "--autosave", "0"], 2, "--autosave: give seconds"),
        (["--virtual", "--autosave-file", "x"], 2, "--autosave-file is where"),
        (["--save", "x.mid", "--pause", "2"], 2, "--pause: only with MIDI ports"),
        (["--virtual", "--cc", "temperature"], 2, "is not NAME=CONTROLLER"),
        (["--virtual", "--affinity", "a"], 2, "are no cores"),
        (["--virtual", "--cc", "undo=1", "--cc", "undo=2"], 1, "--cc: undo is given twice"),
        (["--virtual", "--cc", "temprature=1"], 1, "did you mean temperature?"),
        (["--virtual", "--pause", "0"], 1, "pause is 0: give 0.05 to 60"),
        (["--virtual", "--load-state", "missing"], 1, "missing: cannot be read"),
        (["--midi-out", "no such port", "--mode", "loop"], 1, "no such port"),
    ],
)
def test_refusals(
    midi: JackServer | None, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "play.mid").write_bytes(b"MThd")
    run = subprocess.run([*DSMR, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == code and run.stdout == "" and "Traceback" not in run.stderr
    assert message in run.stderr.splitlines()[-1], run.stderr
