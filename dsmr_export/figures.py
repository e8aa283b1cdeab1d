"""Pictures of evaluations (`dsmr eval --plots`, `dsmr study`): by position, reset, truncated, schedules.

Every function takes name -> evaluation (what `model.history.judge` gives), so that several can be drawn
together; instead of one evaluation there may be several (one per seed), drawn as their mean, with a band from
the least to the greatest. matplotlib is imported when something is drawn.

A schedule has the same colour and marker in every picture. The colours are Okabe and Ito's (without yellow,
which is lost on white paper) and three of Paul Tol's muted scheme; both are told apart by colour-blind
readers, and markers and dashes help where there is no colour.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from dsmr_export.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

Evaluation = Mapping[str, Any]
Evaluations = Mapping[str, "Evaluation | Sequence[Evaluation]"]

INK, GRID = "#22303a", "#d9dfe3"
SCHEDULES = {
    "two_scale": ("#0072b2", "o"),
    "full": ("#000000", "s"),
    "uniform": ("#56b4e9", "D"),
    "reverse_two_scale": ("#d55e00", "v"),
    "progressive_ascending": ("#009e73", "^"),
    "progressive_descending": ("#e69f00", "<"),
    "perceiver_ar_like": ("#cc79a7", "P"),
    "selective_uniform": ("#882255", "X"),
    "selective_random": ("#999933", "h"),
    "interleaved": ("#332288", ">"),
}
OTHER = ("#6b6b6b", "d")
"""A list of horizons, which has no name of its own."""
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
"""Of the first, second, … evaluation under one schedule's name."""
STYLE: Any = {  # matplotlib types its keys one by one
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
    "svg.hashsalt": "dsmr",  # ids inside a file are then the same every time
}
MANY = 4
"""So many names can have bands in one picture."""
K = 1024
"""What "k" means in labels, as everywhere in this project: 1,024 tokens."""


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Draws or saves with `STYLE`, and leaves matplotlib's own settings as they were."""

    @wraps(draw)
    def inside(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


@dataclass(frozen=True)
class Look:
    """How one name is drawn: colour and marker belong to its schedule, dashes tell namesakes apart.

    The marker of a second, third, … namesake is hollow.
    """

    colour: str
    marker: str
    dashes: Any = "-"

    @property
    def fill(self) -> str:
        """Of the marker."""
        return self.colour if self.dashes == DASHES[0] else "white"


def looks(schedules: Mapping[str, str]) -> dict[str, Look]:
    """name -> its look, for name -> schedule (a name, or a text that begins with one, as in
    `two_scale:long=832` or `full@kv_heads=1`)."""
    seen: dict[str, int] = {}
    found = {}
    for name, text in schedules.items():
        base = re.split(r"[:@ ]", text)[0]
        colour, marker = SCHEDULES.get(base, OTHER)
        key = base if base in SCHEDULES else ""
        found[name] = Look(colour, marker, DASHES[seen.get(key, 0) % len(DASHES)])
        seen[key] = seen.get(key, 0) + 1
    return found


def write_all(evaluations: Evaluations, folder: Path) -> list[Path]:
    """Draws every picture of the evaluations into the folder, each as PNG and SVG. Raises OutputError."""
    pictures: dict[str, Callable[[Evaluations], Figure]] = {
        "perplexity-by-position": perplexity_by_position,
        "reset-curve": reset_curve,
        "truncation": truncation_cost,
        "schedule": schedule_picture,
    }
    return [path for name, draw in pictures.items() for path in save(draw(evaluations), folder, name)]


@styled
def perplexity_by_position(evaluations: Evaluations) -> Figure:
    """Perplexity in each bin of positions (`by_position`)."""
    figure, axes = panel("Perplexity by position in the piece")
    rows = [row for runs in _runs(evaluations).values() for run in runs for row in run["by_position"]]
    edges = sorted({(row["from"], row["to"]) for row in rows}, key=lambda edge: edge[0])
    places = {edge: float(index) for index, edge in enumerate(edges)}
    _lines(
        axes,
        evaluations,
        lambda run: {places[row["from"], row["to"]]: row["perplexity"] for row in run["by_position"]},
    )
    axes.set_xticks(list(places.values()), [_bin(*edge) for edge in edges])
    axes.set_xlabel("tokens since the beginning of the piece (1k = 1,024)")
    axes.set_ylabel("perplexity per token")
    _legend(figure, axes, evaluations)
    return figure


@styled
def reset_curve(evaluations: Evaluations) -> Figure:
    """NLL increase after the recurrent state was emptied (`krcu`), with its mean over bins in the legend."""
    runs = [run for several in _runs(evaluations).values() for run in several]
    resets = sorted({run["krcu"]["reset_at"] for run in runs})
    at = ", ".join(f"{_k(reset)}" for reset in resets)
    figure, axes = panel(f"What a forgotten history costs: state emptied after {at} tokens")
    _lines(
        axes,
        evaluations,
        lambda run: {
            (row["from"] + row["to"]) / 2 / K - run["krcu"]["reset_at"] / K: row["increase"]
            for row in run["krcu"]["bins"]
        },
    )
    bins = [row for run in runs for row in run["krcu"]["bins"]]
    if bins:
        end = max(row["to"] for row in bins) / K - resets[0] / K
        axes.set_xlim(0, end)
        axes.set_xticks(range(int(end) + 1), [_k(tick * K) for tick in range(int(end) + 1)])
        _from_zero(axes)
        reaches = {sum(run["schedule"]["horizons"]) / K for run in runs}
        if len(reaches) == 1 and (reach := reaches.pop()) < end:
            axes.axvline(reach, color=INK, linewidth=0.8, linestyle=DASHES[2])
            axes.annotate(
                " nothing is missing from here on\n (Σ horizons later, by construction)",
                (reach, 1),
                xycoords=("data", "axes fraction"),
                va="top",
                fontsize=7.5,
            )
    axes.set_xlabel("tokens since the reset (1k = 1,024)")
    axes.set_ylabel("NLL increase (nats per token)")
    means = {
        name: [run["krcu"]["auc"] for run in several if run["krcu"]["auc"] is not None]
        for name, several in _runs(evaluations).items()
    }
    notes = {name: f"KRCU {sum(aucs) / len(aucs):.4f}" for name, aucs in means.items() if aucs}
    if bins:
        _legend(figure, axes, evaluations, notes)
    else:
        _nothing(axes, f"no piece is longer than {at} tokens")
    return figure


@styled
def truncation_cost(evaluations: Evaluations) -> Figure:
    """NLL increase of a piece's last tokens when only R tokens before them are kept (`truncation`)."""
    rows = [row for runs in _runs(evaluations).values() for run in runs for row in run["truncation"]]
    windows = ", ".join(_k(window) for window in sorted({row["window"] for row in rows}))
    figure, axes = panel(f"What a truncated history costs the last {windows} tokens of a piece")
    kept = sorted({row["retain"] for row in rows if row["increase"] is not None})
    places = {retain: float(index) for index, retain in enumerate(kept)}
    _lines(
        axes,
        evaluations,
        lambda run: {
            places[row["retain"]]: row["increase"] for row in run["truncation"] if row["increase"] is not None
        },
    )
    axes.set_xticks(list(places.values()), [_k(retain) for retain in kept])
    axes.set_xlabel("tokens of history kept (1k = 1,024)")
    axes.set_ylabel("NLL increase (nats per token)")
    if kept:
        _from_zero(axes)
        _legend(figure, axes, evaluations)
    else:
        _nothing(axes, "no piece is long enough")
    return figure


@styled
def schedule_picture(evaluations: Evaluations, columns: int = 4) -> Figure:
    """Horizon of every layer under each schedule, side by side on one scale."""
    from matplotlib.figure import Figure

    schedules = {name: runs[0]["schedule"] for name, runs in _runs(evaluations).items()}
    looked = _looks(evaluations)
    columns = min(columns, len(schedules))
    rows = -(-len(schedules) // columns)
    layers = max(len(schedule["horizons"]) for schedule in schedules.values())
    longest = max(max(schedule["horizons"]) for schedule in schedules.values())
    size = (1.2 + max(2.7 * columns, 4.4), rows * (1.1 + 0.22 * layers))
    figure = Figure(figsize=size, layout="constrained")
    for index, (name, schedule) in enumerate(schedules.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        title = f"{name}\nΣ = {schedule['budget_tokens']:,} tokens"
        labelled = index % columns == 0
        draw_schedule(axes, title, schedule["horizons"], longest, looked[name].colour, labelled)
    return figure


@dataclass(frozen=True)
class Quality:
    """One point of `quality_against_state`. spread: of the perplexity over seeds, None of one seed."""

    schedule: str
    state_bytes: int
    perplexity: float
    spread: float | None = None


@styled
def quality_against_state(points: Mapping[str, Quality], title: str, budget_bytes: int) -> Figure:
    """name -> perplexity over the bytes of its recurrent state, with the spread over seeds as error bars.

    Points of (nearly) the same bytes stand side by side, in their order, around where they belong; a line
    marks the budget.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, axes = panel(title)
    figure.set_figheight(4.6)
    looked = looks({name: point.schedule for name, point in points.items()})
    places = _side_by_side({name: point.state_bytes for name, point in points.items()})
    axes.axvline(budget_bytes, color=INK, linewidth=0.8, linestyle=DASHES[2], zorder=0)
    for name, point in points.items():
        look = looked[name]
        axes.errorbar(
            places[name],
            point.perplexity,
            yerr=point.spread,
            color=look.colour,
            marker=look.marker,
            markerfacecolor=look.fill,
            markersize=7,
            capsize=3,
            linestyle="none",
            label=name,
        )
    axes.set_xscale("log")
    ticks = sorted({budget_bytes, *(point.state_bytes for point in points.values())})
    apart = [tick for tick, after in pairwise([*ticks, 2 * ticks[-1]]) if after > tick * (1 + SAME)]
    axes.set_xticks(apart)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:.3g} MB"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    low, high = min(*places.values(), budget_bytes), max(*places.values(), budget_bytes)
    axes.set_xlim(low / 1.3, high * 1.3)
    axes.set_xlabel("recurrent state of one stream in fp32; side by side: the same bytes")
    axes.set_ylabel("perplexity per token")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
    return figure


SAME = 0.02
"""Amounts of state that differ by less than this share are the same: a schedule rounds its horizons down."""


def _side_by_side(amounts: Mapping[str, int], step: float = 1.06) -> dict[str, float]:
    """Where on a logarithmic axis each name is drawn: those of one amount around it, `step` times apart."""
    groups: list[list[str]] = []
    for name in sorted(amounts, key=amounts.__getitem__):
        if groups and amounts[name] <= amounts[groups[-1][0]] * (1 + SAME):
            groups[-1].append(name)
        else:
            groups.append([name])
    order = list(amounts)
    places = {}
    for group in groups:
        centre = sum(amounts[name] for name in group) / len(group)
        for index, name in enumerate(sorted(group, key=order.index)):
            places[name] = centre * step ** (index - (len(group) - 1) / 2)
    return places


@styled
def draw_schedule(
    axes: Axes, title: str, horizons: Sequence[int], longest: int, colour: str, labelled: bool = True
) -> None:
    """One bar a layer, as long as its horizon, ending now; the longest layers in full colour.

    longest: tokens that the axis must hold. labelled: name the layers.
    """
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    tint = tuple(0.45 * channel + 0.55 for channel in (red, green, blue))
    dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.57
    for layer, horizon in enumerate(horizons):
        full = horizon == max(horizons)
        inside = horizon > 0.3 * longest
        axes.barh(layer, -horizon, height=0.72, color=colour if full else tint, linewidth=0)
        axes.text(
            -horizon + 0.02 * longest if inside else -horizon - 0.02 * longest,
            layer,
            f"{horizon:,}",
            va="center",
            ha="left" if inside else "right",
            fontsize=8,
            color="white" if full and inside and dark else INK,
        )
    axes.axvline(0, color=INK, linewidth=1.5)
    axes.set_xlim(-1.05 * longest, 0.025 * longest)
    axes.set_ylim(-0.6, len(horizons) - 0.4)
    axes.set_title(title)
    axes.set_xlabel("tokens before now", fontsize=8)
    axes.set_yticks(range(len(horizons)), [f"layer {n}" for n in range(len(horizons))] if labelled else [])
    axes.tick_params(labelsize=8, length=0)
    step = _round_step(longest)
    ticks = range(0, longest + 1, step)
    axes.set_xticks([-tick for tick in ticks], ["now" if tick == 0 else f"{tick:,}" for tick in ticks])
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


@styled
def panel(title: str) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes in the style of all pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.grid(axis="y")
    return figure, axes


@styled
def save(figure: Figure, folder: Path, name: str, suffixes: Sequence[str] = (".png", ".svg")) -> list[Path]:
    """Writes NAME with each suffix into the folder, each whole or not at all. Raises OutputError."""
    paths = [folder / f"{name}{suffix}" for suffix in suffixes]
    try:
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                figure.savefig(unfinished, metadata=metadata, format=path.suffix[1:])
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return paths


def require_folder(folder: Path) -> None:
    """Makes the folder, and sees that a file can be written there. Raises OutputError."""
    probe = folder / ".dsmr-plots"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"{folder}: plots cannot be written there ({reason}); choose another folder")


def _runs(evaluations: Evaluations) -> dict[str, Sequence[Evaluation]]:
    return {name: [found] if isinstance(found, Mapping) else found for name, found in evaluations.items()}


def _looks(evaluations: Evaluations) -> dict[str, Look]:
    return looks({name: runs[0]["schedule"]["name"] for name, runs in _runs(evaluations).items()})


def _lines(
    axes: Axes, evaluations: Evaluations, points: Callable[[Evaluation], Mapping[float, float]]
) -> None:
    """A line a name through the mean of its runs at every x, with a band over their range.

    Many bands would cover the lines, and what seeds have in common is not what schedules differ in: of more
    than MANY names only the lines are drawn.
    """
    looked = _looks(evaluations)
    for name, runs in _runs(evaluations).items():
        found = [points(run) for run in runs]
        xs = sorted({x for run in found for x in run})
        if not xs:
            continue
        values = [[run[x] for run in found if x in run] for x in xs]
        look = looked[name]
        axes.plot(
            xs,
            [sum(each) / len(each) for each in values],
            color=look.colour,
            marker=look.marker,
            markerfacecolor=look.fill,
            linestyle=look.dashes,
            label=name,
            clip_on=False,
        )
        if len(runs) > 1 and len(evaluations) <= MANY:
            low, high = [min(each) for each in values], [max(each) for each in values]
            axes.fill_between(xs, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _legend(
    figure: Figure, axes: Axes, evaluations: Evaluations, notes: Mapping[str, str] | None = None
) -> None:
    handles, names = axes.get_legend_handles_labels()
    labels = [f"{name} ({notes[name]})" if notes and name in notes else name for name in names]
    fitting = 118 // (8 + max(map(len, labels)))  # letters in a line of this size, and a marker's worth
    columns = max(1, min(3, fitting, len(labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def _from_zero(axes: Axes) -> None:
    """A line at zero, and an axis of at least a thousandth of a nat: rounding looks as small as it is."""
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -5e-5), max(high, 1e-3))
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)


def _nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center")
    axes.set_xticks([])
    axes.set_yticks([])


def _bin(start: int, stop: int | None) -> str:
    return f"over {_k(start)}" if stop is None else f"{_k(start).removesuffix('k')}–{_k(stop)}"


def _k(count: int) -> str:
    """8192 -> 8k; what is no multiple of 1,024 in full."""
    return f"{count // K}k" if count and count % K == 0 else f"{count:,}"


def _round_step(longest: int) -> int:
    """Distance of ticks: 1, 2 or 5 times a power of ten (or 4, for powers of two), some four in all."""
    power = 10 ** (len(str(max(longest, 4) // 4)) - 1)
    return next(factor * power for factor in (1, 2, 4, 5, 10) if longest / (factor * power) <= 4.5)
