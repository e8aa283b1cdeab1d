"""Pictures: every figure that goes in is drawn where it belongs, in the colour of its schedule."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from dsmr_export import figures, schedule
from dsmr_export.errors import OutputError

EDGES = [(0, 1024), (1024, 4096), (4096, 8192), (8192, 16384), (32768, None)]


def evaluation(
    name: str = "two_scale", quality: float = 1.0, bins: int = 6, budget: int = 4096
) -> dict[str, Any]:
    built = schedule.build(name, 8, budget)
    increases = [quality / 10 / 2**n for n in range(bins)]
    return {
        "by_position": [
            {"from": a, "to": b, "tokens": 10, "nats_per_token": 1.0, "perplexity": 10 * quality + n}
            for n, (a, b) in enumerate(EDGES)
        ],
        "truncation": [
            {
                "retain": r,
                "window": 1024,
                "pieces": 1,
                "tokens": 1024,
                "increase": quality / r if r < 9000 else None,
            }
            for r in (1024, 4096, 8192, 16384)
        ],
        "krcu": {
            "reset_at": 8192,
            "pieces": 1 if bins else 0,
            "auc": float(np.mean(increases)) if bins else None,
            "bins": [
                {"from": 8192 + 1024 * n, "to": 9216 + 1024 * n, "tokens": 5, "increase": increase}
                for n, increase in enumerate(increases)
            ],
        },
        "schedule": {
            "name": built.name,
            "text": built.text,
            "horizons": list(built.horizons),
            "budget_tokens": built.budget_tokens,
        },
    }


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float], str]]:
    """label -> (x, y, colour) of what stands in the legend."""
    handles, labels = axes.get_legend_handles_labels()
    return {
        label: (list(line.get_xdata()), list(line.get_ydata()), to_hex(line.get_color()))
        for line, label in zip(handles, labels, strict=True)
    }


def test_every_figure_is_drawn_at_its_place() -> None:
    found = evaluation()
    (axes,) = figures.perplexity_by_position({"mine": found}).axes
    assert lines(axes) == {"mine": ([0, 1, 2, 3, 4], [10, 11, 12, 13, 14], "#0072b2")}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "0–1k",
        "1–4k",
        "4–8k",
        "8–16k",
        "over 32k",
    ]
    (axes,) = figures.reset_curve({"mine": found}).axes
    xs, ys, _ = lines(axes)["mine"]
    assert xs == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]  # the middle of each bin, in k since the reset
    assert ys == [row["increase"] for row in found["krcu"]["bins"]]
    (axes,) = figures.truncation_cost({"mine": found}).axes
    assert lines(axes)["mine"][:2] == ([0, 1, 2], [1 / 1024, 1 / 4096, 1 / 8192])  # 16k: no piece
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1k", "4k", "8k"]
    (axes,) = figures.schedule_picture({"mine": found}).axes
    assert sorted(-bar.get_width() for bar in axes.patches) == [128] * 6 + [1664] * 2
    for draw in (figures.perplexity_by_position, figures.reset_curve, figures.truncation_cost):
        (axes,) = draw({"mine": found}).axes
        assert "tokens" in axes.get_xlabel() and axes.get_ylabel()


def test_where_the_influence_ends_is_marked_once_it_is_one_place() -> None:
    def marks(*budgets: int) -> list[float]:
        runs = {str(budget): evaluation("uniform", budget=budget) for budget in budgets}
        (axes,) = figures.reset_curve(runs).axes
        labelled = {id(line) for line in axes.get_legend_handles_labels()[0]}
        found = [line.get_xdata()[0] for line in axes.lines if id(line) not in labelled]
        return [x for x in found if x]

    assert marks(4096) == [4.0] and marks(2048, 2048) == [2.0]
    assert marks(4096, 2048) == [] and marks(16384) == []  # two places; beyond the last bin


def test_a_schedule_looks_the_same_everywhere() -> None:
    several = {
        "full@kv_heads=1": evaluation("full", 2),
        "two_scale": evaluation("two_scale", 1),
        "full": evaluation("full", 3),
        "a list": evaluation("64x8"),
    }
    expected = {"full@kv_heads=1": "#000000", "two_scale": "#0072b2", "full": "#000000", "a list": "#6b6b6b"}
    for draw in (figures.perplexity_by_position, figures.reset_curve, figures.truncation_cost):
        (axes,) = draw(several).axes
        assert {name: colour for name, (_, _, colour) in lines(axes).items()} == expected
    looks = figures.looks({"a": "full:cap=512", "b": "two_scale", "c": "full@kv_heads=2", "d": "70,5,1"})
    assert (looks["a"].colour, looks["a"].marker) == (looks["c"].colour, looks["c"].marker)
    assert looks["a"].dashes != looks["c"].dashes and looks["a"].fill != looks["c"].fill
    assert set(figures.SCHEDULES) == set(schedule.NAMES)
    assert len({colour for colour, _ in figures.SCHEDULES.values()} | {figures.OTHER[0]}) == 11
    assert len({marker for _, marker in figures.SCHEDULES.values()} | {figures.OTHER[1]}) == 11
    panels = figures.schedule_picture(several).axes
    assert [
        to_hex(max(axes.patches, key=lambda bar: -bar.get_width()).get_facecolor()) for axes in panels
    ] == [*expected.values()]
    assert panels[1].get_title(loc="left") == "two_scale\nΣ = 4,096 tokens"


def test_every_colour_stands_out_on_white() -> None:
    """Contrast (WCAG 2) of at least 2 to 1 on white: lines are wide, and text is never coloured."""

    def luminance(colour: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for colour in [*(colour for colour, _ in figures.SCHEDULES.values()), figures.OTHER[0]]:
        assert 1.05 / (luminance(colour) + 0.05) > 2
    assert 1.05 / (luminance(figures.INK) + 0.05) > 7


def test_seeds_are_drawn_as_their_mean_with_their_range() -> None:
    (axes,) = figures.perplexity_by_position(
        {"two_scale": [evaluation(quality=1), evaluation(quality=2)]}
    ).axes
    assert lines(axes)["two_scale"][1] == [15, 16, 17, 18, 19]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == (10, 24)


def test_what_could_not_be_measured_is_said() -> None:
    short = evaluation(bins=0)
    (axes,) = figures.reset_curve({"short": short}).axes
    assert [text.get_text() for text in axes.texts] == ["no piece is longer than 8k tokens"]
    for row in short["truncation"]:
        row["increase"] = None
    (axes,) = figures.truncation_cost({"short": short}).axes
    assert [text.get_text() for text in axes.texts] == ["no piece is long enough"]


def test_rounding_is_not_blown_up() -> None:
    (axes,) = figures.truncation_cost({"mine": evaluation(quality=1e-9)}).axes
    assert axes.get_ylim()[1] == 1e-3


def test_files_are_whole_and_the_same_every_time(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    several = {"two_scale": evaluation(), "uniform": [evaluation("uniform", 2), evaluation("uniform", 3)]}
    for folder in ("once", "again"):
        (tmp_path / folder).mkdir()
    paths = figures.write_all(several, tmp_path / "once")
    assert [path.name for path in paths] == [
        f"{name}.{kind}"
        for name in ("perplexity-by-position", "reset-curve", "truncation", "schedule")
        for kind in ("png", "svg")
    ]
    figures.write_all(several, tmp_path / "again")
    for path in paths:
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before  # an importer's own settings stay


def test_no_text_is_cut_off() -> None:
    """Every word lies inside its figure, for one schedule and for all of them with long names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    all_of_them = {name: evaluation(name, n + 1) for n, name in enumerate(schedule.NAMES)}
    for runs in ({"two_scale": evaluation()}, all_of_them):
        for draw in (
            figures.perplexity_by_position,
            figures.reset_curve,
            figures.truncation_cost,
            figures.schedule_picture,
        ):
            figure = draw(runs)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            wide, high = canvas.get_width_height()
            box = figure.get_tightbbox(canvas.get_renderer()).transformed(figure.dpi_scale_trans)
            assert box.x0 > -1 and box.y0 > -1 and box.x1 < wide + 1 and box.y1 < high + 1, draw.__name__


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    for folder in (tmp_path / "file", tmp_path / "file" / "plots"):
        with pytest.raises(OutputError, match="plots cannot be written there .*; choose another folder"):
            figures.require_folder(folder)
    with pytest.raises(OutputError, match="plots cannot be written there .No such file"):
        figures.save(figures.panel("a title")[0], tmp_path / "gone", "picture")
    figures.require_folder(tmp_path / "new" / "deep")
    assert list((tmp_path / "new" / "deep").iterdir()) == []


def test_importing_draws_nothing() -> None:
    """matplotlib is imported when something is drawn, not before."""
    code = "import sys, dsmr_export.figures; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr
