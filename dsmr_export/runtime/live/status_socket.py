"""The socket by which a running `dsmr play` is asked and told: one line in, one line of JSON out.

A Unix stream socket that only its user may open. An empty line or `status` gives the status and what the
machine says; any other line is done, and answered {"ok": true, "said": …} or {"ok": false, "error": …}.
One thread serves a few clients; whoever is slow, silent or talks too much is shown the door.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dsmr_export.errors import DsmrError
from dsmr_export.runtime.live.machine import Machine

if TYPE_CHECKING:
    from dsmr_export.runtime.live.status import Status

LONGEST_LINE = 1024
"""Bytes."""
LONGEST_ANSWER = 4 << 20
"""Bytes that `ask` takes."""
LONGEST_PATH = 107
"""Bytes of a socket's path: sun_path has 108, the last of which is a zero (man 7 unix)."""
MOST_CLIENTS = 8
"""At the same time; more wait until one has gone."""
CLIENT_S = 5.0
"""How long a client may take to ask, and again to read the answer."""


def default_path(make_folder: bool = False) -> Path:
    """Where `dsmr play` listens unless it is told otherwise."""
    from platformdirs import user_runtime_path

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set, /tmp is as good
        folder = user_runtime_path("dsmr-export")
    if make_folder:
        with contextlib.suppress(OSError):  # a folder that cannot be made is refused as missing
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / "play.sock"


class StatusServer:
    """Answers at `path` until it is closed. Raises DsmrError where it cannot listen there.

    `status` and `act` are called in this server's thread; what `act` refuses (DsmrError) is the answer.
    """

    def __init__(
        self,
        path: Path,
        status: Callable[[], Status],
        act: Callable[[str], str],
        machine: Machine | None = None,
    ) -> None:
        self.path = path
        self._status = status
        self._act = act
        self._machine = machine or Machine()
        self._listener = _listen(path)
        self._inode = os.stat(path).st_ino
        self._clients: list[_Client] = []
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="dsmr-status", daemon=True)
        self._thread.start()

    def __enter__(self) -> StatusServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread and takes the socket's file away, if it is still this server's."""
        if self._wake.fileno() < 0:
            return  # closed before
        with contextlib.suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                self.path.unlink()
        self._wake.close()
        self._thread.join(timeout=2 * CLIENT_S)

    def _serve(self) -> None:
        with self._listener, self._woken:
            while self._woken not in (ready := self._wait()):
                for client in self._clients:
                    if client in ready:
                        client.go_on(self._answer)
                    elif time.monotonic() > client.deadline:
                        client.close()
                self._clients = [client for client in self._clients if not client.closed]
                if self._listener in ready:
                    self._accept()
            for client in self._clients:
                client.finish()  # whoever said quit is told so

    def _wait(self) -> list[Any]:
        """What can be read from or written to, after a second at most."""
        listening = [self._listener] if len(self._clients) < MOST_CLIENTS else []
        asking = [client for client in self._clients if not client.answer]
        answered = [client for client in self._clients if client.answer]
        sources: list[Any] = [self._woken, *listening, *asking]
        readable, writable, _ = select.select(sources, answered, [], 1.0)
        return [*readable, *writable]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it has hung up already
            self._clients.append(_Client(self._listener.accept()[0]))

    def _answer(self, line: str) -> dict[str, Any]:
        try:
            if line in ("", "status"):
                return {**self._status().to_json(), "machine": self._machine.facts()}
            return {"ok": True, "said": self._act(line)}
        except DsmrError as error:
            return {"ok": False, "error": " ".join(str(error).split())}
        except Exception as error:  # a fault of ours; whoever asks next may have better luck
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return {"ok": False, "error": f"a fault of dsmr play: {text}"}


class _Client:
    """One connection, which never blocks: a line comes in, an answer goes out, and it ends."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._asked = b""
        self.answer = b""
        """What is still to be sent; empty until the line is whole."""
        self.deadline = time.monotonic() + CLIENT_S
        self.closed = False

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()
        self.closed = True

    def finish(self) -> None:
        """Sends what is still to be sent, if it is taken at once, and ends."""
        with contextlib.suppress(OSError):
            self._connection.settimeout(0.5)
            self._connection.sendall(self.answer)
        self.close()

    def go_on(self, answer: Callable[[str], dict[str, Any]]) -> None:
        """Reads or writes as much as there is now."""
        try:
            if not self.answer:
                self._read(answer)
            else:
                self.answer = self.answer[self._connection.send(self.answer) :]
                if not self.answer:
                    self.close()
        except BlockingIOError:
            pass
        except OSError:  # it has hung up
            self.close()

    def _read(self, answer: Callable[[str], dict[str, Any]]) -> None:
        came = self._connection.recv(LONGEST_LINE)
        self._asked += came
        line, end, _ = self._asked.partition(b"\n")
        if end or (line and not came) or len(line) > LONGEST_LINE:  # the last line needs no end
            found = _checked(line, answer)
        elif came:
            return
        else:  # nothing was asked
            self.close()
            return
        self.answer = json.dumps(found).encode() + b"\n"
        self.deadline = time.monotonic() + CLIENT_S


def _checked(line: bytes, answer: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        return {"ok": False, "error": f"a line has at most {LONGEST_LINE} bytes"}
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        return {"ok": False, "error": "this is not a line of text: send words, as in undo 8"}
    return answer(text)


def _listen(path: Path) -> socket.socket:
    """A listening socket with mode 0600. A file that a dead server left is replaced."""
    _check_path(path)
    if not path.parent.is_dir():
        raise DsmrError(f"{path}: there is no folder {path.parent}: make it, or give another --status-socket")
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # the file gets this mode, so that nobody can be faster
        listener.bind(os.fspath(path))
        listener.listen(MOST_CLIENTS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise DsmrError(
            f"{path}: cannot listen there ({error.strerror or error}): give another --status-socket"
        ) from error
    return listener


def _remove_stale(path: Path) -> None:
    """Raises DsmrError where something is there that is in use, or is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise DsmrError(f"{path}: is there and is not a socket: give another --status-socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except OSError:  # busy, or another user's
        pass
    raise DsmrError(f"{path}: another dsmr play answers there: end it, or give another --status-socket")


def _check_path(path: Path) -> None:
    length = len(os.fsencode(path))
    if length > LONGEST_PATH:
        raise DsmrError(
            f"{path}: has {length} bytes, and a socket's path may have {LONGEST_PATH}: give a shorter one"
        )


def ask(path: Path, line: str = "status", timeout_s: float = 10.0) -> dict[str, Any]:
    """What the server at `path` answers. Raises DsmrError where none does; a refusal is an answer."""
    _check_path(path)
    if len(line.encode("utf-8", "surrogateescape")) > LONGEST_LINE or not line.isprintable():
        raise DsmrError(f"{line[:40]!r}: is not one line of at most {LONGEST_LINE} bytes")
    try:
        answer = _exchange(path, line.encode() + b"\n", time.monotonic() + timeout_s)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise DsmrError(
            f"{path}: no dsmr play answers there: start one, or give its --status-socket"
        ) from error
    except PermissionError as error:
        raise DsmrError(f"{path}: belongs to another user: ask as that user, or with sudo") from error
    except TimeoutError as error:
        raise DsmrError(f"{path}: no answer in {timeout_s:g} s: is dsmr play busy or stopped?") from error
    except OSError as error:
        raise DsmrError(f"{path}: hung up ({error.strerror or error}): ask again") from error
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DsmrError(f"{path}: what answers there is not dsmr play: give its --status-socket")
    return found


def _exchange(path: Path, line: bytes, deadline: float) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        answer = b""
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        connection.connect(os.fspath(path))
        connection.sendall(line)
        while not answer.endswith(b"\n") and len(answer) < LONGEST_ANSWER:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            came = connection.recv(1 << 16)
            if not came:
                break
            answer += came
        return answer
