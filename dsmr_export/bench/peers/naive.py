"""An ONNX graph as it is commonly exported and run: 2·L arrays in, 2·L out, one ``session.run`` a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.bench.peers import Peer, Work
from dsmr_export.bench.peers.apart import apart
from dsmr_export.state import KINDS, past_name

PEERS: tuple[Peer, ...]


def given_step(work: Work) -> Path:
    """The one-token step as an ONNX file in the work's folder."""
    path = work.folder / "one_token.onnx"
    if not path.exists():
        apart("exporting the step", write_step, work, path)
    return path


def given_state(work: Work) -> dict[str, NDArray[np.float32]]:
    """The full state, [1, kv_heads, h, D] by the names of the past."""
    path = work.folder / "state.npz"
    if not path.exists():
        apart("filling the state", write_state, work, path)
    with np.load(path) as arrays:
        return dict(arrays)


def write_step(work: Work, path: Path) -> None:
    from dsmr_export.bench.peers import one_token

    one_token.write_onnx(work, path)


def write_state(work: Work, path: Path) -> None:
    from dsmr_export.bench.peers import one_token

    one_token.write_state(work, path)


class NaiveSteps:
    """Steps of the one-token graph: default session options but the threads, no binding."""

    kernel_ns = None

    def __init__(self, work: Work) -> None:
        from dsmr_export.runtime.session import load_onnxruntime

        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = work.threads
        self._session = onnxruntime.InferenceSession(
            given_step(work), options, providers=["CPUExecutionProvider"]
        )
        self._past = [past_name(layer, kind) for layer in range(len(work.horizons)) for kind in KINDS]
        self._feeds: dict[str, Any] = given_state(work)
        self._ids, self._position = work.ids, len(work.ids)
        self._logits = np.empty(0, np.float32)

    def step(self) -> None:
        token = self._ids[self._position % len(self._ids)]
        self._feeds["input_ids"] = np.array([[token]])
        self._feeds["position_ids"] = np.array([[self._position]])
        logits, *present = self._session.run(None, self._feeds)
        self._feeds.update(zip(self._past, present, strict=True))
        self._logits = logits
        self._position += 1

    def logits(self) -> NDArray[np.float32]:
        return self._logits[0, 0]


PEERS = (
    Peer(
        name="naive_export",
        what="onnxruntime, a plain export, fp32",
        equal="same network, horizons and result; keys and values are inputs and outputs of session.run, "
        "concatenated and cut; one token a call with fixed shapes and no mask, which is kinder than "
        "Optimum's dynamic ones; its forward alone, no sampling",
        needs=("torch", "onnx", "onnxscript"),
        open=NaiveSteps,
    ),
)
