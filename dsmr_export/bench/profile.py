"""Where the time of a step goes: kinds of operator, what lies between them, and what lies around the call.

onnxruntime's profiler stamps every node, and slows it by several microseconds: the shapes of what it reads
and makes become text, within the time it gives, and more is done after it. A step of seventy small nodes
then takes twice as long, so its figures are not used as they come:

    total         a whole step without the profiler, as an instrument makes it
    call          what of it onnxruntime takes
    host          around the call: binding, positions, Python
    sampling      the rest: the grammar's mask, the softmax, a draw
    between       nodes times what a node takes that computes nothing, measured on two chains of such nodes
    kinds         the rest of the call: the profiler's times, each less its share of what they are too long

Kinds, between, host and sampling add up to the total.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.bench.graphs import MeteredBundle, MeteredSession, filling
from dsmr_export.bench.idle import per_idle_node_ms
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.performer import SAMPLING, Performer
from dsmr_export.runtime.runner import RUNNERS, Runner
from dsmr_export.runtime.session import open_session
from dsmr_export.runtime.stream import Snapshot

MATMUL, ATTENTION, NORM, ACTIVATION, OTHER = "matmul", "attention", "norm", "activation", "other"
KINDS = (MATMUL, ATTENTION, NORM, ACTIVATION, OTHER)
"""other: the embedding's row."""

OPERATORS = {
    "GroupQueryAttention": ATTENTION,
    "SimplifiedLayerNormalization": NORM,
    "SkipSimplifiedLayerNormalization": NORM,
    "Gelu": ACTIVATION,
    "Gather": OTHER,
    "GatherBlockQuantized": OTHER,
    "MatMul": MATMUL,
    "MatMulNBits": MATMUL,
    # A dynamic int8 product; onnxruntime fuses them into one DynamicQuantizeMatMul.
    "DynamicQuantizeLinear": MATMUL,
    "MatMulInteger": MATMUL,
    "Cast": MATMUL,
    "Mul": MATMUL,
    "DynamicQuantizeMatMul": MATMUL,
    # The tied head's weight, transposed when the session is opened.
    "Transpose": MATMUL,
}
"""Of a fused graph, as it is written and as onnxruntime runs it. A portable graph spells everything out in
the same few operators: there a node's place says what it is for."""

STEPS, BLOCK = 240, 20
"""Steps of each kind, and how many of one kind before the next has its turn."""
WARM_STEPS = 20
STAMP_MS = 0.5e-3
"""What a duration lacks on average: whole microseconds, rounded down."""
PLAIN = 5
"""The profiler's own part of a node's time goes with this number and the tensors that the node reads and
makes: chains of nodes with 2 and with 9 tensors took 2.4 and 4.7 µs of it each (docs/decisions.md)."""
QUANTILE = 0.25
"""Of the steps, for every figure: other work on the machine only adds, and half of what it disturbs would
still be in a median. The one step in eight that moves the window's rows is left out with it."""


@dataclass
class Taken:
    """Milliseconds of steps, one entry a step. step, call: as played, and of it inside onnxruntime. host: a
    step without sampling, less its call. profiled: a call with the profiler on."""

    step: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    profiled: list[float] = field(default_factory=list)


def profile(
    bundle: Bundle,
    graph: str,
    threads: int = 1,
    ids: NDArray[np.int64] | None = None,
    steps: int = STEPS,
) -> dict[str, Any]:
    """{kinds: {kind: ms}, between_nodes_ms, host_ms, sampling_ms, outside_ms (the last two), total_ms,
    call_ms, profiled_ms, nodes, operators: {operator: how many}, steps} of a step with every window full.

    ids: real tokens [N] that fill the state (None: graphs.filling). profiled_ms: the call while the profiler
    is on. Played steps, bare ones and profiled ones take turns; each figure is a QUANTILE over its steps.

    Raises what a stream raises.
    """
    entry = bundle.graph(graph)
    metered = MeteredBundle(bundle, graph, threads)
    performer = Performer(metered, SAMPLING, graph=graph, threads=threads)
    performer.begin((filling(bundle) if ids is None else ids).tolist())
    with tempfile.TemporaryDirectory(prefix="dsmr-profile-") as folder:
        session = open_session(
            bundle.path / entry.file,
            threads,
            entry.min_onnxruntime,
            graph,
            bundle.manifest.session,
            profile=str(Path(folder) / "nodes"),
        )
        slowed = MeteredSession(session)
        runner = RUNNERS[entry.ops](slowed, entry, bundle.manifest.model)
        _resume(runner, performer.stream.snapshot())
        taken = _take(performer, metered.metered, runner, slowed, steps)
        runs = list(runs_in(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))))[-steps:]
        idle_ms = per_idle_node_ms(Path(folder), threads)
    return shared_out(taken, runs, entry.ops, idle_ms)


def _resume(runner: Runner, snapshot: Snapshot) -> None:
    for name, array in runner.state.items():
        np.copyto(array, snapshot.state[name])
    runner.count = snapshot.count


def _take(
    performer: Performer, metered: MeteredSession, runner: Runner, slowed: MeteredSession, steps: int
) -> Taken:
    taken, stream, tokens = Taken(), performer.stream, performer.play()
    position, clock = stream.position, perf_counter_ns
    for _ in range(WARM_STEPS):
        token = next(tokens)
        runner.step(token, position)
    for start in range(0, steps, BLOCK):
        size = min(BLOCK, steps - start)
        for _ in range(size):
            began, inside = clock(), metered.ns
            token = next(tokens)
            taken.step.append((clock() - began) / 1e6)
            taken.call.append((metered.ns - inside) / 1e6)
        for _ in range(size):
            began, inside = clock(), metered.ns
            stream.step(token)
            taken.host.append((clock() - began - (metered.ns - inside)) / 1e6)
        for _ in range(size):
            inside = slowed.ns
            runner.step(token, position)
            taken.profiled.append((slowed.ns - inside) / 1e6)
    return taken


@dataclass(frozen=True)
class Node:
    """One node of one run: its place, its operator, the milliseconds that the profiler gives it, and the
    tensors that it reads and makes."""

    name: str
    operator: str
    ms: float
    tensors: int


def runs_in(events: Iterable[Mapping[str, Any]]) -> Iterator[list[Node]]:
    """The nodes of every run, in the order they ran; onnxruntime writes each run's own event after them."""
    nodes: list[Node] = []
    for event in events:
        if event["cat"] == "Node":
            name, args = event["name"].removesuffix("_kernel_time"), event["args"]
            tensors = len(args["input_type_shape"]) + len(args["output_type_shape"])
            nodes.append(Node(name, args["op_name"], event["dur"] / 1000 + STAMP_MS, tensors))
        elif event["name"] == "model_run":
            yield nodes
            nodes = []


def kinds_of(nodes: Sequence[Node], ops: str) -> list[str]:
    """What each node of a run is for. An operator that no graph had when this was written is `other`."""
    if ops == "portable":
        return list(_by_place(nodes))
    return [OPERATORS.get(node.operator, OTHER) for node in nodes]


AFTER = {"embedding": NORM, "qkv": ATTENTION, "out": NORM, "up": ACTIVATION, "down": NORM, "head": ATTENTION}
"""What follows each product of a portable graph, by the last part of its name, up to the next product.

Adding the residual goes with the norm behind it, as in the fused graph's skip-norm; behind the head the new
state is cut out.
"""


def _by_place(nodes: Sequence[Node]) -> Iterator[str]:
    following = OTHER
    for node in nodes:
        last = node.name.rpartition(".")[2].removesuffix("_quant")
        if node.operator == "Gather" and following == OTHER:
            following = AFTER["embedding"]
            yield OTHER
        elif last in AFTER and "MatMul" in node.operator:
            following = AFTER[last]
            yield MATMUL
        else:
            yield following


def shared_out(taken: Taken, runs: Sequence[Sequence[Node]], ops: str, idle_ms: float) -> dict[str, Any]:
    """What `profile` gives, from what was timed. runs: of the profiler, all of the same nodes. idle_ms: what
    lies between two of them."""
    total, call, host, profiled = (
        float(np.quantile(values, QUANTILE))
        for values in (taken.step, taken.call, taken.host, taken.profiled)
    )
    call = min(call, total)
    host = min(host, total - call)
    nodes = runs[0]
    between = min(len(nodes) * idle_ms, call)
    stamped = np.quantile([[node.ms for node in run] for run in runs], QUANTILE, axis=0)
    own = _without_profiler(stamped, np.array([PLAIN + node.tensors for node in nodes]), call - between)
    kinds = np.array(kinds_of(nodes, ops))
    return {
        "kinds": {kind: float(own[kinds == kind].sum()) for kind in KINDS},
        "between_nodes_ms": between,
        "host_ms": host,
        "sampling_ms": total - call - host,
        "outside_ms": total - call,
        "total_ms": total,
        "call_ms": call,
        "profiled_ms": profiled,
        "nodes": len(nodes),
        "operators": dict(sorted(Counter(node.operator for node in nodes).items())),
        "steps": len(taken.step),
    }


def _without_profiler(
    stamped: NDArray[np.float64], burden: NDArray[np.int64], whole: float
) -> NDArray[np.float64]:
    """Each node's time [N] without what the profiler adds, in proportion to its burden [N]; they add up to
    `whole`, as the nodes do where there is no profiler.

    Where they do not reach it (the machine had less to do meanwhile), they are only made as long.
    """
    added = max(0.0, float(stamped.sum()) - whole)
    own = np.maximum(stamped - burden * added / burden.sum(), 0.0)
    return own * (whole / (own.sum() or 1.0))
