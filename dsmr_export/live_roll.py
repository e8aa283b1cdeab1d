"""A piano roll made of characters: what sounded to the left of now, what is coming to the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from dsmr_export.runtime.live.status import RollNote

PAST_S, COMING_S = 8.0, 2.0
LOWEST, HIGHEST = 21, 108
"""A piano's keys. Always all of them: a range that follows the music would jump."""
MOST_ROWS = 20
LABEL = 4
"""Columns to the left, for the names of the Cs."""
STYLES = {"player": "cyan", "model": "yellow"}
"""Of the 16 colours that every terminal has."""
LETTERS = {"player": "o", "model": "x"}
"""Where there are no colours."""


def roll(notes: Sequence[RollNote], width: int, rows: int, colour: bool) -> list[Text]:
    """`rows` lines of `width` columns and a line with the seconds.

    A row is two keys high, or rather two bands of keys, drawn as halves of a block; without colours it is one
    band, and its letter says who played.
    """
    bands = 2 * rows if colour else rows
    columns = width - LABEL
    now = _now(columns)
    cells: dict[tuple[int, int], RollNote] = {}
    for note in sorted(notes, key=lambda note: note.velocity):  # the louder hides the softer
        column = now + round(note.seconds * columns / (PAST_S + COMING_S))
        if note.seconds < 0:
            column = min(column, now - 1)  # what has sounded is left of the line, however short ago
        elif column == now:
            column += 1
        if 0 <= column < columns:
            cells[_band(note.pitch, bands), column] = note
    labels = {_band(pitch, rows): f"C{pitch // 12 - 1}" for pitch in range(24, HIGHEST + 1, 24)}
    lines = []
    for row in range(rows):
        drawn = [_cell(cells, row, column, now, colour) for column in range(columns)]
        label = f"{labels.get(row, ''):<{LABEL}}"
        line = Text(label + "".join(character for character, _ in drawn), no_wrap=True)
        line.stylize("dim", 0, LABEL)
        for at, (_, style) in enumerate(drawn, LABEL):
            if style:
                line.stylize(style, at, at + 1)
        lines.append(line)
    return [*lines, _seconds(columns)]


def legend(colour: bool) -> Text:
    """Who is who."""
    marks = [("■", STYLES[by]) if colour else (LETTERS[by], "") for by in ("player", "model")]
    return Text.assemble(marks[0], (" you  ", "dim"), marks[1], (" model", "dim"))


def _now(columns: int) -> int:
    return int(columns * PAST_S / (PAST_S + COMING_S))


def _band(pitch: int, bands: int) -> int:
    """0 is the highest."""
    inside = min(max(pitch, LOWEST), HIGHEST)
    return (HIGHEST - inside) * bands // (HIGHEST - LOWEST + 1)


def _cell(
    cells: dict[tuple[int, int], RollNote], row: int, column: int, now: int, colour: bool
) -> tuple[str, str]:
    """(character, style)"""
    empty = ("│" if colour else "|", "dim") if column == now else (" ", "")
    if not colour:
        note = cells.get((row, column))
        return (LETTERS[note.by], "") if note else empty
    upper, lower = (_style(cells.get((2 * row + half, column))) for half in (0, 1))
    if upper and lower:
        return ("█", upper) if upper == lower else ("▀", f"{upper} on {lower}")
    return ("▀" if upper else "▄", upper or lower) if upper or lower else empty


def _style(note: RollNote | None) -> str:
    return "" if note is None else STYLES[note.by]


def _seconds(columns: int) -> Text:
    line = [" "] * (LABEL + columns)
    for second in (-8, -6, -4, -2, 0, 2):
        name = {0: "now", 2: "+2 s", -8: "−8 s"}.get(second, f"−{-second}")
        at = LABEL + _now(columns) + round(second * columns / (PAST_S + COMING_S))
        start = min(max(at - len(name) // 2, 0), len(line) - len(name))
        line[start : start + len(name)] = name
    return Text("".join(line), style="dim", no_wrap=True)
