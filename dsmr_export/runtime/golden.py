"""Golden vectors: real tokens with the logits every graph should give, to check a device without torch."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import BundleError
from dsmr_export.manifest import Manifest
from dsmr_export.runtime.metrics import kl_divergence, top1_agreement

if TYPE_CHECKING:
    from dsmr_export.runtime.bundle import Bundle

MAX_ABS_LOGIT = 1e-3
"""Float graphs: largest difference of any logit (design, section 5)."""
KL_MEAN = 1e-3
"""Quantized graphs: mean KL in nats against the stored logits; activations round differently from CPU to
CPU."""
TOP1 = 0.97
"""Quantized graphs: least share of positions with the same most likely token."""


@dataclass(frozen=True)
class Golden:
    """`golden.npz`: input_ids int64 [N], segments int64 [K] (lengths, sum N), positions int64 [P],
    logits.GRAPH float32 [P, V]."""

    input_ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    logits: dict[str, NDArray[np.float32]]

    @classmethod
    def read(cls, path: Path, manifest: Manifest) -> Golden:
        """Reads and checks the file. Raises BundleError."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path} cannot be read ({error}): export the bundle again") from error
        names = ["input_ids", "segments", "positions", *(f"logits.{graph}" for graph in manifest.graphs)]
        if missing := [name for name in names if name not in found]:
            raise BundleError(f"{path} has no {', '.join(missing)}: export the bundle again")
        ids, segments, positions = (found[name] for name in names[:3])
        logits = {graph: found[f"logits.{graph}"] for graph in manifest.graphs}
        shape = (len(positions), manifest.model.vocab_size)
        if (
            any(
                array.dtype != np.int64 or array.ndim != 1 or not array.size
                for array in (ids, segments, positions)
            )
            or segments.min() < 1
            or segments.sum() != len(ids)
            or not 0 <= positions.min() <= positions.max() < len(ids)
            or any(array.shape != shape or array.dtype != np.float32 for array in logits.values())
        ):
            raise BundleError(f"{path} holds arrays of the wrong shape or type: export the bundle again")
        return cls(ids, segments, positions, logits)


@dataclass(frozen=True)
class GoldenResult:
    """One graph against its stored logits; KL in nats."""

    graph: str
    positions: int
    max_abs_logit: float
    kl_mean: float
    top1: float
    passed: bool


def check_golden(
    bundle: Bundle, graph: str | None = None, threads: int | None = None, safe: bool | None = None
) -> GoldenResult:
    """Runs the golden tokens through a graph (None: the default) in their stored segments, and applies the
    pass rule.

    threads and safe: as in `Bundle.session`. Float graphs: max |difference| <= 1e-3. Quantized graphs: mean
    KL <= 1e-3 and top-1 agreement >= 0.97. Raises BundleError or GraphError when the graph cannot be run at
    all."""
    from dsmr_export.runtime.stream import Stream

    golden, name = bundle.golden, graph or bundle.default_graph
    stream = Stream(bundle, name, threads, safe=safe)
    cuts = np.cumsum(golden.segments)[:-1]
    found = np.concatenate([stream.feed(part) for part in np.split(golden.input_ids, cuts)])[golden.positions]
    expected = golden.logits[name]
    max_abs = float(np.abs(found - expected).max())
    kl = float(kl_divergence(expected, found).mean())
    top1 = top1_agreement(expected, found)
    exact = bundle.graph(name).quantization is None
    passed = max_abs <= MAX_ABS_LOGIT if exact else kl <= KL_MEAN and top1 >= TOP1
    return GoldenResult(name, len(golden.positions), max_abs, kl, top1, passed)
