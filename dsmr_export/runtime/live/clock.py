"""Where music time lies in real time."""

from __future__ import annotations

from dsmr_export.runtime.performance import frame_at


class MusicClock:
    """Frames of music against seconds of `time.monotonic`, which no change of the wall clock moves.

    `delay` and `align` change where the music lies. One float is written, so threads may read at any time.
    """

    def __init__(self, step_ms: int) -> None:
        self.step_s = step_ms / 1000
        self._step_ms = step_ms
        self._origin = 0.0

    def frame(self, seconds: float) -> int:
        """The frame of a moment; halves go up."""
        return frame_at(seconds - self._origin, self._step_ms)

    def seconds(self, frame: int) -> float:
        """The moment of a frame."""
        return self._origin + frame * self.step_s

    def delay(self, seconds: float) -> None:
        """Everything that is to come comes so much later."""
        self._origin += seconds

    def align(self, seconds: float, frame: int) -> None:
        """That moment is that frame."""
        self._origin = seconds - frame * self.step_s
