"""The network's step of one token in plain operators, and the state that other runtimes begin with.

What a person would export who has the network and no knowledge of any runtime: keys and values go in as
inputs and come out as outputs, concatenated with the new token's and cut to the layer's horizon.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsmr_export import schedule as schedules
from dsmr_export.bench.peers import Work
from dsmr_export.model import checkpoint
from dsmr_export.model.network import DSMR, Layer, rotate
from dsmr_export.state import KINDS, past_name, present_name

SEGMENT = 512


class OneToken(nn.Module):
    """The step: input_ids, position_ids int64 [1, 1] and 2·L of past [1, kv_heads, h, D], all rows real
    → logits [1, 1, V] and as much present. Every window is full, so there is no mask.

    The angles are computed from the position in float32, as in Hugging Face's Llama.
    """

    frequency: Tensor

    def __init__(self, network: DSMR) -> None:
        super().__init__()
        self.network = network
        config = network.config
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        self.register_buffer("frequency", (config.rope_base**-exponent).float())

    def forward(self, input_ids: Tensor, position_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        network = self.network
        angle = position_ids[:, None, :, None].float() * self.frequency
        cos, sin = angle.cos(), angle.sin()
        x = network.embedding(input_ids)
        present: list[Tensor] = []
        for index, layer in enumerate(network.layers):
            assert isinstance(layer, Layer)
            keys, values = past[2 * index : 2 * index + 2]
            attended, keys, values = _attend(layer, layer.attention_norm(x), keys, values, cos, sin)
            present += [keys, values]
            x = x + attended
            x = x + layer.mlp(layer.mlp_norm(x))
        return (F.linear(network.norm(x), network.embedding.weight), *present)


def _attend(
    layer: Layer, x: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    kv_heads, horizon, width = keys.shape[1:]
    q, k, v = (
        part.unflatten(-1, (-1, width)).transpose(1, 2)
        for part in layer.qkv(x).split((layer.heads * width, kv_heads * width, kv_heads * width), dim=-1)
    )
    keys = torch.cat((keys, rotate(k, cos, sin)), dim=2)
    values = torch.cat((values, v), dim=2)
    # The heads that share keys are further queries of one head: no key is repeated.
    queries = rotate(q, cos, sin).reshape(1, kv_heads, -1, width) * width**-0.5
    weight = (queries @ keys.transpose(2, 3)).softmax(dim=-1)
    attended = (weight @ values).reshape(1, 1, -1)
    return layer.out(attended), keys[:, :, 1:], values[:, :, 1:]


def module(work: Work) -> tuple[OneToken, tuple[Tensor, Tensor, list[Tensor]]]:
    """The step of the work's weights and horizons, and example inputs of it."""
    network = checkpoint.load(work.checkpoint).network(schedules.explicit(work.horizons))
    past = [tensor for pair in network.empty_state().layers for tensor in pair]
    return OneToken(network).eval(), (torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), past)


def write_onnx(work: Work, path: Path) -> None:
    """The step as an ONNX file by torch's exporter, at its own opset; named as Optimum names a decoder."""
    from dsmr_export.export import IR_VERSION, quiet

    step, examples = module(work)
    names = [(layer, kind) for layer in range(len(work.horizons)) for kind in KINDS]
    with quiet():
        program = torch.onnx.export(
            step,
            examples,
            dynamo=True,
            input_names=["input_ids", "position_ids", *(past_name(*name) for name in names)],
            output_names=["logits", *(present_name(*name) for name in names)],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.model_proto.ir_version = min(program.model_proto.ir_version, IR_VERSION)
    path.write_bytes(program.model_proto.SerializeToString())


def write_state(work: Work, path: Path) -> None:
    """The state after all of the work's ids, by the network, as npz: arrays [1, kv_heads, h, D] by the past's
    names.
    """
    network = checkpoint.load(work.checkpoint).network(schedules.explicit(work.horizons))
    state = network.empty_state()
    with torch.no_grad():
        for part in torch.from_numpy(work.ids)[None].split(SEGMENT, dim=1):
            _, state = network(part, state)
    arrays = {
        past_name(layer, kind): tensor.contiguous().numpy()
        for layer, pair in enumerate(state.layers)
        for kind, tensor in zip(KINDS, pair, strict=True)
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]
