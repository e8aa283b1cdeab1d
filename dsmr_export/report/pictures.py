"""The page's own plots, small enough to stay readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from dsmr_export import figures
from dsmr_export.figures import DASHES, GRID, INK, K, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")

WIDTH = 4.8
"""Inches; on a screen of 360 pixels letters of 10 points are then 9 pixels high."""
WIDE = 5.4
"""Of a plot that was made for a wider page."""
GRAPHS = {
    "fp32": ("#0072b2", "o"),
    "int8": ("#d55e00", "s"),
    "int4": ("#009e73", "^"),
    "portable": ("#cc79a7", "D"),
}
OTHERS = (("#e69f00", "P"), ("#56b4e9", "X"), ("#882255", "v"), ("#999933", "h"))
KINDS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#882255", "#999933", "#332288")
REST = figures.OTHER[0]
PARTS = ("qkv", "out", "up", "down")

Rows = Sequence[Mapping[str, Any]]


def drawn(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Draws in the style of all pictures, with letters for a phone."""

    @wraps(draw)
    def inside(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        from matplotlib import rc_context

        with rc_context({"font.size": 10, "axes.titlesize": 10}):
            return draw(*args, **kwargs)

    return styled(inside)


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each graph."""
    others = [name for name in names if name not in GRAPHS]
    return {name: GRAPHS.get(name) or OTHERS[others.index(name) % len(OTHERS)] for name in names}


@drawn
def schedule(name: str, horizons: Sequence[int]) -> Figure:
    """One bar a layer, as long as its horizon."""
    figure = _figure(0.9 + 0.23 * len(horizons))
    colour = figures.looks({name: name})[name].colour
    axes = figure.add_subplot()
    figures.draw_schedule(axes, "", horizons, max(horizons), colour)
    axes.tick_params(labelsize=10)
    for text in (*axes.texts, axes.xaxis.label):
        text.set_fontsize(10)
    return figure


@drawn
def by_position(rows: Mapping[str, Rows], key: str, label: str, log: bool, factor: float = 1.0) -> Figure:
    """graph -> a figure of its `by_position` rows in each bin of positions, times ``factor``."""
    figure = _figure(2.9)
    axes = figure.add_subplot()
    axes.grid(axis="y")
    edges = sorted({(row["from"], row["to"]) for each in rows.values() for row in each}, key=lambda e: e[0])
    places = {edge: index for index, edge in enumerate(edges)}
    for name, (colour, marker) in looks(list(rows)).items():
        points = [(places[row["from"], row["to"]], factor * row[key]) for row in rows[name]]
        shown = [(x, max(y, 1e-16) if log else y) for x, y in points]
        axes.plot(*zip(*shown, strict=True), color=colour, marker=marker, label=name, clip_on=False)
    if log:
        _log_axis(axes)
    else:
        axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(list(places.values()), [_span(*edge) for edge in edges])
    axes.set_xlim(-0.3, len(edges) - 0.7)
    axes.set_xlabel("tokens since the beginning of the piece (1k = 1,024)")
    axes.set_title(label)
    _legend(figure, axes)
    return figure


@drawn
def quantization(errors: Mapping[str, float], layers: int) -> Figure:
    """tensor -> relative error in percent: one line a kind of matrix, over the layers."""
    figure = _figure(3.0)
    axes = figure.add_subplot()
    axes.grid(axis="y")
    for part, colour, marker in zip(PARTS, KINDS, "os^D", strict=False):
        found = {n: errors.get(f"layers.{n}.{part}.weight") for n in range(layers)}
        points = [(n, error) for n, error in found.items() if error is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=part)
    for name, colour, dashes in (("head", "#cc79a7", DASHES[1]), ("embedding", "#882255", DASHES[2])):
        error = errors.get(f"{name}.weight")
        if error is not None:
            axes.axhline(error, color=colour, linestyle=dashes, label=name)
    axes.set_ylim(0, 1.1 * max(errors.values(), default=1.0))
    step = max(1, layers // 8)
    axes.set_xticks(range(0, layers, step))
    axes.set_xlabel("layer")
    axes.set_title("error of the weights, % of their own size")
    _legend(figure, axes)
    return figure


@drawn
def histogram(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """graph -> {edges_ms, counts}: the share of steps in each bin, on a logarithmic axis of time."""
    figure = _figure(2.9)
    axes = figure.add_subplot()
    axes.grid(axis="y")
    for name, (colour, _) in looks(list(found)).items():
        counts, edges = found[name]["counts"], found[name]["edges_ms"]
        shares = [100 * count / max(sum(counts), 1) for count in counts]
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(shares, edges, color=colour, linewidth=1.4, label=name)
    axes.set_xscale("log")
    ends = [edge for each in found.values() for edge in each["edges_ms"] if edge > 0]
    axes.set_xlim(min(ends) / 1.15, max(ends) * 1.15)
    axes.set_ylim(bottom=0)
    _round_ticks(axes)
    axes.set_xlabel("milliseconds a step")
    axes.set_title("% of the steps in each bin")
    _legend(figure, axes)
    return figure


@drawn
def profile(found: Mapping[str, Mapping[str, float]]) -> Figure:
    """graph -> {kind of work: milliseconds}: one bar a graph."""
    kinds = list(dict.fromkeys(kind for each in found.values() for kind in each))
    legend = -(-len(kinds) // _columns([_printable(kind) for kind in kinds]))
    figure = _figure(0.9 + 0.42 * len(found) + 0.2 * legend)
    axes = figure.add_subplot()
    axes.grid(axis="x")
    bars = [_printable(name) for name in found]
    left = dict.fromkeys(found, 0.0)
    for index, kind in enumerate(kinds):
        widths = [max(0.0, each.get(kind, 0.0)) for each in found.values()]
        colour = KINDS[index] if index < len(KINDS) else REST
        axes.barh(bars, widths, left=list(left.values()), color=colour, height=0.62, label=kind)
        left = {name: left[name] + width for name, width in zip(found, widths, strict=True)}
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("milliseconds of a step")
    _legend(figure, axes)
    return figure


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, found = axes.get_legend_handles_labels()
    names = [_printable(name) for name in found]
    figure.legend(
        handles, names, loc="outside lower center", ncols=_columns(names), fontsize=9, handlelength=1.6
    )


def _columns(names: Sequence[str]) -> int:
    """Of a legend: as many as fit, by the longest name and its line."""
    return max(1, min(5, len(names), 52 // (5 + max(map(len, names), default=0))))


LONGEST = 24
"""Letters of a name that are drawn; the tables have all of it."""


def _printable(name: str) -> str:
    """A bundle's name of something as a label: matplotlib reads what stands between dollars as mathematics,
    and XML has no way to say a control character."""
    short = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
    return "".join(letter if letter.isprintable() else "�" for letter in short).replace("$", r"\$")


def _log_axis(axes: Axes) -> None:
    """Powers of ten in plain letters."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 10:
        axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=GRID)


def _round_ticks(axes: Axes) -> None:
    """1, 2 and 5 times powers of ten along a logarithmic x axis, in plain letters."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axes.get_xlim()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [place for place in places if low <= place <= high]
    if len(inside) > 7:
        inside = [place for place in inside if f"{place:e}"[0] == "1"]
    axes.xaxis.set_major_locator(FixedLocator(inside))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _span(start: int, stop: int | None) -> str:
    def k(count: int) -> str:
        return f"{count // K}k" if count and count % K == 0 else f"{count:,}"

    return f"{k(start)} –" if stop is None else f"{k(start)}–{k(stop)}"
