"""A function in an interpreter of its own: what an exporter needs is not counted as its peer's memory."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from dsmr_export.bench.peers import AbsentError
from dsmr_export.errors import DsmrError


def apart(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of ``function(*arguments)``, both pickled.

    Raises the DsmrError that it raised; AbsentError with ``what`` could not be done and the last line that it
    wrote for anything else that went wrong, the process's end included.
    """
    # Not multiprocessing: a peer lives in a daemon process, which may start none.
    run = subprocess.run(
        [sys.executable, "-m", __name__], input=pickle.dumps((function, arguments)), capture_output=True
    )
    if run.returncode:
        lines = run.stderr.decode(errors="replace").split("\n")
        last = next(
            (line.strip() for line in reversed(lines) if line.strip()), f"ended with {run.returncode}"
        )
        raise AbsentError(f"{what} failed: {last}")
    answer, error = pickle.loads(run.stdout)
    if error is not None:
        raise error
    return answer


def _serve() -> None:
    function, arguments = pickle.load(sys.stdin.buffer)
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # what libraries print is no answer
    answer: tuple[Any, DsmrError | None]
    try:
        answer = function(*arguments), None
    except DsmrError as error:
        answer = None, error
    answers.write(pickle.dumps(answer))


if __name__ == "__main__":
    _serve()
