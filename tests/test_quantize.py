"""int8: every matrix product, one scale a column, and errors worked out again from the stored integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dsmr_export.errors import GraphError
from dsmr_export.manifest import Manifest
from tests.exported import HORIZONS, SHAPE

quantize = pytest.importorskip("dsmr_export.quantize", reason="needs the export extra")
pytest.importorskip("optimum.onnxruntime", reason="needs the export extra")

MATRICES = ["head.weight"] + [
    f"layers.{layer}.{part}.weight" for layer in range(len(HORIZONS)) for part in ("qkv", "out", "up", "down")
]


@pytest.fixture(scope="module")
def model(tiny_export: Path) -> onnx.ModelProto:
    return onnx.load(tiny_export / "model.int8.onnx")


def constants(model: onnx.ModelProto) -> dict[str, NDArray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def checkpoint_weight(folder: Path, name: str) -> NDArray[np.float32]:
    """A matrix as a graph multiplies by it: transposed, and the head from the embedding."""
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    return weights["embedding.weight" if name == "head.weight" else name].T


def test_every_matrix_product_is_in_integers(model: onnx.ModelProto) -> None:
    ops = [node.op_type for node in model.graph.node]
    assert "MatMul" not in ops and "Gemm" not in ops
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    weights = constants(model)
    quantized = {name.removesuffix("_quantized") for name in weights if name.endswith("_quantized")}
    assert quantized == set(MATRICES)
    assert sorted(node.input[1] for node in products) == sorted(f"{name}_quantized" for name in MATRICES)


def test_weights_are_signed_per_column_around_zero_and_activations_unsigned(model: onnx.ModelProto) -> None:
    """s8 x u8 is the one pair that is never slower than fp32 (design, section 8)."""
    weights, producer = constants(model), {out: node for node in model.graph.node for out in node.output}
    for node in model.graph.node:
        if node.op_type != "MatMulInteger":
            continue
        activation, weight, activation_zero, weight_zero = node.input
        assert weights[weight].dtype == np.int8
        assert not weights[weight_zero].any() and weights[weight_zero].dtype == np.int8
        scale = weights[weight.replace("_quantized", "_scale")]
        assert scale.shape == (weights[weight].shape[1],) and (scale > 0).all()
        assert np.abs(weights[weight].astype(int)).max() == 127
        # DynamicQuantizeLinear has uint8 outputs by its definition
        assert producer[activation].op_type == producer[activation_zero].op_type == "DynamicQuantizeLinear"


def test_recorded_errors_follow_from_the_stored_integers(
    tiny_export: Path, tiny_checkpoint: Path, model: onnx.ModelProto
) -> None:
    recorded = Manifest.read(tiny_export).graphs["int8"].quantization
    assert recorded is not None
    found, weights = recorded["tensors"], constants(model)
    assert set(found) == set(MATRICES)
    for name, entry in found.items():
        weight = checkpoint_weight(tiny_checkpoint, name).astype(np.float64)
        columns = []
        for column in range(weight.shape[1]):  # one at a time: the scales belong to columns
            scale = float(weights[f"{name}_scale"][column])
            columns.append(weights[f"{name}_quantized"][:, column].astype(np.float64) * scale)
        noise = np.sum((weight - np.stack(columns, axis=1)) ** 2)
        expected = 10 * np.log10(np.sum(weight**2) / noise)
        assert entry["type"] == "int8" and entry["sqnr_db"] == pytest.approx(expected, abs=0.006)
        assert 35 < expected < 60  # 8 bits of a normal distribution
    errors = [entry["sqnr_db"] for entry in found.values()]
    assert errors == sorted(errors), "the worst comes first"


def test_no_weight_is_off_by_more_than_half_a_step(tiny_checkpoint: Path, model: onnx.ModelProto) -> None:
    weights = constants(model)
    for name in MATRICES:
        scale = weights[f"{name}_scale"].astype(np.float64)
        difference = checkpoint_weight(tiny_checkpoint, name) - weights[f"{name}_quantized"] * scale
        assert (np.abs(difference) <= scale * 0.5 * (1 + 1e-5)).all()


def test_float_graph_stores_the_tied_matrix_once(tiny_export: Path, tiny_checkpoint: Path) -> None:
    stored = constants(onnx.load(tiny_export / "model.onnx"))
    shape = (SHAPE["vocab_size"], SHAPE["d_model"])
    tied = [name for name, array in stored.items() if sorted(array.shape) == sorted(shape)]
    assert tied == ["embedding.weight"]
    assert np.array_equal(stored["embedding.weight"].T, checkpoint_weight(tiny_checkpoint, "head.weight"))


def test_same_weights_same_bytes(tiny_export: Path, tmp_path: Path) -> None:
    quantize.quantize_int8(tiny_export / "model.onnx", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tiny_export / "model.int8.onnx").read_bytes()


def test_a_weight_that_loses_nothing_has_a_figure_too(tmp_path: Path) -> None:
    """All zeros, as where training starts a branch: 0/0 is no number, and JSON has no word for it."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in ("a", "y")]
    weight = numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["a", "w"], ["y"], name="zeros")]
    graph = helper.make_graph(nodes, "zeros", values[:1], values[1:], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "zeros.onnx",
    )
    [error] = quantize.quantize_int8(tmp_path / "zeros.onnx", tmp_path / "int8.onnx")
    assert error.sqnr_db == quantize.EXACT_DB


def test_a_product_left_in_float_is_refused_by_name(tmp_path: Path) -> None:
    """Two activations multiplied have no constant to quantize: nothing that this network has, so say so."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in ("a", "b", "c", "y")]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["c"], name="constant"),
        helper.make_node("MatMul", ["c", "b"], ["y"], name="layers.0.odd"),
    ]
    graph = helper.make_graph(nodes, "odd", values[:2], values[3:], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "odd.onnx",
    )
    with pytest.raises(GraphError, match=r"left these matrix products in float: layers\.0\.odd"):
        quantize.quantize_int8(tmp_path / "odd.onnx", tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()
