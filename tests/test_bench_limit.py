"""What a token reads, counted again from the ONNX files; the probe's arithmetic; the profile's parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest

from dsmr_export import budget, export
from dsmr_export.bench import idle
from dsmr_export.bench.limit import BLOCK_BYTES, EMBEDDING, HEAD, limit, probe, weights_read
from dsmr_export.bench.profile import (
    KINDS,
    OPERATORS,
    PLAIN,
    STAMP_MS,
    Node,
    Taken,
    kinds_of,
    profile,
    runs_in,
    shared_out,
)
from dsmr_export.errors import DsmrError
from dsmr_export.manifest import GraphEntry
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.runner import RUNNERS
from dsmr_export.runtime.session import open_session
from tests.exported import pack_tiny, small_gate


@pytest.fixture(scope="module")
def blocks(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of block-quantized graphs with int8 state."""
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    with small_gate():
        folder = tmp_path_factory.mktemp("blocks") / "bundle"
        options = {"target": "x86-64-vnni", "quantize": ("int8", "int4"), "quantize_state": "int8"}
        return Bundle.open(pack_tiny(tiny_checkpoint, folder, ops=("fused",), **options).path)


@pytest.fixture(scope="module")
def graphs(tiny_export: Path, blocks: Bundle) -> dict[str, tuple[Bundle, str]]:
    """Every kind of graph there is: bundle and name."""
    bundle = Bundle.open(tiny_export)
    own = {name: (bundle, name) for name in ("fp32", "int8", "portable")}
    return own | {f"block {name}": (blocks, name) for name in ("int8", "int4")}


EVERY = ("fp32", "int8", "portable", "block int8", "block int4")


def data_bytes(tensor: onnx.TensorProto) -> int:
    return int(onnx.numpy_helper.to_array(tensor).nbytes)


@pytest.mark.parametrize("kind", EVERY)
def test_bytes_of_weights_are_those_of_the_initializers(
    graphs: dict[str, tuple[Bundle, str]], kind: str
) -> None:
    """Each once, but of a table that only a Gather reads one row: it has as many rows as there are tokens."""
    bundle, name = graphs[kind]
    entry, shape = bundle.graph(name), bundle.manifest.model
    model = onnx.load(bundle.path / entry.file)
    readers = {
        tensor.name: {node.op_type for node in model.graph.node if tensor.name in node.input}
        for tensor in model.graph.initializer
    }
    rows = {
        tensor.name: shape.vocab_size
        for tensor in model.graph.initializer
        if readers[tensor.name] <= {"Gather", "GatherBlockQuantized"} and len(tensor.dims) == 2
    }
    expected = sum(data_bytes(t) / rows.get(t.name, 1) for t in model.graph.initializer)
    assert rows or name in ("fp32", "portable")  # whose head reads the whole table
    nodes = entry.bytes - sum(data_bytes(tensor) for tensor in model.graph.initializer)
    assert expected <= weights_read(bundle, name) <= expected + nodes + 1


def test_bytes_of_weights_are_what_an_export_foretells() -> None:
    """Of the bundled model, whose nodes and names are a hundredth: budget.py counts from shapes alone."""
    bundle = Bundle.open()
    [(name, entry)] = [(n, e) for n, e in bundle.manifest.graphs.items() if n == "int8"]
    from dsmr_export.quantize import GraphRecipe
    from dsmr_export.targets import loader

    target = loader.load(bundle.manifest.target or "generic")
    recipe = GraphRecipe(target.recipe(name), entry.state[0].dtype)
    needs = budget.needs(bundle.manifest.model, bundle.manifest.schedule.horizons, name, recipe, target)
    assert weights_read(bundle, name) == pytest.approx(needs.weights_read, rel=0.02)


def test_the_names_are_the_exporters() -> None:
    assert (EMBEDDING, HEAD) == (export.EMBEDDING, export.HEAD)


def test_a_limit_is_bytes_over_bandwidth(blocks: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ten(bytes_: int, threads: int, seconds: float) -> float:
        asked.append((bytes_, threads))
        return 10.0

    monkeypatch.setattr("dsmr_export.bench.limit.probe", ten)
    found = limit(blocks, "int8", threads=2)
    shape, horizons = blocks.manifest.model, blocks.manifest.schedule.horizons
    # int8 keys and values of every window, the token's own among them
    state = sum(2 * shape.kv_heads * (horizon + 1) * shape.head_dim for horizon in horizons)
    assert found["state_bytes"] == state
    assert found["bytes_per_token"] == state + weights_read(blocks, "int8")
    assert found["least_ms"] == pytest.approx(found["bytes_per_token"] / 10e9 * 1e3)
    assert asked == [(max(found["bytes_per_token"], 2 * BLOCK_BYTES), 2)]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_probe_counts_what_it_reads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that gives every pass a second."""
    ticks = count()
    monkeypatch.setattr("dsmr_export.bench.limit.perf_counter", lambda: float(next(ticks)))
    assert probe(7 * BLOCK_BYTES + 100, threads, seconds=9) == pytest.approx(7 * BLOCK_BYTES / 1e9)
    assert next(ticks) == 2 * 9


def test_a_probe_reads_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def product(rows: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
        read.append(rows.nbytes + columns.nbytes)

    monkeypatch.setattr(np, "matmul", product)
    probe(10 * BLOCK_BYTES, 3, seconds=0)
    assert len(read) == 3 * 5 and sum(read) == 5 * 10 * BLOCK_BYTES


@pytest.mark.parametrize(
    ("bytes_", "threads", "message"),
    [
        (BLOCK_BYTES, 0, "threads is 0: give 1 or more"),
        (BLOCK_BYTES, 2, "131,072 bytes are too few to probe with 2 thread(s): give 262,144"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(bytes_: int, threads: int, message: str) -> None:
    with pytest.raises(DsmrError) as error:
        probe(bytes_, threads)
    assert str(error.value) == message


# --- profile ---


def nodes_of(bundle: Bundle, name: str, folder: Path) -> list[Node]:
    """What onnxruntime runs of a graph, as its profiler tells."""
    entry = bundle.graph(name)
    session = open_session(bundle.path / entry.file, profile=str(folder / "nodes"))
    RUNNERS[entry.ops](session, entry, bundle.manifest.model).step(5, 0)
    [nodes] = runs_in(json.loads(Path(session.end_profiling()).read_text()))
    return nodes


@pytest.mark.parametrize("kind", EVERY)
def test_every_node_has_its_kind(graphs: dict[str, tuple[Bundle, str]], kind: str, tmp_path: Path) -> None:
    bundle, name = graphs[kind]
    nodes, ops, layers = (
        nodes_of(bundle, name, tmp_path),
        bundle.graph(name).ops,
        bundle.manifest.model.layers,
    )
    found = kinds_of(nodes, ops)
    if ops == "fused":
        assert {node.operator for node in nodes} <= set(OPERATORS)
        assert Counter(found) == {
            "matmul": 4 * layers + 1,
            "attention": layers,
            "norm": 2 * layers + 1,
            "activation": layers,
            "other": 1,
        }
        return
    kinds = [(node.operator, kind) for node, kind in zip(nodes, found, strict=True)]
    assert Counter(kind for _, kind in kinds)["matmul"] == 4 * layers + 1
    assert Counter(kind for _, kind in kinds)["other"] == 1
    # what only one of them has: scores and weighted values, the softmax, the mean of squares, the tanh
    assert Counter(k for op, k in kinds if "MatMul" in op) == {
        "matmul": 4 * layers + 1,
        "attention": 2 * layers,
    }
    assert Counter(k for op, k in kinds if op == "Softmax") == {"attention": layers}
    assert Counter(k for op, k in kinds if op == "ReduceMean") == {"norm": 2 * layers + 1}
    assert Counter(k for op, k in kinds if op == "Tanh") == {"activation": layers}


def test_an_unknown_operator_is_other() -> None:
    assert kinds_of([Node("layers.0.new", "FlyingMatMul", 1.0, 2)], "fused") == ["other"]


@pytest.mark.parametrize("kind", EVERY)
def test_a_profile_adds_up(graphs: dict[str, tuple[Bundle, str]], kind: str) -> None:
    bundle, name = graphs[kind]
    found = profile(bundle, name, steps=40)
    parts = [*found["kinds"].values(), found["between_nodes_ms"], found["host_ms"], found["sampling_ms"]]
    assert tuple(found["kinds"]) == KINDS
    assert all(part >= 0 for part in parts)
    assert sum(parts) == pytest.approx(found["total_ms"])
    assert found["outside_ms"] == pytest.approx(found["host_ms"] + found["sampling_ms"])
    assert found["nodes"] == sum(found["operators"].values())
    assert found["steps"] == 40
    assert not list(Path.cwd().glob("nodes*.json"))


MILLISECONDS = {"matmul": 0.9, "attention": 0.5, "norm": 0.02, "activation": 0.01, "other": 0.004}
OPERATOR = {
    "matmul": ("MatMulNBits", 4),
    "attention": ("GroupQueryAttention", 12),
    "norm": ("SkipSimplifiedLayerNormalization", 7),
    "activation": ("Gelu", 2),
    "other": ("Gather", 3),
}


def slowed(per_tensor_ms: float) -> list[Node]:
    """One node a kind, by a profiler that adds so much a tensor, and the same for PLAIN more."""
    return [
        Node(kind, operator, MILLISECONDS[kind] + (PLAIN + tensors) * per_tensor_ms, tensors)
        for kind, (operator, tensors) in OPERATOR.items()
    ]


@pytest.mark.parametrize("per_tensor_ms", [0.0, 0.0004, 0.01])
def test_what_the_profiler_adds_is_taken_off(per_tensor_ms: float) -> None:
    idle_ms, call = 0.001, sum(MILLISECONDS.values()) + 5 * 0.001
    # the quarter of the steps that nothing disturbed is enough
    taken = Taken([call + 0.3, 9.0, 9.0], [call, 8.0, 8.0], [0.1, 5.0, 5.0], [call + 1, 9.0, 9.0])
    taken = Taken(*([each[0]] * 3 + each for each in (taken.step, taken.call, taken.host, taken.profiled)))
    found = shared_out(taken, [slowed(per_tensor_ms)] * 3, "fused", idle_ms)
    assert found["kinds"] == pytest.approx(MILLISECONDS)
    assert found["between_nodes_ms"] == pytest.approx(5 * idle_ms)
    assert (found["host_ms"], found["sampling_ms"]) == pytest.approx((0.1, 0.2))
    assert found["total_ms"] == pytest.approx(call + 0.3)


def test_nodes_that_were_faster_than_the_call_are_made_as_long() -> None:
    """Other work slowed the calls without the profiler; nothing can be taken off then."""
    taken = Taken(*([each] * 4 for each in (4.0, 3.0, 0.5, 3.0)))
    found = shared_out(taken, [slowed(0.0)], "fused", idle_ms=0.0)
    scale = 3.0 / sum(MILLISECONDS.values())
    assert found["kinds"] == pytest.approx({kind: ms * scale for kind, ms in MILLISECONDS.items()})


def test_a_node_below_the_clock_is_nothing_and_the_others_make_up_for_it() -> None:
    nodes = [Node("a", "MatMul", 1.0, 2), Node("b", "Gelu", STAMP_MS, 2)]
    taken = Taken(*([each] * 4 for each in (0.8, 0.8, 0.0, 1.0)))
    found = shared_out(taken, [nodes], "fused", idle_ms=0.0)
    assert found["kinds"]["activation"] == 0
    assert found["kinds"]["matmul"] == pytest.approx(0.8)


def test_runs_end_where_onnxruntime_says_so() -> None:
    def node(name: str, operator: str, microseconds: int) -> dict[str, object]:
        args = {"op_name": operator, "input_type_shape": [{}, {}], "output_type_shape": [{}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}

    session = {"cat": "Session", "dur": 99}
    events = [
        {**session, "name": "session_initialization"},
        *(node("head", "MatMul", 7), {**session, "name": "SequentialExecutor::Execute"}),
        {**session, "name": "model_run"},
        *(node("head", "MatMul", 9), {**session, "name": "model_run"}),
    ]
    found = [[(n.name, n.operator, n.ms, n.tensors) for n in run] for run in runs_in(events)]
    # whole microseconds, rounded down: half of one is missing on average
    assert found == [[("head", "MatMul", 0.0075, 3)], [("head", "MatMul", 0.0095, 3)]]


@pytest.mark.parametrize("length", [1, 5, 300])
def test_a_chain_is_an_onnx_model_that_negates(length: int, tmp_path: Path) -> None:
    model = onnx.load_from_string(idle.chain(length))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Neg"] * length
    (tmp_path / "chain.onnx").write_bytes(idle.chain(length))
    [found] = open_session(tmp_path / "chain.onnx").run(None, {"x0": np.array([3], np.float32)})
    assert found == 3 * (-1) ** length


def test_an_idle_node_is_a_difference_of_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a run takes a microsecond a node, and a millisecond on top."""
    elapsed, lengths = 0, []

    class Session:
        def __init__(self, path: Path, threads: int) -> None:
            self.length = len(onnx.load(path).graph.node)
            lengths.append((self.length, threads))
            self.io_binding: Callable[[], Session] = lambda: self

        def bind_ortvalue_input(self, name: str, value: object) -> None: ...

        def bind_ortvalue_output(self, name: str, value: object) -> None: ...

        def run_with_iobinding(self, binding: object) -> None:
            nonlocal elapsed
            elapsed += 1_000_000 + 1_000 * self.length

    monkeypatch.setattr(idle, "open_session", Session)
    monkeypatch.setattr(idle, "perf_counter_ns", lambda: elapsed)
    assert idle.per_idle_node_ms(tmp_path, 2) == pytest.approx(0.001)
    assert lengths == [(100, 2), (300, 2)]


def test_an_ordinary_session_writes_no_profile(
    tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = Bundle.open(tiny_export)
    entry: GraphEntry = bundle.graph("fp32")
    RUNNERS[entry.ops](bundle.session("fp32"), entry, bundle.manifest.model).step(5, 0)
    assert not list(tmp_path.iterdir())
