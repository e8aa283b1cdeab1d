"""The terminal of a live session: every size whole, nothing wrapped, and its keys."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from dsmr_export.errors import DsmrError
from dsmr_export.live_keys import Keys
from dsmr_export.live_roll import roll
from dsmr_export.live_view import View, bar, render
from dsmr_export.runtime.live.status import LayerFill, RollNote, Spread, Status
from tests.live_status import BUSY, NEW, status

SIZES = [(80, 24), (120, 40), (60, 20)]


def drawn(what: Status, width: int, height: int, colour: bool = True) -> list[str]:
    """The lines as a terminal wide enough would have them: what is too long shows, and is not wrapped."""
    console = Console(width=10 * width, record=True, file=io.StringIO(), force_terminal=True)
    console.print(render(what, width, height, colour))
    return console.export_text().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("what", [BUSY, NEW], ids=["busy", "new"])
@pytest.mark.parametrize("colour", [True, False])
def test_a_view_fills_its_terminal(what: Status, width: int, height: int, colour: bool) -> None:
    lines = drawn(what, width, height, colour)
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_all_parts_are_there(width: int, height: int) -> None:
    lines = drawn(BUSY, width, height)
    text = "\n".join(lines)
    assert lines[0].startswith("int8   duet   playing") and "model" in lines[0]
    for part in ("C5", "−8 s", "now", "+2 s", "p50    0.4", "max   11.9 ms", "p99  322.9", "3 times, 0.42 s"):
        assert part in text
    for part in ("1.9 s", "182", "2,048/2,048", "1,200/2,048", "2–7", "temperature 0.95", "(lost)"):
        assert part in text
    assert "14:03:01 input lost" in text and lines[-1].startswith("space pause")
    assert lines[-1].rstrip().endswith("q quit")


def test_there_is_room_for_details_in_a_wide_one() -> None:
    text = "\n".join(drawn(BUSY, 120, 40))
    for part in ("up 1:02:03", "14 events", "123,456 in all", "1,234 in, 2,345 out", "[ ] density"):
        assert part in text


@given(
    width=st.integers(20, 200),
    height=st.integers(2, 60),
    layers=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=40),
    names=st.lists(st.text(max_size=80), max_size=12),
    notes=st.lists(st.tuples(st.floats(-20, 20), st.integers(0, 127), st.sampled_from(["player", "model"]))),
    time_ms=st.floats(0, 1e9),
    colour=st.booleans(),
)
def test_no_status_breaks_the_picture(
    width: int,
    height: int,
    layers: list[tuple[int, int]],
    names: list[str],
    notes: list[tuple[float, int, str]],
    time_ms: float,
    colour: bool,
) -> None:
    odd = status(
        graph="".join(names),
        memory=tuple(LayerFill(layer, *fill) for layer, fill in enumerate(layers)),
        controls=dict.fromkeys(names, 1e-9),
        ports=dict.fromkeys(names, "a port\nof two lines\x1b[2J"),
        left_out=dict.fromkeys(names, 10**9),
        log=tuple(names),
        roll=tuple(RollNote(seconds, pitch, 64, by) for seconds, pitch, by in notes),  # type: ignore[arg-type]
        lateness_ms=Spread(1, time_ms, time_ms, time_ms),
        answer_ms=Spread(1, time_ms, time_ms, time_ms),
    )
    lines = drawn(odd, width, height, colour)
    assert len(lines) <= height and max(map(cell_len, lines)) <= width


def cells(lines: list[str], characters: str) -> list[tuple[int, int]]:
    return [
        (row, column)
        for row, line in enumerate(lines)
        for column, character in enumerate(line)
        if character in characters
    ]


def plain(notes: list[RollNote], width: int = 84, rows: int = 88) -> list[str]:
    """One row a key, 8 columns a second."""
    return [line.plain for line in roll(notes, width, rows, colour=False)][:rows]


def test_a_note_is_where_it_sounded() -> None:
    """88 keys on 88 rows, 10 s on 80 columns, now at the 64th of them: by hand."""
    lines = plain([RollNote(-2.0, 60, 64, "player"), RollNote(1.0, 108, 64, "model")])
    assert cells(lines, "o") == [(108 - 60, 4 + 64 - 16)]
    assert cells(lines, "x") == [(0, 4 + 64 + 8)]
    assert all(line[4 + 64] == "|" for line in lines)
    assert {line[:2]: 108 - row for row, line in enumerate(lines) if line[0] == "C"} == {
        "C7": 96,
        "C5": 72,
        "C3": 48,
        "C1": 24,
    }


def test_now_parts_what_sounded_from_what_comes() -> None:
    lines = plain([RollNote(-0.001, 60, 64, "player"), RollNote(0.001, 60, 64, "model")])
    assert cells(lines, "ox") == [(48, 67), (48, 69)] and lines[48][68] == "|"


def test_what_is_out_of_sight_is_left_out_and_odd_pitches_are_at_the_edge() -> None:
    notes = [RollNote(seconds, 60, 64, "player") for seconds in (-9.0, 3.0)]
    assert cells(plain(notes), "o") == []
    edges = [RollNote(-1.0, 0, 64, "player"), RollNote(-1.0, 127, 64, "player")]
    assert {row for row, _ in cells(plain(edges), "o")} == {0, 87}


def test_halves_of_a_block_are_two_bands_of_keys() -> None:
    """Four rows in colour are eight bands of 11 keys: 108 … 98 is the first, 97 … 87 the second."""
    for notes, block in (
        ([(100, "player")], "▀"),
        ([(90, "player")], "▄"),
        ([(100, "player"), (90, "player")], "█"),
        ([(100, "player"), (90, "model")], "▀"),
    ):
        lines = roll([RollNote(-4.0, pitch, 64, by) for pitch, by in notes], 84, 4, colour=True)  # type: ignore[arg-type]
        assert lines[0].plain[4 + 32] == block
        assert cells([line.plain for line in lines[1:4]], "▀▄█") == []
    styles = {str(span.style) for span in lines[0].spans if span.start == 4 + 32}
    assert styles == {"cyan on yellow"}


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "····"), (1.0, "████"), (0.5, "██··"), (0.53125, "██▏·"), (1 / 32, "▏···"), (7.0, "████")],
)
def test_bars(share: float, shown: str) -> None:
    assert bar(share, 4).plain == shown


# --- on a terminal ------------------------------------------------------------------------------------------


def shown(environment: dict[str, str] | None = None, force_terminal: bool = True) -> str:
    """What a view writes in its first moment."""
    file = io.StringIO()
    console = Console(
        file=file,
        force_terminal=force_terminal,
        width=80,
        height=24,
        _environ=environment or {"TERM": "xterm"},
    )
    with View(lambda: BUSY, console):
        pass
    return file.getvalue()


def test_a_view_has_its_own_screen_and_gives_it_back() -> None:
    text = shown()
    assert text.startswith("\x1b[?1049h") and "\x1b[?1049l" in text  # xterm's alternate screen
    assert "\x1b[2J" not in text  # drawn over, never cleared: no flicker
    assert "\x1b[33m" in text and "\x1b[36m" in text and "\x1b[38;" not in text  # of the 16 colours


def test_a_terminal_that_has_gone_ends_it_without_a_word() -> None:
    """A window that is closed, a connection that is lost: what stands around the view goes on to save."""

    class Gone(io.StringIO):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    file = Gone()
    with View(lambda: BUSY, Console(file=file, force_terminal=True, _environ={"TERM": "xterm"})):
        file.gone = True
    assert file.getvalue()


def test_no_colour_where_it_is_not_wanted() -> None:
    text = shown({"TERM": "xterm", "NO_COLOR": "1"})
    assert "now" in text and not re.search(r"\x1b\[[\d;]*\b(3[0-7]|4[0-7]|9[0-7])\b[\d;]*m", text)
    assert "x model" in re.sub(r"\x1b\[[\d;]*m", "", text)  # letters say who played


@pytest.mark.parametrize(("environment", "terminal"), [({"TERM": "dumb"}, True), ({"TERM": "xterm"}, False)])
def test_nothing_is_drawn_where_there_is_no_terminal(environment: dict[str, str], terminal: bool) -> None:
    assert shown(environment, terminal) == ""


def test_the_view_is_drawn_again_and_again() -> None:
    asked = []

    def ask() -> Status:
        asked.append(time.monotonic())
        return BUSY

    console = Console(
        file=io.StringIO(), force_terminal=True, width=80, height=24, _environ={"TERM": "xterm"}
    )
    with View(ask, console):
        deadline = time.monotonic() + 10
        while len(asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(asked) >= 4
    assert (asked[-1] - asked[1]) / (len(asked) - 2) > 1 / 8.5  # 8 times a second at most


# --- keys ---------------------------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal; `keys` listens to it as if this process were its foreground job."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.file = os.fdopen(self.slave, "r", closefd=False)
        self.acted: list[str] = []
        self.said: list[str] = []

    def act(self, line: str) -> str:
        self.acted.append(line)
        if line == "reset":
            raise DsmrError("not\nnow")
        return f"did {line}"

    def keys(self, what: Callable[[], Status] = lambda: BUSY) -> Keys:
        return Keys(what, self.act, self.said.append, self.file)

    def press(self, keys: bytes) -> None:
        """And waits until somebody has read them, and a moment for what they do."""
        os.write(self.master, keys)
        time.sleep(0.15)

    def settings(self) -> list[object]:
        return termios.tcgetattr(self.slave)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    made = Terminal()
    monkeypatch.setattr("dsmr_export.live_keys._is_ours", lambda descriptor: True)
    yield made
    os.close(made.master)
    os.close(made.slave)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (b" ", "pause"),
        (b"p", "panic"),
        (b"u", "undo 8"),
        (b"b", "undo-bar"),
        (b"q", "quit"),
        (b"+", "set temperature 1"),
        (b"=", "set temperature 1"),
        (b"-", "set temperature 0.9"),
        (b"]", "set density 0.3"),
        (b"[", "set density 0.1"),
    ],
)
def test_a_key_is_a_word(terminal: Terminal, key: bytes, line: str) -> None:
    with terminal.keys():
        terminal.press(key)
    assert terminal.acted == [line] and terminal.said == [f"did {line}"]


def test_keys_that_depend(terminal: Terminal) -> None:
    with terminal.keys(lambda: status(phase="paused", controls={})):
        terminal.press(b" ")
        terminal.press(b"+")  # there is no temperature to turn
        terminal.press(b"s")
    assert terminal.acted[0] == "resume" and len(terminal.acted) == 2
    assert re.fullmatch(r"save \d{4}-\d\d-\d\d-\d{6}", terminal.acted[1])


def test_a_refusal_is_said_and_the_next_key_works(terminal: Terminal) -> None:
    with terminal.keys():
        terminal.press(b"R")
        terminal.press(b"p")
    assert terminal.said == ["not now", "did panic"]


def test_what_is_no_key_of_ours_does_nothing(terminal: Terminal) -> None:
    with terminal.keys():
        for came in (b"x", b"\x1b[A", b"rqp", b"\xe4", b"\n"):
            terminal.press(came)
    assert terminal.acted == []


def test_the_terminal_is_as_it_was(terminal: Terminal) -> None:
    before = terminal.settings()
    with pytest.raises(KeyError), terminal.keys():
        changed = terminal.settings()
        local = 3  # c_lflag, man 3 termios
        assert changed != before and not changed[local] & (termios.ECHO | termios.ICANON)  # type: ignore[operator]
        assert changed[local] & termios.ISIG  # type: ignore[operator]  # Ctrl-C stays Ctrl-C
        raise KeyError
    assert terminal.settings() == before
    assert not any(thread.name == "dsmr-keys" for thread in threading.enumerate())


def test_a_terminal_of_another_job_is_left_alone() -> None:
    """Nobody's foreground: this process has another terminal, or none."""
    terminal = Terminal()
    before = terminal.settings()
    with terminal.keys():
        assert terminal.settings() == before
        terminal.press(b"p\n")
    assert terminal.acted == []


def test_no_terminal_is_no_matter(tmp_path: Path) -> None:
    with open(os.devnull) as null, Keys(lambda: NEW, str, print, null):
        pass
    closed = open(os.devnull)  # noqa: SIM115
    closed.close()
    with Keys(lambda: NEW, str, print, closed):
        pass


CHILD = """
import sys, time
from dsmr_export.live_keys import Keys
from tests.live_status import BUSY

with Keys(lambda: BUSY, lambda line: print("act", line, flush=True) or line, lambda text: None):
    print("ready", flush=True)
    time.sleep(30)
"""


def test_a_real_foreground_job_hears_its_keys_and_restores_after_ctrl_c() -> None:
    """A process with a terminal of its own: pty.fork, no part of ours replaced."""
    root = Path(__file__).resolve().parents[1]
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(root)
        os.execv(sys.executable, [sys.executable, "-c", CHILD])
    text = b""

    def until(words: bytes) -> None:
        nonlocal text
        while words not in text:
            text += os.read(master, 1000)

    alarm = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"no answer: {text!r}"))
    signal.alarm(30)
    try:
        until(b"ready")
        os.write(master, b"u")
        until(b"act undo 8")
        assert b"u" not in text.partition(b"ready")[2].partition(b"act")[0]  # not echoed
        os.write(master, b"\x03")
        until(b"KeyboardInterrupt")
        assert termios.tcgetattr(master)[3] & termios.ECHO
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        os.close(master)
        os.waitpid(pid, 0)


def test_drawing_loads_nothing_heavy() -> None:
    """A device's command line imports the view before it is known whether there is a terminal."""
    code = "import sys, dsmr_export.live_view, dsmr_export.live_keys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnxruntime", "mido", "torch"} & set(run.stdout.split())
