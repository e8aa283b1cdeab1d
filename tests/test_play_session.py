"""What stands around a live session (`play_live`), with ports that are none: no MIDI system is needed."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dsmr_export import cli_play, play_live
from dsmr_export.cli import main
from dsmr_export.play_live import LiveJob, Session
from dsmr_export.runtime import Bundle, saved_state
from dsmr_export.runtime.live.engine import Live
from dsmr_export.runtime.live.midi_api import Api
from dsmr_export.runtime.live.ports import Ports
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.memory import PLAYER, Memory
from dsmr_export.runtime.midi import read_midi
from dsmr_export.runtime.performance import Note
from dsmr_export.runtime.performer import SAMPLING
from dsmr_export.runtime.play import Performer, hear_prompt
from dsmr_export.runtime.saved_state import SavedState
from tests.simulation import stuck
from tests.tiny_bundle import make_bundle

SONG = [Note(0, 40, 60, 70), Note(10, 21, 64, 50), Note(22, 60, 67, 30)]


class FakePort:
    """An output that keeps what is sent, or an input that hears nobody."""

    orphaned, connected, virtual, api = False, True, True, Api.ALSA

    def __init__(self, name: str | None, virtual: str | None, *_: Any) -> None:
        self.kind = "input" if virtual == "dsmr in" else "output"
        self.name = name or virtual
        self.sent: list[tuple[float, bytes]] = []

    def send(self, message: bytes) -> bool:
        self.sent.append((0.0, message))
        return True

    def poll(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("session") / "tiny")


@pytest.fixture(autouse=True)
def ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play_live, "OutputPort", FakePort)
    monkeypatch.setattr(play_live, "InputPort", FakePort)
    monkeypatch.setattr(play_live, "list_ports", lambda: Ports(Api.ALSA, (), ()))


def job(folder: Path, **options: Any) -> LiveJob:
    defaults: dict[str, Any] = {
        **dict.fromkeys(("midi_in", "midi_out", "prompt", "state", "seed", "graph", "threads", "pace")),
        **dict.fromkeys(("save", "save_state", "bank", "autosave")),
        "settings": LiveSettings(mode="loop"),
        "sampling": SAMPLING,
        "virtual": True,
        "controls": {},
        "seconds": 1.0,
        "autosave_s": 0.0,
        "status_socket": folder / "sock",
        "affinity": (),
        "nice": 0,
        "realtime": 0,
        "view": False,
        "log_level": "info",
        "as_json": True,
    }
    return LiveJob(**defaults | options)


def middle_of_a_piece(bundle: Bundle, **extra: Any) -> SavedState:
    """A state in which a note still sounds."""
    memory = Memory(bundle, SAMPLING, seed=7)
    memory.note_on(0, 60, 50)
    memory.note_off(30, 60)
    memory.note_on(40, 64, 50)
    memory.advance(60)
    moment, _ = memory.snapshot()
    assert list(moment.mask.onsets) == [64]
    return SavedState(moment, extra=extra)


def following(memory: Memory) -> tuple[int, bytes]:
    """How many tokens there are, and what would be next."""
    return memory.position, memory.stream.logits.tobytes() + str(memory.snapshot()[0].rng).encode()


def test_what_is_given_is_not_as_the_state_had_it(bundle: Bundle, tmp_path: Path) -> None:
    state = middle_of_a_piece(bundle, controls={"temperature": 0.7, "top-p": 0.8, "density": 0.5})
    session = Session(bundle, job(tmp_path, state=state, controls={"temperature": 0.9}), deque())
    assert session.live.controls.values() == {"temperature": 0.9, "top-p": 0.8, "density": 0.5}


def test_an_autosave_goes_on_as_it_was_whatever_its_beginning_was_given(
    bundle: Bundle, tmp_path: Path
) -> None:
    """A service is started again and again with the same options: seed and prompt are for the first time."""
    file = tmp_path / "auto.dsmr"
    saved_state.write(file, middle_of_a_piece(bundle))
    plain, _ = play_live._memory(bundle, job(tmp_path, autosave=file))
    again, _ = play_live._memory(bundle, job(tmp_path, autosave=file, seed=3, prompt=SONG))
    assert following(again) == following(plain)
    # A state that was asked for takes both.
    loaded, _ = play_live._memory(bundle, job(tmp_path, state=middle_of_a_piece(bundle), seed=3, prompt=SONG))
    assert loaded.position > plain.position


def test_a_prompt_after_a_state_is_heard_as_it_is_for_files(bundle: Bundle, tmp_path: Path) -> None:
    state = middle_of_a_piece(bundle)
    memory, _ = play_live._memory(bundle, job(tmp_path, state=state, prompt=SONG))
    performer = Performer(bundle, SAMPLING)
    performer.restore(state.moment)
    hear_prompt(performer, SONG, anew=False)
    assert memory.position == performer.stream.position
    assert np.array_equal(memory.stream.logits, performer.stream.logits)
    assert not memory.sounding


def test_a_session_says_how_it_is_and_keeps_what_it_should(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        play_live.run(
            bundle, job(tmp_path, bank=tmp_path / "bank", save_state="evening", save=tmp_path / "out.mid")
        )
        said = []
        while True:
            try:
                said.append(systemd.recv(1000).decode())
            except BlockingIOError:
                break
    assert said[0] == "READY=1" and said[-1] == "STOPPING=1"
    assert "STATUS=loop: playing" in said and "WATCHDOG=1" in said
    assert (tmp_path / "bank" / "evening.dsmr").exists()
    assert f'"saved": "{tmp_path / "out.mid"}"' in capsys.readouterr().out


def test_what_was_played_is_not_lost_with_the_session(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Live.work

    def fails(live: Live, now: float) -> float:
        if live.memory.position > 30:  # so many were heard by it
            raise RuntimeError("inference died")
        return work(live, now)

    monkeypatch.setattr(Live, "work", fails)
    with pytest.raises(RuntimeError, match="inference died"):
        play_live.run(bundle, job(tmp_path, seconds=60.0, save=tmp_path / "out.mid"))
    assert read_midi(tmp_path / "out.mid", (60, 71))


def test_a_session_that_never_began_leaves_the_file_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out.mid").write_bytes(b"MThd, an older one")
    with pytest.raises(Exception, match="there is no folder"):
        play_live.run(
            bundle, job(tmp_path, save=tmp_path / "out.mid", status_socket=tmp_path / "missing" / "sock")
        )
    assert (tmp_path / "out.mid").read_bytes() == b"MThd, an older one"


def test_panic_waits_for_nobody(bundle: Bundle, tmp_path: Path) -> None:
    """Inference, which would do the rest, does not run here."""
    session = Session(bundle, job(tmp_path), deque())
    session.live.voices.note_on(PLAYER, 0, 60, 70)
    session.threads.stopping.set()
    with pytest.raises(Exception, match="the session has ended"):
        session.act("panic")
    assert not stuck(session.output.sent)  # type: ignore[attr-defined]
    assert not session.live.voices.sounding


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


def test_signals_end_it_however_often_they_come(handlers: None) -> None:
    """A terminal that closes sends SIGHUP twice: the shell's and the kernel's."""
    ended = threading.Event()
    with play_live._signals(ended):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert ended.wait(5)


def test_ctrl_z_stops_nothing(handlers: None) -> None:
    """This test would stop too; the notes that sound then would sound until somebody comes back."""
    before = signal.getsignal(signal.SIGTSTP)
    with play_live._signals(threading.Event()):
        assert signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTSTP)
    assert signal.getsignal(signal.SIGTSTP) is before


def test_nohup_is_nohup(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ended = threading.Event()
    with play_live._signals(ended):
        os.kill(os.getpid(), signal.SIGHUP)
        assert not ended.wait(0.05)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_the_usual_place_of_an_autosave_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = cli_play._autosave_file({"autosave": 1.0, "autosave_file": None}, "0123456789abcdef")
    assert file is not None and file.name == "autosave-0123456789ab.dsmr"
    assert file.parent.is_dir() and file.is_relative_to(tmp_path)
    assert cli_play._autosave_file({"autosave": None, "autosave_file": None}, "0123456789abcdef") is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--autosave", "1", "--autosave-file", "missing/x"],
            1,
            "--autosave-file missing/x: there is no folder",
        ),
        (["--seconds", "0"], 2, "--seconds 0: give seconds above 0"),
        (["--seconds", "nan"], 2, "--seconds nan: give seconds above 0"),
        (["--affinity", "3-1"], 2, "3-1 goes backwards"),
    ],
)
def test_refusals(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, ["play", str(bundle.path), "--virtual", *arguments])
    assert run.exit_code == code and message in run.stderr.splitlines()[-1]
