"""What runs on the device: numpy and onnxruntime, never torch.

    from dsmr_export.runtime import Bundle, Instrument, Sampling, Stream

Names are loaded when they are used, so that `import dsmr_export.runtime` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsmr_export.runtime.bundle import Bundle
    from dsmr_export.runtime.golden import GoldenResult, check_golden
    from dsmr_export.runtime.instrument import Instrument
    from dsmr_export.runtime.sampling import Sampling
    from dsmr_export.runtime.stream import Snapshot, Stream

_HOME = {
    "Bundle": "bundle",
    "GoldenResult": "golden",
    "Instrument": "instrument",
    "Sampling": "sampling",
    "Snapshot": "stream",
    "Stream": "stream",
    "check_golden": "golden",
}

__all__ = ["Bundle", "GoldenResult", "Instrument", "Sampling", "Snapshot", "Stream", "check_golden"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
