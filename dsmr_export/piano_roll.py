"""The picture of a continuation (`dsmr play --picture`): its notes and its prompt's, on time and pitch.

One panel a variation. Seconds count from the end of the prompt, as in the MIDI file that holds the
continuation alone; of a long prompt only the end is drawn. The louder a note, the stronger its colour.
matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmr_export.errors import OutputError
from dsmr_export.figures import GRID, INK, styled
from dsmr_export.runtime.files import write_atomically
from dsmr_export.runtime.performance import Note, Performance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dsmr_export.runtime.play import Continuation

FORMATS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
"""What a picture can be, by the ending of its name, and how such a file begins."""

PROMPT, CONTINUATION = "#0072b2", "#d55e00"
"""Okabe and Ito's blue and vermilion: told apart by colour-blind readers, and as greys."""
FAINTEST = 0.35
"""Share of the colour that the softest note has; the loudest has all of it."""
BLACK_KEYS, KEYS = frozenset({1, 3, 6, 8, 10}), "#f1f4f6"

SHOWN = 2.0
"""How much of the prompt is drawn: at most so many times the continuation's length ..."""
SHOWN_LEAST_S = 20.0
"""... and never less than this."""
DPI = 160


@styled
def draw(variations: Sequence[Continuation], titles: Sequence[str]) -> Figure:
    """A panel for each variation (of one prompt and one length, one or more), with its title."""
    from matplotlib.figure import Figure

    first = variations[0]
    step_s = first.step_ms / 1000
    end = max((note.end for note in first.prompt), default=0)
    shown = min(end, round(max(SHOWN * first.frames * step_s, SHOWN_LEAST_S) / step_s))
    prompt = [
        Note(n.start - end, n.end - end, n.pitch, n.velocity) for n in first.prompt if n.end > end - shown
    ]
    low, high = _pitches([prompt, *(each.performance for each in variations)])
    seconds = (shown + first.frames) * step_s
    width = min(max(6.0 + seconds / 15, 8.0), 20.0)
    height = max(1.1, min(3.6, 0.075 * (high - low + 1))) if len(variations) == 1 else 1.5
    figure = Figure(figsize=(width, 0.75 + (height + 0.3) * len(variations)), layout="constrained")
    panels = figure.subplots(len(variations), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, each, title in zip(panels, variations, titles, strict=True):
        _keyboard(axes, low, high)
        _notes(axes, prompt, PROMPT, step_s)
        _notes(axes, each.performance, CONTINUATION, step_s)
        if prompt:
            axes.axvline(0, color=INK, linewidth=1.0)
        axes.set_title(title)
    panels[0].set_xlim(-shown * step_s, first.frames * step_s)
    panels[0].set_ylim(low - 0.5, high + 0.5)
    panels[-1].set_xlabel("seconds from the prompt's end" if prompt else "seconds")
    _legend(panels[0], f"prompt{_part(shown * step_s, end * step_s)}" if prompt else None)
    return figure


@styled
def to_bytes(figure: Figure, suffix: str) -> bytes:
    """The picture as a file of that ending; the same figure, the same bytes (no date is written)."""
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    out = io.BytesIO()
    figure.savefig(out, format=suffix[1:], dpi=DPI, metadata=dates.get(suffix))
    return out.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Writes the picture, whole or not at all. Raises OutputError for an ending that is none of FORMATS, or
    where it cannot be written."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path}: is no picture's name; let it end in {', '.join(FORMATS)}")
    write_atomically(path, to_bytes(figure, path.suffix.lower()))


def _pitches(performances: Sequence[Performance]) -> tuple[int, int]:
    """The lowest and the highest pitch to show: all there are, two octaves at least, so that a C has room."""
    pitches = [note.pitch for performance in performances for note in performance] or [60]
    low, high = min(pitches) - 2, max(pitches) + 2
    spare = max(0, 24 - (high - low))
    return max(0, low - spare // 2), min(127, high + (spare + 1) // 2)


def _keyboard(axes: Axes, low: int, high: int) -> None:
    """Rows of the black keys grey, as on every piano roll, and a line and a name at each C."""
    for pitch in range(low, high + 1):
        if pitch % 12 in BLACK_KEYS:
            axes.axhspan(pitch - 0.5, pitch + 0.5, color=KEYS, linewidth=0, zorder=0)
    octaves = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
    for pitch in octaves:
        axes.axhline(pitch - 0.5, color=GRID, linewidth=0.8, zorder=0.5)
    axes.set_yticks(octaves, [name_of(pitch) for pitch in octaves])
    axes.tick_params(axis="y", length=0)


def name_of(pitch: int) -> str:
    """A pitch as musicians write it; 60 is C4."""
    names = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
    return f"{names[pitch % 12]}{pitch // 12 - 1}"


def _notes(axes: Axes, performance: Performance, colour: str, step_s: float) -> None:
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import to_rgb

    boxes, faces, strikes = [], [], []
    strong = to_rgb(colour)
    for note in performance:
        left, right, low, high = note.start * step_s, note.end * step_s, note.pitch - 0.42, note.pitch + 0.42
        boxes.append([(left, low), (left, high), (right, high), (right, low)])
        strikes.append([(left, low), (left, high)])
        share = FAINTEST + (1 - FAINTEST) * note.velocity / 127
        faces.append(tuple(1 - share * (1 - part) for part in strong))
    # The edge in the notes' own colour keeps the shortest ones visible where a pixel is longer than they are.
    edged: Any = {"edgecolors": faces, "linewidths": 0.3}
    axes.add_collection(PolyCollection(boxes, facecolors=faces, zorder=2, **edged), autolim=False)
    # A line where a note is struck: else one that is struck again and again would look like a long one.
    dark = tuple(0.6 * part for part in strong)
    axes.add_collection(LineCollection(strikes, colors=[dark], linewidths=0.8, zorder=3), autolim=False)


def _part(shown_s: float, all_s: float) -> str:
    return "" if shown_s >= all_s else f" (its last {shown_s:.0f} of {all_s:.0f} seconds)"


def _legend(axes: Axes, prompt: str | None) -> None:
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=PROMPT, label=prompt)] if prompt else []
    handles.append(Patch(color=CONTINUATION, label="continuation"))
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(handles),
        borderaxespad=0.1,
        handlelength=1.0,
        fontsize=8,
    )
