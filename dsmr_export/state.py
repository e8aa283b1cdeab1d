"""Names, shapes and bookkeeping of the recurrent state.

The one author of them: network, exporter, manifest, runtime and tests read them here.

Axes: B batch, S tokens of this segment, M cached tokens, H heads, D head width, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

SLACK = 16
"""Spare rows of every fused cache beyond its window; equal in all layers so that one period fits all."""

MAX_SEGMENT = 512
"""Most tokens that one call of a graph accepts."""

KINDS = ("key", "value")
ITEMSIZE = {"float32": 4, "int8": 1}


@dataclass(frozen=True)
class StateTensor:
    """One recurrent tensor of a graph: the past it reads and the present it writes are shaped alike.

    scale: of int8 state, one a channel, kv head by kv head: value = scale * stored. The graph holds them too.
    """

    layer: int
    kind: str
    input: str
    output: str
    shape: tuple[int, int, int, int]
    dtype: str
    horizon: int
    scale: tuple[float, ...] | None = None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class StreamRule:
    """How a host keeps the fused graph's token count T bounded on an endless stream.

    Before a segment of S tokens: if T >= wrap_at then T -= period * ((T - capacity) // period); then T += S.
    The cache layout depends on T only modulo `period` once T is past every capacity, so this changes nothing
    that the graph sees.
    """

    slack: int
    period: int
    capacity: int
    wrap_at: int
    max_segment: int
    rope_rows: int

    @classmethod
    def of(cls, horizons: Sequence[int], slack: int = SLACK, max_segment: int = MAX_SEGMENT) -> StreamRule:
        period = slack + 1
        capacity = fused_capacity(max(horizons), slack)
        return cls(
            slack=slack,
            period=period,
            capacity=capacity,
            wrap_at=capacity + period,
            max_segment=max_segment,
            rope_rows=capacity + 2 * period + max_segment,
        )

    def advance(self, total: int, segment: int) -> int:
        """T after a segment of `segment` tokens, given T before it."""
        if total >= self.wrap_at:
            total -= self.period * ((total - self.capacity) // self.period)
        return total + segment


def fused_capacity(horizon: int, slack: int = SLACK) -> int:
    """Rows C of a fused cache: the window (horizon + 1) and the slack."""
    return horizon + 1 + slack


def past_name(layer: int, kind: str) -> str:
    return f"past_key_values.{layer}.{kind}"


def present_name(layer: int, kind: str) -> str:
    return f"present.{layer}.{kind}"


def fused_state(
    horizons: Sequence[int], kv_heads: int, head_dim: int, dtype: str = "float32"
) -> tuple[StateTensor, ...]:
    """State of the `fused` graph: [1, kv_heads, C, D] per layer and kind, updated in place.

    C = horizon + 1 + slack.
    """
    return _state(horizons, [fused_capacity(h) for h in horizons], kv_heads, head_dim, dtype)


def quantized_state(
    state: Sequence[StateTensor], scales: Mapping[str, Sequence[float]]
) -> tuple[StateTensor, ...]:
    """The same tensors as int8, each with its scales [kv_heads · D], given by input name."""
    return tuple(replace(tensor, dtype="int8", scale=tuple(scales[tensor.input])) for tensor in state)


def portable_state(horizons: Sequence[int], kv_heads: int, head_dim: int) -> tuple[StateTensor, ...]:
    """State of the `portable` graph: float32 [1, kv_heads, horizon, D] per layer and kind.

    Newest last, zeros on the left.
    """
    return _state(horizons, horizons, kv_heads, head_dim, "float32")


def state_bytes(state: Sequence[StateTensor]) -> int:
    return sum(tensor.nbytes for tensor in state)


def read_bytes(state: Sequence[StateTensor]) -> int:
    """Bytes of keys and values that one token attends to when every window is full: horizon + 1 rows each."""
    return sum(tensor.nbytes * (tensor.horizon + 1) // tensor.shape[2] for tensor in state)


def _state(
    horizons: Sequence[int], rows: Sequence[int], kv_heads: int, head_dim: int, dtype: str
) -> tuple[StateTensor, ...]:
    return tuple(
        StateTensor(
            layer,
            kind,
            past_name(layer, kind),
            present_name(layer, kind),
            (1, kv_heads, m, head_dim),
            dtype,
            h,
        )
        for layer, (h, m) in enumerate(zip(horizons, rows, strict=True))
        for kind in KINDS
    )
