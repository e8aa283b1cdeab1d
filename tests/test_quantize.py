"""Quantized weights: what is stored, worked out again from the stored integers, and what it multiplies to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dsmr_export.errors import GraphError
from dsmr_export.manifest import Manifest
from dsmr_export.runtime import metrics
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.targets.loader import Recipe, load
from tests.exported import HORIZONS, SHAPE
from tests.reference import forward

quantize = pytest.importorskip("dsmr_export.quantize", reason="needs the export extra")
pytest.importorskip("optimum.onnxruntime", reason="needs the export extra")

MATRICES = ["head.weight"] + [
    f"layers.{layer}.{part}.weight" for layer in range(len(HORIZONS)) for part in ("qkv", "out", "up", "down")
]

DYNAMIC, BLOCK8, BLOCK4 = (
    load(target).recipe(name)
    for target, name in (("generic", "int8"), ("raspberry-pi-5", "int8"), ("raspberry-pi-5", "int4"))
)


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
    quantize.quantize(tiny_export / "model.onnx", tmp_path / "again.onnx", DYNAMIC)
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
    [error] = quantize.quantize(tmp_path / "zeros.onnx", tmp_path / "int8.onnx", DYNAMIC)
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
        quantize.quantize(tmp_path / "odd.onnx", tmp_path / "int8.onnx", DYNAMIC)
    assert not (tmp_path / "int8.onnx").exists()


# --- block-wise, and plans ---


def made(
    tiny_export: Path, folder: Path, recipe: Recipe, plan: dict[str, str] | None = None
) -> tuple[Path, onnx.ModelProto, list]:
    path = folder / "made.onnx"
    errors = quantize.quantize(tiny_export / "model.onnx", path, recipe, plan)
    return path, onnx.load(path), errors


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in quantize.matrices(model).items()}


def unpacked(model: onnx.ModelProto, name: str, bits: int) -> NDArray[np.float64]:
    """A stored matrix [rows, K] by the operators' documentation, byte by byte.

    MatMulNBits: [N, blocks, bytes], the lower half of a byte first, zero point 2^(bits-1), one scale a block.
    """
    found = constants(model)
    stored, scales = found[f"{name}_Q{bits}"], found[f"{name}_scales"]
    rows = len(stored)
    flat, scales = stored.reshape(rows, -1), scales.reshape(rows, -1)
    values = []
    for row in range(rows):
        numbers: list[int] = []
        for byte in flat[row].tolist():
            numbers += [byte] if bits == 8 else [byte & 0xF, byte >> 4]
        block = len(numbers) // scales.shape[1]
        values.append([(n - 2 ** (bits - 1)) * float(scales[row, i // block]) for i, n in enumerate(numbers)])
    return np.array(values)


@pytest.mark.parametrize(("recipe", "bits"), [(BLOCK8, 8), (BLOCK4, 4)], ids=["int8", "int4"])
def test_blocks_hold_every_product_within_half_a_step(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path, recipe: Recipe, bits: int
) -> None:
    _, model, errors = made(tiny_export, tmp_path, recipe)
    products = {node.name: node for node in model.graph.node if node.op_type == "MatMulNBits"}
    assert set(products) == {name.removesuffix(".weight") for name in MATRICES}
    for name in MATRICES:
        attributes = {a.name: helper.get_attribute_value(a) for a in products[name[:-7]].attribute}
        expected = 8 if name == "head.weight" else bits
        assert (attributes["bits"], attributes["accuracy_level"]) == (expected, 4)
        size = attributes["K"]
        block = attributes["block_size"]
        assert size % block == 0 and (size % (2 * block) or 2 * block > recipe.block_size)
        weight = checkpoint_weight(tiny_checkpoint, name).T.astype(np.float64)  # [N, K]
        scales = np.abs(constants(model)[f"{name}_scales"].reshape(len(weight), -1)).repeat(block, axis=1)
        apart = np.abs(weight - unpacked(model, name, expected))
        # half a step, and a whole one where the largest positive value has no step of its own (2^(bits-1) -
        # 1)
        assert (apart <= scales * (0.5 + 1e-4)).mean() > 0.9 and (apart <= scales * (1 + 1e-4)).all()
        [recorded] = [error for error in errors if error.tensor == name]
        sqnr = 10 * np.log10((weight**2).sum() / (apart**2).sum())
        assert recorded.sqnr_db == pytest.approx(sqnr, abs=0.006)
        assert recorded.block_size == block and recorded.level == f"int{expected}"


def test_a_block_graph_multiplies_by_what_it_stores(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Against the plain-numpy forward with the stored weights: only activations are rounded otherwise.

    The same logits are much further from the forward with the weights as they were.
    """
    from safetensors.numpy import load_file

    path, model, _ = made(tiny_export, tmp_path, BLOCK4)
    weights = load_file(tiny_checkpoint / "model.safetensors")
    stored = {**weights, **{n: unpacked(model, n, 4) for n in MATRICES if n != "head.weight"}}
    bundle = Bundle.open(tiny_export)
    ids = bundle.golden.input_ids[:60]
    logits = run(path, bundle, ids)
    options = {"horizons": HORIZONS, "rope_base": 10000.0, "norm_eps": 1e-5} | {
        key: SHAPE[key] for key in ("heads", "kv_heads", "head_dim")
    }
    near, far = (
        float(metrics.kl_divergence(forward(w, ids, **options), logits).mean()) for w in (stored, weights)
    )
    assert near < 0.01 < far / 3


def run(path: Path, bundle: Bundle, ids: NDArray[np.integer]) -> NDArray[np.float32]:
    from dsmr_export.runtime.runner import FusedRunner
    from dsmr_export.runtime.session import open_session

    runner = FusedRunner(open_session(path), bundle.graph("fp32"), bundle.manifest.model)
    return runner.run(np.asarray(ids, np.int64), 0).copy()


def test_int4_keeps_head_and_embedding_in_8_bits(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path, model, errors = made(tiny_export, tmp_path, BLOCK4)
    levels = {error.tensor: error.level for error in errors}
    assert {name for name, level in levels.items() if level == "int8"} == {"head.weight", "embedding.weight"}
    [gather] = [node for node in model.graph.node if node.op_type == "GatherBlockQuantized"]
    assert gather.name == "embedding"
    table = checkpoint_weight(tiny_checkpoint, "embedding.weight").T
    steps = np.abs(constants(model)["embedding.weight_scales"]).repeat(
        table.shape[1] // constants(model)["embedding.weight_scales"].shape[1], axis=1
    )
    restored = unpacked(model, "embedding.weight", 8)
    assert (np.abs(table - restored) <= steps * 0.5 * (1 + 1e-4)).all()
    # onnxruntime reads the rows that the bytes say
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "S"])]
    outputs = [helper.make_tensor_value_info(gather.output[0], TensorProto.FLOAT, None)]
    stored = [t for t in model.graph.initializer if t.name.startswith("embedding.weight")]
    graph = helper.make_graph([gather], "rows", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "rows.onnx")
    from dsmr_export.runtime.session import open_session

    ids = np.arange(len(table))[None]
    [rows] = open_session(tmp_path / "rows.onnx").run(None, {"input_ids": ids})
    assert np.allclose(rows[0], restored, atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "levels"),
    [
        (DYNAMIC, {"head.weight": "float", "layers.1.up.weight": "float"}),
        (BLOCK4, {"head.weight": "float", "layers.1.up.weight": "int8", "embedding.weight": "float"}),
        (BLOCK8, {"embedding.weight": "int8", "layers.2.down.weight": "float"}),
    ],
)
def test_a_plan_gives_each_matrix_its_level(
    tiny_export: Path, tmp_path: Path, recipe: Recipe, levels: dict[str, str]
) -> None:
    source = onnx.load(tiny_export / "model.onnx")
    plan = quantize.default_plan(recipe, shapes(source)) | levels
    path, model, errors = made(tiny_export, tmp_path, recipe, plan)
    assert {e.tensor: e.level for e in errors} == {n: v for n, v in plan.items() if v != "float"}
    stored = constants(model)
    for name, level in plan.items():
        quantized = {f"{name}_quantized", f"{name}_Q8", f"{name}_Q4"} & set(stored)
        assert bool(quantized) == (level != "float"), name
    bundle = Bundle.open(tiny_export)
    ids = bundle.golden.input_ids[:40]
    reference = run(tiny_export / "model.onnx", bundle, ids)
    assert metrics.kl_divergence(reference, run(path, bundle, ids)).mean() < 0.2


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        (BLOCK4, {"layers.9.up.weight": "int4"}, "do not have the same matrices: layers.9.up.weight"),
        (
            DYNAMIC,
            {"layers.0.up.weight": "int4"},
            "layers.0.up.weight cannot be int4 under this recipe: it can be int8 or float",
        ),
        (BLOCK4, {"embedding.weight": "int4"}, "embedding.weight cannot be int4 under this recipe"),
        (BLOCK8, {"layers.0.up.weight": "int4"}, "layers.0.up.weight cannot be int4 under this recipe"),
        (DYNAMIC, {"embedding.weight": "int8"}, "embedding.weight cannot be int8 under this recipe"),
        (BLOCK4, {"head.weight": "int2"}, "head.weight cannot be int2"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    tiny_export: Path, tmp_path: Path, recipe: Recipe, change: dict[str, str], message: str
) -> None:
    plan = quantize.default_plan(recipe, shapes(onnx.load(tiny_export / "model.onnx"))) | change
    with pytest.raises(GraphError, match=message):
        made(tiny_export, tmp_path, recipe, plan)
    assert not (tmp_path / "made.onnx").exists()


@pytest.mark.parametrize(
    ("size", "most", "block"), [(512, 128, 128), (160, 128, 32), (640, 64, 64), (48, 128, 16), (20, 64, 16)]
)
def test_blocks_divide_the_rows(size: int, most: int, block: int) -> None:
    assert quantize.block_of(size, most) == block


def test_a_width_that_no_block_divides_keeps_its_embedding_in_float(tmp_path: Path) -> None:
    """d_model 40: products are padded to blocks of 16, rows of a table cannot be."""
    from dsmr_export import export
    from tests.exported import random_network

    export.export_graph(random_network((9, 3), d_model=40), "fused", tmp_path / "model.onnx")
    errors = quantize.quantize(tmp_path / "model.onnx", tmp_path / "int4.onnx", BLOCK4)
    levels = {error.tensor: error.level for error in errors}
    assert "embedding.weight" not in levels and levels["head.weight"] == "int8"
    assert levels["layers.0.qkv.weight"] == "int4"
