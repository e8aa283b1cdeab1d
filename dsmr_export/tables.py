"""What the command line shows on stdout: rich tables made from plain results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from dsmr_export.manifest import Manifest


def parity_table(result: Mapping[str, Any], manifest: Manifest) -> Table:
    """One row per graph and way of feeding it: sizes, perplexity, and the distance from PyTorch."""
    title = f"{result['tokens']:,} tokens of {result['pieces']} pieces"
    table = _table(
        "graph", "file", "state", "perplexity", "PyTorch", "change", "KL mean", "KL max", "top-1", title=title
    )
    for name, figures in result["graphs"].items():
        entry = manifest.graphs[name]
        table.add_row(name, size(entry.bytes), size(entry.state_bytes), *_figures(figures))
        if "token_by_token" in figures:
            table.add_row("  token by token", "", "", *_figures(figures["token_by_token"]))
    return table


def position_table(result: Mapping[str, Any]) -> Table:
    """Drift: the same figures by position in the piece."""
    table = _table("graph", "position", "tokens", "perplexity", "change", "KL mean", "KL max", "top-1")
    for name, figures in result["graphs"].items():
        for row in figures["by_position"]:
            stop = "…" if row["to"] is None else f"{row['to']:,}"
            shown = _figures(row)
            table.add_row(name, f"{row['from']:,} – {stop}", f"{row['tokens']:,}", shown[0], *shown[2:])
    return table


def golden_table(results: Iterable[Any]) -> Table:
    table = _table("graph", "positions", "max |logit difference|", "KL mean", "top-1", "golden vectors")
    for result in results:
        verdict = "pass" if result.passed else "FAIL"
        table.add_row(
            result.graph,
            str(result.positions),
            f"{result.max_abs_logit:.1e}",
            f"{result.kl_mean:.1e}",
            f"{result.top1:.4f}",
            verdict,
        )
    return table


def graph_table(manifest: Manifest) -> Table:
    """What the bundle holds."""
    table = _table(
        "graph", "file", "bytes", "state bytes", "operators", "opset", "needs onnxruntime", "default"
    )
    for name, entry in manifest.graphs.items():
        default = "yes" if name == manifest.default_graph else ""
        table.add_row(
            name,
            entry.file,
            f"{entry.bytes:,}",
            f"{entry.state_bytes:,}",
            entry.ops,
            str(entry.opset),
            entry.min_onnxruntime,
            default,
        )
    return table


def size(count: int) -> str:
    """Bytes for people: 1 MB = 1,000,000 bytes."""
    return f"{count / 1e6:.2f} MB"


def _figures(figures: Mapping[str, Any]) -> list[str]:
    formats = {
        "perplexity": ".4f",
        "reference_perplexity": ".4f",
        "relative_change": "+.1e",
        "kl_mean": ".1e",
        "kl_max": ".1e",
        "top1_agreement": ".4f",
    }
    return ["–" if figures[key] is None else format(figures[key], spec) for key, spec in formats.items()]


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table
