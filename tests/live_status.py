"""Statuses of sessions that are not running, for the tests of the view, the socket and `dsmr status`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dsmr_export.runtime.live.status import LayerFill, RollNote, Spread, Status

BUSY = Status(
    mode="duet",
    phase="playing",
    uptime_s=3723.5,
    graph="int8",
    position=123456,
    tokens_per_s=182.4,
    lateness_ms=Spread(2034, 0.4, 2.1, 11.9),
    answer_ms=Spread(12, 184.2, 322.9, 410.0),
    shifts=3,
    shifted_s=0.42,
    queue_events=14,
    queue_s=1.9,
    heard_notes=1234,
    played_notes=2345,
    left_out={"outside the pitches": 3},
    memory=(
        LayerFill(0, 2048, 2048),
        LayerFill(1, 1200, 2048),
        *(LayerFill(layer, 256, 256) for layer in range(2, 8)),
    ),
    controls={"temperature": 0.95, "density": 0.2, "pace": -0.1},
    ports={"in": "Keystation 61 (lost)", "out": "FluidSynth"},
    autosaved_s_ago=12.0,
    state_bytes=4_200_000,
    undo_bytes=90_000_000,
    roll=tuple(
        RollNote(seconds / 4, 40 + (7 * seconds) % 40, 64, "player" if seconds < -10 else "model")
        for seconds in range(-32, 9)
    ),
    log=("14:02:11 started", "14:02:31 undo: 8 s", "14:03:00 saved", "14:03:01 input lost"),
)

NEW = replace(
    BUSY,
    mode="continue",
    phase="listening",
    uptime_s=0.0,
    position=0,
    tokens_per_s=0.0,
    lateness_ms=Spread(0, None, None, None),
    answer_ms=Spread(0, None, None, None),
    shifts=0,
    shifted_s=0.0,
    queue_events=0,
    queue_s=0.0,
    heard_notes=0,
    played_notes=0,
    left_out={},
    memory=(),
    controls={},
    ports={},
    autosaved_s_ago=None,
    roll=(),
    log=(),
)
"""Nothing has happened yet."""


def status(**changes: Any) -> Status:
    return replace(BUSY, **changes)
