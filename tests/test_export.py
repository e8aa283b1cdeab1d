"""Exported graphs: the contract read from the files, the logits against numpy and a second ONNX runtime."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsmr_export.errors import GraphError
from dsmr_export.manifest import GraphEntry, Manifest
from dsmr_export.runtime.runner import RUNNERS
from dsmr_export.runtime.session import check_interface, open_session
from dsmr_export.state import StreamRule
from tests.exported import HORIZONS, SHAPE, random_network, reference, tolerance

pytest.importorskip("onnxscript", reason="needs the export extra")
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from dsmr_export import export

V, D, KV = SHAPE["vocab_size"], SHAPE["head_dim"], SHAPE["kv_heads"]
FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx", "portable": "model.portable.onnx"}
FUSED_OPS = {
    ("", "Gather"),
    ("", "MatMul"),
    ("", "Gelu"),
    ("", "Transpose"),
    ("", "SimplifiedLayerNormalization"),
    ("com.microsoft", "GroupQueryAttention"),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"),
}
"""All that a fused step is made of: anything else costs time at every token."""


@pytest.fixture(scope="module")
def models(tiny_export: Path) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load(tiny_export / file, load_external_data=False) for name, file in FILES.items()}


def values(found: Any) -> list[tuple[str, int, list[int | str]]]:
    return [
        (
            v.name,
            v.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
        )
        for v in found
    ]


def state(rows: list[int], what: str) -> list[tuple[str, int, list[int | str]]]:
    return [
        (f"{what}.{layer}.{kind}", TensorProto.FLOAT, [1, KV, count, D])
        for layer, count in enumerate(rows)
        for kind in ("key", "value")
    ]


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_fused_interface_is_the_designs(models: dict[str, onnx.ModelProto], name: str) -> None:
    """Written out from section 4 of the design: capacity = horizon + 1 + 16."""
    capacities = [h + 1 + 16 for h in HORIZONS]
    graph = models[name].graph
    assert values(graph.input) == [
        ("input_ids", TensorProto.INT64, [1, "S"]),
        ("position_ids", TensorProto.INT64, [1, "S"]),
        ("seqlens_k", TensorProto.INT32, [1]),
        ("total_sequence_length", TensorProto.INT32, []),
        ("rope_cos", TensorProto.FLOAT, ["R", D // 2]),
        ("rope_sin", TensorProto.FLOAT, ["R", D // 2]),
        *state(capacities, "past_key_values"),
    ]
    logits = ("logits", TensorProto.FLOAT, [1, "S", V])
    assert values(graph.output) == [logits, *state(capacities, "present")]


def test_portable_interface_is_the_designs(models: dict[str, onnx.ModelProto]) -> None:
    graph = models["portable"].graph
    assert values(graph.input) == [
        ("input_ids", TensorProto.INT64, [1, "S"]),
        ("past_length", TensorProto.INT64, []),
        ("rope_cos", TensorProto.FLOAT, ["S", D // 2]),
        ("rope_sin", TensorProto.FLOAT, ["S", D // 2]),
        *state(list(HORIZONS), "past_key_values"),
    ]
    logits = ("logits", TensorProto.FLOAT, [1, "S", V])
    assert values(graph.output) == [logits, *state(list(HORIZONS), "present")]


@pytest.mark.parametrize(("name", "opset"), [("fp32", 21), ("int8", 21), ("portable", 18)])
def test_versions_and_one_file(models: dict[str, onnx.ModelProto], name: str, opset: int) -> None:
    model = models[name]
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    assert (opsets[""], model.ir_version) == (opset, 10)
    assert not [t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    domains = {node.domain for node in model.graph.node} | set(opsets)
    assert domains <= ({""} if name == "portable" else {"", "com.microsoft"})
    assert not model.functions


def test_fused_graph_is_made_of_fused_kernels_only(models: dict[str, onnx.ModelProto]) -> None:
    nodes = models["fp32"].graph.node
    assert {(node.domain, node.op_type) for node in nodes} == FUSED_OPS
    counts, layers = Counter(node.op_type for node in nodes), len(HORIZONS)
    assert counts["GroupQueryAttention"] == counts["Gelu"] == layers
    assert counts["MatMul"] == 4 * layers + 1 and counts["Transpose"] == counts["Gather"] == 1
    assert counts["SkipSimplifiedLayerNormalization"] == 2 * layers


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_attention_has_the_contracts_attributes(models: dict[str, onnx.ModelProto], name: str) -> None:
    found = [node for node in models[name].graph.node if node.op_type == "GroupQueryAttention"]
    assert [node.name for node in found] == [f"layers.{i}.attention" for i in range(len(HORIZONS))]
    for horizon, node in zip(HORIZONS, found, strict=True):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {
            "num_heads": SHAPE["heads"],
            "kv_num_heads": KV,
            "local_window_size": horizon + 1,
            "sliding_window_cache": 1,
            "do_rotary": 1,
        }


@pytest.mark.parametrize("name", ["fp32", "portable"])
def test_no_weight_is_stored_twice(models: dict[str, onnx.ModelProto], name: str) -> None:
    """Not by the exporter's own check, and any pair of any size."""
    arrays = {t.name: numpy_helper.to_array(t) for t in models[name].graph.initializer}
    matrices = [(n, a) for n, a in arrays.items() if a.ndim == 2 and a.dtype == np.float32]
    for i, (one, a) in enumerate(matrices):
        for other, b in matrices[i + 1 :]:
            same = (a.shape == b.shape and (a == b).all()) or (a.shape == b.T.shape and (a == b.T).all())
            assert not same, f"{one} is {other}"
    config = random_network(HORIZONS).config
    weights = sum(p.numel() for p in random_network(HORIZONS).parameters())
    floats = sum(a.size for a in arrays.values() if a.dtype == np.float32)
    assert weights <= floats <= weights + 8 * config.layers  # a few scalars besides


def test_weights_and_nodes_are_named_by_their_place(models: dict[str, onnx.ModelProto]) -> None:
    network = random_network(HORIZONS)
    stored = {t.name: numpy_helper.to_array(t) for t in models["fp32"].graph.initializer}
    for name, tensor in network.state_dict().items():
        expected = tensor.numpy() if name == "embedding.weight" or tensor.ndim == 1 else tensor.numpy().T
        assert np.array_equal(stored[name], expected), name
    names = {node.name for node in models["fp32"].graph.node}
    assert {"head", "head.transpose", "norm", "layers.0.attention_norm", "layers.2.down"} <= names


@pytest.mark.parametrize("name", ["fp32", "int8", "portable"])
def test_node_names_are_there_and_unique(models: dict[str, onnx.ModelProto], name: str) -> None:
    names = [node.name for node in models[name].graph.node]
    assert all(names) and len(set(names)) == len(names)


def test_a_network_whose_norms_are_all_equal_keeps_names_apart(tmp_path: Path) -> None:
    """As at initialization: the exporter merges equal weights, so one array belongs to many nodes."""
    import torch

    network = random_network((3, 2))
    for parameter in network.parameters():
        if parameter.dim() == 1:
            torch.nn.init.ones_(parameter)
    export.export_graph(network, "fused", tmp_path / "m.onnx")
    names = [node.name for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert len(set(names)) == len(names)
    ids = random_ids(30)
    expected = reference(network, ids)
    found = next(run_in_cuts(tmp_path / "m.onnx", network, "fused", ids, [[30]]))
    assert np.abs(found - expected).max() <= tolerance(expected)


# --- the exporter's own check sees every difference ---------------------------------------------------------


def fused_contract() -> tuple[dict, dict]:
    network = random_network(HORIZONS)
    return export.graph_inputs(network, "fused"), export.graph_outputs(network, "fused")


def problems(model: onnx.ModelProto) -> list[str]:
    return list(export.interface_problems(model, *fused_contract()))


@pytest.fixture
def mutable(models: dict[str, onnx.ModelProto]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(models["fp32"])
    assert problems(copy) == list(export.repeated_weights(copy)) == []
    return copy


def test_every_wrong_axis_and_type_is_reported_at_once(mutable: onnx.ModelProto) -> None:
    inputs = {value.name: value.type.tensor_type for value in mutable.graph.input}
    outputs = {value.name: value.type.tensor_type for value in mutable.graph.output}
    inputs["seqlens_k"].elem_type = TensorProto.INT64
    inputs["past_key_values.1.key"].shape.dim[2].dim_value += 1
    inputs["rope_cos"].shape.dim[0].dim_param = "S"
    outputs["logits"].shape.dim[1].dim_value = 5
    outputs["present.2.value"].shape.dim.add().dim_value = 1
    found = problems(mutable)
    assert [text.split()[:2] for text in found] == [
        ["input", "seqlens_k"],
        ["input", "rope_cos"],
        ["input", "past_key_values.1.key"],
        ["output", "logits"],
        ["output", "present.2.value"],
    ]
    assert "int64" in found[0] and "int32" in found[0]


@pytest.mark.parametrize("side", ["input", "output"])
def test_missing_extra_renamed_and_reordered_names_are_reported(mutable: onnx.ModelProto, side: str) -> None:
    found = getattr(mutable.graph, side)
    first, second = found[0].name, found[1].name
    found[0].name, found[1].name = second, first
    assert len(problems(mutable)) == 1 and f"{side}s are ['{second}', '{first}'" in problems(mutable)[0]
    found[0].name = "something"
    assert "something" in problems(mutable)[0]
    del found[:2]
    assert first in problems(mutable)[0]


def test_equal_and_transposed_copies_are_reported(mutable: onnx.ModelProto) -> None:
    arrays = {t.name: numpy_helper.to_array(t) for t in mutable.graph.initializer}
    embedding, up = arrays["embedding.weight"], arrays["layers.0.up.weight"]
    mutable.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(embedding.T), "head"))
    mutable.graph.initializer.append(numpy_helper.from_array(up, "again"))
    assert list(export.repeated_weights(mutable)) == [
        "initializers embedding.weight and head hold the same data",
        "initializers layers.0.up.weight and again hold the same data",
    ]


def test_a_broken_graph_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = export.graph_outputs
    monkeypatch.setattr(export, "_restore_axes", lambda *_: None)
    monkeypatch.setattr(export, "graph_outputs", lambda *a: {**real(*a), "logits": ("float16", (1, "S", 7))})
    with pytest.raises(GraphError, match="fused graph breaks its contract: .*output logits") as error:
        export.export_graph(random_network((2,)), "fused", tmp_path / "m.onnx")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("ops", ["fused", "portable"])
def test_a_graph_with_other_logits_is_not_written(
    ops: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One weight turned around on its way into the file: nothing that names and shapes would show."""
    real = export.finish

    def spoil(model: onnx.ModelProto, ir_version: int) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "norm.weight":
                flipped = numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name)
                tensor.CopyFrom(flipped)
        real(model, ir_version)

    monkeypatch.setattr(export, "finish", spoil)
    with pytest.raises(GraphError, match=f"{ops} graph gives other logits than the network") as error:
        export.export_graph(random_network((2,)), ops, tmp_path / "m.onnx")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("ops", "opset", "least"), [("fused", 20, 21), ("portable", 17, 18)])
def test_an_opset_too_old_is_refused(tmp_path: Path, ops: str, opset: int, least: int) -> None:
    with pytest.raises(GraphError, match=f"--opset {opset} .*{ops} graph: it needs {least} or newer"):
        export.export_graph(random_network((2,)), ops, tmp_path / "m.onnx", opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ops", ["fused", "portable"])
def test_versions_that_cannot_be_had_are_refused(tmp_path: Path, ops: str) -> None:
    with pytest.raises(GraphError, match="--opset 99 is newer than onnx"):
        export.export_graph(random_network((2,)), ops, tmp_path / "m.onnx", 99)
    with pytest.raises(GraphError, match="--ir-version 9 is too old for opset 21"):
        export.export_graph(random_network((2,)), ops, tmp_path / "m.onnx", 21, ir_version=9)
    assert not list(tmp_path.iterdir())


def test_an_opset_the_exporter_silently_lowers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.13 writes 18 where it cannot convert, and only logs it."""
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 99)
    monkeypatch.setattr(onnx.helper, "find_min_ir_version_for", lambda _: 10)
    with pytest.raises(GraphError, match="--opset 99: torch .* wrote 18 instead"):
        export.export_graph(random_network((2,)), "fused", tmp_path / "m.onnx", 99)
    assert not list(tmp_path.iterdir())


# --- the logits ---------------------------------------------------------------------------------------------


def random_ids(count: int, seed: int = 3) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, V, count)


def run_in_cuts(
    path: Path, network: Any, ops: str, ids: NDArray[np.int64], cuttings: list[list[int]], start: int = 0
) -> Iterator[NDArray[np.float32]]:
    """Logits [S, V] of a graph file for every way to cut, by the runtime's own bindings."""
    entry = GraphEntry(
        file=path.name,
        sha256="0" * 64,
        bytes=1,
        ops=ops,
        opset=18,
        ir_version=10,
        min_onnxruntime="1.18.0",
        quantization=None,
        state=export.graph_state(network, ops),
        stream=StreamRule.of(network.horizons),
    )
    session = open_session(path)
    check_interface(session, entry, ops)
    for sizes in cuttings:
        runner, done, parts = RUNNERS[ops](session, entry, export.model_shape(network.config)), 0, []
        for size in sizes:
            parts.append(runner.run(ids[done : done + size], start + done).copy())
            done += size
        assert done == len(ids)
        yield np.concatenate(parts)


@st.composite
def cuttings(draw: st.DrawFn, total: int) -> list[int]:
    sizes: list[int] = []
    kinds = draw(st.lists(st.one_of(st.just(1), st.integers(1, 60)), min_size=1, max_size=6))
    while sum(sizes) < total:
        sizes.append(min(kinds[len(sizes) % len(kinds)], total - sum(sizes)))
    return sizes


@settings(
    max_examples=3,  # an export takes seconds; many cuts of each cost little
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
@given(data=st.data())
def test_any_cut_of_any_schedule_is_the_numpy_forward(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    horizons = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=2), label="horizons")
    heads, kv_heads = data.draw(st.sampled_from([(4, 1), (4, 2), (3, 3), (6, 2)]), label="heads")
    head_dim = data.draw(st.sampled_from([16, 32, 48, 80]), label="head_dim")
    start = data.draw(st.sampled_from([0, 12_345, 10**9]), label="position")
    ways = data.draw(st.lists(cuttings(150), min_size=4, max_size=8), label="segments")
    network = random_network(
        horizons, data.draw(st.integers(0, 99)), heads=heads, kv_heads=kv_heads, head_dim=head_dim
    )
    ids, folder = random_ids(150), tmp_path_factory.mktemp("cuts")
    expected = reference(network, ids, start)
    for ops in ("fused", "portable"):
        export.export_graph(network, ops, folder / f"{ops}.onnx")
        ways_and_whole = [[150], [1] * 150, *ways]
        for found in run_in_cuts(folder / f"{ops}.onnx", network, ops, ids, ways_and_whole, start):
            assert np.abs(found - expected).max() <= tolerance(expected)


def test_portable_graph_is_standard_onnx(tiny_export: Path) -> None:
    onnx.checker.check_model(tiny_export / FILES["portable"], full_check=True)


def test_portable_graph_runs_in_onnx_reference(tiny_export: Path) -> None:
    """A second, independent runtime: onnx's own evaluator in plain Python."""
    network = random_network(HORIZONS)
    evaluator = ReferenceEvaluator(str(tiny_export / FILES["portable"]))
    ids, found, done = random_ids(100), [], 0
    past = {f"past_key_values.{i}.{kind}": np.zeros((1, KV, h, D), np.float32)
            for i, h in enumerate(HORIZONS) for kind in ("key", "value")}  # fmt: skip
    for size in (1, 40, 3, 1, 55):
        angle = np.outer(np.arange(done, done + size), 10_000.0 ** (-np.arange(0, D, 2) / D))
        feeds = {
            "input_ids": ids[None, done : done + size],
            "past_length": np.array(done, np.int64),
            "rope_cos": np.cos(angle).astype(np.float32),
            "rope_sin": np.sin(angle).astype(np.float32),
            **past,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # masked rows are exp(-inf)
            logits, *present = evaluator.run(None, feeds)
        past = dict(zip(past, present, strict=True))
        found.append(logits[0])
        done += size
    expected = reference(network, ids)
    assert np.abs(np.concatenate(found) - expected).max() <= tolerance(expected)


def test_manifest_describes_the_files(tiny_export: Path, models: dict[str, onnx.ModelProto]) -> None:
    manifest = Manifest.read(tiny_export)
    for name, entry in manifest.graphs.items():
        inputs = {value[0]: value[2] for value in values(models[name].graph.input)}
        outputs = {value[0]: value[2] for value in values(models[name].graph.output)}
        for tensor in entry.state:
            assert inputs[tensor.input] == outputs[tensor.output] == list(tensor.shape)
            assert tensor.horizon == HORIZONS[tensor.layer]
        assert entry.bytes == (tiny_export / entry.file).stat().st_size
