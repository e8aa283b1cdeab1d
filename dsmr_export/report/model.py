"""Sections that follow from the bundle alone: what it is, its schedule, parity, quantization, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsmr_export.bench.architecture import parameters
from dsmr_export.bench.limit import weights_read
from dsmr_export.manifest import GraphEntry, Manifest
from dsmr_export.report import pictures
from dsmr_export.report.blocks import (
    DASH,
    Bar,
    Block,
    Cell,
    Facts,
    Missing,
    Note,
    Picture,
    Pictures,
    Section,
    Table,
    amount,
    known,
    number,
)
from dsmr_export.report.vector import inline
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.schedule import compact
from dsmr_export.state import read_bytes
from dsmr_export.tables import size

SHOWN = 8
"""Tensors that the table of quantization errors shows unfolded."""


def overview(manifest: Manifest, parity: Mapping[str, Any], bench: Mapping[str, Any] | None) -> Section:
    """The few figures that say what this is."""
    shape, graph = manifest.model, manifest.graphs[manifest.default_graph]
    found = known(parity, manifest.default_graph)
    pairs = [
        ("parameters", f"{parameters(shape):,}"),
        ("layers × width", f"{shape.layers} × {shape.d_model}"),
        ("heads", f"{shape.heads} over {shape.kv_heads} of {shape.head_dim}"),
        ("schedule", compact(manifest.schedule.horizons)),
        ("budget", f"{manifest.schedule.budget_tokens:,} tokens"),
        ("default graph", f"{manifest.default_graph}, {size(graph.bytes)}"),
        ("recurrent state", size(graph.state_bytes)),
        ("perplexity", number(known(found, "perplexity"), ".3f")),
        ("change from PyTorch", _percent(known(found, "relative_change"))),
    ]
    timed = known(bench, "graphs", manifest.default_graph)
    if timed is not None:
        pairs += [
            ("a step, median", number(known(timed, "step_ms", "p50"), ".3f", " ms")),
            ("music made in a second", number(known(timed, "music_s_per_s"), ",.0f", " s")),
        ]
    return Section("overview", "At a glance", [Facts([pair for pair in pairs if pair[1] != DASH])])


def schedule(bundle: Bundle) -> Section:
    manifest = bundle.manifest
    horizons, name = manifest.schedule.horizons, manifest.schedule.name
    label = f"Schedule {name}: horizons {compact(horizons)}, {manifest.schedule.budget_tokens:,} tokens"
    picture = Picture(
        inline(pictures.schedule(name, horizons), "schedule", label),
        label,
        f"How many tokens before the current one each layer sees under {name}; layer 0 is nearest to the "
        "input. The sum of all bars is what the state has to hold.",
    )
    rows = []
    for graph_name, graph in manifest.graphs.items():
        weights, state = weights_read(bundle, graph_name), read_bytes(graph.state)
        rows.append(
            (
                graph_name,
                size(graph.bytes),
                size(graph.state_bytes),
                ", ".join(sorted({tensor.dtype for tensor in graph.state})),
                size(weights),
                size(state),
                size(weights + state),
            )
        )
    sizes = Table(
        "What each graph takes on disk and in memory, and what one token reads when every window is full: "
        "the last column divided by the memory's speed is the least time of a step.",
        ("graph", "file", "state", "state is", "weights read", "state read", "read per token"),
        rows,
        words=frozenset({0, 3}),
    )
    longest = max(horizons)
    tensors = Table(
        "The state layer by layer, as the host allocates it for the default graph: keys and values of each.",
        ("layer", "horizon", "shape of keys", "bytes, keys and values"),
        _layers(manifest.graphs[manifest.default_graph]),
        words=frozenset({0, 2}),
        shown=0 if len(horizons) > 4 else None,
        rest=f"State tensors of {len(horizons)} layers, horizons up to {longest:,}",
    )
    return Section("schedule", "Schedule and sizes", [picture, sizes, tensors])


def _layers(graph: GraphEntry) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for tensor in graph.state:
        if tensor.kind == "key":
            both = sum(other.nbytes for other in graph.state if other.layer == tensor.layer)
            shape = " × ".join(map(str, tensor.shape))
            rows.append((f"layer {tensor.layer}", f"{tensor.horizon:,}", shape, f"{both:,}"))
    return rows


def parity(figures: Mapping[str, Any], source: str, bundle: str) -> Section:
    """figures: graph -> the keys of `dsmr check --json`. source: what they were measured on."""
    title = "Parity with PyTorch"
    figures = {name: found for name, found in figures.items() if isinstance(found, dict)}
    if not any(known(found, "perplexity") is not None for found in figures.values()):
        missing = Missing.of("The bundle holds no parity figures.", "dsmr report", bundle, "--data MIDI")
        return Section("parity", title, [missing])
    rows = []
    for name, found in figures.items():
        rows.append((name, *_parity(found)))
        if isinstance(found.get("token_by_token"), dict):
            rows.append((f"{name}, token by token", *_parity(found["token_by_token"])))
    table = Table(
        f"Each graph against the network it was exported from, {source}. Look at the KL divergence: changes "
        "of perplexity can cancel, it cannot.",
        (
            "graph",
            "perplexity",
            "PyTorch",
            "change",
            "KL mean",
            "KL max",
            "top-1 agrees",
            "largest logit error",
        ),
        rows,
    )
    return Section("parity", title, [table, *_drift(figures)])


def _parity(found: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        number(found.get("perplexity"), ".4f"),
        number(found.get("reference_perplexity"), ".4f"),
        number(found.get("relative_change"), "+.1e"),
        number(found.get("kl_mean"), ".1e"),
        number(found.get("kl_max"), ".1e"),
        number(found.get("top1_agreement"), ".4f"),
        number(found.get("max_abs_logit"), ".1e"),
    )


def _drift(figures: Mapping[str, Any]) -> Iterator[Block]:
    """Curves over the position in the piece, of graphs that have them."""
    changes, divergences = _positions(figures, "relative_change"), _positions(figures, "kl_mean")
    if not changes or not divergences:
        yield Note("No figures by position: the pieces were read without a reference.")
        return
    label = "change of perplexity, %"
    change = pictures.by_position(changes, "relative_change", label, log=False, factor=100)
    kl = pictures.by_position(divergences, "kl_mean", "mean KL divergence, nats", log=True)
    yield Pictures(
        [
            Picture(
                inline(change, "drift-change", "Change of perplexity by position in the piece"),
                "Change of perplexity by position in the piece",
                "Drift: the change of perplexity by position. A curve that leaves zero would mean that an "
                "error grows in the state.",
            ),
            Picture(
                inline(kl, "drift-kl", "KL divergence by position in the piece"),
                "KL divergence by position in the piece",
                "The same as KL divergence. A level curve means that late tokens are as near as early ones.",
            ),
        ]
    )
    yield _position_table(figures)


def _positions(figures: Mapping[str, Any], key: str) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for name, each in figures.items():
        rows = [
            row
            for row in _list(each.get("by_position"))
            if amount(row, key) is not None
            and amount(row, "from") is not None
            and (amount(row, "to") is not None or known(row, "to") is None)
        ]
        if rows:
            found[name] = rows
    return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _position_table(figures: Mapping[str, Any]) -> Table:
    rows = []
    for name, each in _positions(figures, "relative_change").items():
        for row in each:
            span = f"{row['from']:,} – " + ("…" if row["to"] is None else f"{row['to']:,}")
            rows.append((name, span, number(row.get("tokens"), ","), *_parity(row)[:-1]))
    return Table(
        "The figures behind these curves.",
        (
            "graph",
            "position",
            "tokens",
            "perplexity",
            "PyTorch",
            "change",
            "KL mean",
            "KL max",
            "top-1 agrees",
        ),
        rows,
        words=frozenset({0, 1}),
        shown=0,
        rest="Figures by position",
    )


def quantization(manifest: Manifest) -> Section:
    title, blocks = "Quantization error", list[Block]()
    for name, graph in manifest.graphs.items():
        tensors = known(graph.quantization, "tensors")
        if isinstance(tensors, dict) and tensors:
            blocks += _errors(name, graph, tensors, manifest.model.layers)
    if not blocks:
        blocks = [Missing("No graph of this bundle is quantized.", "dsmr-export --quantize int8")]
    return Section("quantization", title, blocks)


def _errors(name: str, graph: GraphEntry, tensors: Mapping[str, Any], layers: int) -> Sequence[Block]:
    applied = graph.quantization or {}
    how = ", ".join(
        f"{key} {value}"
        for key, value in applied.items()
        if isinstance(value, str | int) and key != "weights"
    )
    found = {tensor: amount(entry, "sqnr_db") for tensor, entry in tensors.items()}
    errors = {tensor: 100 * 10 ** (-db / 20) for tensor, db in found.items() if db is not None}
    worst = max(errors.values(), default=0.0)
    rows: list[tuple[Cell, ...]] = []
    for tensor in sorted(tensors, key=lambda tensor: -errors.get(tensor, -1.0)):
        error = errors.get(tensor)
        bar = DASH if error is None else Bar(f"{error:.2f} %", error / worst)
        rows.append(
            (
                tensor.removesuffix(".weight"),
                str(known(tensors[tensor], "type") or DASH),
                number(known(tensors[tensor], "bytes"), ","),
                number(found[tensor], ".1f", " dB"),
                bar,
            )
        )
    label = f"Relative quantization error of every matrix of graph {name}, by layer"
    picture = Picture(
        inline(pictures.quantization(errors, layers), f"quantization-{_letters(name)}", label),
        label,
        f"Graph {name}: how far each matrix is from its float original. What stands out is what to keep in "
        "more bits.",
    )
    table = Table(
        f"The same, worst first, in graph {name}" + (f" ({how})." if how else "."),
        ("matrix", "type", "bytes", "signal to noise", "error"),
        rows,
        words=frozenset({0, 1}),
        shown=SHOWN if len(rows) > SHOWN + 2 else None,
        rest=f"The other {len(rows) - SHOWN} matrices",
    )
    return [picture, table]


def provenance(manifest: Manifest, written: Sequence[tuple[str, str]]) -> Section:
    """written: (term, value) about the page itself."""
    origin = dict(manifest.provenance)
    versions = origin.pop("versions", None)
    pairs = [(key.replace("_", " "), str(value)) for key, value in origin.items()]
    if isinstance(versions, dict):
        pairs.append(("made with", ", ".join(f"{name} {value}" for name, value in versions.items())))
    pairs += [("tokenizer sha256", manifest.tokenizer.sha256)]
    pairs += [(f"{name} sha256", graph.sha256) for name, graph in manifest.graphs.items()]
    note = Note("Where the weights come from, and what every file should hash to.")
    return Section("provenance", "Provenance", [note, Facts([*pairs, *written], code=True)])


def _percent(value: object) -> str:
    return number(100 * value, "+.4f", " %") if isinstance(value, int | float) else DASH


def _letters(name: str) -> str:
    """A name of a graph as part of an id."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
