"""In the emulator: instructions per token of graphs with a full state, in total and by kind.

    python guest_count.py FOLDER STEPS NAME…        (a folder of models.write)

Prints a line of JSON for every name: `instructions` of Stream.step, the mean of STEPS tokens, and `kinds`,
what they are for (parts.py).
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsmr_export.manifest import GraphEntry, Manifest
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.session import load_onnxruntime, open_session
from dsmr_export.runtime.stream import Snapshot, Stream

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

POSITION = 5000
"""Of the first token that is counted: any, after a full state."""
WARM_UP = 3
"""Calls before counting: in the first ones onnxruntime plans and allocates."""
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class Counter:
    """Instructions of this process, from the file that the emulator's plugin maps (count.c)."""

    def __init__(self) -> None:
        with open(os.environ["DSMR_ARM_COUNT"], "rb") as file:
            self._memory = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
        self._own = 0
        self._own = self.of(lambda: None)

    def of(self, call: Callable[[], object]) -> int:
        """What a call takes, without what counting takes."""
        before = struct.unpack_from("<Q", self._memory)[0]
        call()
        after = struct.unpack_from("<Q", self._memory)[0]
        return int(after - before - self._own)


def random(shape: Sequence[int], dtype: type | np.dtype, rng: np.random.Generator) -> NDArray[np.generic]:
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, 100, shape).astype(dtype)
    return rng.standard_normal(shape, np.float32)


def full(bundle: Bundle, name: str, position: int = POSITION) -> Snapshot:
    """Of a stream whose windows are all full, of random keys and values; `position` is the next token's."""
    empty, rng = Stream(bundle, name).snapshot(), np.random.default_rng(0)
    state = {tensor: random(array.shape, array.dtype, rng) for tensor, array in empty.state.items()}
    count = bundle.graph(name).stream.wrap_at
    return replace(empty, position=position, consumed=position, count=count, state=state)


def per_token(counter: Counter, bundle: Bundle, name: str, steps: int, position: int = POSITION) -> float:
    """The mean of the steps after a full state."""
    stream, snapshot = Stream(bundle, name), full(bundle, name, position)
    stream.restore(snapshot)
    for token in range(WARM_UP):
        stream.step(5 + token)
    stream.restore(snapshot)
    return float(np.mean([counter.of(lambda token=token: stream.step(15 + token)) for token in range(steps)]))


class Part:
    """A session of a part's graph, bound to random inputs; the state is updated in place, as in a stream."""

    def __init__(self, session: InferenceSession, entry: GraphEntry) -> None:
        value, rng = load_onnxruntime().OrtValue.ortvalue_from_numpy, np.random.default_rng(0)
        presents = {tensor.output: tensor.input for tensor in entry.state}
        self._session, self._binding = session, session.io_binding()
        self._arrays = {}
        for node in session.get_inputs():
            # R, the only axis without a number, is the rows of the rotary tables
            shape = [size if isinstance(size, int) else entry.stream.rope_rows for size in node.shape]
            self._arrays[node.name] = random(shape, DTYPES[node.type], rng)
        if "position_ids" in self._arrays:
            self._arrays["position_ids"].fill(0)
        self._values = {name: value(array) for name, array in self._arrays.items()}
        for name, bound in self._values.items():
            self._binding.bind_ortvalue_input(name, bound)
        for node in session.get_outputs():
            name, _, copy = node.name.rpartition(".")
            if name in presents:
                self._binding.bind_ortvalue_output(node.name, self._values[f"{presents[name]}.{copy}"])
            else:
                array = random(node.shape, DTYPES[node.type], rng)
                self._binding.bind_ortvalue_output(node.name, value(array))

    def at(self, total: int) -> None:
        """The next call is the one that makes `total` tokens, as the graph counts them."""
        if "total_sequence_length" in self._arrays:
            self._arrays["total_sequence_length"][...] = total
            self._arrays["seqlens_k"][...] = total - 1

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)


def by_kind(counter: Counter, bundle: Bundle, name: str, steps: int) -> dict[str, float]:
    """What the parts of a kind take of a step; attention over the same steps as `per_token`, for it depends
    on them: in some of a period it moves rows."""
    entry, folder = bundle.graph(name), bundle.path / f"{name}.parts"
    found: dict[str, float] = {}
    for described in json.loads((folder / "parts.json").read_text()):
        counts = []
        for graph in described["graphs"]:
            session = open_session(folder / graph, bundle.threads, setup=bundle.manifest.session)
            part, total = Part(session, entry), entry.stream.advance(entry.stream.wrap_at, 1)
            calls = steps if described["kind"] == "attention" else 1
            part.at(total)
            for _ in range(WARM_UP):
                part()
            each = []
            for i in range(calls):
                part.at(total + i)
                each.append(counter.of(part))
            counts.append(float(np.mean(each)))
        one, three = counts
        kind = described["kind"]
        found[kind] = found.get(kind, 0.0) + described["times"] * (three - one) / 2
    return found


def main(folder: str, steps: int, names: Sequence[str]) -> None:
    path = Path(folder)
    counter = Counter()
    gc.disable()  # when it frees, and what, depends on everything before
    for name in names:
        bundle = Bundle(path, Manifest.read(path), identity="", notes=[])  # one graph's weights at a time
        step = per_token(counter, bundle, name, steps)
        kinds = by_kind(counter, bundle, name, steps)
        kinds["host"] = step - sum(kinds.values())
        result = {"instructions": round(step), "kinds": {kind: round(n) for kind, n in kinds.items()}}
        print(json.dumps({"name": name, **result}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
