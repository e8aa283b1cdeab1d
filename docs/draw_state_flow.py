"""Draws docs/state-flow.svg: what each layer remembers under a schedule, and how the state flows on.

python docs/draw_state_flow.py          (make figures)
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dsmr_export import figures
from dsmr_export import schedule as schedules
from dsmr_export.figures import INK

HERE = Path(__file__).parent
LAYERS, BUDGET = 8, 4096
NAMES = ("two_scale", "uniform", "progressive_ascending")
GRAPH, STATE, NOW = figures.SCHEDULES["two_scale"][0], "#8cbfdd", "#d55e00"


@figures.styled
def main() -> None:
    built = {name: schedules.build(name, LAYERS, BUDGET) for name in NAMES}
    looks = figures.looks({name: name for name in NAMES})
    longest = max(max(schedule.horizons) for schedule in built.values())
    figure = Figure(figsize=(11, 5.6))
    grid = figure.add_gridspec(2, 3, height_ratios=(1.25, 1), hspace=0.42, wspace=0.12)
    for column, (name, schedule) in enumerate(built.items()):
        axes = figure.add_subplot(grid[0, column])
        title = f"{name}: Σ = {schedule.budget_tokens:,} tokens"
        figures.draw_schedule(axes, title, schedule.horizons, longest, looks[name].colour, column == 0)
    draw_flow(figure.add_subplot(grid[1, :]))
    figure.savefig(HERE / "state-flow.svg", bbox_inches="tight", metadata={"Date": None})


def draw_flow(axes: Axes) -> None:
    """Three calls of one graph; each layer's keys and values go out of one and into the next."""
    axes.set_xlim(0, 12)
    axes.set_ylim(0, 3)
    axes.axis("off")
    calls = ("segment: 7 tokens", "segment: 256 tokens", "step: 1 token")
    for index, label in enumerate(calls):
        left = 1.6 + 3.7 * index
        axes.add_patch(
            FancyBboxPatch(
                (left, 0.95), 1.9, 1.1, boxstyle="round,pad=0.02,rounding_size=0.12", fc=GRAPH, ec="none"
            )
        )
        axes.text(left + 0.95, 1.5, "model.int8.onnx", ha="center", va="center", color="white", fontsize=9)
        arrow(axes, (left + 0.95, 0.35), (left + 0.95, 0.9), NOW)
        axes.text(left + 0.95, 0.17, f"input_ids, {label}", ha="center", va="center", fontsize=8.5)
        arrow(axes, (left + 0.95, 2.1), (left + 0.95, 2.65), INK)
        axes.text(left + 0.95, 2.82, "logits", ha="center", va="center", fontsize=8.5)
        arrow(axes, (left - 1.7, 1.5), (left - 0.06, 1.5), STATE)
        text = "zeros" if index == 0 else "present.i.key, .value\n= past_key_values.i.*"
        axes.text(left - 0.88, 1.62, text, ha="center", va="bottom", fontsize=7.5)
    arrow(axes, (1.6 + 3.7 * 2 + 1.96, 1.5), (11.95, 1.5), STATE)
    axes.set_title(
        "one graph for any segment length: the state goes in and comes out (on a device, in place)"
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, linewidth=2, color=color))


if __name__ == "__main__":
    main()
