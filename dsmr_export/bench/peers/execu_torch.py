"""ExecuTorch on the CPU: the one-token step lowered to XNNPACK, 8-bit weights, activations quantized as they
come.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.bench.peers import Peer, Work, load
from dsmr_export.bench.peers.apart import apart
from dsmr_export.bench.peers.naive import given_state
from dsmr_export.state import KINDS, past_name

PEERS: tuple[Peer, ...]


def write_program(work: Work, path: Path) -> None:
    """The step as an ExecuTorch program: every linear layer, the head too, with weights int8 by output
    channel and activations int8 by tensor, scaled when they are there; the rest float32.
    """
    import torch

    from dsmr_export.bench.peers import one_token

    exir = load("executorch.exir")
    planning = load("executorch.exir.passes").MemoryPlanningPass
    partitioner = load("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner()
    xnnpack = load("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e = load("torchao.quantization.pt2e.quantize_pt2e")

    step, examples = one_token.module(work)
    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
    with torch.no_grad():
        prepared = pt2e.prepare_pt2e(torch.export.export(step, examples).module(), quantizer)
        prepared(*examples)
        quantized = torch.export.export(pt2e.convert_pt2e(prepared), examples)
    lowered = exir.to_edge_transform_and_lower(quantized, partitioner=[partitioner])
    # Inputs are read where they lie: by default the program would copy the state into its own memory.
    plan = exir.ExecutorchBackendConfig(memory_planning_pass=planning(alloc_graph_input=False))
    path.write_bytes(lowered.to_executorch(plan).buffer)


class ExecuTorchSteps:
    """Steps of the program: 2·L tensors in, 2·L out."""

    kernel_ns = None

    def __init__(self, work: Work) -> None:
        import torch

        path = work.folder / "one_token.pte"
        if not path.exists():
            apart("lowering the step to XNNPACK", write_program, work, path)
        torch.set_num_threads(work.threads)
        with silent():
            load("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(work.threads)
            runtime = load("executorch.runtime").Runtime.get()
            self._method: Any = runtime.load_program(path).load_method("forward")
        state = given_state(work)
        names = [past_name(layer, kind) for layer in range(len(work.horizons)) for kind in KINDS]
        self._past: list[Any] = [torch.from_numpy(state[name]) for name in names]
        self._token, self._place = torch.zeros(1, 1).long(), torch.zeros(1, 1).long()
        self._ids, self._position = work.ids, len(work.ids)
        self._logits: Any = None

    def step(self) -> None:
        self._token[0, 0] = int(self._ids[self._position % len(self._ids)])
        self._place[0, 0] = self._position
        self._logits, *self._past = self._method.execute([self._token, self._place, *self._past])
        self._position += 1

    def logits(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._logits[0, 0].numpy().copy()
        return found


@contextmanager
def silent() -> Iterator[None]:
    """No standard error, for C++ code too: loading tells of kernels for other machines and of the CPU."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


PEERS = (
    Peer(
        name="executorch",
        what="ExecuTorch, XNNPACK, 8-bit weights",
        equal="same network and horizons; linear layers with 8-bit weights and activations, keys and values "
        "float32, inputs and outputs of the program, concatenated and cut; one token a call, fixed shapes, "
        "no mask; its forward alone, no sampling",
        needs=("executorch", "torch"),
        open=ExecuTorchSteps,
    ),
)
