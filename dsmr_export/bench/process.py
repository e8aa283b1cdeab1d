"""An object in a process of its own: its peak memory is its own, and a crash takes nothing else along."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from dsmr_export.errors import DsmrError


class LostError(DsmrError):
    """A process that ended by itself, or whose object broke down."""


class Remote:
    """What ``build(*arguments)`` makes, in a fresh process; ``ask`` calls its methods there.

    ``build`` is a function or class that can be imported; arguments and answers are pickled. The process is
    made at once and ``wait`` waits for the object, so that several can be made at the same time.
    """

    def __init__(self, build: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, build, arguments), daemon=True)
        self._process.start()
        far.close()

    def wait(self) -> Remote:
        """Waits until the object is there. Raises what making it raised, as ``ask`` does."""
        self._receive()
        return self

    def ask(self, method: str, *arguments: Any) -> Any:
        """The answer of a method. Raises the DsmrError that it raised; LostError for anything else that went
        wrong, the process's end included."""
        with suppress(OSError):  # it died: _receive says of what
            self._connection.send((method, arguments))
        return self._receive()

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            answer, error = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            raise LostError(
                "killed by the system, most likely out of memory"
                if code == -signal.SIGKILL
                else f"its process ended with {code}"
            ) from None
        if error is not None:
            raise error
        return answer


def _serve(connection: Connection, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The process: makes the object, then answers until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asker gets it too, and closes
    try:
        made = _tried(build, arguments)
        connection.send((None, made[1]))
        while made[1] is None:
            method, values = connection.recv()
            connection.send(_tried(getattr(made[0], method), values))
    except (EOFError, OSError):
        pass  # nobody listens


def _tried(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, DsmrError | None]:
    try:
        return function(*arguments), None
    except DsmrError as error:
        return None, error
    except Exception as error:  # of any library: what it says is all that can be said
        first = next(iter(str(error).splitlines()), "")
        return None, LostError(f"{type(error).__name__}: {first}" if first else type(error).__name__)
