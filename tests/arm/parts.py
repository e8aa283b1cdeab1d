"""A graph in parts: what each is for, how often it occurs, and a small graph of its own that can be run.

A part is a run of nodes of one kind between two of other kinds: a product with what quantizes its input, one
attention, one norm. What it takes is the difference between a graph with one copy of it and one with three,
each copy on inputs of its own, so that all that belongs to the call cancels out. (onnxruntime can stop a call
at a value, `only_execute_path_to_fetches`, but its released wheels ignore that: it was left from training.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from dsmr_export.bench.profile import ATTENTION, OPERATORS, OTHER
from dsmr_export.bench.profile import KINDS as INSIDE

COPIES = (1, 3)

KINDS = (*INSIDE, "host")
"""host: what is left of a step: Python, the binding, and onnxruntime's own call."""


@dataclass(frozen=True)
class Part:
    """inputs: what it reads and does not make itself, constants left out; outputs: what others read of it."""

    kind: str
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: tuple[str, ...]


def split(model: onnx.ModelProto) -> list[Part]:
    """Every part in the order they run."""
    stored = {tensor.name for tensor in model.graph.initializer}
    nodes = _transposes_beside_their_product(model)
    if unknown := {node.op_type for node in nodes} - set(OPERATORS):
        raise ValueError(f"nodes of no known kind: {', '.join(sorted(unknown))}; add them to OPERATORS")
    groups = [tuple(group) for _, group in groupby(nodes, key=lambda node: OPERATORS[node.op_type])]
    ends = {value.name for value in model.graph.output}
    parts = []
    for nodes_here in groups:
        made = {name for node in nodes_here for name in node.output if name}
        read = dict.fromkeys(name for node in nodes_here for name in node.input if name)
        others = [node for group in groups if group is not nodes_here for node in group]
        elsewhere = {name for node in others for name in node.input}
        parts.append(
            Part(
                OPERATORS[nodes_here[0].op_type],
                nodes_here,
                tuple(name for name in read if name not in made | stored),
                tuple(n for node in nodes_here for n in node.output if n in elsewhere | ends),
                tuple(name for name in read if name in stored),
            )
        )
    return parts


def _transposes_beside_their_product(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes, with the head's Transpose, which stands first, moved to the product that reads it."""
    nodes = list(model.graph.node)
    for transpose in [node for node in nodes if node.op_type == "Transpose"]:
        nodes.remove(transpose)
        reader = next(i for i, node in enumerate(nodes) if transpose.output[0] in node.input)
        nodes.insert(reader, transpose)
    return nodes


def write_parts(path: Path) -> Path:
    """Writes a folder beside a graph: each distinct part once, in one and in three copies, and
    `parts.json`."""
    model, folder = onnx.load(path), path.with_suffix(".parts")
    folder.mkdir()
    shapes = _shapes(model)
    found: dict[str, list[Part]] = {}
    for part in split(model):
        found.setdefault(_signature(part, model, shapes), []).append(part)
    written = []
    for index, alike in enumerate(found.values()):
        part, graphs = alike[0], []
        for copies in COPIES:
            graphs.append(f"{index}.{part.kind}.{copies}.onnx")
            (folder / graphs[-1]).write_bytes(_graph(model, part, copies, shapes).SerializeToString())
        written.append({"kind": part.kind, "times": len(alike), "graphs": graphs})
    (folder / "parts.json").write_text(json.dumps(written, indent=1))
    return folder


Shapes = dict[str, tuple[int, tuple[Any, ...]]]
"""Element type and shape by value, for one token."""


def _shapes(model: onnx.ModelProto) -> Shapes:
    """Of the graph's inputs and outputs, and of every value that a part makes: one row of some width."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: Shapes = {}
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        axes = [1 if axis.dim_param == "S" else axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
        found[value.name] = tensor.elem_type, tuple(axes)
    for part in split(model):
        width = _width(part, constants, found)
        for name in part.outputs:
            found.setdefault(name, (TensorProto.FLOAT, (1, 1, width)))
    return found


def _width(part: Part, constants: dict[str, TensorProto], known: Shapes) -> int:
    product = next((n for n in part.nodes if n.op_type in ("MatMul", "MatMulInteger", "MatMulNBits")), None)
    if product is not None and product.op_type == "MatMulNBits":
        return int(_attributes(product)["N"])
    if product is not None and product.input[1] in constants:
        return constants[product.input[1]].dims[1]
    if product is not None:  # the tied head: its weight is the transposed embedding
        return constants[next(n for n in part.nodes if n.op_type == "Transpose").input[0]].dims[0]
    node = part.nodes[0]
    if part.kind == ATTENTION:
        heads, kv_heads = (int(_attributes(node)[name]) for name in ("num_heads", "kv_num_heads"))
        return int(known[node.input[0]][1][-1]) * heads // (heads + 2 * kv_heads)
    if part.kind == OTHER:
        return constants[node.input[0]].dims[1]
    return int(known[node.input[0]][1][-1])  # norms and activations keep the width


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _signature(part: Part, model: onnx.ModelProto, shapes: Shapes) -> str:
    """The same for parts that do the same to values of the same size."""
    sizes = {tensor.name: [tensor.data_type, *tensor.dims] for tensor in model.graph.initializer}
    return repr(
        (
            [(node.op_type, sorted(_attributes(node).items())) for node in part.nodes],
            [shapes[name] for name in part.inputs],
            [sizes[name] for name in part.constants],
        )
    )


SHARED = ("position_ids", "seqlens_k", "total_sequence_length", "rope_cos", "rope_sin")
"""Inputs that every copy may read: what tells them apart are the others."""


def _graph(model: onnx.ModelProto, part: Part, copies: int, shapes: Shapes) -> onnx.ModelProto:
    nodes, inputs, outputs = [], dict.fromkeys(name for name in part.inputs if name in SHARED), []
    for copy in range(copies):
        nodes += [_copied(node, copy, {*part.constants, *SHARED}) for node in part.nodes]
        inputs |= {f"{name}.{copy}": None for name in part.inputs if name not in SHARED}
        outputs += [f"{name}.{copy}" for name in part.outputs]
    graph = helper.make_graph(
        nodes,
        "part",
        list(_values(inputs, shapes)),
        list(_values(outputs, shapes)),
        [tensor for tensor in model.graph.initializer if tensor.name in part.constants],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _copied(node: onnx.NodeProto, copy: int, kept: set[str]) -> onnx.NodeProto:
    other = onnx.NodeProto()
    other.CopyFrom(node)
    other.name = f"{node.name}.{copy}"
    other.input[:] = [name if name in kept or not name else f"{name}.{copy}" for name in node.input]
    other.output[:] = [name and f"{name}.{copy}" for name in node.output]
    return other


def _values(names: Sequence[str] | dict[str, None], shapes: Shapes) -> Iterator[onnx.ValueInfoProto]:
    for name in names:
        kind, shape = shapes[name if name in SHARED else name.rpartition(".")[0]]
        yield helper.make_tensor_value_info(name, kind, shape)
