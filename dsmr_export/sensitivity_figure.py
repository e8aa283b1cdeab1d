"""The picture of a sweep (`dsmr quantize --sweep --plots`): divergence of each matrix alone, layer by
layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsmr_export.figures import GRID, styled
from dsmr_export.sensitivity import Cost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {"int8": ("#0072b2", "o"), "int4": ("#d55e00", "v")}
"""Colour and marker of a level: Okabe and Ito's, told apart without colour too."""


@styled
def draw(costs: Sequence[Cost]) -> Figure:
    """One row a matrix, from the embedding up to the head; one mark a level, on a logarithmic axis of KL."""
    from matplotlib.figure import Figure

    names = sorted({cost.tensor for cost in costs}, key=_place, reverse=True)
    figure = Figure(figsize=(6.4, 1.4 + 0.17 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    rows = {name: index for index, name in enumerate(names)}
    for level, (colour, marker) in LOOKS.items():
        found = [cost for cost in costs if cost.level == level]
        if found:
            axes.plot(
                [max(cost.kl, 1e-12) for cost in found],
                [rows[cost.tensor] for cost in found],
                linestyle="none",
                marker=marker,
                color=colour,
                label=level,
            )
    axes.set_yticks(list(rows.values()), [name.removesuffix(".weight") for name in names], fontsize=7)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xscale("log")
    axes.set_xlabel("mean KL divergence from fp32 with this matrix alone quantized, nats")
    axes.grid(axis="y", color=GRID, linewidth=0.4)
    axes.grid(axis="x")
    axes.set_title("What each matrix's quantization costs")
    axes.legend(loc="best")
    return figure


PARTS = ("qkv", "out", "up", "down")


def _place(name: str) -> tuple[int, int, int]:
    """By depth: embedding, layers in the order of computation, head."""
    first, *rest = name.split(".")
    if first == "layers":
        return 1, int(rest[0]), PARTS.index(rest[1])
    return (0 if first == "embedding" else 2), 0, 0
