"""A running `dsmr play`, asked: its numbers, its socket, what the machine says, and `dsmr status`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmr_export import cli, cli_status
from dsmr_export.errors import DsmrError
from dsmr_export.runtime.live import machine, status_socket
from dsmr_export.runtime.live.machine import Machine, throttling
from dsmr_export.runtime.live.status import Spread, Status
from dsmr_export.runtime.live.status_socket import LONGEST_LINE, MOST_CLIENTS, StatusServer, ask
from tests.live_status import BUSY, NEW, status


def act(line: str) -> str:
    if line.startswith("fail"):
        raise DsmrError(f"{line}: no such\nword")
    if line == "break":
        raise RuntimeError("a fault")
    return f"did {line}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "play.sock"


@pytest.fixture
def server(path: Path) -> Iterator[StatusServer]:
    with StatusServer(path, lambda: BUSY, act) as running:
        yield running


def raw(path: Path, sent: bytes, hang_up: bool = False) -> bytes:
    """What comes back, by a client that knows nothing of ours."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(10)
        client.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(sent)
            if hang_up:
                return b""
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while came := client.recv(4096):
                answer += came
        return answer


# --- the numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [BUSY, NEW])
def test_a_status_survives_json(what: Status) -> None:
    found = json.loads(json.dumps(what.to_json(), allow_nan=False))
    assert found["mode"] == what.mode and len(found["roll"]) == len(what.roll)
    assert Spread(**found["lateness_ms"]) == what.lateness_ms
    assert set(found) == set(Status.__dataclass_fields__)


# --- the socket ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["status", "", "  status  "])
def test_status_and_machine(server: StatusServer, path: Path, line: str) -> None:
    found = ask(path, line)
    assert {key: value for key, value in found.items() if key != "machine"} == json.loads(
        json.dumps(BUSY.to_json())
    )
    assert found["machine"]["rss_bytes"] > 1e6


def test_words_are_done_and_refusals_said(server: StatusServer, path: Path) -> None:
    assert ask(path, "undo 8") == {"ok": True, "said": "did undo 8"}
    assert ask(path, "fail") == {"ok": False, "error": "fail: no such word"}
    broken = ask(path, "break")
    assert broken["ok"] is False and "RuntimeError: a fault" in broken["error"]
    assert ask(path, "pause")["ok"] is True  # it lives on


def test_any_other_client_is_served_too(server: StatusServer, path: Path) -> None:
    """One line in, one line out, then the end; the last line needs no newline."""
    for sent in (b"panic\n", b"panic", b"panic\nreset\nsave x\n"):
        answer = raw(path, sent)
        assert json.loads(answer) == {"ok": True, "said": "did panic"} and answer.count(b"\n") == 1
    assert raw(path, b"") == b""


def test_only_its_user_may_open_it(path: Path) -> None:
    before = os.umask(0)
    try:
        with StatusServer(path, lambda: BUSY, act):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_the_file_goes_with_the_server(path: Path) -> None:
    server = StatusServer(path, lambda: BUSY, act)
    threads = threading.active_count()
    server.close()
    assert not path.exists() and threading.active_count() == threads - 1
    server.close()  # once more is nothing
    with pytest.raises(DsmrError, match="no dsmr play answers there"):
        ask(path)


def test_what_a_dead_server_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert path.exists()
    with StatusServer(path, lambda: BUSY, act):
        assert ask(path, "pause")["ok"]


def test_a_second_server_is_refused_and_the_first_goes_on(server: StatusServer, path: Path) -> None:
    with pytest.raises(DsmrError, match="another dsmr play answers there.*--status-socket") as caught:
        StatusServer(path, lambda: NEW, act)
    assert "\n" not in str(caught.value)
    assert ask(path)["mode"] == BUSY.mode


def test_a_closing_server_leaves_its_successors_file(path: Path) -> None:
    first = StatusServer(path, lambda: BUSY, act)
    path.rename(path.with_name("away"))
    with StatusServer(path, lambda: NEW, act):
        first.close()
        assert ask(path)["mode"] == NEW.mode


def test_places_that_do_not_work_are_refused(tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("dear")
    long = tmp_path / ("x" * (108 - len(str(tmp_path)) - 1))
    for where, words in (
        (tmp_path / "gone" / "s", "there is no folder"),
        (tmp_path / "diary", "is not a socket"),
        (long, "has 108 bytes, and a socket's path may have 107"),
    ):
        with pytest.raises(DsmrError, match=words) as caught:
            StatusServer(where, lambda: BUSY, act)
        assert str(where) in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "diary").read_text() == "dear"
    with StatusServer(long.with_name(long.name[1:]), lambda: BUSY, act) as server:  # 107 are fine
        assert ask(server.path, "pause")["ok"]
    with pytest.raises(DsmrError, match="108 bytes"):
        ask(long)


def test_the_default_place_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = status_socket.default_path()
    assert path == tmp_path / "dsmr-export" / "play.sock" and not path.parent.exists()
    assert status_socket.default_path(make_folder=True) == path
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# --- clients that do not behave -----------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.binary(max_size=3 * LONGEST_LINE), hang_up=st.booleans())
def test_garbage_gets_one_line_of_json_or_none(
    server: StatusServer, path: Path, sent: bytes, hang_up: bool
) -> None:
    answer = raw(path, sent, hang_up)
    if not hang_up and len(sent.partition(b"\n")[0]) <= LONGEST_LINE:
        # Unread rest may break the connection before the answer is read (a reset), but nothing else may.
        assert answer.count(b"\n") == 1 or not sent or len(sent) > LONGEST_LINE
    if answer:
        assert isinstance(json.loads(answer), dict)
    assert ask(path, "pause") == {"ok": True, "said": "did pause"}


@pytest.mark.parametrize("sent", [b"\xff\xfe\n", b"a\0b\n", b"\x1b[2J\n"])
def test_what_is_no_text_is_not_acted_on(server: StatusServer, path: Path, sent: bytes) -> None:
    found = json.loads(raw(path, sent))
    assert found["ok"] is False and "not a line of text" in found["error"]


def test_ten_megabytes_are_not_read(server: StatusServer, path: Path) -> None:
    raw(path, b"x" * 10_000_000)
    assert ask(path, "pause")["ok"]


def test_silent_clients_are_shown_the_door(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_socket, "CLIENT_S", 0.2)
    with StatusServer(path, lambda: BUSY, act), contextlib.ExitStack() as stack:
        silent = []
        for _ in range(MOST_CLIENTS):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(str(path))
            client.settimeout(10)
            silent.append(client)
        assert ask(path, "pause")["ok"]  # when there is room again
        assert [client.recv(1) for client in silent] == [b""] * MOST_CLIENTS


def test_who_does_not_read_the_answer_holds_nobody_up(path: Path) -> None:
    """An answer larger than a socket takes at once."""
    big = status(log=("x" * 1_000_000,))
    with (
        StatusServer(path, lambda: big, act),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf,
    ):
        deaf.connect(str(path))
        deaf.sendall(b"status\n")
        started = time.monotonic()
        assert len(ask(path)["log"][0]) == 1_000_000
        assert time.monotonic() - started < status_socket.CLIENT_S


# --- the client ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[None]:
    """A server that is not ours: it answers whatever comes with `answer`, or never."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                if answer is None:
                    done.wait(10)
                else:
                    client.sendall(answer)

        done = threading.Event()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        done.set()
        thread.join(10)


@pytest.mark.parametrize("answer", [b"", b"220 mail.example.org ESMTP\n", b"[1]\n", b"\xff\n"])
def test_what_is_not_dsmr_play_is_said(path: Path, answer: bytes) -> None:
    with answering(path, answer), pytest.raises(DsmrError, match="is not dsmr play"):
        ask(path)


def test_no_answer_is_said(path: Path) -> None:
    with answering(path, None), pytest.raises(DsmrError, match="no answer in 0.2 s"):
        ask(path, timeout_s=0.2)


@pytest.mark.parametrize("line", ["a\nb", "x" * (LONGEST_LINE + 1), "\udcff"])
def test_what_is_not_a_line_is_not_sent(path: Path, line: str) -> None:
    with pytest.raises(DsmrError, match="is not one line"):
        ask(path, line)


# --- the machine --------------------------------------------------------------------------------------------


def fake_root(tmp_path: Path, **files: str) -> Path:
    names = {
        "status": "proc/self/status",
        "loadavg": "proc/loadavg",
        "temp": "sys/class/thermal/thermal_zone0/temp",
    }
    for key, text in files.items():
        file = tmp_path / names[key]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def no_vcgencmd(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(folder))


def test_facts_of_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_vcgencmd(monkeypatch, tmp_path)
    root = fake_root(
        tmp_path,
        status="Name:\tdsmr\nVmHWM:\t  300000 kB\nVmRSS:\t  212345 kB\n",
        loadavg="0.52 0.58 0.59 1/189 4321\n",
        temp="54780\n",
    )
    assert Machine(root).facts() == {
        "rss_bytes": 212345 * 1024,
        "load": [0.52, 0.58, 0.59],
        "cpu_temperature_c": 54.78,
        "throttled": None,
    }


def test_a_machine_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_vcgencmd(monkeypatch, tmp_path)
    unknown = dict.fromkeys(("rss_bytes", "load", "cpu_temperature_c", "throttled"))
    assert Machine(tmp_path).facts() == unknown
    fake_root(tmp_path, status="", loadavg="?", temp="N/A")
    assert Machine(tmp_path).facts() == unknown


def test_this_machine_agrees_with_the_kernel() -> None:
    """Memory moves between the two readings, a few pages; load is what os.getloadavg says."""
    import resource

    found = Machine().facts()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak / 4 < found["rss_bytes"] <= peak * 1.01
    assert found["load"] == pytest.approx(os.getloadavg(), abs=1.0)


@pytest.mark.parametrize(
    ("answer", "now", "since_boot"),
    [
        ("throttled=0x0\n", [], []),
        # The example of many a Raspberry Pi with a weak supply: bits 0, 2, 16 and 18.
        ("throttled=0x50005\n", ["under-voltage", "throttled"], ["under-voltage", "throttled"]),
        ("throttled=0x80008\n", ["soft temperature limit"], ["soft temperature limit"]),
        ("throttled=0x20000\n", [], ["frequency capped"]),
    ],
)
def test_throttling_in_words(answer: str, now: list[str], since_boot: list[str]) -> None:
    assert throttling(answer) == {"now": now, "since_boot": since_boot}


@pytest.mark.parametrize(
    "answer", ["", "throttled=", "VCHI initialization failed\n", "throttled=0x123456789"]
)
def test_no_throttling_in_other_answers(answer: str) -> None:
    assert throttling(answer) is None


def test_vcgencmd_is_asked_every_five_seconds_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, asked = tmp_path / "vcgencmd", tmp_path / "asked"
    program.write_text(f'#!/bin/sh\necho "$*" >>{asked}\necho throttled=0x1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    times = iter([100.0, 101.0, 104.9, 105.0])
    board = Machine(clock=lambda: next(times))
    assert [board.facts()["throttled"]["now"] for _ in range(4)] == [["under-voltage"]] * 4
    assert asked.read_text() == "get_throttled\n" * 2


def test_a_vcgencmd_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "THROTTLED_TIMEOUT_S", 0.1)
    assert Machine().facts()["throttled"] is None


# --- dsmr status --------------------------------------------------------------------------------------------


def dsmr_status(*arguments: str | Path) -> Result:
    given = [str(argument) for argument in arguments]
    return CliRunner().invoke(cli.main, ["status", *given], prog_name="dsmr")


def test_the_table_says_all_of_it(server: StatusServer, path: Path) -> None:
    result = dsmr_status("--socket", path)
    assert result.exit_code == 0, result.output
    for words in (
        "duet",
        "playing, up 1 h 2 min",
        "123,456 tokens read",
        "1,234 heard, 2,345 played; left out: 3 outside the pitches",
        "0.4 ms (median), 2.1 (99 %), 11.9 (most) of 2,034",
        "3 times, 0.42 s in all",
        "layer 1: 1,200 of 2,048 tokens",
        "layers 2–7: 256 of 256 tokens",
        "temperature 0.95",
        "Keystation 61 (lost)",
        "saved 12 s ago",
        "14:03:01 input lost",
    ):
        assert words in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 110


def test_a_session_that_has_only_begun(path: Path) -> None:
    with StatusServer(path, lambda: NEW, act):
        result = dsmr_status("--socket", path)
    assert result.exit_code == 0 and "listening, up 0 s" in result.stdout and "None" not in result.stdout


def test_json_is_one_line(server: StatusServer, path: Path) -> None:
    result = dsmr_status("--socket", path, "--json")
    assert result.stdout.count("\n") == 1 and json.loads(result.stdout)["position"] == 123456


def test_words_to_it(server: StatusServer, path: Path) -> None:
    assert dsmr_status("--socket", path, "undo", "8").stdout == "did undo 8\n"
    assert dsmr_status("set", "pace", "-0.5", "--socket", path).stdout == "did set pace -0.5\n"
    found = json.loads(dsmr_status("--json", "--socket", path, "panic").stdout)
    assert found == {"ok": True, "said": "did panic"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fail", "me"], 1, "dsmr play: fail me: no such word"),
        (["--jsno"], 2, "--jsno"),
        (["undo", "-x"], 2, "-x"),
    ],
)
def test_refusals_are_one_line(
    server: StatusServer, path: Path, arguments: list[str], code: int, words: str
) -> None:
    result = dsmr_status("--socket", path, *arguments)
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1].startswith("Error: ") and words in result.stderr.splitlines()[-1]


def test_nothing_runs_there(path: Path) -> None:
    result = dsmr_status("--socket", path)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert f"{path}: no dsmr play answers there: start one" in result.stderr


def test_another_version_is_said(path: Path) -> None:
    with answering(path, b'{"mode": "duet"}\n'):
        result = dsmr_status("--socket", path)
    assert result.exit_code == 1 and "another version" in result.stderr


def test_the_service_is_asked_where_there_is_no_session_of_ones_own(
    server: StatusServer, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_status, "SERVICE_SOCKET", path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert dsmr_status("pause").stdout == "did pause\n"

    def other(line: str) -> str:
        return f"mine: {line}"

    own: Any = status_socket.default_path(make_folder=True)
    with StatusServer(own, lambda: BUSY, other):
        assert dsmr_status("pause").stdout == "mine: pause\n"
