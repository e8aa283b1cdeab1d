"""Two operations carried out by onnxruntime's fused kernels: symbolic nodes during a `fused` export.

Nothing here computes: `torch.onnx.ops.symbolic_multi_out` records a node with given output shapes, and `run`
of the network reaches these functions only when it is handed `FusedWindows`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

NORM_VERSION = 1
GQA_VERSION = 1


@dataclass
class FusedWindows:
    """The host's inputs to GroupQueryAttention (design, section 4).

    position_ids: int64 [1, S], rows of the tables.
    seqlens_k: int32 [1], T-1. total_sequence_length: int32 [], T.
    cos, sin: float32 [R, D/2], rows 0 … S-1 = angles of this segment's absolute positions.
    """

    position_ids: Tensor
    seqlens_k: Tensor
    total_sequence_length: Tensor
    cos: Tensor
    sin: Tensor


def group_query_attention(
    qkv: Tensor, past: tuple[Tensor, Tensor], windows: FusedWindows, heads: int, horizon: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """com.microsoft.GroupQueryAttention over a sliding-window cache of C = horizon + 1 + slack rows.

    qkv: [1, S, (heads + 2·kv_heads)·D]; past: keys, values [1, kv_heads, C, D].
    Returns [1, S, heads·D] and the present, shaped as the past.
    """
    kv_heads, width = past[0].shape[1], past[0].shape[3]
    attended, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (
            qkv,
            None,
            None,
            past[0],
            past[1],
            windows.seqlens_k,
            windows.total_sequence_length,
            windows.cos,
            windows.sin,
            windows.position_ids,
        ),
        {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "local_window_size": horizon + 1,
            "sliding_window_cache": 1,
            "do_rotary": 1,
        },
        dtypes=(qkv.dtype, past[0].dtype, past[1].dtype),
        shapes=((*qkv.shape[:2], heads * width), past[0].shape, past[1].shape),
        version=GQA_VERSION,
    )
    return attended, (keys, values)


def norm(x: Tensor, module: nn.RMSNorm) -> Tensor:
    """SimplifiedLayerNormalization, which onnxruntime registers in the default domain."""
    return torch.onnx.ops.symbolic(
        "SimplifiedLayerNormalization",
        (x, module.weight),
        {"axis": -1, "epsilon": _epsilon(module), "stash_type": 1},
        dtype=x.dtype,
        shape=x.shape,
    )


def add_norm(x: Tensor, residual: Tensor, module: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """com.microsoft.SkipSimplifiedLayerNormalization: (normalized sum, sum). Outputs 1 and 2 stay unused."""
    statistics = (*x.shape[:2], 1)
    normalized, _, _, total = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::SkipSimplifiedLayerNormalization",
        (x, residual, module.weight),
        {"epsilon": _epsilon(module)},
        dtypes=(x.dtype, x.dtype, x.dtype, x.dtype),
        shapes=(x.shape, statistics, statistics, x.shape),
        version=NORM_VERSION,
    )
    return normalized, total


def _epsilon(module: nn.RMSNorm) -> float:
    assert module.eps is not None, "the network gives every norm its eps"
    return module.eps
