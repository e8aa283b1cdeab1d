"""What can be turned while it plays: how it chooses, from a controller's 0-127 or as a number."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from dsmr_export.errors import DsmrError, nearest
from dsmr_export.runtime.live.settings import CONTROLS
from dsmr_export.runtime.memory import Memory

DENSITY = 1.5
"""The pace that density moves by, both ways: a shift of 0.6 s becomes 32 times likelier beside 60 ms."""


class Controls:
    """temperature, top-p and density of a memory. density 0 is the pace that the bundle asks for, above it is
    denser: it is the pace, the other way round and counted from there."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._pace = memory.pace

    def values(self) -> dict[str, float]:
        sampling = self._memory.sampling
        density = self._pace - self._memory.pace
        return {"temperature": sampling.temperature, "top-p": sampling.top_p, "density": round(density, 3)}

    def set(self, name: str, value: float) -> None:
        """Raises ``DsmrError`` for a control that is none, and for a value that it cannot have."""
        if name not in CONTROLS:
            raise DsmrError(
                f"set {name}: there is no such control{nearest(name, CONTROLS)}; {', '.join(CONTROLS)}"
            )
        if name == "density":
            if not (math.isfinite(value) and abs(value) <= 5):
                raise DsmrError(f"density is {value:g}: give -5 to 5, 0 as the bundle has it")
            self._memory.pace = self._pace - value
        else:
            change: dict[str, Any] = {name.replace("-", "_"): value}
            self._memory.sampling = replace(self._memory.sampling, **change)

    def turn(self, name: str, position: int) -> None:
        """A controller at 0-127: its middle is temperature 1 and the bundle's density, its top top-p 1."""
        if name == "temperature":
            self.set(name, 0.5 + position / 128 if position <= 64 else 1 + (position - 64) / 63)
        elif name == "top-p":
            self.set(name, round(0.5 + position / 254, 3))
        else:
            self.set(name, round(max(-1.0, (position - 64) / 63) * DENSITY, 3))
