"""OpenVINO on the CPU: the one-token step with its state kept inside, fp32 and with 8-bit weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.bench.peers import AbsentError, Peer, Work, first_line, load
from dsmr_export.bench.peers.naive import given_state, given_step
from dsmr_export.state import KINDS, past_name, present_name

PEERS: tuple[Peer, ...]


class OpenVinoSteps:
    """Steps of the one-token graph whose past and present have become variables of the inference request."""

    kernel_ns = None

    def __init__(self, bits: int, work: Work) -> None:
        openvino = load("openvino")
        core = openvino.Core()
        model = core.read_model(given_step(work))
        names = [(layer, kind) for layer in range(len(work.horizons)) for kind in KINDS]
        pairs = {past_name(*name): present_name(*name) for name in names}
        load("openvino._offline_transformations").apply_make_stateful_transformation(model, pairs)
        if bits == 8:
            compress(openvino, model)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": work.threads,
            "INFERENCE_PRECISION_HINT": "f32",  # where the CPU has bfloat16 it would be that
        }
        try:
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:  # of its compiler
            raise AbsentError(f"OpenVINO cannot compile the step: {first_line(error)}") from None
        state = given_state(work)
        for variable in self._request.query_state():
            name = next(past for past, present in pairs.items() if variable.name == past + present)
            variable.state = openvino.Tensor(state[name])
        self._token, self._place = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64)
        self._request.set_tensor("input_ids", openvino.Tensor(self._token, shared_memory=True))
        self._request.set_tensor("position_ids", openvino.Tensor(self._place, shared_memory=True))
        self._ids, self._position = work.ids, len(work.ids)

    def step(self) -> None:
        self._token[0, 0] = self._ids[self._position % len(self._ids)]
        self._place[0, 0] = self._position
        self._request.start_async()  # infer() would also wrap every output for Python
        self._request.wait()
        self._position += 1

    def logits(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._request.get_tensor("logits").data[0, 0].copy()
        return found


def compress(openvino: Any, model: Any) -> None:
    """Weights of every matrix product as int8 with one float32 scale for each output, in place.

    What nncf.compress_weights (INT8_SYM) does; the CPU plugin's kernels for compressed weights read it.
    """
    opset = load("openvino.opset13")
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        source = node.input_value(1).get_node()
        if source.get_type_name() != "Constant" or source.output(0).get_element_type() != openvino.Type.f32:
            continue
        weight = source.data
        transposed = node.get_attributes()["transpose_b"]
        axis = 1 if transposed else 0
        scale = np.abs(weight).max(axis=axis, keepdims=True) / 127
        stored = np.clip(np.rint(weight / np.maximum(scale, 1e-30)), -127, 127).astype(np.int8)
        narrow = opset.convert(opset.constant(stored), "f32")
        node.input(1).replace_source_output(opset.multiply(narrow, opset.constant(scale)).output(0))
    model.validate_nodes_and_infer_types()


_EQUAL = (
    "same network and horizons; one token a call, fixed shapes, its state inside the runtime, "
    "float32; latency hint, same threads; its forward alone, no sampling"
)

PEERS = (
    Peer(
        name="openvino",
        what="OpenVINO, fp32",
        equal=_EQUAL,
        needs=("openvino", "torch", "onnx", "onnxscript"),
        open=partial(OpenVinoSteps, 32),
    ),
    Peer(
        name="openvino_int8",
        what="OpenVINO, 8-bit weights",
        equal="8-bit weights, one scale for each output; otherwise " + _EQUAL,
        needs=("openvino", "torch", "onnx", "onnxscript"),
        open=partial(OpenVinoSteps, 8),
    ),
)
