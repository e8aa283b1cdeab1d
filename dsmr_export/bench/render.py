"""What `dsmr bench` prints: the card, tables of what was measured, and rows for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsmr_export.schedule import compact
from dsmr_export.tables import plain_table, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

QUANTILES = ("p50", "p90", "p99", "max")


def render(result: Mapping[str, Any], console: Console) -> None:
    """Prints what `bench.run` returned."""
    for line in _card(result["architecture"]):
        console.print(line, soft_wrap=True)
    console.print(_size_table(result))
    console.print(_step_table(result))
    console.print(_start_table(result))
    console.print(_place_table(result))
    if result["peers"]:
        console.print(_peer_table(result))
    for what, grown in result["growth"].items():
        console.print(_growth_table(what, grown))
    for what, reason in result["growth_absent"].items():
        console.print(f"by {what}: absent, {reason}", soft_wrap=True)
    for line in (*_peer_notes(result["peers"]), *_where(result)):
        console.print(line, soft_wrap=True)


def rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row of plain figures for each graph, graph with other threads, and peer; the columns are
    COLUMNS."""
    threads = result["threads"]
    for name, figures in result["graphs"].items():
        flat = {key: figures[key] for key in _GRAPH_COLUMNS}
        segments = {f"segment_{key}": value for key, value in figures["segment_tokens_per_s"].items()}
        fraction = result["bandwidth"]["graphs"][name]["fraction"]
        yield _flat("graph", name, threads, figures) | flat | segments | {"bandwidth_fraction": fraction}
        for count, other in figures["threads"].items():
            yield _flat("threads", name, int(count), other)
    for name, figures in result["peers"].items():
        if "absent" not in figures:
            ratio = {key: figures[key] for key in ("ratio", "ratio_min", "ratio_max", "peak_mb")}
            yield _flat("peer", name, threads, figures) | ratio


_GRAPH_COLUMNS = (
    "load_ms",
    "load_warm_ms",
    "first_ms",
    "music_s_per_s",
    "peak_mb",
    "python_share",
    "paced_cpu_share",
)
COLUMNS = (
    "kind",
    "name",
    "threads",
    *(f"step_ms_{key}" for key in QUANTILES),
    "tokens_per_s",
    *_GRAPH_COLUMNS,
    *(f"segment_{size}" for size in (16, 64, 256)),
    "bandwidth_fraction",
    "ratio",
    "ratio_min",
    "ratio_max",
)


def as_csv(result: Mapping[str, Any]) -> str:
    """`rows` as CSV with a header line; empty where a figure does not apply."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(result))
    return text.getvalue()


def _flat(kind: str, name: str, threads: int, figures: Mapping[str, Any]) -> dict[str, Any]:
    steps = {f"step_ms_{key}": figures["step_ms"][key] for key in QUANTILES}
    about = {"kind": kind, "name": name, "threads": threads}
    return about | steps | {"tokens_per_s": figures["tokens_per_s"]}


def _card(card: Mapping[str, Any]) -> Iterator[str]:
    horizons, schedule = compact(card["horizons"]), card["schedule"]
    yield (
        f"{card['parameters'] / 1e6:.1f} M parameters: {card['layers']} layers, d_model {card['d_model']}, "
        f"{card['heads']} heads over {card['kv_heads']} kv heads of {card['head_dim']}"
    )
    named = "" if schedule == horizons else f"{schedule}: "
    yield f"{named}{horizons} = {card['budget_tokens']:,} tokens"
    work = card["multiply_adds"]
    yield (
        f"one token: {work['total'] / 1e6:.1f} M multiply-adds, {work['products'] / 1e6:.1f} in matrices and "
        f"{work['attention'] / 1e6:.1f} in attention"
    )
    same = [row["schedule"] for row in card["schedules"] if row["multiply_adds"] == work["total"]]
    if same:
        yield f"at this budget the same for {', '.join(same)}"


def _size_table(result: Mapping[str, Any]) -> Table:
    table = plain_table("graph", "file", "state", "a token reads", "of it state", "at least", "reached")
    for name, figures in result["architecture"]["graphs"].items():
        if name not in result["graphs"]:
            continue
        bound = result["bandwidth"]["graphs"][name]
        table.add_row(
            name,
            size(figures["file_bytes"]),
            size(figures["state_bytes"]),
            size(figures["weights_read_bytes"] + figures["state_read_bytes"]),
            size(figures["state_read_bytes"]),
            f"{bound['least_ms']:.3f} ms",
            f"{bound['fraction']:.0%}",
        )
    return table


def _step_table(result: Mapping[str, Any]) -> Table:
    default = result["reference"]
    title = (
        f"{result['steps']:,} steps each in {result['rounds']} rounds, {result['threads']} thread(s), "
        f"state full ({result['filled']:,} tokens)"
    )
    columns = ("p50 ms", "p90 ms", "p99 ms", "max ms", "tokens/s", "music", "host", f"/ {default}")
    table = plain_table("step", *columns, title=title)
    for name, figures in result["graphs"].items():
        ratio = "1" if name == default else f"{result['ratios'][f'{name}_over_{default}']:.2f}"
        music, share = f"{figures['music_s_per_s']:.1f}×", f"{figures['python_share']:.1%}"
        table.add_row(name, *_cells(figures), music, share, ratio)
    return table


def _start_table(result: Mapping[str, Any]) -> Table:
    sizes = list(next(iter(result["graphs"].values()))["segment_tokens_per_s"])
    counts = list(next(iter(result["graphs"].values()))["threads"])
    columns = ("load ms", "again", "first", "peak MB", "at 50 Hz")
    table = plain_table(
        "graph", *columns, *(f"S={size}" for size in sizes), *(f"{count} thr." for count in counts)
    )
    for name, figures in result["graphs"].items():
        table.add_row(
            name,
            *(f"{figures[key]:,.0f}" for key in ("load_ms", "load_warm_ms")),
            f"{figures['first_ms']:.1f}",
            f"{figures['peak_mb']:,.0f}",
            f"{figures['paced_cpu_share']:.1%}",
            *(f"{figures['segment_tokens_per_s'][size]:,.0f}" for size in sizes),
            *(f"{figures['threads'][count]['step_ms']['p50']:.2f}" for count in counts),
        )
    return table


def _place_table(result: Mapping[str, Any]) -> Table:
    """Where a step's time goes."""
    kinds = list(next(iter(result["profile"].values()))["kinds"])
    table = plain_table("ms of a step", *kinds, "between", "host", "in all")
    for name, found in result["profile"].items():
        others = (found["between_nodes_ms"], found["outside_ms"], found["total_ms"])
        table.add_row(name, *(f"{value:.3f}" for value in (*found["kinds"].values(), *others)))
    return table


def _peer_table(result: Mapping[str, Any]) -> Table:
    table = plain_table(
        "peer", "p50 ms", "p90 ms", "p99 ms", "max ms", "tokens/s", "MB", f"/ {result['reference']}"
    )
    for name, figures in result["peers"].items():
        if "absent" in figures:
            table.add_row(name, *("–",) * 6, "absent")
            continue
        spread = f"{figures['ratio']:.2f} ({figures['ratio_min']:.2f}–{figures['ratio_max']:.2f})"
        table.add_row(name, *_cells(figures), f"{figures['peak_mb']:,.0f}", spread)
    return table


def _growth_table(what: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """What a token costs against one thing; ratios are to the first row of the same graph."""
    table = plain_table(
        "graph", what, "horizons", "state", "a token reads", "p50 ms", "p99 ms", "ratio", title=f"by {what}"
    )
    for row in rows:
        value = {
            "horizon": lambda row: f"{row['horizon']:,}",
            "position": lambda row: f"{row['position']:,}{' again' if row['control'] else ''}",
            "size": lambda row: f"{row['parameters'] / 1e6:.1f} M",
            "threads": lambda row: str(row["threads"]),
            "schedules": lambda row: row["schedule"],
        }[what](row)
        horizons = row["horizons"]
        table.add_row(
            row["graph"],
            value,
            compact(horizons) if len(set(horizons)) <= 4 else f"{min(horizons)} … {max(horizons)}",
            size(row["state_bytes"]),
            size(row["bytes_per_token"]),
            *(f"{row['step_ms'][key]:.3f}" for key in ("p50", "p99")),
            f"{row['ratio']:.3f} ({row['ratio_min']:.2f}–{row['ratio_max']:.2f})",
        )
    return table


def _peer_notes(peers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, figures in peers.items():
        if "absent" in figures:
            yield f"{name}: absent, {figures['absent']}"
        else:
            yield f"{name}: {figures['what']}; {figures['equal']}"


def _where(result: Mapping[str, Any]) -> Iterator[str]:
    bound = result["bandwidth"]
    yield (
        f"{result['reference']}: {bound['bytes_per_token'] / 1e6:.1f} MB a token at "
        f"{bound['gb_per_s']:.1f} GB/s read here take {bound['least_ms']:.3f} ms: "
        f"{bound['fraction']:.0%} of a step"
    )
    found = result["machine"]
    load = "" if found["load_average"] is None else f", load {found['load_average']:.1f}"
    yield f"{found['processor']}, {found['cores']} cores{load}; {found['system']}"
    yield ", ".join(f"{name} {text or 'absent'}" for name, text in result["versions"].items())


def _cells(figures: Mapping[str, Any]) -> Sequence[str]:
    milliseconds = [f"{figures['step_ms'][key]:.3f}" for key in QUANTILES]
    return [*milliseconds, f"{figures['tokens_per_s']:,.0f}"]
