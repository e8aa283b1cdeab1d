"""What this machine's processor is, as the kernel describes it: the standard library only.

Which graph of a bundle runs, and which target profile fits, is decided by these facts. A file that cannot
be read makes a fact unknown, never an error: no features means the safe choice everywhere.
"""

from __future__ import annotations

import os
import platform
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from dsmr_export.errors import DsmrError

FEATURES = ("asimd", "asimddp", "i8mm", "avx2", "avx_vnni", "avx512_vnni")
"""The instruction sets that kernels are chosen by, as /proc/cpuinfo spells them: ARM's, then x86's."""

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Cpu:
    """A processor and the memory beside it.

    architecture: `platform.machine()`, which is the kernel's: a 64-bit kernel under a 32-bit system says
    aarch64 too, so `bits` is this Python's own.
    model: the board where the kernel names one ("Raspberry Pi 5 Model B Rev 1.0"), else the processor.
    features: those of FEATURES that every core has.
    memory_bytes: all of the machine's memory; None where the kernel does not say.
    """

    architecture: str
    bits: int
    model: str
    features: frozenset[str]
    cores: int
    memory_bytes: int | None


def read(root: Path = Path("/")) -> Cpu:
    """The processor of this machine; its facts are read below `root`."""
    cpuinfo = _read(root / "proc/cpuinfo")
    return Cpu(
        architecture=platform.machine(),
        bits=struct.calcsize("P") * 8,
        model=_model(_read(root / "proc/device-tree/model"), cpuinfo),
        features=_features(cpuinfo),
        cores=len(_values("processor", cpuinfo)) or os.cpu_count() or 1,
        memory_bytes=_memory_bytes(_read(root / "proc/meminfo")),
    )


def require_64_bit(cpu: Cpu | None = None) -> None:
    """Raises DsmrError on a system that onnxruntime has no wheels for: one where Python has 32 bits."""
    cpu = cpu or read()
    if cpu.bits == 64:
        return
    if cpu.architecture in ("aarch64", "arm64", "x86_64"):
        found = f"a 32-bit system under a 64-bit kernel ({cpu.architecture})"
    else:
        found = f"a 32-bit system ({cpu.architecture})"
    if cpu.architecture.startswith(("arm", "aarch")):
        remedy = "onnxruntime has no wheels for 32-bit ARM: install the 64-bit Raspberry Pi OS"
    else:
        remedy = "onnxruntime has no wheels for 32-bit systems: install a 64-bit system and its Python"
    raise DsmrError(f"this Python has {cpu.bits} bits, on {found}; {remedy}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _values(key: str, cpuinfo: str) -> list[str]:
    """Every value of `key`, in order. Keys keep their case: "model" is a number on x86, "Model" a board."""
    return re.findall(rf"^{re.escape(key)}[ \t]*:[ \t]*(.*?)[ \t]*$", cpuinfo, re.MULTILINE)


def _model(device_tree: str, cpuinfo: str) -> str:
    board = device_tree.rstrip("\0\n ")
    found = [board, *_values("Model", cpuinfo), *_values("model name", cpuinfo)]
    return next((name for name in found if name), UNKNOWN)


def _features(cpuinfo: str) -> frozenset[str]:
    """ARM lists a core's instruction sets as Features, x86 as flags; a program may run on any core."""
    cores = [set(line.split()) for line in (*_values("Features", cpuinfo), *_values("flags", cpuinfo))]
    return frozenset(FEATURES).intersection(*cores) if cores else frozenset()


def _memory_bytes(meminfo: str) -> int | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None
