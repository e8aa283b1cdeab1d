"""A checkpoint as a GGUF file that llama.cpp reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ARCHITECTURE = "arcee"
"""llama.cpp's architecture of this network's shape: RMSNorm before each half of a block, no biases, rotary
positions, grouped queries, an MLP without a gate, a tied head. Its activation is ReLU², ours GELU."""

NAMES = {
    "attention_norm": "attn_norm",
    "out": "attn_output",
    "mlp_norm": "ffn_norm",
    "up": "ffn_up",
    "down": "ffn_down",
}
"""What llama.cpp calls a layer's tensors (blk.{i}.NAME.weight); qkv is three there."""


def write(checkpoint_folder: Path, path: Path, kind: str, context: int) -> None:
    """Writes a checkpoint as GGUF. kind: F32, or Q8_0 (blocks of 32 int8 and a scale) for every matrix.

    context: the longest that the file says it was trained for. Raises CheckpointError as `checkpoint.load`.
    """
    import gguf
    from gguf import quants

    from dsmr_export.model import checkpoint

    source = checkpoint.load(checkpoint_folder)
    config = source.config
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_context_length(context)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if kind == "F32" else gguf.LlamaFileType.MOSTLY_Q8_0)
    weights = {name: tensor.numpy() for name, tensor in source.weights.items()}
    for name, array in tensors(weights, config.heads, config.kv_heads, config.head_dim).items():
        stored = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(name, quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(
    weights: Mapping[str, NDArray[np.float32]], heads: int, kv_heads: int, width: int
) -> dict[str, NDArray[np.float32]]:
    """A checkpoint's tensors under llama.cpp's names, [out, in]: all as they are but qkv, which is cut in
    three, its queries and keys in the order of llama.cpp's rotary embedding.
    """
    found = {"token_embd.weight": weights["embedding.weight"], "output_norm.weight": weights["norm.weight"]}
    for name, array in weights.items():
        if not name.startswith("layers."):
            continue
        _, layer, part, _ = name.split(".")
        if part == "qkv":
            q, k, v = np.split(array, [heads * width, (heads + kv_heads) * width])
            found[f"blk.{layer}.attn_q.weight"] = interleaved(q, width)
            found[f"blk.{layer}.attn_k.weight"] = interleaved(k, width)
            found[f"blk.{layer}.attn_v.weight"] = v
        else:
            found[f"blk.{layer}.{NAMES[part]}.weight"] = array
    return found


def interleaved(rows: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Rows [heads · D, in] of each head in the order 0, D/2, 1, D/2 + 1, …: this architecture rotates
    neighbours, ours row j with row j + D/2. Products of queries and keys stay the same.
    """
    heads = rows.reshape(-1, 2, width // 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)
