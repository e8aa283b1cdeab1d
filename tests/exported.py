"""A checkpoint small enough to export in seconds, with weights that make every part of the network count.

At their initial values norms are 1 and logits nearly flat, so a graph could lose a norm or a head and still
agree; here they differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.reference import forward

if TYPE_CHECKING:
    from dsmr_export.model.checkpoint import Checkpoint
    from dsmr_export.model.network import DSMR
    from dsmr_export.pack import Packed, Request

SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 16, "d_model": 48, "d_ff": 96, "vocab_size": 311}
HORIZONS = (70, 5, 1)
SCHEDULE = "70,5,1"


def random_network(horizons: Sequence[int], seed: int = 0, **shape: int) -> DSMR:
    """A network in eval mode with random weights: logits of a standard deviation around 2, norms around 1."""
    import torch

    from dsmr_export.model.config import ModelConfig
    from dsmr_export.model.network import DSMR

    network = DSMR(ModelConfig(layers=len(horizons), **{**SHAPE, **shape}), horizons)
    rng = np.random.default_rng(seed)
    state = {}
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1:
            values = 1 + 0.2 * rng.normal(size=tensor.shape)
        else:
            values = rng.normal(size=tensor.shape) * 1.5 / np.sqrt(tensor.shape[1])
        state[name] = torch.from_numpy(values.astype(np.float32))
    network.load_state_dict(state)
    return network.eval()


def reference(network: DSMR, ids: NDArray[np.integer], start: int = 0) -> NDArray[np.float64]:
    """Logits [S, V] by the independent numpy forward, in float64."""
    config = network.config
    return forward(
        {name: tensor.numpy() for name, tensor in network.state_dict().items()},
        ids,  # type: ignore[arg-type]
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        horizons=network.horizons,
        rope_base=config.rope_base,
        norm_eps=config.norm_eps,
        start=start,
    )


def tolerance(expected: NDArray[np.floating]) -> float:
    """The bound for float32: 1e-5 * max(1, max |logit|)."""
    return 1e-5 * max(1.0, float(np.abs(expected).max()))


def write_checkpoint(folder: Path, horizons: Sequence[int] = HORIZONS, seed: int = 0) -> Checkpoint:
    """A checkpoint folder with the default tokenizer."""
    from dsmr_export import schedule as schedules
    from dsmr_export.model import checkpoint, tokenizer

    network, schedule = random_network(horizons, seed), schedules.explicit(horizons)
    text = tokenizer.to_json(tokenizer.default_tokenizer())
    checkpoint.save(folder, network, schedule, text, about={"data": "random", "licence": "none"})
    return checkpoint.load(folder)


@contextmanager
def small_gate() -> Iterator[None]:
    """The export's own parity check on 600 tokens instead of 32,768: what it checks stays the same."""
    from dsmr_export import pack

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "GATE_PIECES", 2)
        patch.setattr(pack, "GATE_TOKENS", 300)
        yield


@contextmanager
def ready_graphs(bundle: Path) -> Iterator[list[str]]:
    """Export and quantization hand out a bundle's graphs, in no time; yields which were asked for."""
    from dsmr_export import export, quantize

    asked: list[str] = []
    manifest = json.loads((bundle / "manifest.json").read_text())
    applied = manifest["graphs"]["int8"]["quantization"]["tensors"]

    def graph(network: object, ops: str, path: Path, *_: object) -> None:
        asked.append(path.name)
        path.write_bytes((bundle / path.name).read_bytes())

    def int8(source: Path, target: Path, *_: object) -> list[quantize.TensorError]:
        graph(None, "fused", target)
        return [
            quantize.TensorError(name, entry["type"], None, entry["sqnr_db"], entry["bytes"])
            for name, entry in applied.items()
        ]

    with pytest.MonkeyPatch.context() as patch, small_gate():
        patch.setattr(export, "export_graph", graph)
        patch.setattr(quantize, "quantize", int8)
        yield asked


def pack_tiny(checkpoint: Path, output: Path, **options: object) -> Packed:
    """A bundle of every graph; no gate, because random weights are harder to quantize than trained ones."""
    from dsmr_export import pack

    request: Request = pack.Request(
        **{  # type: ignore[arg-type]
            "output": output,
            "checkpoint": checkpoint,
            "ops": ("fused", "portable"),
            "gate": False,
            **options,
        }
    )
    return pack.pack(request)
