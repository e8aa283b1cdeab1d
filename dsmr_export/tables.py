"""What the command line shows on stdout: rich tables made from plain results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from dsmr_export.manifest import Manifest
from dsmr_export.schedule import compact


def parity_table(result: Mapping[str, Any], manifest: Manifest) -> Table:
    """One row per graph and way of feeding it: sizes, perplexity, and the distance from PyTorch."""
    title = f"{result['tokens']:,} tokens of {result['pieces']} pieces"
    table = plain_table(
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
    table = plain_table("graph", "position", "tokens", "perplexity", "change", "KL mean", "KL max", "top-1")
    for name, figures in result["graphs"].items():
        for row in figures["by_position"]:
            shown = _figures(row)
            position = _span(row["from"], row["to"])
            table.add_row(name, position, f"{row['tokens']:,}", shown[0], *shown[2:])
    return table


def golden_table(results: Iterable[Any]) -> Table:
    table = plain_table("graph", "positions", "max |logit difference|", "KL mean", "top-1", "golden vectors")
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


def needs_table(rows: Sequence[tuple[Any, Any]], target: Any) -> Table:
    """(schedule, needs) one a row: what a bundle takes on its target, and how fast memory lets it be."""
    from dsmr_export import budget

    table = plain_table(
        "schedule", "budget", "state", "memory", "read per token", "of it state", "tokens/s", "fits"
    )
    for index, (schedule, found) in enumerate(rows):
        table.add_row(
            compact(schedule.horizons) if len(set(schedule.horizons)) <= 4 else schedule.name,
            f"{schedule.budget_tokens:,}",
            size(found.state),
            f"{found.memory / 1e6:,.0f} MB",
            size(found.read),
            size(found.state_read),
            f"≤ {budget.tokens_per_s(found, target):,.0f}",
            "yes" if budget.fits(found, target) else "no",
            end_section=index == 0,
        )
    return table


def sensitivity_table(costs: Sequence[Any], tokens: int, most: int | None = None) -> Table:
    """What each matrix's quantization costs alone; `most`: only so many rows, the costliest."""
    table = plain_table(
        "matrix", "level", "KL mean", "", "change", "saves", "SQNR", title=f"one at a time, {tokens:,} tokens"
    )
    table.columns[3].justify = "left"  # bars begin where they begin
    worst = max((cost.kl for cost in costs), default=0.0)
    for cost in costs[:most]:
        bar = "█" * round(20 * cost.kl / worst) if worst else ""
        table.add_row(
            cost.tensor.removesuffix(".weight"),
            cost.level,
            f"{cost.kl:.1e}",
            f"{bar:<20}",
            f"{cost.change:+.1e}",
            f"{cost.saved / 1000:,.0f} kB",
            f"{cost.sqnr_db:.1f} dB",
        )
    return table


def graph_table(manifest: Manifest) -> Table:
    """What the bundle holds."""
    table = plain_table(
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


def evaluation_tables(found: Mapping[str, Any]) -> Iterator[Table | str]:
    """What `model.history.judge` found: all in all, by position, truncated histories, and after a reset.

    Where no piece is long enough for a measure, a line says so instead.
    """
    yield _overall_table(found)
    yield _nll_table(found)
    if any(row["pieces"] for row in found["truncation"]):
        yield _truncation_table(found)
    else:
        yield "no piece is long enough to truncate its history"
    if found["krcu"]["bins"]:
        yield _reset_table(found)
    else:
        yield f"no piece is longer than {found['krcu']['reset_at']:,} tokens: no KRCU"


def study_table(found: Mapping[str, Any]) -> Table:
    """What `model.study_report.collect` found, as much as fits: one row a schedule."""
    splits = found["splits"]
    title = f"{found['budget_bytes']:,} bytes of recurrent state, {seeds(found['seeds'])}"
    table = plain_table(
        "schedule",
        "state",
        *(f"perplexity\n{split}" for split in splits),
        *(f"KRCU\n{split}" for split in splits[-1:]),
        "tokens/s\n(ratio)",
        "peak\nmemory",
        title=title,
    )
    for row in found["schedules"]:
        table.add_row(
            row["schedule"] + ("*" if row["over_budget"] else ""),
            size(row["state_bytes"]),
            *(mean_and_spread(row["splits"][split]["perplexity"], ".3f") for split in splits),
            *(unsigned_zero(number(row["splits"][split]["krcu"]["mean"], "+.4f")) for split in splits[-1:]),
            speed(row),
            "–" if row["peak_bytes"] is None else size(row["peak_bytes"]),
        )
    if any(row["over_budget"] for row in found["schedules"]):
        table.caption = "* over the budget"
    return table


def seeds(numbers: Sequence[int]) -> str:
    """As in seeds 0, 1."""
    return f"seed{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def mean_and_spread(found: Mapping[str, Any], spec: str) -> str:
    """As in 5.962 ± 0.013; without the spread where there is one seed only."""
    shown = unsigned_zero(number(found["mean"], spec))
    return shown if found["spread"] is None else f"{shown} ± {found['spread']:{spec.lstrip('+')}}"


def speed(row: Mapping[str, Any]) -> str:
    """Tokens per second, and their ratio to those of the first schedule."""
    shown = number(row["tokens_per_s"], ",.0f")
    return shown if row["speed_ratio"] is None else f"{shown} ({row['speed_ratio']:.2f})"


def _overall_table(found: Mapping[str, Any]) -> Table:
    schedule = found["schedule"]
    title = (
        f"{found['tokens']:,} tokens of {found['pieces']} pieces: {found['notes']:,} notes, "
        f"{found['seconds'] / 60:,.1f} minutes of music\n"
        f"{schedule['name']}: {compact(schedule['horizons'])} = {schedule['budget_tokens']:,} tokens, "
        f"{size(found['state_bytes'])} of recurrent state"
    )
    table = plain_table(
        "perplexity", "mean over pieces", "nats per token", "per note", "per second of music", title=title
    )
    keys = ("perplexity", "per_piece_mean", "nats_per_token", "nats_per_note", "nats_per_second")
    table.add_row(*(number(found[key], ".4f") for key in keys))
    return table


def _nll_table(found: Mapping[str, Any]) -> Table:
    table = plain_table("position", "pieces", "tokens", "nats per token", "perplexity")
    for row in found["by_position"]:
        table.add_row(
            _span(row["from"], row["to"]),
            str(row["pieces"]),
            f"{row['tokens']:,}",
            number(row["nats_per_token"], ".4f"),
            number(row["perplexity"], ".4f"),
        )
    return table


def _truncation_table(found: Mapping[str, Any]) -> Table:
    windows = sorted({row["window"] for row in found["truncation"]})
    title = f"the last {', '.join(f'{window:,}' for window in windows)} tokens of long pieces"
    table = plain_table("history kept", "pieces", "nats per token", "whole history", "increase", title=title)
    for row in found["truncation"]:
        table.add_row(
            f"{row['retain']:,}",
            str(row["pieces"]),
            number(row["nats_per_token"], ".4f"),
            number(row["full_nats_per_token"], ".4f"),
            _change(row["increase"]),
        )
    return table


def _reset_table(found: Mapping[str, Any]) -> Table:
    krcu = found["krcu"]
    pieces = f"{krcu['pieces']} piece{'' if krcu['pieces'] == 1 else 's'}"
    title = f"state reset after {krcu['reset_at']:,} tokens, {pieces}"
    table = plain_table("position", "tokens", "increase in nats per token", title=title)
    for row in krcu["bins"]:
        table.add_row(_span(row["from"], row["to"]), f"{row['tokens']:,}", _change(row["increase"]))
    table.add_section()
    table.add_row("KRCU: mean of these", "", _change(krcu["auc"]))
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
    return [number(figures[key], spec) for key, spec in formats.items()]


def number(value: float | None, spec: str) -> str:
    """A dash for what is not known."""
    return "–" if value is None else format(value, spec)


def _change(value: float | None) -> str:
    """In nats."""
    return unsigned_zero(number(value, "+.5f"))


def unsigned_zero(shown: str) -> str:
    """What rounds to zero has no sign."""
    return shown[1:] if shown[0] in "+-" and not shown.strip("+-0.") else shown


def _span(start: int, stop: int | None) -> str:
    return f"{start:,} – " + ("…" if stop is None else f"{stop:,}")


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table of figures: the first column to the left, the others to the right, none of them wrapped."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table
