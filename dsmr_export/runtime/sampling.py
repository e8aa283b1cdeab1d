"""From logits to one token: temperature, then top-k, top-p and min-p on the probabilities, under a mask.

Order and meaning follow Hugging Face transformers' logits processors (temperature, top_k, top_p, min_p;
each filter sees what the one before it left, renormalised). The random generator is an argument: same
logits, settings and generator state, same token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import DsmrError

if TYPE_CHECKING:
    from numpy.random import Generator


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 = the most likely token; top_k: 0 = off; top_p: 1 = off; min_p: 0 = off. Raises
    DsmrError on others."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise DsmrError(f"temperature is {self.temperature}: give 0 (most likely token) or more")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise DsmrError(f"top_k is {self.top_k}: give a whole number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise DsmrError(f"top_p is {self.top_p}: give a probability above 0 and up to 1 (1 = all)")
        if not 0 <= self.min_p <= 1:
            raise DsmrError(f"min_p is {self.min_p}: give a share of the largest probability, 0 (all) to 1")


def probabilities(
    logits: NDArray[np.float32], sampling: Sampling, allowed: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """The distribution that `sample` draws from: float64 [V] of sum 1, zero outside `allowed` and the
    filters.

    At least one token is allowed (the grammar's promise). Ties at the edge of top-k are all kept.
    """
    x = logits.astype(np.float64)
    if allowed is not None:
        x[~allowed] = -np.inf
    x -= x.max()
    if sampling.temperature == 0:
        p = np.zeros_like(x)
        p[x.argmax()] = 1.0
        return p
    p = np.exp(x / sampling.temperature)
    if 0 < sampling.top_k < len(p):
        edge = np.partition(p, len(p) - sampling.top_k)[len(p) - sampling.top_k]
        p[p < edge] = 0.0
    if sampling.top_p < 1.0:
        _keep_nucleus(p, sampling.top_p)
    if sampling.min_p > 0.0:
        p[p < sampling.min_p * p.max()] = 0.0
    p /= p.sum()
    return p


def _keep_nucleus(p: NDArray[np.float64], top_p: float) -> None:
    """Keeps, in place, the smallest set of tokens whose mass reaches top_p (Holtzman et al. 2020)."""
    order = np.argsort(-p, kind="stable")
    mass = np.cumsum(p[order])
    kept = int(np.searchsorted(mass, top_p * mass[-1])) + 1
    p[order[kept:]] = 0.0


def sample(
    logits: NDArray[np.float32], sampling: Sampling, rng: Generator, allowed: NDArray[np.bool_] | None = None
) -> int:
    """One token id from logits [V] under a boolean mask [V]; draws once, or never at temperature 0."""
    if sampling.temperature == 0:
        return int(logits.argmax() if allowed is None else np.where(allowed, logits, -np.inf).argmax())
    mass = np.cumsum(probabilities(logits, sampling, allowed))
    # Strictly above the draw: a token of probability zero is never chosen, not even by a draw of exactly 0.
    return int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))
