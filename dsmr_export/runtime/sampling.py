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
    ids, possible = _possible(logits, allowed)
    p = np.zeros(len(logits))
    if sampling.temperature == 0:
        p[ids[possible.argmax()]] = 1.0
    else:
        p[ids] = _weights(possible, sampling)
    return p / p.sum()


def sample(
    logits: NDArray[np.float32], sampling: Sampling, rng: Generator, allowed: NDArray[np.bool_] | None = None
) -> int:
    """One token id from logits [V] under a boolean mask [V]; draws once, or never at temperature 0.

    Raises DsmrError for logits that are no numbers.
    """
    ids, possible = _possible(logits, allowed)
    if sampling.temperature == 0:
        return int(ids[possible.argmax()])
    mass = _weights(possible, sampling).cumsum()
    if not mass[-1] > 0:
        raise DsmrError(
            "the logits are not numbers, so the graph's weights are damaged: export the bundle again"
        )
    # Strictly above the draw: what has probability zero is never chosen, not even by a draw of exactly 0.
    return int(ids[mass.searchsorted(rng.random() * mass[-1], side="right")])


# What costs here is calls, not arithmetic: an array of a few hundred numbers takes about as long as an empty
# one. So the ids that are not allowed are left out first, and numpy's methods are used, not its functions.


def _possible(
    logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The ids that are allowed [A], ascending, and their logits [A]."""
    if allowed is None:
        return np.arange(len(logits)), logits
    ids = allowed.nonzero()[0]
    return ids, logits.take(ids)


def _weights(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """Probabilities before they are made to add up to 1, the largest of them 1: float64, as the logits."""
    x = logits.astype(np.float64)
    x -= x.max()
    if sampling.temperature != 1:
        x /= sampling.temperature
    p: NDArray[np.float64] = np.exp(x, out=x)
    if 0 < sampling.top_k < len(p):
        edge = np.partition(p, len(p) - sampling.top_k)[len(p) - sampling.top_k]
        p[p < edge] = 0.0
    if sampling.top_p < 1.0:
        _keep_nucleus(p, sampling.top_p)
    if sampling.min_p > 0.0:
        p[p < sampling.min_p * p.max()] = 0.0
    return p


def _keep_nucleus(p: NDArray[np.float64], top_p: float) -> None:
    """Keeps, in place, the smallest set of tokens whose mass reaches top_p (Holtzman et al. 2020); of equal
    ones at its edge those with the lower ids."""
    falling = p.copy()
    falling.sort()
    falling = falling[::-1]
    mass = falling.cumsum()
    last = int(mass.searchsorted(top_p * mass[-1]))
    edge = falling[last]
    p[p < edge] = 0.0
    if last + 1 < len(p) and falling[last + 1] == edge:
        equal = (p == edge).nonzero()[0]
        p[equal[last + 1 - np.count_nonzero(p > edge) :]] = 0.0
