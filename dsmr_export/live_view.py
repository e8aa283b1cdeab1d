"""What a terminal shows while it plays: one glance, a few times a second, as large as there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dsmr_export.live_roll import MOST_ROWS, legend, roll

if TYPE_CHECKING:
    from dsmr_export.runtime.live.status import LayerFill, Spread, Status

FRAMES_PER_S = 5
"""Drawing holds Python's lock for milliseconds at a time, and somebody plays meanwhile."""
LEAST_ROWS = 4
"""Of the piano roll: with fewer it is left out."""
LABEL = 9
"""Columns of the names at the left."""
GAP = "   "
BAR = 10
"""Columns of a bar."""
SPREAD = 37
"""Columns of three times."""
WIDE = 80
"""From so many columns on there is room for details."""
KEYS = (
    "space pause",
    "u undo 8 s",
    "b undo bar",
    "p panic",
    "s save",
    "+ − temperature",
    "[ ] density",
    "R reset",
    "q quit",
)
KEYS_SHORT = ("space pause", "u undo", "b bar", "p panic", "s save", "+ − [ ]", "R reset", "q quit")
PHASES = {"listening": "cyan", "answering": "yellow", "playing": "yellow", "paused": "red"}


class View:
    """Draws `status()` on stderr, on a screen of its own, until it is left; nothing without a terminal."""

    def __init__(self, status: Callable[[], Status], console: Console | None = None) -> None:
        self._status = status
        self._console = console or Console(stderr=True, highlight=False)
        self.shown = is_possible(self._console)
        self._live = Live(
            get_renderable=self._frame,
            console=self._console,
            screen=True,
            refresh_per_second=FRAMES_PER_S,
            redirect_stdout=False,
        )

    def __enter__(self) -> View:
        if self.shown:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown:
            with suppress(OSError):  # the terminal has gone: a window closed, a connection lost
                self._live.stop()

    def _frame(self) -> RenderableType:
        console = self._console
        colour = console.color_system is not None and not console.no_color
        return render(self._status(), console.width, console.height, colour)


def is_possible(console: Console | None = None) -> bool:
    """Whether stderr (or that console) is a terminal that can be drawn on."""
    console = console or Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


def render(status: Status, width: int, height: int, colour: bool = True) -> RenderableType:
    """At most `height` lines of at most `width` columns; what there is no room for is left out."""
    texts = {
        "time": _times(status, width),
        "memory": _memory(status.memory, width),
        "controls": _named("controls", _values(status.controls), width),
        "ports": _named("ports", [f"{name}: {port}" for name, port in status.ports.items()], width),
        "log": _log(status.log, width),
        "keys": [_fitting(KEYS, width, KEYS_SHORT)],
    }
    room = height - 1  # the title
    for part in ("log", "controls", "ports", "memory", "keys", "time"):
        while sum(map(len, texts.values())) > room - _least_for_roll(room) and texts[part]:
            del texts[part][0 if part == "log" else -1]
    rows = min(room - sum(map(len, texts.values())) - 1, MOST_ROWS)  # its seconds are a line too
    drawn = roll(status.roll, width, rows, colour) if rows >= LEAST_ROWS and width >= 40 else []
    blank = room - sum(map(len, texts.values())) - len(drawn)
    return Group(*_put_together(_title(status, width, legend(colour)), drawn, texts, blank)[:height])


def _least_for_roll(room: int) -> int:
    return LEAST_ROWS + 3 if room >= 14 else 0


def _put_together(title: Text, drawn: list[Text], texts: dict[str, list[Text]], blank: int) -> list[Text]:
    """Empty lines where there is room for them; what is still left over stands above the keys."""
    keys = texts.pop("keys")
    lines = [title]
    for block in (drawn, texts["time"] + texts["memory"], texts["controls"] + texts["ports"], texts["log"]):
        if block and blank > 0:
            lines.append(Text())
            blank -= 1
        lines += block
    return [*lines, *[Text()] * blank, *keys]


def _title(status: Status, width: int, legend: Text) -> Text:
    left = Text.assemble(
        (_one_line(status.graph), "bold"),
        f"{GAP}{status.mode}{GAP}",
        (status.phase, f"bold {PHASES[status.phase]}"),
    )
    clock = Text(f"{GAP}up {_clock(status.uptime_s)}", "dim")
    room = width - left.cell_len - len(GAP)
    right = Text.assemble(legend, clock)
    if right.cell_len > room:
        right = legend if legend.cell_len <= room else Text()
    left.truncate(width, overflow="ellipsis")
    return Text.assemble(left, " " * (width - left.cell_len - right.cell_len), right, no_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _times(status: Status, width: int) -> list[Text]:
    """Lateness, answers, and how far ahead the model is: in two columns where there is room."""
    late, answer = _spread(status.lateness_ms), _spread(status.answer_ms)
    moved = f"{status.shifts:,} times, {status.shifted_s:.2f} s" if status.shifts else "never"
    ahead, speed = f"{status.queue_s:.1f} s", f"{status.tokens_per_s:,.0f}"
    if width < WIDE:
        lines = [*_named("late", [late], width), *_named("answer", [answer], width)]
        lines += _named("moved", [moved, f"{ahead} ahead", f"{speed} tokens/s"], width)
    else:
        rows = (
            ("late", late, "ahead", f"{ahead}, {status.queue_events:,} events"),
            ("answer", answer, "tokens", f"{speed}/s, {status.position:,} in all"),
            ("moved", moved, "notes", f"{status.heard_notes:,} in, {status.played_notes:,} out"),
        )
        lines = []
        for name, text, second, more in rows:
            names = (f"{name:<{LABEL}}", "dim"), (f"{second:<7}", "dim")
            lines.append(Text.assemble(names[0], f"{text:<{SPREAD}}{GAP}", names[1], more, no_wrap=True))
    left_out = [f"{count:,} {reason}" for reason, count in status.left_out.items() if count]
    return [_cut(line, width) for line in lines] + _named("left out", left_out, width)


def _spread(spread: Spread) -> str:
    """Aligned, so that the numbers do not dance."""
    if spread.p50 is None or spread.p99 is None or spread.max is None:
        return "–"
    return f"p50 {spread.p50:>6.1f}  p99 {spread.p99:>6.1f}  max {spread.max:>6.1f} ms"


def _memory(layers: Sequence[LayerFill], width: int) -> list[Text]:
    """A bar for every group of layers that hold the same."""
    pieces = []
    for first, last, fill in _groups(layers):
        name = f"{first.layer}" if first.layer == last.layer else f"{first.layer}–{last.layer}"
        share = fill.tokens / fill.horizon if fill.horizon else 0.0
        pieces.append(
            Text.assemble((f"{name} ", "dim"), bar(share), f" {fill.tokens:,}", (f"/{fill.horizon:,}", "dim"))
        )
    return _flow("memory", pieces, width)


def _groups(layers: Sequence[LayerFill]) -> Iterator[tuple[LayerFill, LayerFill, LayerFill]]:
    """(first, last, one of them)"""
    start = 0
    for index, layer in enumerate(layers):
        following = layers[index + 1] if index + 1 < len(layers) else None
        if following is None or (following.tokens, following.horizon) != (layer.tokens, layer.horizon):
            yield layers[start], layer, layer
            start = index + 1


def bar(share: float, columns: int = BAR) -> Text:
    """Eighths of a block; what is empty shows where the end is."""
    eighths = round(min(max(share, 0.0), 1.0) * columns * 8)
    full, part = divmod(eighths, 8)
    filled = "█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")
    return Text.assemble((filled, "green"), ("·" * (columns - len(filled)), "dim"))


def _values(controls: dict[str, float]) -> list[str]:
    return [f"{name} {value:g}" for name, value in controls.items()]


def _named(name: str, pieces: Sequence[str], width: int) -> list[Text]:
    """A lost port is red."""
    texts = [Text(_one_line(piece), "red" if piece.endswith("(lost)") else "") for piece in pieces]
    return _flow(name, texts, width)


def _flow(name: str, pieces: Sequence[Text], width: int, most: int = 2) -> list[Text]:
    """Pieces one after the other, on `most` lines at most; then how many there was no room for."""
    lines: list[Text] = []
    for index, piece in enumerate(pieces):
        if lines and lines[-1].cell_len + len(GAP) + piece.cell_len <= width:
            lines[-1].append(GAP).append_text(piece)
        elif len(lines) < most:
            lines.append(Text(f"{'' if lines else name:<{LABEL}}", style="dim", no_wrap=True))
            lines[-1] = _cut(Text.assemble(lines[-1], piece, no_wrap=True), width)
        else:
            more = f" +{len(pieces) - index}"
            lines[-1] = _cut(lines[-1], width - len(more)).append(more, "dim")
            break
    return lines


def _log(log: Sequence[str], width: int) -> list[Text]:
    return [_cut(Text(_one_line(line), style="dim", no_wrap=True), width) for line in log[-3:]]


def _one_line(text: str) -> str:
    """A port's name is its maker's idea: nothing in it may move the cursor."""
    return "".join(each if each.isprintable() else " " for each in text)


def _fitting(keys: Sequence[str], width: int, shorter: Sequence[str]) -> Text:
    """The keys that there is room for, the last of them always; `shorter` where the long ones do not fit."""
    if cell_len("  ".join(keys)) > width:
        keys = shorter
    line, last = "", keys[-1]
    for key in keys[:-1]:
        if cell_len(f"{line}{key}  {last}") <= width:
            line += f"{key}  "
    return _cut(Text(line + last, style="dim", no_wrap=True), width)


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line
