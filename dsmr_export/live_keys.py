"""Single keys of the terminal, as the words that the status socket takes too."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from dsmr_export.errors import DsmrError

if TYPE_CHECKING:
    from dsmr_export.runtime.live.status import Status

WORDS = {"p": "panic", "u": "undo 8", "b": "undo-bar", "R": "reset", "q": "quit"}
"""R takes a shift: what it forgets cannot be taken back."""
TURNS = {
    "+": ("temperature", 0.05),
    "=": ("temperature", 0.05),  # the same key without shift
    "-": ("temperature", -0.05),
    "]": ("density", 0.1),
    "[": ("density", -0.1),
}
"""Which control, and by how much; what is out of its range is refused by who is told."""


class Keys:
    """Listens to `terminal` until it is left; does nothing where that is none, or belongs to another job.

    `act` is told what to do, in this thread; `say` gets what it answers or refuses. The terminal's settings
    are as they were after it, whatever happened in between; Ctrl-C stays Ctrl-C.
    """

    def __init__(
        self,
        status: Callable[[], Status],
        act: Callable[[str], str],
        say: Callable[[str], None],
        terminal: TextIO | None = None,
    ) -> None:
        self._status = status
        self._act = act
        self._say = say
        self._terminal = sys.stdin if terminal is None else terminal
        self._settings: list[Any] | None = None
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, name="dsmr-keys", daemon=True)

    def __enter__(self) -> Keys:
        # From the background, setting the terminal would stop the whole job (SIGTTOU).
        if (descriptor := _descriptor(self._terminal)) is not None and _is_ours(descriptor):
            self._settings = termios.tcgetattr(descriptor)
            tty.setcbreak(descriptor, termios.TCSADRAIN)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wake.close()
            if self._thread.is_alive() and self._thread is not threading.current_thread():
                self._thread.join(timeout=1.0)
        finally:
            if self._settings is not None:
                with contextlib.suppress(termios.error):  # the terminal has gone
                    termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._settings)

    def _listen(self) -> None:
        descriptor = self._terminal.fileno()
        with self._woken:
            while True:
                ready, _, _ = select.select([self._woken, descriptor], [], [])
                if self._woken in ready:
                    return
                if not _is_ours(descriptor):  # in the background a read would stop the job (SIGTTIN)
                    time.sleep(0.5)
                    continue
                try:
                    came = os.read(descriptor, 64)
                except OSError:
                    return
                if not came:
                    return
                # One key at a time: an arrow or a paste begins with escape or comes as many, and is no wish.
                if len(came) == 1:
                    self._press(came.decode("latin-1"))

    def _press(self, key: str) -> None:
        try:
            if line := self._line(key):
                self._say(self._act(line))
        except DsmrError as error:
            self._say(" ".join(str(error).split()))

    def _line(self, key: str) -> str | None:
        if key == " ":
            return "resume" if self._status().phase == "paused" else "pause"
        if key == "s":
            return f"save {time.strftime('%Y-%m-%d-%H%M%S')}"
        if key in TURNS:
            name, step = TURNS[key]
            now = self._status().controls.get(name)
            return None if now is None else f"set {name} {round(now + step, 4):g}"
        return WORDS.get(key, WORDS.get(key.lower()))


def _descriptor(terminal: TextIO) -> int | None:
    try:
        return terminal.fileno() if terminal.isatty() else None
    except (OSError, ValueError):  # closed, or not a file at all
        return None


def _is_ours(descriptor: int) -> bool:
    """Whether this process is the terminal's foreground job."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False
