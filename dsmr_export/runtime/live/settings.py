"""What a live session is told: every value checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dsmr_export.errors import DsmrError, nearest
from dsmr_export.runtime.live.status import Mode

MODES: tuple[Mode, ...] = ("continue", "duet", "loop")
CONTROLS = ("temperature", "top-p", "density")
ACTIONS = ("pause", "resume", "panic", "undo", "undo-bar", "reset", "save")
CURVES = {"soft": 0.6, "linear": 1.0, "hard": 1.6}
"""Exponents: velocity out = 127 · (in / 127) ** exponent."""


@dataclass(frozen=True)
class LiveSettings:
    """How a live session behaves. Times in seconds, channels 0-15. Raises DsmrError for what makes no sense.

    mode: `continue` answers when the player pauses and stops at the next key; `duet` plays along once the
    player has begun; `loop` plays for ever, from a prompt. In all of them the player is heard.
    pause_s: so long without a key, and with none held, is a pause. answer_s: an answer ends by itself after
    so long; 0 = at the next key. alone_s: a duet ends so long after the player's last key.
    look_ahead_s: how far the plan runs ahead; None = 1, in a duet 0.3.
    max_note_s: no note of the model sounds longer. longest_rest_s: a longer silence is remembered as one of
    this length, so that an hour of nothing does not wash the memory out.
    thru, channel, program: what of the player's goes out; where the model plays, and on which program.
    in_channel: only this channel is heard; None = all. transpose: semitones, of what the player plays.
    velocity: a curve's name, an exponent, or `fixed:N`. cc: control or action to controller number.
    undo_s: how much can be taken back; bar_s: a bar, where no MIDI clock says it.
    """

    mode: Mode = "continue"
    pause_s: float = 1.0
    answer_s: float = 0.0
    alone_s: float = 10.0
    look_ahead_s: float | None = None
    max_note_s: float = 10.0
    longest_rest_s: float = 10.0
    thru: bool = True
    channel: int = 0
    in_channel: int | None = None
    program: int | None = None
    transpose: int = 0
    velocity: str = "linear"
    cc: Mapping[str, int] = field(default_factory=dict)
    undo_s: float = 30.0
    bar_s: float = 2.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise DsmrError(f"mode is {self.mode!r}: give {', '.join(MODES)}")
        for name, low, high in (
            ("pause_s", 0.05, 60),
            ("answer_s", 0, 86_400),
            ("alone_s", 0.1, 86_400),
            ("look_ahead_s", 0.05, 10),
            ("max_note_s", 0.05, 600),
            ("longest_rest_s", 0.5, 86_400),
            ("undo_s", 0, 600),
            ("bar_s", 0.1, 60),
            ("channel", 0, 15),
            ("in_channel", 0, 15),
            ("program", 0, 127),
            ("transpose", -48, 48),
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise DsmrError(f"{_said(name, value)}: give {_said('', low)} to {_said('', high)}".strip())
        velocity_table(self.velocity)
        for name, number in self.cc.items():
            if name not in (*CONTROLS, *ACTIONS):
                known = ", ".join((*CONTROLS, *ACTIONS))
                raise DsmrError(
                    f"--cc {name}: there is no such control{nearest(name, (*CONTROLS, *ACTIONS))}; {known}"
                )
            if not 0 <= number <= 119:
                raise DsmrError(f"--cc {name}={number}: give a controller number, 0 to 119")
        numbers = list(self.cc.values())
        if len(set(numbers)) < len(numbers):
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise DsmrError(f"--cc: controller {twice} is given twice; one controller does one thing")

    @property
    def ahead_s(self) -> float:
        """How far the plan runs ahead."""
        if self.look_ahead_s is not None:
            return self.look_ahead_s
        return 0.3 if self.mode == "duet" else 1.0


def _said(name: str, value: float) -> str:
    text = f"{value:g}"
    return f"{name.removesuffix('_s').replace('_', '-')} is {text}" if name else text


def velocity_table(curve: str) -> bytes:
    """What each velocity 0-127 becomes; 0 stays 0, all others stay 1-127. Raises DsmrError."""
    if curve.startswith("fixed:"):
        value = curve.removeprefix("fixed:")
        if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 127:
            raise DsmrError(f"velocity-curve {curve}: give fixed:N with N from 1 to 127")
        return bytes([0, *[int(value)] * 127])
    try:
        exponent = CURVES[curve] if curve in CURVES else float(curve)
    except ValueError:
        exponent = math.nan
    if not 0.1 <= exponent <= 10:
        raise DsmrError(
            f"velocity-curve {curve}: give {', '.join(CURVES)}, fixed:N, or an exponent, 0.1 to 10"
        )
    return bytes([0, *(max(1, round(127 * (v / 127) ** exponent)) for v in range(1, 128))])
