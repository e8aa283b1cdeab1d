"""Dynamic int8 through optimum: u8 activations × s8 per-channel weights.

Of all recipes the one that was slower than fp32 on no processor tried.
"""

from __future__ import annotations

import tempfile
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

INT8 = {
    "weights": "int8",
    "activations": "uint8",
    "granularity": "per_channel",
    "mode": "dynamic",
    "kernel": "DynamicQuantizeMatMul",
}


EXACT_DB = 160.0
"""Stands for the SQNR of a weight that lost nothing, as one of zeros does: the quotient is then no number."""


@dataclass(frozen=True)
class TensorError:
    """What quantization did to one weight.

    sqnr_db: 10·log10(Σw² / Σ(w-ŵ)²), higher is better; about 6 dB a bit; EXACT_DB at most.
    """

    tensor: str
    sqnr_db: float
    bytes: int


def quantize_int8(source: Path, target: Path) -> list[TensorError]:
    """Writes the int8 twin of a fused fp32 graph and returns each quantized tensor's error, worst first.

    Raises GraphError if a matrix product with a constant weight was left in float.
    """
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
    )
    model = onnx.load(source)
    weights = _untie_head(model)
    _declare_values(model)
    with tempfile.TemporaryDirectory() as folder, export.quiet():
        onnx.save(model, Path(folder) / "model.onnx")
        ORTQuantizer.from_pretrained(folder, file_name="model.onnx").quantize(
            save_dir=folder, quantization_config=config, file_suffix="int8"
        )
        quantized = onnx.load(Path(folder) / "model_int8.onnx")
    export.finish(quantized, model.ir_version)
    if left := _without_stored_weights(quantized):
        raise GraphError(f"{source.name}: int8 left these matrix products in float: {', '.join(left)}")
    target.write_bytes(quantized.SerializeToString())
    return sorted(_errors(quantized, weights), key=lambda error: error.sqnr_db)


def _without_stored_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the matrix products that do not multiply by stored s8 weights.

    A product of two activations is quantized too, as u8 x u8: rounded again at every call, by the kernel
    that is slower than float.
    """
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    return [
        node.name.removesuffix("_quant")
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        or (node.op_type == "MatMulInteger" and node.input[1] not in stored)
    ]


def _untie_head(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Gives the quantizer the head's weight as a constant: behind a Transpose it would stay float.

    Returns all matrix weights by name.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Transpose" and node.input[0] in constants:
            array = numpy_helper.to_array(constants[node.input[0]])
            model.graph.node.remove(node)
            model.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(array.T), node.output[0])
            )
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.input[1]: numpy_helper.to_array(constants[node.input[1]])
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    }


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


def _errors(model: onnx.ModelProto, weights: dict[str, NDArray[np.float32]]) -> list[TensorError]:
    constants: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    errors = []
    for name, weight in weights.items():
        values, scale = constants[f"{name}_quantized"], constants[f"{name}_scale"].astype(np.float64)
        difference = weight - values * scale  # symmetric: zero point 0, one scale per output column
        signal, noise = np.square(weight, dtype=np.float64).sum(), np.square(difference).sum()
        sqnr = 10 * np.log10(signal / noise) if noise > signal * 10 ** (-EXACT_DB / 10) else EXACT_DB
        errors.append(TensorError(name, round(float(sqnr), 2), values.nbytes + scale.size * 4))
    return errors
