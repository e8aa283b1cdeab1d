"""The options of `dsmr play` for MIDI ports, and the settings that they come to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dsmr_export.errors import DsmrError
from dsmr_export.options import PATH
from dsmr_export.runtime.live.settings import ACTIONS, CONTROLS, CURVES, MODES, LiveSettings

Command = TypeVar("Command", bound=Callable[..., Any])

_DEFAULTS = LiveSettings()


def live_options(command: Command) -> Command:
    """Adds them, in the order in which --help shows them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Cores(click.ParamType):
    """Cores of the processor: 1-3, or 1,2,3."""

    name = "cores"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        cores: set[int] = set()
        for part in str(value).split(","):
            match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip(), re.ASCII)
            if not match:
                self.fail(f"{value!r} are no cores: give them as in 1-3 or 0,2")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(f"{value!r} are no cores: {part.strip()} goes backwards")
            cores.update(range(first, last + 1))
        return tuple(sorted(cores))


class Assignment(click.ParamType):
    """NAME=NUMBER: what a MIDI controller does."""

    name = "name=number"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        name, separator, number = str(value).partition("=")
        if not separator or not number.strip().isascii() or not number.strip().isdigit():
            self.fail(f"{value!r} is not NAME=CONTROLLER, as in temperature=21")
        return name.strip(), int(number)


def _seconds(flag: str, default: float | None, text: str) -> Callable[[Any], Any]:
    return click.option(
        flag, type=float, default=default, show_default=default is not None, metavar="SECONDS", help=text
    )


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--midi-in", metavar="NAME", help="Live: MIDI port to hear (dsmr ports); a part of its name."
    ),
    click.option("--midi-out", metavar="NAME", help="Live: MIDI port to play to."),
    click.option("--virtual", is_flag=True, help="Live: ports of its own, for others to connect to."),
    click.option(
        "--mode",
        type=click.Choice(MODES),
        default=_DEFAULTS.mode,
        show_default=True,
        help="Answer when the player pauses, play along, or play for ever.",
    ),
    _seconds("--pause", _DEFAULTS.pause_s, "continue: so long without a key, and it answers."),
    _seconds("--answer", _DEFAULTS.answer_s, "continue: longest answer; 0 = until a key is struck."),
    _seconds("--alone", _DEFAULTS.alone_s, "duet: so long after the last key it rests."),
    _seconds("--look-ahead", None, "How far it thinks ahead.  [default: 1; in a duet 0.3]"),
    _seconds("--max-note", _DEFAULTS.max_note_s, "No note of its own sounds longer."),
    _seconds(
        "--longest-rest", _DEFAULTS.longest_rest_s, "A longer silence is remembered as one of this length."
    ),
    click.option(
        "--thru/--no-thru", default=_DEFAULTS.thru, show_default=True, help="What is heard goes out too."
    ),
    click.option(
        "--channel", type=click.IntRange(1, 16), default=1, show_default=True, help="Where it plays."
    ),
    click.option("--in-channel", type=click.IntRange(1, 16), help="What it hears.  [default: all channels]"),
    click.option(
        "--transpose", type=int, default=0, show_default=True, help="Semitones, of what the player plays."
    ),
    click.option(
        "--velocity-curve",
        default=_DEFAULTS.velocity,
        show_default=True,
        help=f"{', '.join(CURVES)}, an exponent, or fixed:N; of what the player plays.",
    ),
    click.option("--program", type=click.IntRange(0, 127), help="Program (0 = grand piano) to play on."),
    click.option(
        "--cc",
        type=Assignment(),
        multiple=True,
        help=f"What a MIDI controller does: {', '.join((*CONTROLS, *ACTIONS))}. May be given again.",
    ),
    click.option("--density", type=float, help="Above 0 more notes, below 0 fewer.  [default: 0]"),
    _seconds("--undo", _DEFAULTS.undo_s, "How much can be taken back; each 5 s cost a copy of the state."),
    _seconds("--bar", _DEFAULTS.bar_s, "Length of a bar for undo-bar, where no MIDI clock says it."),
    _seconds("--autosave", None, "Keep the memory in a file, so often, and go on from it at the next start."),
    click.option("--autosave-file", type=PATH, help="That file.  [default: in the user's state folder]"),
    click.option(
        "--status-socket", type=PATH, help="Where dsmr status asks.  [default: in the user's runtime folder]"
    ),
    click.option("--affinity", type=Cores(), help="Cores that may think, as in 1-3.  [default: all]"),
    click.option(
        "--nice", type=click.IntRange(0, 19), default=5, show_default=True, help="How much nicer thinking is."
    ),
    click.option(
        "--realtime",
        type=click.IntRange(0, 99),
        default=0,
        show_default=True,
        help="SCHED_FIFO priority of playback; 0 = none.",
    ),
    click.option("--view/--no-view", default=True, show_default=True, help="A live display, on a terminal."),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        help="What is logged on stderr.",
    ),
)

NAMES = frozenset(
    (
        *("midi_in", "midi_out", "virtual", "mode", "pause", "answer", "alone", "look_ahead", "max_note"),
        *("longest_rest", "thru", "channel", "in_channel", "transpose", "velocity_curve", "program", "cc"),
        *("density", "undo", "bar", "autosave", "autosave_file", "status_socket", "affinity", "nice"),
        *("realtime", "view", "log_level"),
    )
)
"""The parameters that they add."""


def settings(options: dict[str, Any]) -> LiveSettings:
    """Raises ``DsmrError`` for values that make no sense."""
    in_channel, names = options["in_channel"], [name for name, _ in options["cc"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DsmrError(f"--cc: {twice[0]} is given twice; one controller turns it")
    return LiveSettings(
        mode=options["mode"],
        pause_s=options["pause"],
        answer_s=options["answer"],
        alone_s=options["alone"],
        look_ahead_s=options["look_ahead"],
        max_note_s=options["max_note"],
        longest_rest_s=options["longest_rest"],
        thru=options["thru"],
        channel=options["channel"] - 1,
        in_channel=None if in_channel is None else in_channel - 1,
        program=options["program"],
        transpose=options["transpose"],
        velocity=options["velocity_curve"],
        cc=dict(options["cc"]),
        undo_s=options["undo"],
        bar_s=options["bar"],
    )
