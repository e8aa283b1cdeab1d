"""What people would use instead: the same weights and the same work in other runtimes.

Each is optional: one that is not installed, or cannot run a model, is absent and says why.

    pytorch      the network itself, eager and compiled
    naive        an ONNX graph as it is commonly exported and run
    llama_cpp    llama.cpp, whose weights gguf_file writes
    open_vino    OpenVINO
    execu_torch  ExecuTorch with XNNPACK
    one_token    the step that naive, OpenVINO and ExecuTorch are given
    apart        a function in a process of its own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.bench.turns import Steps
from dsmr_export.errors import DsmrError

PACKAGES = {"llama_cpp": "llama-cpp-python"}
"""What a module's package is called, where that is another name."""


class AbsentError(DsmrError):
    """A peer that cannot take part here, and why."""


@dataclass(frozen=True)
class Work:
    """What every peer does: steps of one token with a model whose memory is full.

    checkpoint: folder of the weights. horizons: of the bundle, one a layer. ids: real tokens [N] that fill
    every window, fed before anything is timed; the steps feed them again. folder: for the peers' own files,
    shared by those that are given the same ones; it is removed afterwards.
    """

    checkpoint: Path
    horizons: tuple[int, ...]
    threads: int
    ids: NDArray[np.int64]
    folder: Path


@dataclass(frozen=True)
class Peer:
    """name: a key of the results. what: in words. equal: what is the same work as ours, and what is not.

    needs: modules that must be installed. open: makes its steps, in a process of its own; raises
    AbsentError where it cannot. The steps also have ``logits()``, float32 [V] of the last token, which only
    tests read.
    """

    name: str
    what: str
    equal: str
    needs: tuple[str, ...]
    open: Callable[[Work], Steps]

    @property
    def packages(self) -> tuple[str, ...]:
        """What `needs` is called as packages."""
        return tuple(PACKAGES.get(module, module) for module in self.needs)

    def absent(self) -> str | None:
        """Why it cannot take part, as far as that is known without trying."""
        missing = [
            package
            for module, package in zip(self.needs, self.packages, strict=True)
            if find_spec(module) is None
        ]
        if not missing:
            return None
        extra = "train" if missing == ["torch"] else "bench"
        return f"{' and '.join(missing)} not installed: pip install 'dsmr-export[{extra}]'"


def peers() -> Mapping[str, Peer]:
    """All of them by name, in the order of the tables."""
    from dsmr_export.bench.peers import execu_torch, llama_cpp, naive, open_vino, pytorch

    found: Iterable[Peer] = (
        *pytorch.PEERS,
        *naive.PEERS,
        *open_vino.PEERS,
        *execu_torch.PEERS,
        *llama_cpp.PEERS,
    )
    return {peer.name: peer for peer in found}


def load(module: str) -> Any:
    """A peer's module. Raises AbsentError for one that is installed but cannot be imported."""
    try:
        return import_module(module)
    except Exception as error:  # a wheel for another system breaks in any way
        package = PACKAGES.get(module.split(".")[0], module.split(".")[0])
        raise AbsentError(
            f"{package} is installed but cannot be imported, install it again: {first_line(error)}"
        ) from None


def first_line(error: BaseException) -> str:
    """What any library's error says, on one line, with its kind."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
