"""An independent forward of the network in plain numpy, written from docs/checkpoint.md alone.

One pass over the whole sequence, attention one token at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def forward(
    weights: Mapping[str, NDArray[np.floating]],
    ids: Sequence[int],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    horizons: Sequence[int],
    rope_base: float,
    norm_eps: float,
    start: int = 0,
) -> Array:
    """Logits [S, V] in float64 of the whole sequence `ids` [S], whose first token stands at `start`."""
    w = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in weights.items()}
    positions = np.arange(start, start + len(ids))
    x = w["embedding.weight"][np.asarray(ids)]
    for layer, horizon in enumerate(horizons):
        p = f"layers.{layer}."
        qkv = rms_norm(x, w[p + "attention_norm.weight"], norm_eps) @ w[p + "qkv.weight"].T
        q, k, v = np.split(qkv, [heads * head_dim, (heads + kv_heads) * head_dim], axis=1)
        attended = np.zeros((len(ids), heads * head_dim))
        for head in range(heads):
            columns = slice(head * head_dim, (head + 1) * head_dim)
            shared = head // (heads // kv_heads)
            kv_columns = slice(shared * head_dim, (shared + 1) * head_dim)
            queries = rope(q[:, columns], positions, rope_base)
            keys = rope(k[:, kv_columns], positions, rope_base)
            for t in range(len(ids)):
                window = slice(max(0, t - horizon), t + 1)
                scores = keys[window] @ queries[t] / np.sqrt(head_dim)
                weight = np.exp(scores - scores.max())
                attended[t, columns] = weight @ v[window, kv_columns] / weight.sum()
        x = x + attended @ w[p + "out.weight"].T
        hidden = rms_norm(x, w[p + "mlp_norm.weight"], norm_eps) @ w[p + "up.weight"].T
        x = x + gelu(hidden) @ w[p + "down.weight"].T
    return rms_norm(x, w["norm.weight"], norm_eps) @ w["embedding.weight"].T


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def gelu(x: Array) -> Array:
    """The tanh form (Hendrycks and Gimpel, arXiv 1606.08415)."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rope(x: Array, positions: NDArray[np.int64], base: float) -> Array:
    """Rotates pairs (j, j + D/2) of x [S, D] by position · base^(-2j/D) (Su et al., arXiv 2104.09864)."""
    half = x.shape[1] // 2
    angle = positions[:, None] * base ** (-2.0 * np.arange(half) / x.shape[1])
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate(
        [x[:, :half] * cos - x[:, half:] * sin, x[:, half:] * cos + x[:, :half] * sin], axis=1
    )
