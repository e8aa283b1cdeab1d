"""How long things took, over hours: counted in bins, so that it stays small."""

from __future__ import annotations

import numpy as np

from dsmr_export.runtime.live.status import Spread

BIN_MS = 0.05
BINS = 40_000
"""Bins of 0.05 ms up to 2 seconds; what took longer counts in the last, and is exact as the maximum."""


class Timings:
    """Add times in seconds; `spread` says what they came to. One thread adds, any may read."""

    def __init__(self) -> None:
        self._bins = np.zeros(BINS, np.int64)
        self._max_ms = 0.0

    def add(self, seconds: float) -> None:
        ms = max(seconds, 0.0) * 1000
        self._bins[min(int(ms / BIN_MS), BINS - 1)] += 1
        self._max_ms = max(self._max_ms, ms)

    def spread(self) -> Spread:
        """Quantiles are the upper edges of their bins, so never too good."""
        passed = np.cumsum(self._bins)
        count = int(passed[-1])
        if not count:
            return Spread(0, None, None, None)
        p50, p99 = (self._edge_ms(int(np.searchsorted(passed, q * count))) for q in (0.50, 0.99))
        return Spread(count, p50, p99, self._max_ms)

    def above(self, seconds: float) -> int:
        """How many took longer, to a bin."""
        return int(self._bins[int(round(seconds * 1000 / BIN_MS)) + 1 :].sum())

    def _edge_ms(self, index: int) -> float:
        """The last bin has no edge but the maximum."""
        return self._max_ms if index == BINS - 1 else min((index + 1) * BIN_MS, self._max_ms)
