"""Draws docs/state-flow.svg: what each layer remembers under a schedule, and how the state flows on.

python docs/draw_state_flow.py          (make figures)
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dsmr_export import schedule as schedules

HERE = Path(__file__).parent
LAYERS, BUDGET = 8, 4096
NAMES = ("two_scale", "uniform", "progressive_ascending")
LONG, SHORT, NOW, INK = "#2f6f8f", "#8fbfd4", "#e08e45", "#22303a"


def main() -> None:
    plt.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "svg.hashsalt": "dsmr"})
    figure = plt.figure(figsize=(11, 5.6), facecolor="white")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.25, 1), hspace=0.42, wspace=0.12)
    for column, name in enumerate(NAMES):
        draw_schedule(figure.add_subplot(grid[0, column]), name, labelled=column == 0)
    draw_flow(figure.add_subplot(grid[1, :]))
    figure.savefig(HERE / "state-flow.svg", bbox_inches="tight", metadata={"Date": None})


def draw_schedule(axes: Axes, name: str, labelled: bool) -> None:
    """One bar a layer, as long as its horizon, ending now."""
    schedule = schedules.build(name, LAYERS, BUDGET)
    longest = max(schedule.horizons)
    for layer, horizon in enumerate(schedule.horizons):
        axes.barh(layer, -horizon, height=0.72, color=LONG if horizon == longest else SHORT, linewidth=0)
        inside = horizon > 500
        axes.text(
            -horizon + 30 if inside else -horizon - 30,
            layer,
            f"{horizon:,}",
            va="center",
            ha="left" if inside else "right",
            fontsize=8,
            color="white" if horizon == longest and inside else INK,
        )
    axes.axvline(0, color=NOW, linewidth=2)
    axes.set_xlim(-1750, 40)
    axes.set_title(f"{name}: Σ = {schedule.budget_tokens:,} tokens", fontsize=10, loc="left")
    axes.set_xlabel("tokens before now", fontsize=8)
    axes.set_yticks(range(LAYERS), [f"layer {layer}" for layer in range(LAYERS)] if labelled else [])
    axes.tick_params(labelsize=8, length=0)
    axes.set_xticks([-1600, -1200, -800, -400, 0], ["1,600", "1,200", "800", "400", "now"])
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


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
                (left, 0.95), 1.9, 1.1, boxstyle="round,pad=0.02,rounding_size=0.12", fc=LONG, ec="none"
            )
        )
        axes.text(left + 0.95, 1.5, "model.int8.onnx", ha="center", va="center", color="white", fontsize=9)
        arrow(axes, (left + 0.95, 0.35), (left + 0.95, 0.9), NOW)
        axes.text(left + 0.95, 0.17, f"input_ids, {label}", ha="center", va="center", fontsize=8.5)
        arrow(axes, (left + 0.95, 2.1), (left + 0.95, 2.65), INK)
        axes.text(left + 0.95, 2.82, "logits", ha="center", va="center", fontsize=8.5)
        arrow(axes, (left - 1.7, 1.5), (left - 0.06, 1.5), SHORT)
        text = "zeros" if index == 0 else "present.i.key, .value\n= past_key_values.i.*"
        axes.text(left - 0.88, 1.62, text, ha="center", va="bottom", fontsize=7.5)
    arrow(axes, (1.6 + 3.7 * 2 + 1.96, 1.5), (11.95, 1.5), SHORT)
    axes.set_title(
        "one graph for any segment length: the state goes in and comes out (on a device, in place)",
        fontsize=10,
        loc="left",
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, linewidth=2, color=color))


if __name__ == "__main__":
    main()
