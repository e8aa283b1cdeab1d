"""What the machine says while it plays: memory, load, temperature, and a Raspberry Pi's own complaints.

A fact that the machine does not give is None, never an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THROTTLED_EVERY_S = 5.0
THROTTLED_TIMEOUT_S = 1.0

THROTTLED = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
"""Bits 0 to 3 of `vcgencmd get_throttled`: so now; bits 16 to 19: so at some time since the last boot.
Source: Raspberry Pi documentation, Raspberry Pi OS, vcgencmd, get_throttled."""


class Machine:
    """Reads the facts below `root`; vcgencmd, a program that may take its time, every 5 s at most."""

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._vcgencmd = shutil.which("vcgencmd")
        self._throttled: dict[str, list[str]] | None = None
        self._asked_at = -THROTTLED_EVERY_S

    def facts(self) -> dict[str, Any]:
        """rss_bytes: the memory of this process that is in RAM. load: of the last 1, 5 and 15 minutes."""
        return {
            "rss_bytes": self._rss_bytes(),
            "load": self._load(),
            "cpu_temperature_c": self._cpu_temperature_c(),
            "throttled": self._throttling(),
        }

    def _rss_bytes(self) -> int | None:
        found = re.search(r"^VmRSS:\s*(\d+) kB", self._read("proc/self/status"), re.MULTILINE)
        return int(found[1]) * 1024 if found else None

    def _load(self) -> list[float] | None:
        found = re.match(r"(\d+\.\d+) (\d+\.\d+) (\d+\.\d+) ", self._read("proc/loadavg"))
        return [float(each) for each in found.groups()] if found else None

    def _cpu_temperature_c(self) -> float | None:
        found = re.match(r"-?\d+", self._read("sys/class/thermal/thermal_zone0/temp"))
        return int(found[0]) / 1000 if found else None

    def _read(self, path: str) -> str:
        try:
            return (self._root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _throttling(self) -> dict[str, list[str]] | None:
        if self._vcgencmd is None:
            return None
        now = self._clock()
        if now - self._asked_at >= THROTTLED_EVERY_S:
            self._asked_at = now
            self._throttled = throttling(self._ask(self._vcgencmd))
        return self._throttled

    @staticmethod
    def _ask(vcgencmd: str) -> str:
        try:
            run = subprocess.run(
                [vcgencmd, "get_throttled"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=THROTTLED_TIMEOUT_S,
                env=os.environ | {"LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return run.stdout.decode("ascii", "replace")


def throttling(answer: str) -> dict[str, list[str]] | None:
    """What `throttled=0x50005` means: {"now": [...], "since_boot": [...]}; None for any other answer."""
    found = re.fullmatch(r"throttled=(0x[0-9a-fA-F]{1,8})\s*", answer)
    if found is None:
        return None
    bits = int(found[1], 16)
    return {
        name: [words for bit, words in enumerate(THROTTLED) if bits >> (first + bit) & 1]
        for name, first in (("now", 0), ("since_boot", 16))
    }
