"""The network: a decoder-only Transformer whose layers each keep the keys and values of their last tokens.

There is one forward definition. What differs between training, the portable graph and the fused graph is how
two operations are carried out (windowed attention over a state; add and normalize); `model/lowering.py` swaps
those two for onnxruntime's fused kernels while a `fused` graph is being exported.

Exact windows: the query at absolute position t in a layer with horizon h attends to keys t-h … t, whether
they lie in the state or in the current segment, so the logits do not depend on how a stream is cut into
segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsmr_export.model import lowering
from dsmr_export.model.config import ModelConfig

BLOCK, LONG_BLOCK, LONG = 64, 128, 1024
"""Queries that are attended together, and the horizon from which on it is LONG_BLOCK: measured, see
docs/decisions.md.
"""

LayerState = tuple[Tensor, Tensor]
"""Keys and values of one layer, [B, kv_heads, M, D] each, keys already rotated."""


@dataclass
class RecurrentState:
    """What a stream carries between segments.

    layers: one (keys, values) pair a layer, each [B, kv_heads, horizon, D], newest last; rows older than the
    stream are never read.
    position: int64 [B], absolute position of each lane's next token.
    length: int64 [B], tokens each lane has consumed since it was empty.
    """

    layers: list[LayerState]
    position: Tensor
    length: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for pair in self.layers for t in pair)

    def detach(self) -> RecurrentState:
        return RecurrentState([(k.detach(), v.detach()) for k, v in self.layers], self.position, self.length)

    def compact(self) -> RecurrentState:
        """The same in memory of its own: what the network returns is the end of a longer tensor.

        That one would stay whole beside the next segment's, and a compiled network would be compiled again
        for its layout.
        """
        return RecurrentState(
            [(k.contiguous(), v.contiguous()) for k, v in self.layers], self.position, self.length
        )

    def reset(self, lanes: Tensor) -> RecurrentState:
        """The state with the lanes that a bool [B] marks emptied: their old rows stay, but are never read."""
        return RecurrentState(
            self.layers, self.position.masked_fill(lanes, 0), self.length.masked_fill(lanes, 0)
        )


@dataclass
class Windows:
    """What windowed attention needs to know besides the layer: rotary tables, and how much state is real.

    cos, sin: [B or 1, 1, S, D/2], angles of this segment's absolute positions.
    past_length: int64 [B], tokens consumed before it.
    ages: the same as plain numbers, where reading them costs nothing; None elsewhere.
    """

    cos: Tensor
    sin: Tensor
    past_length: Tensor
    ages: list[int] | None = None
    bands: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Masks that lanes, blocks and layers share (`_band`), by block and horizon."""


def rope_tables(position: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., D/2] of angle = position · base^(-2j/D) for int64 positions [...].

    Computed in float64 and cast: a float32 angle at position 10^9 would be off by tens of radians.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=position.device) / head_dim
    angle = position.to(torch.float64)[..., None] * base**-exponent
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves (pairs j and j + D/2) of x [B, H, S, D]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def windowed_attention(
    qkv: Tensor, past: LayerState, windows: Windows, heads: int, horizon: int
) -> tuple[Tensor, LayerState]:
    """Attention of a segment over the state and itself, each query over its own window.

    qkv: [B, S, (heads + 2·kv_heads)·D], all q heads, then k, then v.
    past: keys, values [B, kv_heads, horizon, D].
    Returns the attended values [B, S, heads·D] and the new state, shaped as the past.
    """
    kv_heads, rows, width = past[0].shape[1:]
    q, k, v = (
        part.unflatten(-1, (-1, width)).transpose(1, 2)
        for part in qkv.split((heads * width, kv_heads * width, kv_heads * width), dim=-1)
    )
    # Under autocast the tables are wider than the products: rotated in their width, kept in that of v.
    q, k = (rotate(part, windows.cos, windows.sin).to(v.dtype) for part in (q, k))
    keys, values = (torch.cat((old.to(v.dtype), new), dim=2) for old, new in zip(past, (k, v), strict=True))
    if torch.compiler.is_exporting():
        attended = _attend(q, keys, values, _window_mask(q.shape[2], horizon, windows.past_length))
    else:
        attended = _attend_blocks(q, keys, values, windows, horizon)
    # keys[:, :, -rows:] as a start index, which the exporter can express for any S
    start = keys.shape[2] - rows
    return attended.transpose(1, 2).flatten(2), (keys[:, :, start:], values[:, :, start:])


def _window_mask(length: int, horizon: int, past_length: Tensor) -> Tensor:
    """Which of the horizon + S keys each of S queries sees: bool [B, 1, S, horizon + S]."""
    query = torch.arange(length, device=past_length.device)[:, None]
    # 0 = first token of the segment
    key = torch.arange(horizon + length, device=past_length.device)[None, :] - horizon
    window = (key <= query) & (key >= query - horizon)
    return window & (key >= -past_length[:, None, None, None])


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Grouped-query attention: q [B, H, S, D] over keys, values [B, kv_heads, M, D], mask [B, 1, S, M]."""
    group = q.shape[1] // keys.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


def _attend_blocks(q: Tensor, keys: Tensor, values: Tensor, windows: Windows, horizon: int) -> Tensor:
    """As `_attend` over all keys, but each block of queries reads only the horizon + block keys it can see.

    So no mask is larger than that. Where the lanes' ages are known, neighbours of one age go together, keys
    from before their stream are left out instead of masked, and what is left of the mask is the same band for
    all of them.
    """
    if windows.ages is None:
        return _attend_lanes(q, keys, values, windows, horizon)
    unread = [(rows, len(list(lanes))) for rows, lanes in groupby(max(0, horizon - n) for n in windows.ages)]
    if len(unread) == 1:
        return _attend_lanes(q, keys, values, windows, horizon, unread[0][0])
    # split, not slices: its gradient is one concatenation, not a padded copy for each part
    counts = [count for _, count in unread]
    parts = zip(unread, q.split(counts), keys.split(counts), values.split(counts), strict=True)
    return torch.cat([_attend_lanes(a, k, v, windows, horizon, rows) for (rows, _), a, k, v in parts])


def _attend_lanes(
    q: Tensor, keys: Tensor, values: Tensor, windows: Windows, horizon: int, unread: int | None = None
) -> Tensor:
    """unread: how many of the oldest rows are from before the stream; None: past_length says it, by lane."""
    batch, heads, length, width = q.shape
    kv_heads, block, parts = keys.shape[1], BLOCK if horizon < LONG else LONG_BLOCK, []
    group = heads // kv_heads
    for start in range(0, length, block):
        size = min(block, length - start)
        first, last = max(start, unread or 0), start + horizon + size
        if unread is None:
            mask = _window_mask(size, horizon, windows.past_length + start).repeat(1, 1, group, 1)
        else:
            mask = _band(windows, size, horizon, group, q)[:, first - start :]
        # The heads that share keys become further queries of one head: no key is repeated.
        folded = q[:, :, start : start + size].reshape(batch, kv_heads, -1, width)
        attended = F.scaled_dot_product_attention(
            folded,
            keys[:, :, first:last],
            values[:, :, first:last],
            attn_mask=mask,
        )
        parts.append(attended.reshape(batch, heads, size, width))
    return torch.cat(parts, dim=2)


def _band(windows: Windows, size: int, horizon: int, group: int, like: Tensor) -> Tensor:
    """What the mask adds to the scores if no row is from before the stream: [group·size, horizon + size]."""
    found = windows.bands.get((size, horizon))
    if found is None:
        ones = torch.ones(size, horizon + size, dtype=torch.bool, device=like.device)
        outside = ~ones.triu().tril(horizon)
        found = torch.zeros_like(ones, dtype=like.dtype).masked_fill(outside, -torch.inf).repeat(group, 1)
        windows.bands[size, horizon] = found
    return found


class Layer(nn.Module):
    """One pre-norm block; the network applies the norms, each fused with the residual sum before it."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        width = config.head_dim
        self.heads = config.heads
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.qkv = nn.Linear(config.d_model, (config.heads + 2 * config.kv_heads) * width, bias=False)
        self.out = nn.Linear(config.heads * width, config.d_model, bias=False)
        self.mlp_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def attend(
        self, x: Tensor, past: LayerState, windows: Windows | lowering.FusedWindows, horizon: int
    ) -> tuple[Tensor, LayerState]:
        qkv = self.qkv(x)
        if isinstance(windows, lowering.FusedWindows):
            attended, present = lowering.group_query_attention(qkv, past, windows, self.heads, horizon)
        else:
            attended, present = windowed_attention(qkv, past, windows, self.heads, horizon)
        return self.dropout(self.out(attended)), present

    def mlp(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.gelu(self.up(x), approximate="tanh")))


class DSMR(nn.Module):
    """Depth-Structured Music Recurrence (arXiv 2602.19816v2) with exact windows.

    Raises ValueError if the schedule has another number of layers than the config.
    """

    def __init__(self, config: ModelConfig, horizons: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        if len(horizons) != config.layers:
            raise ValueError(f"{len(horizons)} horizons for {config.layers} layers")
        self.config = config
        self.horizons = tuple(horizons)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(dropout)

    def initialize(self, generator: torch.Generator) -> None:
        """GPT-2's initialization: normal(0, 0.02), residual projections scaled by 1/sqrt(2·layers)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(
                    parameter,
                    std=0.02 / ((2 * self.config.layers) ** 0.5 if residual else 1),
                    generator=generator,
                )

    def empty_state(
        self, batch: int = 1, position: int = 0, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        """State of a stream that has read nothing; `position` moves its origin.

        dtype: of keys and values, by default the weights'. Under autocast the network keeps a state in
        autocast's dtype whatever it is given; to begin with that one saves the first, wider state.
        """
        weight, config = self.embedding.weight, self.config
        layers = [
            (
                weight.new_zeros(batch, config.kv_heads, h, config.head_dim, dtype=dtype),
                weight.new_zeros(batch, config.kv_heads, h, config.head_dim, dtype=dtype),
            )
            for h in self.horizons
        ]
        start = torch.full((batch,), position, dtype=torch.int64, device=weight.device)
        return RecurrentState(layers, start, torch.zeros_like(start))

    def forward(self, input_ids: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Reads one segment: input_ids int64 [B, S], S >= 1 → logits [B, S, V] and the state after it.

        The past is detached: gradients stop at the segment's start.
        """
        state = state.detach()
        position = state.position[:, None] + torch.arange(input_ids.shape[1], device=input_ids.device)
        cos, sin = rope_tables(
            position, self.config.head_dim, self.config.rope_base, self.embedding.weight.dtype
        )
        # A list that is read on the host: free on a CPU, a wait on a GPU, another graph for a compiler.
        known = state.length.device.type == "cpu" and not torch.compiler.is_compiling()
        windows = Windows(cos[:, None], sin[:, None], state.length, state.length.tolist() if known else None)
        logits, layers = self.run(input_ids, state.layers, windows)
        consumed = input_ids.shape[1]
        return logits, RecurrentState(layers, state.position + consumed, state.length + consumed)

    def run(
        self, input_ids: Tensor, past: Sequence[LayerState], windows: Windows | lowering.FusedWindows
    ) -> tuple[Tensor, list[LayerState]]:
        """The forward definition itself, shared by training and both lowerings.

        input_ids [B, S] → logits [B, S, V] and the layers' new keys and values.
        """
        add_norm = lowering.add_norm if isinstance(windows, lowering.FusedWindows) else _add_norm
        first_norm = lowering.norm if isinstance(windows, lowering.FusedWindows) else _norm
        blocks = cast(list[Layer], list(self.layers))  # a ModuleList does not say what it holds
        after = [*(layer.attention_norm for layer in blocks[1:]), self.norm]
        present: list[LayerState] = []
        residual = self.dropout(self.embedding(input_ids))
        x = first_norm(residual, blocks[0].attention_norm)
        for layer, layer_past, horizon, next_norm in zip(blocks, past, self.horizons, after, strict=True):
            attended, layer_present = layer.attend(x, layer_past, windows, horizon)
            present.append(layer_present)
            x, residual = add_norm(attended, residual, layer.mlp_norm)
            x, residual = add_norm(layer.mlp(x), residual, next_norm)
        return x @ self.embedding.weight.T, present


def _norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    return norm(x)


def _add_norm(x: Tensor, residual: Tensor, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """Adds to the residual stream and normalizes the sum: (normalized, sum)."""
    total = x + residual
    return norm(total), total
