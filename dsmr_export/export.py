"""A network becomes an ONNX graph whose recurrent state goes in and comes out, and which is checked.

`fused` is what devices run: one com.microsoft.GroupQueryAttention a layer over a sliding-window cache.
`portable` is the same network in plain ai.onnx operators, for any other runtime. Both come from torch's own
exporter and the network's one forward definition.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from dsmr_export.errors import GraphError
from dsmr_export.manifest import GraphEntry, ModelShape
from dsmr_export.model import lowering
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.network import DSMR, LayerState, Windows
from dsmr_export.runtime.runner import RUNNERS
from dsmr_export.runtime.session import open_session
from dsmr_export.state import KINDS, StateTensor, StreamRule, fused_state, portable_state

OPSETS = {"fused": 21, "portable": 18}
"""Default opsets; 18 is the floor of torch's exporter, and fused Gelu needs 20."""
IR_VERSION = 10
"""What onnxruntime 1.29 … 1.31 read; onnx would write its newest by default."""
MIN_ONNXRUNTIME = {"fused": "1.29.0", "portable": "1.18.0"}
"""fused: the first onnxruntime whose GroupQueryAttention has a sliding-window cache (design, section 4)."""
TRIAL_SEGMENTS = (33, 1, 6)
"""Tokens of the calls in which a new graph has to give the network's logits."""
TRIAL_TOLERANCE = 1e-3
"""Of them, relative to the largest where that is above 1: a graph that is wrong is wrong by far more."""

EMBEDDING, HEAD = "embedding.weight", "head.weight"
"""The tied matrix [V, d_model] as stored, and its transpose as the output head reads it."""


class FusedGraph(nn.Module):
    """The network with the fused graph's flat inputs and outputs."""

    def __init__(self, network: DSMR) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        windows = lowering.FusedWindows(position_ids, seqlens_k, total_sequence_length, rope_cos, rope_sin)
        return _flat(*self.network.run(input_ids, _pairs(past), windows))


class PortableGraph(nn.Module):
    """The network with the portable graph's flat inputs and outputs."""

    def __init__(self, network: DSMR) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: Tensor, past_length: Tensor, rope_cos: Tensor, rope_sin: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        windows = Windows(rope_cos[None, None], rope_sin[None, None], past_length[None])
        return _flat(*self.network.run(input_ids, _pairs(past), windows))


def graph_state(network: DSMR, ops: str) -> tuple[StateTensor, ...]:
    config = network.config
    build = fused_state if ops == "fused" else portable_state
    return build(network.horizons, config.kv_heads, config.head_dim)


def graph_inputs(network: DSMR, ops: str) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    """Name → (dtype, shape) of every input in order; symbolic axes are strings (design, section 4)."""
    half = network.config.head_dim // 2
    if ops == "fused":
        own: dict[str, tuple[str, tuple[int | str, ...]]] = {
            "input_ids": ("int64", (1, "S")),
            "position_ids": ("int64", (1, "S")),
            "seqlens_k": ("int32", (1,)),
            "total_sequence_length": ("int32", ()),
            "rope_cos": ("float32", ("R", half)),
            "rope_sin": ("float32", ("R", half)),
        }
    else:
        own = {
            "input_ids": ("int64", (1, "S")),
            "past_length": ("int64", ()),
            "rope_cos": ("float32", ("S", half)),
            "rope_sin": ("float32", ("S", half)),
        }
    return own | {tensor.input: (tensor.dtype, tensor.shape) for tensor in graph_state(network, ops)}


def graph_outputs(network: DSMR, ops: str) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    logits = ("float32", (1, "S", network.config.vocab_size))
    return {"logits": logits} | {
        tensor.output: (tensor.dtype, tensor.shape) for tensor in graph_state(network, ops)
    }


def model_shape(config: ModelConfig) -> ModelShape:
    """The manifest's `model`."""
    return ModelShape(**{key: v for key, v in config.to_dict().items() if key != "norm_eps"})


def export_graph(
    network: DSMR, ops: str, path: Path, opset: int | None = None, ir_version: int = IR_VERSION
) -> None:
    """Writes one ONNX file (no external data) for `ops` = fused or portable.

    Raises GraphError with every difference from the contract at once: names, axes, dtypes, shapes, repeated
    weights; or when onnxruntime cannot load it or finds other logits than the network. No file is left then.
    """
    opset = opset or OPSETS[ops]
    if opset < OPSETS[ops]:
        raise GraphError(f"--opset {opset} is too old for the {ops} graph: it needs {OPSETS[ops]} or newer")
    if opset > onnx.defs.onnx_opset_version():
        raise GraphError(
            f"--opset {opset} is newer than onnx {onnx.__version__} knows: give {OPSETS[ops]} to "
            f"{onnx.defs.onnx_opset_version()}"
        )
    least = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    if ir_version < least:
        raise GraphError(
            f"--ir-version {ir_version} is too old for opset {opset} of the {ops} graph: it needs "
            f"{least}, or a lower --opset"
        )
    inputs = graph_inputs(network, ops)
    module: nn.Module = FusedGraph(network) if ops == "fused" else PortableGraph(network)
    examples = {name: _example(dtype, shape) for name, (dtype, shape) in inputs.items()}
    own = [name for name in inputs if not name.startswith("past_key_values")]
    past = [examples[name] for name in inputs if name not in own]
    with quiet():
        program = torch.onnx.export(
            module.eval(),
            (*(examples[name] for name in own), past),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(graph_outputs(network, ops)),
            dynamic_shapes=[*(_dynamic(inputs[name][1]) for name in own), [None] * len(past)],
            external_data=False,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _name_by_place(model, network)
    _share_head(model)
    _restore_axes(model, inputs, graph_outputs(network, ops))
    finish(model, ir_version)
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if written != opset:  # the exporter only logs that it could not convert
        raise GraphError(
            f"--opset {opset}: torch {torch.__version__} wrote {written} instead; give {OPSETS[ops]}"
        )
    problems = [*interface_problems(model, inputs, graph_outputs(network, ops)), *repeated_weights(model)]
    if problems:
        raise GraphError(f"the exported {ops} graph breaks its contract: " + "; ".join(problems))
    path.write_bytes(model.SerializeToString())
    try:
        _try_values(network, ops, path, opset, ir_version)
    except GraphError:
        path.unlink()
        raise


def trial_entry(
    network: DSMR, ops: str, path: Path, opset: int | None = None, ir_version: int = IR_VERSION
) -> GraphEntry:
    """What a runner must know to run a written fp32 graph that no manifest describes yet."""
    return GraphEntry(
        file=path.name,
        sha256="",
        bytes=path.stat().st_size,
        ops=ops,
        opset=opset or OPSETS[ops],
        ir_version=ir_version,
        min_onnxruntime=MIN_ONNXRUNTIME[ops],
        quantization=None,
        state=graph_state(network, ops),
        stream=StreamRule.of(network.horizons),
    )


def _try_values(network: DSMR, ops: str, path: Path, opset: int, ir_version: int) -> None:
    """Runs a written graph beside the network on random tokens. Raises GraphError where logits differ."""
    entry = trial_entry(network, ops, path, opset, ir_version)
    runner = RUNNERS[ops](open_session(path, name=ops), entry, model_shape(network.config))
    ids = np.random.default_rng(0).integers(network.config.vocab_size, size=sum(TRIAL_SEGMENTS))
    state, start = network.empty_state(), 0
    for size in TRIAL_SEGMENTS:
        segment = ids[start : start + size]
        with torch.no_grad():
            logits, state = network(torch.from_numpy(segment)[None], state)
        expected = logits[0].numpy()
        apart = float(np.abs(runner.run(segment, start) - expected).max())
        if not apart <= TRIAL_TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise GraphError(
                f"the exported {ops} graph gives other logits than the network: {apart:.1e} apart in the "
                f"{size} tokens from {start}"
            )
        start += size


def finish(model: onnx.ModelProto, ir_version: int = IR_VERSION) -> None:
    """Sets the versions and removes what only the exporter needed: notes on nodes, values, unused domains."""
    model.ir_version = ir_version
    model.producer_name = "dsmr-export"
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    used = {node.domain for node in model.graph.node}
    opsets = [o for o in model.opset_import if o.domain in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(opsets)


def interface_problems(
    model: onnx.ModelProto,
    inputs: Mapping[str, tuple[str, Sequence[int | str]]],
    outputs: Mapping[str, tuple[str, Sequence[int | str]]],
) -> Iterator[str]:
    """Each difference between a graph's inputs and outputs and what they should be, as a phrase."""
    for what, values, wanted in (
        ("input", model.graph.input, inputs),
        ("output", model.graph.output, outputs),
    ):
        names = [value.name for value in values]
        if names != list(wanted):
            yield f"{what}s are {names}, expected {list(wanted)}"
            continue
        for value in values:
            found, expected = _signature(value), (wanted[value.name][0], tuple(wanted[value.name][1]))
            if found != expected:
                yield f"{what} {value.name} is {found}, expected {expected}"


def repeated_weights(model: onnx.ModelProto) -> Iterator[str]:
    """Pairs of initializers with equal or transposed data: exporters may fold a tied head into a copy."""
    seen: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim != 2 or array.size < 64:
            continue
        key = tuple(sorted(array.shape))
        for name, other in seen.get(key, []):
            if any(np.array_equal(array, view) for view in (other, other.T) if view.shape == array.shape):
                yield f"initializers {name} and {tensor.name} hold the same data"
        seen.setdefault(key, []).append((tensor.name, array))


def _name_by_place(model: onnx.ModelProto, network: DSMR) -> None:
    """Names weights as in the checkpoint and the nodes that read them by their place.

    `layers.0.qkv.weight` is read by `layers.0.qkv`. The exporter numbers them; a name that says where a
    tensor stands is what quantization recipes and profiles need.
    """
    known = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    names: dict[str, str] = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        for name in known:
            # linear layers are stored transposed, the head is the transposed embedding
            weight = known[name] if array.ndim == 1 or name == EMBEDDING else known[name].T
            if np.array_equal(array, weight) and name not in names.values():
                names[tensor.name] = name
                break
        else:
            if np.array_equal(array, known[EMBEDDING].T):
                names[tensor.name] = HEAD
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        if node.op_type == "Transpose" and names.get(node.input[0]) == EMBEDDING:
            names[node.output[0]] = HEAD  # where the exporter did not fold it
            node.output[0] = HEAD
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        node.input[:] = [names.get(name, name) for name in node.input]
        weight = next((name for name in node.input if name in names.values()), None)
        layer = next((name.split(".")[1] for name in node.input if name.startswith("past_key_values.")), None)
        node.name = f"{node.op_type}.{index}"
        if layer is not None and node.op_type == "GroupQueryAttention":
            node.name = f"layers.{layer}.attention"
        elif HEAD in node.output:
            node.name = "head.transpose"
        elif weight is not None and node.op_type != "Gather" and weight not in taken:
            node.name = weight.removesuffix(".weight")
            taken.add(weight)


def _share_head(model: onnx.ModelProto) -> None:
    """Makes the tied head a Transpose of the embedding, of which the exporter folds a transposed copy."""
    for tensor in list(model.graph.initializer):
        if tensor.name == HEAD:
            model.graph.initializer.remove(tensor)
            transpose = onnx.helper.make_node(
                "Transpose", [EMBEDDING], [HEAD], name="head.transpose", perm=[1, 0]
            )
            model.graph.node.insert(0, transpose)


def _restore_axes(
    model: onnx.ModelProto,
    inputs: Mapping[str, tuple[str, Sequence[int | str]]],
    outputs: Mapping[str, tuple[str, Sequence[int | str]]],
) -> None:
    """Names symbolic axes where the exporter made a name up; a fixed axis stays what it is, to be checked."""
    for value in (*model.graph.input, *model.graph.output):
        wanted = {**inputs, **outputs}.get(value.name)
        if wanted is None:
            continue
        for axis, name in zip(value.type.tensor_type.shape.dim, wanted[1], strict=False):
            if axis.dim_param and isinstance(name, str):
                axis.dim_param = name


def _signature(value: onnx.ValueInfoProto) -> tuple[str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return dtype, tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)


def _example(dtype: str, shape: Sequence[int | str]) -> Tensor:
    sizes = {"S": 5, "R": 7}
    return torch.zeros([sizes[a] if isinstance(a, str) else a for a in shape], dtype=getattr(torch, dtype))


def _dynamic(shape: Sequence[int | str]) -> dict[int, Any] | None:
    axes = {axis: torch.export.Dim(name, min=1) for axis, name in enumerate(shape) if isinstance(name, str)}
    return axes or None


def _pairs(past: Sequence[Tensor]) -> list[LayerState]:
    return list(zip(past[:: len(KINDS)], past[1 :: len(KINDS)], strict=True))


def _flat(logits: Tensor, layers: Sequence[LayerState]) -> tuple[Tensor, ...]:
    return (logits, *(tensor for pair in layers for tensor in pair))


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters and quantizers narrate and warn about their own internals; failures still raise."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
