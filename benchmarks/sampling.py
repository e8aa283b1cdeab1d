"""Would sampling in the graph pay? The runtime's sampling beside the same as ONNX nodes, in turns.

    python -m benchmarks.sampling [BUNDLE]

The nodes (bias, mask, softmax, a full sort for top-p, cumulative sum, the draw) are a graph of their own
here, bound once; what it takes beyond an empty graph of one node is what they would add to a model's graph,
the rest is the call, which a model's graph has anyway.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.performer import SAMPLING
from dsmr_export.runtime.sampling import sample
from dsmr_export.runtime.session import load_onnxruntime, open_session
from dsmr_export.runtime.stream import Stream

ROUNDS, SIZE = 50, 100


def sampling_graph(vocab_size: int, top_p: float) -> onnx.ModelProto:
    """logits, bias float32 [V], allowed bool [V], draw float32 [1] -> token int64 [1]."""
    nodes = [
        helper.make_node("Add", ["logits", "bias"], ["tilted"]),
        helper.make_node("Where", ["allowed", "tilted", "never"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["p"], axis=-1),
        helper.make_node("TopK", ["p", "all"], ["falling", "ids"], largest=1, sorted=1),
        helper.make_node("CumSum", ["falling", "axis"], ["mass"]),
        helper.make_node("Sub", ["mass", "falling"], ["before"]),
        helper.make_node("Less", ["before", "top_p"], ["kept"]),
        helper.make_node("Where", ["kept", "falling", "zero"], ["nucleus"]),
        helper.make_node("CumSum", ["nucleus", "axis"], ["reached"]),
        helper.make_node("ReduceMax", ["reached"], ["whole"], keepdims=1),
        helper.make_node("Mul", ["whole", "draw"], ["point"]),
        helper.make_node("Greater", ["reached", "point"], ["beyond"]),
        helper.make_node("Cast", ["beyond"], ["flags"], to=TensorProto.INT32),
        helper.make_node("ArgMax", ["flags"], ["place"], axis=0, keepdims=1),
        helper.make_node("Gather", ["ids", "place"], ["token"]),
    ]
    constants = {
        "never": np.array(-np.inf, np.float32),
        "all": np.array([vocab_size], np.int64),
        "axis": np.array(0, np.int64),
        "top_p": np.array(top_p, np.float32),
        "zero": np.array(0, np.float32),
    }
    inputs = {"logits": (1, vocab_size), "bias": (1, vocab_size), "allowed": (9, vocab_size), "draw": (1, 1)}
    return _model(nodes, constants, inputs, {"token": (7, 1)})


def empty_graph() -> onnx.ModelProto:
    node = helper.make_node("Neg", ["draw"], ["token"])
    return _model([node], {}, {"draw": (1, 1)}, {"token": (1, 1)})


def _model(
    nodes: Any, constants: Mapping[str, Any], inputs: Mapping[str, Any], outputs: Any
) -> onnx.ModelProto:
    def described(values: Mapping[str, tuple[int, int]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, [size]) for name, (kind, size) in values.items()]

    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "sampling", described(inputs), described(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def bound(model: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]], folder: Path) -> Callable[[], None]:
    """One call of a graph, bound to arrays by name."""
    path = folder / f"{len(model.graph.node)}.onnx"
    onnx.save(model, path)
    session = open_session(path)
    binding = session.io_binding()
    value = load_onnxruntime().OrtValue.ortvalue_from_numpy
    for node in session.get_inputs():
        binding.bind_ortvalue_input(node.name, value(arrays[node.name]))
    kind = np.int64 if session.get_outputs()[0].type == "tensor(int64)" else np.float32
    token = arrays.setdefault(f"token {kind}", np.zeros(1, kind))  # type: ignore[attr-defined]
    binding.bind_ortvalue_output("token", value(token))
    return lambda: session.run_with_iobinding(binding)


@click.command(help=__doc__)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
def main(folder: Path | None) -> None:
    bundle = Bundle.open(folder)
    stream, grammar, rng = Stream(bundle), bundle.grammar(), np.random.default_rng(0)
    for token in bundle.golden.input_ids[:500].tolist():
        stream.step(token)
        grammar.advance(token)
    logits, allowed, size = stream.logits, grammar.allowed, stream.vocab_size
    bias = np.zeros(size, np.float32)
    arrays = {"logits": logits, "bias": bias, "allowed": allowed, "draw": np.full(1, 0.4, np.float32)}
    with tempfile.TemporaryDirectory() as scratch:
        calls = {
            "runtime": lambda: sample(logits + bias, SAMPLING, rng, allowed),
            "graph": bound(sampling_graph(size, SAMPLING.top_p), arrays, Path(scratch)),
            "empty graph": bound(empty_graph(), arrays, Path(scratch)),
        }
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                began = perf_counter_ns()
                for _ in range(SIZE):
                    call()
                taken[name].append((perf_counter_ns() - began) / SIZE / 1e3)
    medians = {name: float(np.median(times)) for name, times in taken.items()}
    click.echo(f"{int(allowed.sum())} of {size} tokens allowed, top-p {SAMPLING.top_p}; microseconds")
    for name, value in medians.items():
        click.echo(f"{name:12} {value:6.1f} (least {min(taken[name]):.1f})")
    click.echo(f"the nodes alone {medians['graph'] - medians['empty graph']:6.1f}")


if __name__ == "__main__":
    main()
