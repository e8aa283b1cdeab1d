"""One run: every graph of a bundle, and the peers that were asked for, in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.bench import architecture, graphs, guests, turns
from dsmr_export.bench import growth as growths
from dsmr_export.bench.limit import limit
from dsmr_export.bench.process import LostError, Remote
from dsmr_export.bench.profile import profile
from dsmr_export.bench.system import machine, versions
from dsmr_export.bench.turns import Contestant, Progress, Times
from dsmr_export.errors import DsmrError
from dsmr_export.runtime.bundle import Bundle

STEPS = 1000
BLOCKS = 20
"""Rounds in which everybody takes one turn; each gives one ratio."""
THREADS = (1, 2, 4)
THREAD_STEPS = 200
"""Steps with each other number of threads."""
SEGMENT_ROUNDS = 3
PACED_S = 3.0
DEFAULT_PEERS = ("pytorch_eager",)


def run(
    bundle: Bundle,
    checkpoint: Path | None = None,
    steps: int = STEPS,
    threads: int | None = None,
    peers: Sequence[str] = DEFAULT_PEERS,
    also_threads: Iterable[int] = THREADS,
    names: Sequence[str] = (),
    grown: Sequence[str] = (),
    walk: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Times `steps` steps of every graph, and of peers with the checkpoint the bundle was made from.

    checkpoint: its folder; None is the bundled one. threads: of all figures but those of `also_threads`;
    None = the bundle's. peers: names of `peers.peers()`. names: of graphs; empty = all. grown, walk: what
    `growth.growth` measures, and how it gets there; its graphs are its own choice unless names are given.

    Returns
        bundle: {name, identity}
        architecture: see architecture.card
        graphs: {name: {load_ms, load_warm_ms, first_ms, step_ms {p50, p90, p99, max}, tokens_per_s,
            music_s_per_s, segment_tokens_per_s {size: figure}, peak_mb, python_share, paced_cpu_share,
            histogram {edges_ms, counts}, threads {number: {step_ms, tokens_per_s}}}}
        ratios: {A_over_B: figure}
        peers: {name: {what, equal, step_ms, tokens_per_s, ratio, ratio_min, ratio_max, peak_mb}, or
            {absent: why}}
        bandwidth: {gb_per_s, bytes_per_token, weights_bytes, state_bytes, least_ms, fraction} of the
            reference, and graphs: the same of each
        profile: {name: see profile.profile}
        growth: see growth.growth; growth_absent: {table: why it could not be made}
        reference, default_graph, steps, rounds, threads, filled, machine, versions

    A ratio is the time of A over that of B, the median over rounds; a peer's is over the reference: the first
    of `names`, else the default graph.
    python_share is the part of a step spent outside onnxruntime; music_s_per_s: seconds of music (as long as
    the golden piece's tokens take) made in a second; paced_cpu_share: of one core, at 50 tokens a second.

    Raises DsmrError for steps or threads below 1 or an unknown peer, CheckpointError for a `checkpoint` that
    is damaged or not the bundle's, GraphError for a graph that cannot run here. A peer that cannot take part
    is absent and says why.
    """
    if steps < 1:
        raise DsmrError(f"steps is {steps}: give 1 or more")
    threads, also_threads = bundle.threads if threads is None else threads, tuple(also_threads)
    if (least := min((threads, *also_threads))) < 1:
        raise DsmrError(f"threads is {least}: give 1 or more")
    for name in names:
        bundle.graph(name)  # refuses an unknown one
    asked = list(dict.fromkeys(names)) or list(bundle.manifest.graphs)
    reference = names[0] if names else bundle.default_graph
    growing = _growing(bundle, grown, asked, reference)
    ids, rounds, invited = graphs.filling(bundle), min(BLOCKS, steps), guests.chosen(peers)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsmr-bench-")))
        work, absent = guests.invite(bundle, checkpoint, invited, threads, ids, folder)
        running, alone = {}, {}
        for name in asked:
            running[name] = _graph(stack, bundle, name, threads, ids)
            alone[name] = _alone(running[name], name, progress)
        others = guests.start(stack, work, invited, absent, progress)
        everybody = {**running, **others}
        times = turns.take_turns(everybody, rounds, -(-steps // rounds), progress, lost=absent)
        for name in asked:
            if name in absent:
                raise LostError(f"graph {name}: {absent[name]}")
        peaks = {name: everybody[name].ask("peak_mb") for name in times}
    by_threads = _by_threads(bundle, asked, also_threads, ids, progress)
    music_s_per_token = graphs.music_seconds(bundle, ids) / len(ids)
    rows = {
        name: _row(times[name], music_s_per_token)
        | alone[name]
        | {"peak_mb": peaks[name], "threads": by_threads[name]}
        for name in asked
    }
    growth, not_grown = _growth(bundle, grown, growing, threads, walk, progress)
    limits = {name: _limit(bundle, name, threads, rows[name]) for name in asked}
    return {
        "bundle": {"name": bundle.manifest.name, "identity": bundle.identity},
        "architecture": architecture.card(bundle),
        "graphs": rows,
        "ratios": {
            f"{one}_over_{other}": turns.ratio(times[one].step_ms, times[other].step_ms)["ratio"]
            for one, other in permutations(asked, 2)
        },
        "peers": guests.results(invited, absent, times, peaks, times[reference]),
        "bandwidth": {**limits[reference], "graphs": limits},
        "profile": {name: profile(bundle, name, threads, ids) for name in asked},
        "growth": growth,
        "growth_absent": not_grown,
        "reference": reference,
        "default_graph": bundle.default_graph,
        "steps": times[reference].step_ms.size,
        "rounds": rounds,
        "threads": threads,
        "filled": len(ids),
        "machine": machine(),
        "versions": versions(*guests.packages(invited)),
    }


def _graph(stack: ExitStack, bundle: Bundle, name: str, threads: int, ids: NDArray[np.int64]) -> Remote:
    remote = Remote(Contestant, graphs.GraphSteps, bundle.path, name, threads, ids)
    stack.callback(remote.close)
    return remote.wait()


def _alone(remote: Remote, name: str, progress: Progress) -> dict[str, Any]:
    """What is measured of a graph while nobody else runs."""
    found: dict[str, Any] = remote.ask("call", "start")
    speeds: dict[str, list[float]] = {str(size): [] for size in graphs.SEGMENTS}
    for turn in range(SEGMENT_ROUNDS):
        for size in graphs.SEGMENTS:
            speeds[str(size)].append(remote.ask("call", "segments", size))
        progress(name, turn + 1, SEGMENT_ROUNDS + 1)
    found["segment_tokens_per_s"] = {size: float(np.median(found)) for size, found in speeds.items()}
    found["paced_cpu_share"] = remote.ask("call", "paced", PACED_S)
    progress(name, SEGMENT_ROUNDS + 1, SEGMENT_ROUNDS + 1)
    return found


def _by_threads(
    bundle: Bundle,
    names: Sequence[str],
    numbers: Iterable[int],
    ids: NDArray[np.int64],
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """{graph: {threads: {step_ms, tokens_per_s}}}, all of them taking turns."""
    kinds = [(name, number) for number in numbers for name in names]
    with ExitStack() as stack:
        running = {f"{name} {count}": _graph(stack, bundle, name, count, ids) for name, count in kinds}
        rounds = BLOCKS // 2
        times = turns.take_turns(running, rounds, THREAD_STEPS // rounds, progress, "threads")
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, count in kinds:
        found[name][str(count)] = turns.figures(times[f"{name} {count}"].step_ms)
    return found


def _growing(bundle: Bundle, grown: Sequence[str], asked: Sequence[str], reference: str) -> list[str]:
    """Which graphs' growth is measured: the reference's, and that of the first one with float weights; only
    fused graphs can grow. Raises DsmrError where nothing can, or for an unknown table."""
    growths.check(grown)
    fused = [name for name in asked if bundle.graph(name).ops == "fused"]
    whole = [name for name in fused if bundle.graph(name).quantization is None]
    chosen = [name for name in dict.fromkeys((*whole[:1], reference)) if name in fused]
    if grown and not chosen:
        raise DsmrError(f"{', '.join(asked)} of {bundle.path} cannot grow: name a fused graph with --graph")
    return chosen


def _growth(
    bundle: Bundle,
    grown: Sequence[str],
    names: Sequence[str],
    threads: int,
    walk: bool,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The tables that could be made, and why others could not: one that fails costs no other its figures."""
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for table in grown:
        try:
            found |= growths.growth(bundle, [table], progress, graphs=names, threads=threads, walk=walk)
        except DsmrError as error:
            absent[table] = str(error)
    return found, absent


def _row(times: Times, music_s_per_token: float) -> dict[str, Any]:
    own = turns.figures(times.step_ms)
    return {
        **own,
        "music_s_per_s": own["tokens_per_s"] * music_s_per_token,
        "python_share": times.outside,
        "histogram": turns.histogram(times.step_ms),
    }


def _limit(bundle: Bundle, name: str, threads: int, row: Mapping[str, Any]) -> dict[str, Any]:
    found = limit(bundle, name, threads)
    return {**found, "fraction": found["least_ms"] / row["step_ms"]["p50"]}
