"""What onnxruntime takes for a node that computes nothing: two chains of such nodes, one longer.

The chains are written here as the bytes of an ONNX file, without onnx, which a device does not have. A file
is a protobuf message: fields of a number and a type, 0 for whole numbers and 2 for what has a length, with
the numbers of onnx.proto (github.com/onnx/onnx).
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter_ns

import numpy as np

from dsmr_export.runtime.session import load_onnxruntime, open_session

CHAINS = (100, 300)
RUNS = 200
FLOAT, IR_VERSION, OPSET = 1, 10, 18


def per_idle_node_ms(folder: Path, threads: int = 1) -> float:
    """Milliseconds a node: a quick run (the first quartile) of the long chain less one of the short, over the
    difference.

    A node negates one number: its kernel is a part of what lies between the nodes of a model only in so far
    as it is called, so this is a little more than what the executor takes. folder: for two small files.
    """
    value = load_onnxruntime().OrtValue.ortvalue_from_numpy
    bindings = []
    for length in CHAINS:
        path = folder / f"idle-{length}.onnx"
        path.write_bytes(chain(length))
        session = open_session(path, threads)
        binding = session.io_binding()
        arrays = np.zeros(1, np.float32), np.zeros(1, np.float32)
        binding.bind_ortvalue_input("x0", value(arrays[0]))
        binding.bind_ortvalue_output(f"x{length}", value(arrays[1]))
        bindings.append((session, binding, arrays))
    taken = np.empty((RUNS, len(CHAINS)))
    for run in range(RUNS):
        for column, (session, binding, _) in enumerate(bindings):
            began = perf_counter_ns()
            session.run_with_iobinding(binding)
            taken[run, column] = perf_counter_ns() - began
    short, long = np.quantile(taken, 0.25, axis=0)
    return max(0.0, float(long - short)) / (CHAINS[1] - CHAINS[0]) / 1e6


def chain(length: int) -> bytes:
    """An ONNX file: x0 float32 [1], negated so many times in a row, is x{length}."""
    nodes = b"".join(
        _field(1, _field(1, f"x{i}") + _field(2, f"x{i + 1}") + _field(3, f"n{i}") + _field(4, "Neg"))
        for i in range(length)
    )
    values = _field(11, _value("x0")) + _field(12, _value(f"x{length}"))
    graph = nodes + _field(2, "idle") + values
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(2, OPSET))


def _value(name: str) -> bytes:
    """A ValueInfoProto: float32 [1]."""
    tensor = _field(1, FLOAT) + _field(2, _field(1, _field(1, 1)))
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that there are more."""
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
