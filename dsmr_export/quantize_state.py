"""The recurrent state in int8: one scale a channel for keys and for values, calibrated on real pieces.

onnxruntime's GroupQueryAttention takes a quantized cache with its scales (k_quant_type, v_quant_type =
PER_CHANNEL): new keys, already rotated, and new values are rounded once when they are cached, and read back
as scale · stored. A quarter of the bytes; what it costs in time, the target knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dsmr_export.runtime.runner import FusedRunner
from dsmr_export.state import StateTensor

LEVELS = 127
"""Steps on each side of zero: symmetric, so that an empty cache of zeros means zero."""
CALIBRATION_SEGMENT = 64
"""Most tokens between two looks at the state; fewer where a horizon is shorter, so that no token is
missed."""
SMALLEST = 1e-8
"""Stands for the largest magnitude of a channel that never left zero."""

Scales = dict[str, NDArray[np.float32]]
"""By the state's input name: float32 [kv_heads, D]."""

METHOD = {"state": "int8", "granularity": "per_channel", "calibration": "max; keys by rotary pair"}
"""What the manifest says of it. Maximum, not a percentile: nothing that was seen is clipped, and the 99.9th
percentile was not better (docs/decisions.md)."""


def calibrate(runner: FusedRunner, pieces: Iterable[NDArray[np.integer[Any]]]) -> Scales:
    """Scales that reach the largest magnitude of every channel while an fp32 graph reads these pieces (ids
    [N]).

    Of keys, the magnitude is that of a rotary pair (channels j and j + D/2), for both its channels: a key is
    cached rotated, and at another position all of the pair may lie in either. The slowest pairs turn once in
    tens of thousands of tokens, which no calibration lasts; a scale from single channels would clip them
    later.

    runner: of the fp32 graph; it is reset before every piece.
    """
    reach = {
        name: np.full((array.shape[1], array.shape[3]), SMALLEST, np.float32)
        for name, array in runner.state.items()
    }
    keys = {tensor.input for tensor in runner.tensors if tensor.kind == "key"}
    segment = min(CALIBRATION_SEGMENT, *(tensor.horizon + 1 for tensor in runner.tensors))
    for ids in pieces:
        runner.reset()
        for start in range(0, len(ids), segment):
            runner.run(np.asarray(ids[start : start + segment], np.int64), start)
            for name, array in runner.state.items():
                magnitude = _pair_magnitude(array[0]) if name in keys else np.abs(array[0])
                np.maximum(reach[name], magnitude.max(axis=1), out=reach[name])
    return {name: (values / LEVELS).astype(np.float32) for name, values in reach.items()}


def _pair_magnitude(keys: NDArray[np.generic]) -> NDArray[np.float32]:
    """[kv_heads, M, D] -> the same shape: the length of each channel's rotary pair, which no rotation
    changes."""
    first, second = np.split(keys.astype(np.float32), 2, axis=-1)
    length = np.hypot(first, second)
    return np.concatenate([length, length], axis=-1)


def quantize_state(
    path: Path, state: Sequence[StateTensor], scales: Mapping[str, NDArray[np.float32]]
) -> None:
    """Rewrites a fused graph in place: its state becomes int8 with these scales, its inputs and outputs
    too."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        past = node.input[3], node.input[4]
        inputs = [*node.input, *[""] * (14 - len(node.input))]
        for place, name in zip((12, 13), past, strict=True):
            array = scales[name].astype(np.float32)
            inputs[place] = f"{name}.scale"
            model.graph.initializer.append(numpy_helper.from_array(array[None, :, None, :], inputs[place]))
        node.input[:] = inputs
        node.attribute.extend(
            [
                helper.make_attribute("k_quant_type", "PER_CHANNEL"),
                helper.make_attribute("v_quant_type", "PER_CHANNEL"),
                helper.make_attribute("kv_cache_bit_width", 8),
            ]
        )
    names = {name for tensor in state for name in (tensor.input, tensor.output)}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in names:
            value.type.tensor_type.elem_type = TensorProto.INT8
    path.write_bytes(model.SerializeToString())
