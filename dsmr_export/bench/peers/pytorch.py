"""PyTorch on the CPU: the network that was trained, eager and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.bench.peers import AbsentError, Peer, Work, first_line

PEERS: tuple[Peer, ...]
COMPILING_STEPS = 4
"""Steps in which everything is compiled that will be: the first for the state as it was filled, the next for
the state as the compiled step leaves it."""


class EagerSteps:
    """Steps of the network in PyTorch eager: S = 1, under no_grad, its state as full as the graphs'."""

    kernel_ns = None

    def __init__(self, work: Work) -> None:
        import torch

        from dsmr_export import schedule as schedules
        from dsmr_export.model import checkpoint

        torch.set_num_threads(work.threads)
        self._torch = torch
        network = checkpoint.load(work.checkpoint).network(schedules.explicit(work.horizons))
        self._forward: Any = network
        self._state = network.empty_state()
        self._ids = torch.from_numpy(work.ids)[None]
        self._next = 0
        self._logits = torch.empty(1, 1, 0)
        with torch.no_grad():
            for part in self._ids.split(512, dim=1):
                _, self._state = network(part, self._state)

    def step(self) -> None:
        with self._torch.no_grad():
            token = self._ids[:, self._next : self._next + 1]
            self._logits, self._state = self._forward(token, self._state)
        self._next = (self._next + 1) % self._ids.shape[1]

    def logits(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._logits[0, 0].numpy()
        return found


class CompiledSteps(EagerSteps):
    """The same through torch.compile; compiled before anything is timed."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._forward = self._torch.compile(self._forward, dynamic=False, fullgraph=True)
        self._state = self._state.compact()
        try:
            for _ in range(COMPILING_STEPS):
                self.step()
        except Exception as error:  # no C++ compiler is the common one
            raise AbsentError(f"torch.compile cannot compile here: {first_line(error)}") from None


PEERS = (
    Peer(
        name="pytorch_eager",
        what="PyTorch eager, fp32",
        equal="same network, horizons and state; its forward alone, no sampling",
        needs=("torch",),
        open=EagerSteps,
    ),
    Peer(
        name="pytorch_compile",
        what="PyTorch torch.compile, fp32",
        equal="same network, horizons and state, the whole step one graph (inductor, mode default, fixed "
        "shapes); its forward alone, no sampling",
        needs=("torch",),
        open=CompiledSteps,
    ),
)
