"""A session in real time: its threads begin, answer, fail and end; and the files that are kept meanwhile.

Nothing here depends on how fast the machine is: what is waited for is waited for long, and comes at once.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dsmr_export.errors import DsmrError, OutputError, StateError
from dsmr_export.runtime import Bundle, Sampling, saved_state
from dsmr_export.runtime.bank import Bank
from dsmr_export.runtime.live import keeper, threads
from dsmr_export.runtime.live.engine import Live
from dsmr_export.runtime.live.keeper import Keeper
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.live.threads import Threads
from dsmr_export.runtime.memory import Memory
from dsmr_export.runtime.saved_state import SavedState
from tests.live_session import ends_have_beginnings
from tests.simulation import stuck
from tests.tiny_bundle import make_bundle

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("live") / "tiny")


class Running:
    """A session on threads of its own. `sent`: what went out, with the moment."""

    def __init__(self, bundle: Bundle, mode: str = "loop", **options: Any) -> None:
        self.sent: list[tuple[float, bytes]] = []
        memory = Memory(bundle, Sampling(), 1, undo_s=5)
        settings = LiveSettings(mode=mode, **options)  # type: ignore[arg-type]
        self.live = Live(
            memory, settings, lambda message: self.sent.append((time.monotonic(), message)), time.monotonic
        )
        self.threads = Threads(self.live)

    def wait(self, what: Callable[[], object]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < until, "it does not come"
            time.sleep(0.005)

    def plays(self) -> None:
        """Waits for some notes more."""
        notes = self.live.playback.notes
        self.wait(lambda: self.live.playback.notes >= notes + 5)

    @property
    def silent(self) -> bool:
        return stuck(self.sent) == {} and ends_have_beginnings(self.sent)


@pytest.fixture
def running(bundle: Bundle) -> Iterator[Running]:
    before, switch_s = set(threading.enumerate()), sys.getswitchinterval()
    session = Running(bundle)
    yield session
    session.threads.close()
    assert set(threading.enumerate()) <= before, "a thread is left"
    assert sys.getswitchinterval() == switch_s
    assert session.silent


def test_it_plays_and_ends(running: Running) -> None:
    running.threads.start()
    running.plays()
    assert running.threads.beat_s_ago < PATIENCE_S
    running.threads.close()
    assert running.silent and running.threads.failed is None
    sent = len(running.sent)
    running.threads.close()  # twice is once
    running.live.close()
    assert [message for _, message in running.sent[sent:] if message[0] & 0xF0 != 0xB0] == []


def test_it_may_end_before_it_began(running: Running) -> None:
    running.threads.close()
    with pytest.raises(DsmrError, match="the session has ended"):
        running.threads.call(lambda: 1)


def test_wishes_are_granted_between_two_steps(running: Running) -> None:
    running.threads.start()
    thread = running.threads.call(threading.current_thread)
    assert thread.name == "dsmr-inference"
    assert (
        running.threads.call(lambda: running.threads.call(lambda: 5)) == 5
    )  # by itself: no waiting for itself
    with pytest.raises(DsmrError, match="pose: there is no such command"):
        running.threads.call(lambda: running.live.act("pose"))
    with pytest.raises(ZeroDivisionError):  # whoever asked gets it; the session goes on
        running.threads.call(lambda: 1 / 0)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: running.threads.call(lambda: n * n), range(200)))
    assert found == [n * n for n in range(200)]
    running.plays()
    assert running.threads.failed is None


def test_wishes_at_the_end_are_granted_or_refused_and_none_is_forgotten(bundle: Bundle) -> None:
    for _ in range(5):
        session = Running(bundle)
        session.threads.start()

        def ask(session: Running) -> int:
            count = 0
            try:
                while True:
                    assert session.threads.call(lambda: 7) == 7
                    count += 1
            except DsmrError as error:
                assert "the session has ended" in str(error)
            return count

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, session) for _ in range(4)]
            session.plays()
            session.threads.close()
            assert all(future.result(PATIENCE_S) > 0 for future in asking)
        assert session.threads.failed is None and session.silent


@pytest.mark.parametrize("where", ["inference", "playback"])
def test_an_error_of_its_own_ends_it_in_silence(
    running: Running, where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.threads.start()
    running.plays()
    error = RuntimeError("of its own")

    def fails(*_: object) -> None:
        raise error

    owner, name = (running.live, "work") if where == "inference" else (running.live.playback, "run_due")
    monkeypatch.setattr(owner, name, fails)
    running.live.wake.set()
    assert running.threads.stopping.wait(PATIENCE_S)
    running.wait(lambda: running.threads.failed is error and running.silent)
    running.live.input.push(b"\x90\x3c\x40", time.monotonic())  # the port is still open: nothing begins now
    running.threads.close()
    assert running.silent and "an error of its own" in caplog.text
    with pytest.raises(DsmrError, match="the session has ended"):
        running.threads.call(lambda: 1)


def test_inference_that_hangs_is_said_to(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "ANSWER_S", 0.05)
    running.threads.start()
    running.plays()
    hang = threading.Event()
    work = running.live.work

    def hangs(now: float) -> float:
        hang.wait(PATIENCE_S)
        return work(now)

    running.live.work = hangs  # type: ignore[method-assign]
    running.wait(lambda: running.threads.beat_s_ago > 0.1)
    with pytest.raises(DsmrError, match=r"inference has not answered for 0.05 s"):
        running.threads.call(lambda: 1)
    hang.set()
    running.plays()


def test_keys_from_another_thread_stop_an_answer(bundle: Bundle) -> None:
    session = Running(bundle, "continue", pause_s=0.05)
    session.threads.start()
    for round_ in range(5):
        for message in (b"\x90\x3c\x40", b"\x80\x3c\x40"):
            session.live.input.push(message, time.monotonic())
        assert not session.live.playback.sounding and not session.live.playback.queued
        session.wait(lambda round_=round_: session.live.answers.spread().count == round_ + 1)
    session.threads.close()
    assert session.silent and session.live.stops.spread().count == 4


# Files


@pytest.fixture
def kept(running: Running, tmp_path: Path) -> Iterator[tuple[Running, Path]]:
    running.threads.start()
    yield running, tmp_path / "autosave.state"


def autosave(running: Running, path: Path) -> Keeper:
    return Keeper(running.threads, None, path, 0.02)


def saves(found: Keeper) -> int:
    """Waits until it has looked twice more."""
    seen: set[float] = set()
    until = time.monotonic() + PATIENCE_S
    while len(seen) < 3 and time.monotonic() < until:
        if found._saved_at is not None:
            seen.add(found._saved_at)
        time.sleep(0.002)
    return len(seen)


def test_it_saves_what_changed_and_nothing_else(
    kept: tuple[Running, Path], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, path = kept
    written: list[int] = []
    write = saved_state.write

    def counted(to: Path, state: SavedState) -> None:
        written.append(state.moment.stream.position)
        write(to, state)

    monkeypatch.setattr(saved_state, "write", counted)
    running.plays()
    running.threads.call(lambda: running.live.act("reset"))
    running.threads.call(lambda: running.live.act("pause"))
    monkeypatch.setattr(running.live, "work", lambda now: 0.01)  # nothing changes any more
    found = autosave(running, path)
    assert found.autosaved_s_ago is None
    found.start()
    assert saves(found) == 3
    assert len(written) == 1 and found.autosaved_s_ago is not None
    monkeypatch.undo()
    running.threads.call(lambda: running.live.act("resume"))
    running.plays()
    found.close()
    state = saved_state.read(path, bundle)
    position = running.threads.call(lambda: running.live.memory.position)
    assert written[0] < state.moment.stream.position <= position


def test_the_last_state_is_saved(kept: tuple[Running, Path], bundle: Bundle) -> None:
    running, path = kept
    found = Keeper(running.threads, None, path, 3600)
    found.start()
    running.plays()
    running.threads.call(lambda: running.live.act("pause"))
    found.close()
    state = saved_state.read(path, bundle)
    assert state.name == "autosave" and state.moment.stream.position > 1
    assert state.extra["controls"]["temperature"] == 1.0


def test_a_full_disk_ends_no_concert(
    kept: tuple[Running, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, path = kept
    caplog.set_level(logging.WARNING, "dsmr")

    def full(*_: object) -> None:
        raise OutputError(f"{path}: cannot be written (No space left on device); make room")

    with monkeypatch.context() as patch:
        patch.setattr(saved_state, "write", full)
        found = autosave(running, path)
        found.start()
        running.wait(lambda: caplog.text.count("No space left") >= 2)
        assert found.autosaved_s_ago is None and running.threads.failed is None
    running.wait(lambda: path.exists() and found.autosaved_s_ago is not None)  # there is room again
    running.plays()
    found.close()


def test_an_ended_session_saves_no_more(kept: tuple[Running, Path]) -> None:
    running, path = kept
    found = autosave(running, path)
    found.start()
    running.threads.close()
    assert found._thread is not None
    found._thread.join(PATIENCE_S)
    found.close()
    assert not found._thread.is_alive()


def test_what_is_saved_in_the_bank_can_be_gone_to(
    kept: tuple[Running, Path], bundle: Bundle, tmp_path: Path
) -> None:
    running, path = kept
    with pytest.raises(StateError, match="there is no folder for states: begin with --bank FOLDER"):
        Keeper(running.threads).save_as("night")
    found = Keeper(running.threads, Bank(tmp_path / "bank", bundle))
    running.plays()
    assert found.save_as("night") == "saved as night"
    assert found.save(path, "by hand") == path and saved_state.read(path, bundle).name == "by hand"
    position = found._known_bank().load("night").moment.stream.position
    running.threads.call(lambda: running.live.act("reset"))
    assert found.load("night") == "going on from night"
    running.plays()
    assert running.threads.call(lambda: running.live.memory.position) > position
    with pytest.raises(StateError):
        found.load("day")


def test_a_damaged_autosave_is_put_aside(
    tmp_path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "autosave.state"

    def read(path: Path) -> SavedState:
        return saved_state.read(path, bundle)

    assert keeper.resume(path, read) is None
    path.write_bytes(b"dsmr-state 1 0\n{}")
    assert keeper.resume(path, read) is None
    assert not path.exists() and (tmp_path / "autosave.state.unread").read_bytes().startswith(b"dsmr-state 1")
    assert "beginning anew" in caplog.text
    moment, _ = Memory(bundle, Sampling(), 1).snapshot()
    saved_state.write(path, SavedState(moment, "autosave"))
    found = keeper.resume(path, read)
    assert found is not None and found.name == "autosave" and path.exists()
