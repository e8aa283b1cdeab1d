"""The pictures of growth: what a token costs against horizon, position, size, threads and schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmr_export.figures import INK, panel, require_folder, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

LOOKS = (("#000000", "s"), ("#0072b2", "o"), ("#d55e00", "v"), ("#009e73", "^"))
"""Colour and marker of the first, second, … graph of a table: Okabe and Ito's."""
CONTROL = "#6b6b6b"


def figures(growth: Mapping[str, Sequence[Row]]) -> dict[str, Figure]:
    """A figure for every table of ``growth.growth`` that has rows, by its name."""
    drawings = {
        "horizon": by_horizon,
        "position": by_position,
        "size": by_size,
        "threads": by_threads,
        "schedules": by_schedule,
    }
    return {name: draw(growth[name]) for name, draw in drawings.items() if growth.get(name)}


@styled
def write(growth: Mapping[str, Sequence[Row]], folder: Path) -> list[Path]:
    """Writes growth-NAME.svg for every table into the folder (made if missing). Raises OutputError."""
    require_folder(folder)
    paths = []
    for name, figure in figures(growth).items():
        paths += save(figure, folder, f"growth-{name}", (".svg",))
    return paths


@styled
def by_horizon(rows: Sequence[Row]) -> Figure:
    """Milliseconds over the horizon of every layer, on a scale of octaves."""
    figure, axes = panel("A token's cost against the horizon of every layer")
    _lines(axes, rows, "horizon")
    _octaves(axes, [row["horizon"] for row in rows])
    axes.set_xlabel("horizon of each layer, tokens")
    _finish(figure, axes, rows)
    return figure


@styled
def by_position(rows: Sequence[Row]) -> Figure:
    """Ratio to the first position, with its 95 % interval; the first measured twice shows the noise."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, axes = panel("A token's cost against its position in the stream")
    axes.axhspan(0.98, 1.02, color=INK, alpha=0.07, linewidth=0)
    for number, (graph, own) in enumerate(_graphs(rows).items()):
        colour, marker = _look(number)
        offset = 1.06 ** (number - (len(_graphs(rows)) - 1) / 2)  # side by side on a logarithmic axis
        for control in (False, True):
            part = [row for row in own if row["control"] is control]
            if not part:
                continue
            places = [row["position"] * offset * (1.12 if control else 1) for row in part]
            axes.errorbar(
                places,
                [row["ratio"] for row in part],
                yerr=_range(part),
                color=colour,
                marker=marker,
                markerfacecolor="white" if control else colour,
                linestyle="none",
                capsize=3,
                linewidth=1,
                label=f"{graph}, measured again" if control else graph,
            )
    axes.set_xscale("log")
    axes.set_xticks(sorted({row["position"] for row in rows}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_xlabel("tokens since the beginning of the stream (grey: within 2 %)")
    axes.set_ylabel("time over that at the first position (bars: 95 %)")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.95), max(high, 1.05))
    _legend(figure, axes)
    return figure


@styled
def by_size(rows: Sequence[Row]) -> Figure:
    """Milliseconds over millions of parameters."""
    figure, axes = panel(f"A token's cost against the size of the model (horizons {_horizons(rows)})")
    _lines(axes, rows, "parameters", 1e-6)
    sizes = sorted({row["parameters"] / 1e6 for row in rows})
    axes.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axes.set_xlim(0, 1.05 * max(sizes))
    axes.set_xlabel("parameters, millions")
    _finish(figure, axes, rows)
    return figure


@styled
def by_threads(rows: Sequence[Row]) -> Figure:
    """Milliseconds over threads."""
    figure, axes = panel("A token's cost against threads of one call")
    _lines(axes, rows, "threads")
    axes.set_xticks(sorted({row["threads"] for row in rows}))
    axes.set_xlabel("threads")
    _finish(figure, axes, rows)
    return figure


@styled
def by_schedule(rows: Sequence[Row]) -> Figure:
    """Ratio of time to the first schedule, with its 95 % interval, beside that of bytes and of
    multiply-adds."""
    figure, axes = panel("Schedules of one budget: a token's cost over that under the first")
    names = list(dict.fromkeys(row["schedule"] for row in rows))
    figure.set_figheight(1.6 + 0.36 * len(names))
    graphs = _graphs(rows)
    for number, (graph, own) in enumerate(graphs.items()):
        colour, marker = _look(number)
        step = 0.5 / len(graphs)
        places = [names.index(row["schedule"]) + (number - (len(graphs) - 1) / 2) * step for row in own]
        axes.errorbar(
            [row["ratio"] for row in own],
            places,
            xerr=_range(own),
            color=colour,
            marker=marker,
            linestyle="none",
            capsize=3,
            linewidth=1,
            label=f"{graph}, time",
        )
        for key, mark, what in (("bytes_per_token", "|", "bytes"), ("multiply_adds", "x", "multiply-adds")):
            if key == "multiply_adds" and number:
                continue  # the same for every graph
            axes.plot(
                [row[key] / own[0][key] for row in own],
                places if key == "bytes_per_token" else [names.index(row["schedule"]) for row in own],
                color=colour if key == "bytes_per_token" else CONTROL,
                marker=mark,
                markersize=10 if mark == "|" else 5,
                linestyle="none",
                label=f"{graph}, {what}" if key == "bytes_per_token" else what,
            )
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.9), max(high, 1.1))
    axes.set_xlabel(f"ratio to {names[0]} (bars: 95 %)")
    _legend(figure, axes)
    return figure


def _lines(axes: Axes, rows: Sequence[Row], key: str, scale: float = 1.0) -> None:
    """The median step of every graph, with a band up to the 90th percentile."""
    for number, (graph, own) in enumerate(_graphs(rows).items()):
        colour, marker = _look(number)
        xs = [row[key] * scale for row in own]
        middle = [row["step_ms"]["p50"] for row in own]
        axes.plot(xs, middle, color=colour, marker=marker, label=graph)
        axes.fill_between(
            xs, middle, [row["step_ms"]["p90"] for row in own], color=colour, alpha=0.12, linewidth=0
        )


def _finish(figure: Figure, axes: Axes, rows: Sequence[Row]) -> None:
    # One late step in ten may be another program's: it must not flatten the lines.
    axes.set_ylim(0, 1.25 * max(row["step_ms"]["p50"] for row in rows))
    axes.set_ylabel("milliseconds a token (band: to p90)")
    _legend(figure, axes)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=8)


def _octaves(axes: Axes, values: Sequence[int]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(values)), [f"{value:,}" for value in sorted(set(values))])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _graphs(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["graph"], []).append(row)
    return found


def _look(number: int) -> tuple[str, str]:
    return LOOKS[number % len(LOOKS)]


def _range(rows: Sequence[Row]) -> list[list[float]]:
    """How far the 95 % interval reaches below and above each ratio, as error bars take it."""
    return [
        [row["ratio"] - row["ratio_95"][0] for row in rows],
        [row["ratio_95"][1] - row["ratio"] for row in rows],
    ]


def _horizons(rows: Sequence[Row]) -> str:
    return ", ".join(f"{horizon:,}" for horizon in sorted({h for row in rows for h in row["horizons"]}))
