"""Weights in fewer bits: dynamic int8 through optimum, or block-wise 8 and 4 bit through onnxruntime.

`dynamic` multiplies u8 activations, quantized at every call, by s8 weights with one scale a column
(DynamicQuantizeMatMul): the one that is never much slower than fp32, whatever the processor. `block` is
MatMulNBits with accuracy_level 4: weights in blocks along K with a scale each, activations quantized to int8
in the same blocks; it needs dot products (targets/loader.py says where).

A *plan* gives a level to every matrix: float, int8 or int4. The embedding is a table that one row is read of
a token; below int8 it would cost quality for nothing, and above a block recipe's int4 it is a good part of
the file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from dsmr_export import export
from dsmr_export.errors import GraphError
from dsmr_export.runtime.session import load_onnxruntime
from dsmr_export.targets.loader import BITS, Recipe

FLOAT, INT8, INT4 = "float", "int8", "int4"
LEVELS = (FLOAT, INT8, INT4)

SMALLEST_BLOCK = 16
"""What MatMulNBits accepts at least; a power of two."""
EMBEDDING_BLOCK = 32
"""Largest block of the quantized embedding, whose rows are read one at a time: nothing to gain from
longer."""

EXACT_DB = 160.0
"""Stands for the SQNR of a weight that lost nothing, as one of zeros does: the quotient is then no number."""


@dataclass(frozen=True)
class TensorError:
    """How one weight is stored, and what that did to it.

    level: int8 or int4. block_size: weights that share a scale along K; None = a whole column. sqnr_db:
    10·log10(Σw² / Σ(w-ŵ)²), higher is better; about 6 dB a bit; EXACT_DB at most. bytes: values and scales.
    """

    tensor: str
    level: str
    block_size: int | None
    sqnr_db: float
    bytes: int


@dataclass(frozen=True)
class GraphRecipe:
    """How a graph is quantized: the target's recipe, its state's type, and a plan of its own or None."""

    weights: Recipe
    state: str
    plan: Mapping[str, str] | None = None


def default_plan(recipe: Recipe, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The recipe's own plan for matrices of these shapes, the embedding among them or not.

    int8: every product int8, the embedding float. int4: every product int4 but the head, whose error goes
    into the logits undamped (the measured worst, docs/decisions.md), and which stays int8 with the embedding.
    """
    if recipe.bits != BITS[INT4]:
        return {name: FLOAT if name == export.EMBEDDING else INT8 for name in shapes}
    plan = {name: INT8 if name == export.HEAD else INT4 for name in shapes}
    return plan | {
        name: levels_of(recipe, name, shapes[name])[0] for name in shapes if name == export.EMBEDDING
    }


def levels_of(recipe: Recipe, name: str, shape: Sequence[int]) -> tuple[str, ...]:
    """What a recipe can make of a matrix, fewest bits first, float last.

    The embedding in 8 bits goes with block recipes, and needs a width that blocks divide.
    """
    if name == export.EMBEDDING:
        fits = recipe.kernel == "block" and shape[1] % SMALLEST_BLOCK == 0
        return (INT8, FLOAT) if fits else (FLOAT,)
    return (INT4, INT8, FLOAT) if recipe.bits == BITS[INT4] else (INT8, FLOAT)


def describe(name: str, recipe: Recipe, errors: Iterable[TensorError]) -> dict[str, Any]:
    """The manifest's `quantization` of the graph `name`: what was applied, tensor by tensor, worst first."""
    how: dict[str, Any] = (
        {"activations": "uint8", "granularity": "per_channel", "kernel": "DynamicQuantizeMatMul"}
        if recipe.kernel == "dynamic"
        else {
            "activations": "int8",
            "granularity": "block",
            "kernel": "MatMulNBits",
            "accuracy_level": recipe.accuracy_level,
        }
    )
    tensors = {
        error.tensor: {
            "type": error.level,
            **({"block_size": error.block_size} if error.block_size else {}),
            "sqnr_db": error.sqnr_db,
            "bytes": error.bytes,
        }
        for error in errors
    }
    return {"weights": name, **how, "tensors": tensors}


def matrices(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Every matrix of a float graph by name, the embedding first: products as [K, N], the embedding [V,
    K]."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]].T
    embedding = {name: array for name, array in constants.items() if name == export.EMBEDDING}
    products = {
        node.input[1]: constants[node.input[1]]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    }
    return embedding | products


def block_of(size: int, most: int) -> int:
    """The block size for K = size: the largest power of two up to `most` that divides it, so nothing is
    padded.

    A K that 16 does not divide is padded to blocks of 16.
    """
    block = most
    while size % block and block > SMALLEST_BLOCK:
        block //= 2
    return block


def quantize(
    source: Path, target: Path, recipe: Recipe, plan: Mapping[str, str] | None = None
) -> list[TensorError]:
    """Writes the quantized twin of a fused fp32 graph; each quantized tensor's error, worst first.

    plan: level by tensor name (None: the recipe's own). Raises GraphError for a plan that names other tensors
    than the graph has or a level that the recipe's kernel has not, and if a matrix product that should not be
    was left in float.
    """
    model = onnx.load(source)
    weights = matrices(model)
    shapes = {name: weight.shape for name, weight in weights.items()}
    plan = _checked(default_plan(recipe, shapes) if plan is None else plan, shapes, recipe)
    if {plan.get(export.EMBEDDING, FLOAT), plan.get(export.HEAD)} != {FLOAT}:
        _untie_head(model)
    with export.quiet():
        quantized = _dynamic(model, plan) if recipe.kernel == "dynamic" else _block(model, plan, recipe)
    export.finish(quantized, model.ir_version)
    unwanted = _in_float(quantized) - {
        _place(name) for name, level in plan.items() if level == FLOAT and name in weights
    }
    if unwanted:
        raise GraphError(
            f"{source.name}: quantization left these matrix products in float: {', '.join(sorted(unwanted))}"
        )
    target.write_bytes(quantized.SerializeToString())
    return sorted(_errors(quantized, weights, plan), key=lambda error: error.sqnr_db)


def _checked(plan: Mapping[str, str], shapes: Mapping[str, Sequence[int]], recipe: Recipe) -> dict[str, str]:
    if odd := sorted(set(plan) ^ set(shapes)):
        raise GraphError(f"the plan and the graph do not have the same matrices: {', '.join(odd)}")
    for name, level in plan.items():
        if level not in (known := levels_of(recipe, name, shapes[name])):
            raise GraphError(f"{name} cannot be {level} under this recipe: it can be {' or '.join(known)}")
    return dict(plan)


def _dynamic(model: onnx.ModelProto, plan: Mapping[str, str]) -> onnx.ModelProto:
    load_onnxruntime()  # its telemetry is switched off before optimum imports it
    from onnxruntime.quantization import QuantFormat, QuantizationMode, QuantType
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import QuantizationConfig

    config = QuantizationConfig(
        is_static=False,
        format=QuantFormat.QOperator,
        mode=QuantizationMode.IntegerOps,
        activations_dtype=QuantType.QUInt8,
        weights_dtype=QuantType.QInt8,
        weights_symmetric=True,
        per_channel=True,
        operators_to_quantize=["MatMul"],
        nodes_to_exclude=[_place(name) for name, level in plan.items() if level == FLOAT],
    )
    _declare_values(model)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        ORTQuantizer.from_pretrained(folder, file_name="model.onnx").quantize(
            save_dir=folder, quantization_config=config, file_suffix="int8"
        )
        return onnx.load(Path(folder) / "model_int8.onnx")


def _block(model: onnx.ModelProto, plan: Mapping[str, str], recipe: Recipe) -> onnx.ModelProto:
    load_onnxruntime()
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    assert recipe.block_size is not None
    weights = matrices(model)
    groups: dict[tuple[int, int], set[str]] = {}
    for name, level in plan.items():
        if level != FLOAT and name != export.EMBEDDING:
            kind = BITS[level], block_of(weights[name].shape[0], recipe.block_size)
            groups.setdefault(kind, set()).add(_place(name))
    products = {node.name for node in model.graph.node if node.op_type == "MatMul"}
    for (bits, block), places in groups.items():
        quantizer = MatMulNBitsQuantizer(
            model,
            bits=bits,
            block_size=block,
            is_symmetric=True,
            accuracy_level=recipe.accuracy_level,
            nodes_to_exclude=sorted(products - places),
        )
        quantizer.process()
        model = quantizer.model.model
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            node.name = node.name.rpartition("_Q")[0]
    if plan.get(export.EMBEDDING) == INT8:
        _quantize_embedding(model)
    return model


def _quantize_embedding(model: onnx.ModelProto) -> None:
    """Gather → com.microsoft.GatherBlockQuantized with 8 bits, which onnxruntime's quantizer has not (only
    4).

    Symmetric around 128, the operator's zero point for unsigned 8-bit data that brings none.
    """
    [table] = [tensor for tensor in model.graph.initializer if tensor.name == export.EMBEDDING]
    [node] = [node for node in model.graph.node if node.op_type == "Gather" and table.name in node.input]
    weight = numpy_helper.to_array(table)
    block = block_of(weight.shape[1], EMBEDDING_BLOCK)
    blocks = weight.reshape(len(weight), -1, block)
    scales = (np.abs(blocks).max(axis=2) / 127).astype(np.float32)
    steps = np.rint(blocks / np.where(scales == 0, 1, scales)[..., None])
    data = (steps + 128).astype(np.uint8).reshape(weight.shape)
    model.graph.initializer.remove(table)
    model.graph.initializer.extend(
        numpy_helper.from_array(array, f"{table.name}{suffix}")
        for array, suffix in ((data, "_Q8"), (scales, "_scales"))
    )
    replacement = onnx.helper.make_node(
        "GatherBlockQuantized",
        [f"{table.name}_Q8", node.input[1], f"{table.name}_scales"],
        list(node.output),
        name="embedding",
        domain="com.microsoft",
        bits=8,
        block_size=block,
        quantize_axis=1,
        gather_axis=0,
    )
    place = list(model.graph.node).index(node)
    model.graph.node.remove(node)
    model.graph.node.insert(place, replacement)


def _place(tensor: str) -> str:
    """The name of the product that multiplies by this weight (export._name_by_place)."""
    return tensor.removesuffix(".weight")


def _in_float(model: onnx.ModelProto) -> set[str]:
    """Names of the matrix products that do not multiply by stored integers.

    A product of two activations is quantized too, as u8 x u8: rounded again at every call, by the kernel
    that is slower than float.
    """
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    return {
        node.name.removesuffix("_quant")
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        or (node.op_type == "MatMulInteger" and node.input[1] not in stored)
    }


def _untie_head(model: onnx.ModelProto) -> None:
    """Gives the head a matrix of its own: behind a Transpose it would stay float, and go where the embedding
    goes."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Transpose" and node.input[0] in constants:
            array = numpy_helper.to_array(constants[node.input[0]])
            model.graph.node.remove(node)
            model.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(array.T), node.output[0])
            )


def _declare_values(model: onnx.ModelProto) -> None:
    """Says that every intermediate value is float.

    Shape inference stops at com.microsoft operators, and optimum has no option that would tell it.
    """
    outputs = {value.name for value in model.graph.output}
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for node in model.graph.node
        for name in node.output
        if name and name not in outputs
    )


def _errors(
    model: onnx.ModelProto, weights: Mapping[str, NDArray[np.float32]], plan: Mapping[str, str]
) -> list[TensorError]:
    constants: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    errors = []
    for name, weight in weights.items():
        if plan[name] == FLOAT:
            continue
        restored, block, stored = _restored(constants, name, plan[name], weight.shape)
        signal = np.square(weight, dtype=np.float64).sum()
        noise = np.square(weight - restored).sum()
        sqnr = 10 * np.log10(signal / noise) if noise > signal * 10 ** (-EXACT_DB / 10) else EXACT_DB
        errors.append(TensorError(name, plan[name], block, round(float(sqnr), 2), stored))
    return errors


def _restored(
    constants: Mapping[str, NDArray[Any]], name: str, level: str, shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], int | None, int]:
    """What a stored weight stands for, in float64; its block size, and the bytes of values and scales."""
    if f"{name}_quantized" in constants:  # symmetric: zero point 0, one scale per output column
        values, scale = constants[f"{name}_quantized"], constants[f"{name}_scale"].astype(np.float64)
        return values * scale, None, values.nbytes + scale.size * 4
    values, scales = constants[f"{name}_Q{BITS[level]}"], constants[f"{name}_scales"]
    stored = values.nbytes + scales.nbytes
    rows = len(values)
    values = values.reshape(rows, -1)
    if BITS[level] == 4:  # two to a byte, the lower half first
        values = np.stack([values & 15, values >> 4], axis=2).reshape(rows, -1)
    centred = values.astype(np.float64) - 2 ** (BITS[level] - 1)
    scales = scales.reshape(rows, -1).astype(np.float64)
    block = centred.shape[1] // scales.shape[1]
    restored = centred * np.repeat(scales, block, axis=1)
    if name != export.EMBEDDING:  # stored [N, K], multiplied as [K, N]
        restored = restored[:, : shape[0]].T
    return restored, block, stored
