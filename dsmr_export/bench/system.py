"""What figures were measured on, and what memory a process has used."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from dsmr_export.runtime import cpu


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": cpu.read().model,
        "features": sorted(cpu.read().features),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def versions(*packages: str) -> dict[str, str | None]:
    """Of what the figures depend on, and of ``packages``; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("dsmr-export", "numpy", "onnxruntime", "torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def memory_bytes(name: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes of memory that this process has now (VmRSS), or had at most (VmHWM).

    Not getrusage where /proc tells it: its peak starts with that of the process that started this one.
    """
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
