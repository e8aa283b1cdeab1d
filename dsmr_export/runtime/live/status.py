"""What a running `dsmr play` says of itself: plain numbers, taken now, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Mode = Literal["continue", "duet", "loop"]
Phase = Literal["listening", "answering", "playing", "paused"]


@dataclass(frozen=True)
class Spread:
    """How long something took, in milliseconds; all None where it has not happened (`count` is 0)."""

    count: int
    p50: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True)
class LayerFill:
    """A layer's memory: tokens held, of the `horizon` that it can hold."""

    layer: int
    tokens: int
    horizon: int


@dataclass(frozen=True)
class RollNote:
    """A note of the last seconds or of the next ones: seconds from now, negative where it has sounded."""

    seconds: float
    pitch: int
    velocity: int
    by: Literal["player", "model"]


@dataclass(frozen=True)
class Status:
    """One glance at a live session.

    mode, phase: what it was told to do, and what it is doing.
    graph, position: the bundle's graph, and how many tokens it has read in all.
    lateness_ms: how late notes left; answer_ms: from the player's last note to the first of the answer.
    shifts, shifted_s: how often, and by how much in all, the music was moved because inference was late.
    queue_events, queue_s: what is thought out and not yet played, in events and in seconds of music.
    left_out: what was played and not read, by reason ("pitch": 3).
    controls: what can be turned while it plays, by name.
    ports: "in" and "out", each with what is there ("Keystation (lost)").
    autosaved_s_ago: None where nothing is saved by itself, or not yet.
    state_bytes, undo_bytes: the memory of the model, and of what undo can go back to.
    roll: what sounded and what will; log: the last lines, the newest last.
    """

    mode: Mode
    phase: Phase
    uptime_s: float
    graph: str
    position: int
    tokens_per_s: float
    lateness_ms: Spread
    answer_ms: Spread
    shifts: int
    shifted_s: float
    queue_events: int
    queue_s: float
    heard_notes: int
    played_notes: int
    left_out: dict[str, int]
    memory: tuple[LayerFill, ...]
    controls: dict[str, float]
    ports: dict[str, str]
    autosaved_s_ago: float | None
    state_bytes: int
    undo_bytes: int
    roll: tuple[RollNote, ...]
    log: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
