"""One process or many: `torchrun` starts them, DistributedDataParallel keeps their weights equal.

Each worker (process) owns an equal share of the lanes: their pieces and their recurrent state. Worker 0 does
all the writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from dsmr_export.errors import TrainingError


@dataclass(frozen=True)
class Workers:
    """Who this process is among the workers of a run; by itself a run of one worker on the CPU."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this is the worker that writes and speaks."""
        return self.rank == 0

    def lanes(self, total: int) -> range:
        """Which of all lanes are this worker's. Raises TrainingError if they cannot be shared out evenly."""
        if total % self.count:
            raise TrainingError(
                f"--lanes {total} cannot be shared out to {self.count} workers: "
                f"make it a multiple of {self.count}"
            )
        share = total // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def wrap(self, network: Any) -> Any:
        """The network whose gradients are averaged over all workers."""
        if self.count == 1:
            return network
        devices = [self.device.index] if self.device.type == "cuda" else None
        with noticing_the_dead():
            return DistributedDataParallel(network, device_ids=devices)

    def without_sync(self, forward: nn.Module) -> AbstractContextManager[None]:
        """For all but the last of several backward passes: gradients add up here and are not yet averaged."""
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()

    def sum(self, *values: float) -> list[float]:
        """Each value's sum over all workers, the same on each of them."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with noticing_the_dead():
            dist.all_reduce(total)
        return [float(value) for value in total]

    def gather(self, tensor: Tensor) -> Tensor:
        """The workers' tensors [b, …] as one [b · count, …] in the order of the lanes, on worker 0's CPU.

        The others get their own back.
        """
        if self.count == 1:
            return tensor.detach().cpu()
        own = tensor.detach().contiguous().to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.count)] if self.leads else None
        with noticing_the_dead():
            dist.gather(own, parts)
        return torch.cat([part.cpu() for part in parts]) if parts else own

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """The first worker of every machine does the block before the others do (it fills the cache)."""
        if self.count > 1 and self.local_rank > 0:
            with noticing_the_dead():
                dist.barrier()
        yield
        if self.count > 1 and self.local_rank == 0:
            with noticing_the_dead():
                dist.barrier()

    def require_same(self, digest: str, what: str) -> None:
        """Raises TrainingError, on all workers alike, if a hex digest is not the same on each of them."""
        if self.count == 1:
            return
        number = int(digest[:12], 16)  # 48 bits: float64 holds them
        largest = torch.tensor([number, -number], dtype=torch.float64, device=self.device)
        with noticing_the_dead():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        if largest[0] != -largest[1]:
            raise TrainingError(f"the workers do not see the same {what}")


@contextmanager
def noticing_the_dead() -> Iterator[None]:
    """Raises TrainingError where the talk with the other workers breaks off."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"another worker is gone ({reason}): what was saved is whole, go on from it with --resume "
            "(torchrun --max-restarts does so by itself)"
        ) from error


def restarts() -> int:
    """How many times torchrun started the workers again because one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch() -> str:
    """What all starts of one torchrun have in common on worker 0; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"torchrun-{os.getppid()}" if name == "none" else name


@contextmanager
def join(device: str) -> Iterator[Workers]:
    """The workers of this run, as torchrun set them up, or one worker where it did not.

    device: `cpu` or `cuda` (the GPU of each worker is its place on its machine), or one like `cuda:1`.
    Raises TrainingError if nothing can be computed there.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        device = f"cuda:{local_rank}"
    _require(device)
    chosen = torch.device(device)
    if count == 1:
        yield Workers(device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # torchrun keeps its store over a restart, and in it the addresses of the workers that are no more
    # (torch 2.13: gloo then gives up with "connection refused"); each start gets keys of its own.
    store, rank, count = next(rendezvous("env://"))
    own_keys = PrefixStore(f"start-{restarts()}", store)
    gpu = chosen.type == "cuda"
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(
        backend, store=own_keys, rank=rank, world_size=count, device_id=chosen if gpu else None
    )
    yield Workers(dist.get_rank(), dist.get_world_size(), local_rank, chosen)
    # Not after an error: NCCL would wait here for workers that are busy, and the error would not be told.
    dist.destroy_process_group()


def _require(device: str) -> None:
    try:
        torch.empty(1, device=device).item()
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError: by what is missing
        reason = str(error).splitlines()[0]
        raise TrainingError(f"--device {device} cannot be used here ({reason}): use cpu") from error
