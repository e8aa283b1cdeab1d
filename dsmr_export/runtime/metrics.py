"""How far two sets of logits are apart, in float64; parity, evaluation and the golden vectors share it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

POSITION_EDGES = (0, 1024, 4096, 8192, 16384, 24576, 32768)
"""Bins of `by_position`, in predicted tokens from the start of a piece (0 is the first after BOS); the last
one has no end."""


def log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Natural log-probabilities of logits [..., V], computed in float64."""
    x = np.asarray(logits, dtype=np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    normalized: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return normalized


def kl_divergence(reference: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """KL(reference || other) in nats at each position, of logits [..., V] -> [...]; 0 where they agree."""
    p, q = log_softmax(reference), log_softmax(other)
    # The exact value is never negative; rounding can be, by about 1e-16.
    divergence: NDArray[np.float64] = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return divergence


def nll(logits: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Negative log-likelihood in nats of `targets` [...] (integer ids) under logits [..., V] -> [...].

    Perplexity = exp(mean of this).
    """
    index = np.asarray(targets, dtype=np.int64)[..., None]
    return -np.take_along_axis(log_softmax(logits), index, axis=-1)[..., 0]


def top1_agreement(reference: ArrayLike, other: ArrayLike) -> float:
    """Share of positions at which logits [..., V] have the same largest entry."""
    same = np.asarray(reference).argmax(axis=-1) == np.asarray(other).argmax(axis=-1)
    return float(np.mean(same))


def position_bins() -> list[tuple[int, int | None]]:
    """(from, to) of every bin of `by_position`; `to` is None in the last one."""
    return list(zip(POSITION_EDGES, (*POSITION_EDGES[1:], None), strict=True))
