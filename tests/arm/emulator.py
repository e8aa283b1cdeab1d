"""Programs on emulated ARM64 processors: finds or sets up what run-arm.sh needs, and runs them with our
wheel.

A guest gets the unpacked wheel and the base install, which is what a device has: no torch, and nothing of
this tree.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import wheel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SETUP, RUN = HERE / "setup.sh", HERE / "run-arm.sh"
CPUS = ("cortex-a53", "cortex-a72", "cortex-a76")
DOT_PRODUCTS = "cortex-a76"
"""The one of them that has dot products (asimddp)."""

UNAVAILABLE = 3
"""Exit status of setup.sh where an emulation cannot be had, through no fault of the tree."""
INHERITED = ("PATH", "HOME", "TMPDIR", "XDG_CACHE_HOME")
"""All that a guest sees of this process's environment: the rest changes from machine to machine, and with it
how memory is laid out and, a little, what is counted."""


def cache_folder() -> Path:
    """Where setup.sh puts it; the same rule is written there."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DSMR_ARM_DIR") or Path(cache) / "dsmr-export" / "arm64")


FOLDER = cache_folder()
"""Found out when this module is imported, at collection: during the tests XDG_CACHE_HOME is a folder of their
own, and ninety megabytes would be fetched at every run (tests/conftest.py)."""


class Unavailable(Exception):
    """There is no emulation on this machine; the message says why."""


class EmulatorError(Exception):
    """There should be one, and it does not work."""


@dataclass(frozen=True)
class Finished:
    """A program that ended. peak_bytes: the most memory of its process, the emulator included."""

    status: int
    stdout: str
    stderr: str
    peak_bytes: int

    @property
    def results(self) -> list[dict[str, Any]]:
        """What a guest script printed: one JSON object a line."""
        return [json.loads(line) for line in self.stdout.splitlines()]


@dataclass(frozen=True)
class Emulator:
    """folder: what setup.sh made. site: where the wheel is unpacked."""

    folder: Path
    site: Path

    @property
    def counts(self) -> bool:
        """Whether instructions can be counted."""
        return (self.folder / "count.so").is_file()

    def run(
        self,
        cpu: str,
        *command: str | Path,
        count: bool = False,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 600,
    ) -> Finished:
        """Runs `python …` on a processor. count: instructions are counted, into a file that the guest knows.

        Raises EmulatorError with what it printed where it ends with another status than 0, or not in time.
        """
        finished = self.attempt(cpu, *command, count=count, environment=environment, timeout_s=timeout_s)
        if finished.status:
            end = "\n".join(finished.stderr.strip().splitlines()[-20:])
            shown = " ".join(map(str, command))
            raise EmulatorError(f"on {cpu}: python {shown}: exit status {finished.status}\n{end}")
        return finished

    def attempt(
        self,
        cpu: str,
        *command: str | Path,
        count: bool = False,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 600,
    ) -> Finished:
        """The same, whatever its status: 1 for most errors of a program, -9 where it did not end in time."""
        variables = {name: os.environ[name] for name in INHERITED if name in os.environ}
        variables |= {"DSMR_ARM_DIR": str(self.folder), "PYTHONPATH": str(self.site), **(environment or {})}
        with tempfile.TemporaryDirectory(prefix="dsmr-arm-") as name:
            folder = Path(name)
            if count:
                variables["DSMR_ARM_COUNT"] = str(folder / "count")
            with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
                process = subprocess.Popen(
                    [RUN, cpu, "python", *command], env=variables, stdout=out, stderr=err, cwd=folder
                )
                peak = _watch(process, time.monotonic() + timeout_s)
            out_text, err_text = ((folder / name).read_text("utf-8", "replace") for name in ("out", "err"))
        return Finished(process.returncode, out_text, err_text, peak)


def _watch(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Waits for a process; the largest VmHWM seen, in bytes.

    Not getrusage: to the kernel the peak of the process that forked is the child's as well, and that is
    pytest with torch in it. VmHWM only grows, so that it is read too seldom costs what the last 20 ms added.
    """
    peak = 0
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.send_signal(signal.SIGKILL)
            process.wait()
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = max(peak, int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024)
        time.sleep(0.02)
    return peak


def set_up(folder: Path = FOLDER) -> Path:
    """Makes the tree in `folder` where it is not there yet (half a minute and a network, once).

    Raises Unavailable with the reason where it cannot be had here, EmulatorError where it was made and does
    not work.
    """
    variables = {**os.environ, "PYTHON": sys.executable}
    run = subprocess.run([SETUP, folder], env=variables, capture_output=True, text=True)
    said = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
    if run.returncode == UNAVAILABLE:
        raise Unavailable(said[-1].removeprefix("setup.sh: "))
    if run.returncode:
        raise EmulatorError("\n".join(said[-20:]))
    return folder


def unpacked_wheel(folder: Path) -> Path:
    """The content of our wheel, below `folder`. Raises EmulatorError where it cannot be built."""
    try:
        return wheel.unpacked(folder)
    except RuntimeError as error:
        raise EmulatorError(str(error)) from error
