"""Sections made from a result of `dsmr bench --json`: speed, peers, the limit, growth.

Any part of a result may be missing, as where a peer is not installed: its place says so, and which command
would bring it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsmr_export.report import pictures
from dsmr_export.report.blocks import (
    DASH,
    Bar,
    Block,
    Cell,
    Missing,
    Note,
    Picture,
    Pictures,
    Section,
    Table,
    amount,
    entries,
    known,
    number,
)
from dsmr_export.report.vector import inline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = Mapping[str, Any]

GROWTH = {
    "horizon": "It should rise with the bytes of the state, no faster.",
    "position": "It should be level.",
    "size": "It should rise with the bytes of the weights.",
    "threads": "It should fall until the work of a step is too little to share.",
    "schedules": "They should be equal.",
}


def sections(result: Result | None, bundle: str) -> Iterator[Section]:
    """The four of them, from a result or from none. bundle: how to name it in a command."""
    measure = f"dsmr bench {bundle} --json > bench.json" if bundle else "dsmr bench --json > bench.json"
    if result is None:
        missing = Missing.of("No speed, peers or limit: nothing was timed.", measure)
        yield Section("speed", "Speed", [missing])
    else:
        yield speed(result, measure)
        yield peers(result, bundle)
        yield limit(result, measure)
    yield growth(result or {}, bundle)


def speed(result: Result, measure: str) -> Section:
    graphs = result["graphs"]
    steps, rounds, threads, filled = (
        number(known(result, key), ",") for key in ("steps", "rounds", "threads", "filled")
    )
    lead = (
        "One step is a token as an instrument makes it: grammar mask, sampling, host and onnxruntime. "
        f"{steps} steps each in {rounds} rounds by turns, {threads} thread(s), state full ({filled} tokens). "
        "Look at p99 beside p50: music stutters on the slow steps."
    )
    columns = (
        "graph",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "tokens/s",
        "music s/s",
        "outside onnxruntime",
    )
    rows = [
        (
            name,
            *_step(found),
            number(known(found, "tokens_per_s"), ",.0f"),
            number(known(found, "music_s_per_s"), ",.0f"),
            number(known(found, "python_share"), ".1%"),
        )
        for name, found in graphs.items()
    ]
    blocks: list[Block] = [Table(lead, columns, rows)]
    blocks += _histogram(graphs, measure)
    blocks += _start(graphs)
    blocks += _segments(graphs)
    blocks += _threads(graphs)
    blocks.append(Note(_machine(result)))
    return Section("speed", "Speed", blocks)


def peers(result: Result, bundle: str) -> Section:
    reference = str(known(result, "reference") or known(result, "default_graph") or "the default graph")
    rows, absent = [], []
    for name, found in entries(result, "peers").items():
        if known(found, "absent") is not None:
            absent.append(Note(f"{name} is absent: {found['absent']}."))
        elif isinstance(found, dict):
            p50 = amount(found, "step_ms", "p50") or amount(found, "step_ms")
            what, equal = str(found.get("what") or name), str(found.get("equal") or DASH)
            rows.append((what, number(p50, ".3f"), _ratio(found), equal))
    ratios = [
        (f"our own {key.replace('_over_', ' / ')}", DASH, _ratio(found), "the same step, of two graphs")
        for key, found in entries(result, "ratios").items()
        if key.endswith(f"_over_{reference}")
    ]
    blocks: list[Block] = []
    if rows or ratios:
        lead = (
            f"The same weights in what else runs them. The ratio is their time over {reference}'s, round by "
            "round in one run: median (least – greatest). Above 1, this export is faster."
        )
        columns = ("who", "p50 ms", f"time / {reference}", "what is equal, and what is not")
        blocks.append(Table(lead, columns, [*rows, *ratios], words=frozenset({0, 3})))
    else:
        blocks.append(
            Missing.of("No peer was timed.", "dsmr bench", bundle, "--peers all --json > bench.json")
        )
    return Section("peers", "Beside other runtimes", [*blocks, *absent])


def limit(result: Result, measure: str) -> Section:
    blocks = [*_bandwidth(result, measure), *_profile(result, measure)]
    return Section("limit", "Limit and profile", blocks)


def growth(result: Result, bundle: str) -> Section:
    found = known(result, "growth")
    title = "Growth"
    if not isinstance(found, dict) or not found:
        command = "--growth all --json > bench.json"
        missing = Missing.of("Growth was not measured.", "dsmr bench", bundle, command)
        return Section("growth", title, [missing])
    from dsmr_export.bench import growth_figure

    try:
        figures = growth_figure.figures(found)
    except (KeyError, TypeError, ValueError, IndexError):
        said = "The growth in this result is not as this version measures it."
        missing = Missing.of(said, "dsmr bench", bundle, "--growth all --json > bench.json")
        return Section("growth", title, [missing])
    drawn = [_grown(key, figure) for key, figure in figures.items()]
    tables = [_rows_table(key, rows) for key, rows in found.items() if isinstance(rows, list) and rows]
    return Section("growth", title, [Pictures(drawn), *tables])


def _grown(key: str, figure: Figure) -> Picture:
    """A plot made for a wider page: narrower, its letters as large as they were, its title as text."""
    figure.set_figwidth(pictures.WIDE)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    for axes in figure.axes:
        axes.set_title("", loc="left")
    label = "; ".join(title for title in titles if title) or f"Growth: {key}"
    return Picture(inline(figure, f"growth-{key}", label), label, f"{label}. {GROWTH.get(key, '')}".strip())


def _step(found: Result) -> tuple[str, ...]:
    return tuple(number(known(found, "step_ms", key), ".3f") for key in ("p50", "p90", "p99", "max"))


def _ratio(found: object) -> str:
    if not isinstance(found, dict):
        return number(found, ".2f")
    least, most = (amount(found, f"ratio_{end}") for end in ("min", "max"))
    spread = "" if least is None or most is None else f" ({least:.2f}–{most:.2f})"
    return number(found.get("ratio"), ".2f") + spread


def _histogram(graphs: Result, measure: str) -> Iterator[Block]:
    found = {
        name: histogram
        for name, graph in graphs.items()
        if _is_histogram(histogram := known(graph, "histogram"))
    }
    if not found:
        yield Missing.of("No histogram of steps is in this result.", measure)
        return
    label = "How long steps take: a histogram for each graph"
    yield Picture(
        inline(pictures.histogram(found), "histogram", label),
        label,
        "How often a step took how long, on a logarithmic axis. A narrow hill is a steady machine; what lies "
        "far to the right is something else that ran.",
    )


def _is_histogram(found: object) -> bool:
    edges, counts = known(found, "edges_ms"), known(found, "counts")
    return (
        isinstance(edges, list)
        and isinstance(counts, list)
        and len(edges) == len(counts) + 1 > 1
        and all(isinstance(each, int | float) for each in (*edges, *counts))
    )


def _start(graphs: Result) -> Iterator[Block]:
    keys = {
        "load_ms": ("load, cold ms", ",.0f"),
        "load_warm_ms": ("load, warm ms", ",.0f"),
        "first_ms": ("first token ms", ",.1f"),
        "peak_mb": ("peak memory MB", ",.0f"),
        "paced_cpu_share": ("CPU at 50 tokens/s", ".1%"),
    }
    yield from _table_of(
        graphs,
        keys,
        "What it takes to get there: opening the bundle with and without its files in the page cache, the "
        "first token, the whole process's memory, and the share of one core at an instrument's pace.",
    )


def _segments(graphs: Result) -> Iterator[Block]:
    sizes = {size: None for graph in graphs.values() for size in entries(graph, "segment_tokens_per_s")}
    if sizes:
        yield Table(
            "Tokens per second when a prompt is read in segments of this many tokens: the longer the "
            "segment, the fewer times the weights are read.",
            ("graph", *(f"S = {size}" for size in sizes)),
            [
                (name, *(number(known(graph, "segment_tokens_per_s", size), ",.0f") for size in sizes))
                for name, graph in graphs.items()
            ],
        )


def _threads(graphs: Result) -> Iterator[Block]:
    counts = {count: None for graph in graphs.values() for count in entries(graph, "threads")}
    if counts:
        yield Table(
            "Median milliseconds of a step by number of threads. A step is small: more threads than cores, "
            "or than it has work for, make it slower.",
            ("graph", *(f"{count} thread{'' if count == '1' else 's'}" for count in counts)),
            [
                (name, *(number(known(graph, "threads", count, "step_ms", "p50"), ".3f") for count in counts))
                for name, graph in graphs.items()
            ],
        )


def _table_of(graphs: Result, keys: Mapping[str, tuple[str, str]], lead: str) -> Iterator[Table]:
    """One row a graph, one column for each key that any of them has."""
    there = [key for key in keys if any(amount(graph, key) is not None for graph in graphs.values())]
    if there:
        rows = [(name, *(number(known(g, key), keys[key][1]) for key in there)) for name, g in graphs.items()]
        yield Table(lead, ("graph", *(keys[key][0] for key in there)), rows)


def _bandwidth(result: Result, measure: str) -> Iterator[Block]:
    found = known(result, "bandwidth")
    if amount(found, "gb_per_s") is None:
        yield Missing.of("The memory's speed was not measured.", measure)
        return
    default = str(known(result, "reference") or known(result, "default_graph") or "default")
    each = entries(found, "graphs") or {default: found}
    rows: list[tuple[Cell, ...]] = []
    for name, row in each.items():
        share = amount(row, "fraction")
        rows.append(
            (
                name,
                number(known(row, "gb_per_s"), ".1f"),
                number(known(row, "bytes_per_token"), ","),
                number(known(row, "least_ms"), ".3f"),
                number(known(result, "graphs", name, "step_ms", "p50"), ".3f"),
                DASH if share is None else Bar(f"{share:.0%}", min(1.0, max(0.0, share))),
            )
        )
    yield Table(
        "A token cannot be faster than reading its bytes once. The speed was measured on this machine with a "
        "block of memory as large as what a token reads. The last column is how near the whole step comes.",
        ("graph", "GB/s", "bytes per token", "least ms", "step, p50 ms", "of the limit"),
        rows,
    )


def _profile(result: Result, measure: str) -> Iterator[Block]:
    found = {name: _parts(each) for name, each in entries(result, "profile").items()}
    found = {name: parts for name, parts in found.items() if parts}
    if not found:
        yield Missing.of("No profile is in this result.", measure)
        return
    label = "Where the time of a step goes, by kind of work"
    yield Picture(
        inline(pictures.profile(found), "profile", label),
        label,
        "Where the time of a step goes, from onnxruntime's profile less what profiling adds. Host is Python "
        "and binding, sampling the grammar mask and the draw.",
    )
    kinds = list(dict.fromkeys(kind for parts in found.values() for kind in parts))
    yield Table(
        "The same in milliseconds. The largest row is the one worth making faster.",
        ("kind of work", *found),
        [(kind, *(number(parts.get(kind), ".3f") for parts in found.values())) for kind in kinds],
    )


def _parts(found: object) -> dict[str, float]:
    """{kind of work: milliseconds} of a step, the costliest first, what is not in any node last."""
    kinds = entries(found, "kinds")
    parts = {str(kind): ms for kind in kinds if (ms := amount(kinds, kind)) is not None}
    parts = dict(sorted(parts.items(), key=lambda part: -part[1]))
    rest = {"between_nodes_ms": "between nodes", "host_ms": "host", "sampling_ms": "sampling"}
    if amount(found, "host_ms") is None:
        rest["outside_ms"] = "outside onnxruntime"
    return parts | {name: ms for key, name in rest.items() if (ms := amount(found, key)) is not None}


def _rows_table(key: str, rows: Sequence[Any]) -> Table:
    """Rows of growth as they are: numbers and words, whatever they are called."""
    flat = [_flat(row) for row in rows if isinstance(row, dict)]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    words = {n for n, column in enumerate(columns) if any(isinstance(row.get(column), str) for row in flat)}
    return Table(
        f"The figures behind the plot of {key}.",
        tuple(column.replace("_", " ") for column in columns),
        [tuple(_cell(row.get(column)) for column in columns) for row in flat],
        words=frozenset({0, *words}),
        shown=0,
        rest=f"Figures: {key}",
    )


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values, and of the steps the median and the 90th percentile."""
    plain = {name: value for name, value in row.items() if isinstance(value, str | int | float)}
    steps = {f"{name}_ms": known(row, "step_ms", name) for name in ("p50", "p90")}
    return plain | {name: value for name, value in steps.items() if value is not None}


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return number(value, ",") if isinstance(value, int) else str(value or DASH)


def _machine(result: Result) -> str:
    machine, versions = entries(result, "machine"), entries(result, "versions")
    load = number(machine.get("load_average"), ".1f")
    installed = ", ".join(f"{name} {text}" for name, text in versions.items() if text)
    named = machine.get("processor") or "unknown processor"
    cores, system = machine.get("cores", DASH), machine.get("system", DASH)
    return f"Measured on {named}, {cores} cores, load {load}, {system}; {installed}."
