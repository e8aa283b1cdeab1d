"""What the architecture implies before anything runs: parameters, bytes and multiply-adds of one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsmr_export import schedule as schedules
from dsmr_export.bench.limit import weights_read
from dsmr_export.errors import ScheduleError
from dsmr_export.manifest import ModelShape
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.state import fused_state, read_bytes


@dataclass(frozen=True)
class Arithmetic:
    """Multiply-adds of one token, every window full. Norms, rotations and activations are left out.

    products: one for each weight of a matrix, the head among them. attention: for each layer two for each
    channel of each head and key (scores, and the weighted sum of values), horizon + 1 keys.
    """

    products: int
    attention: int

    @classmethod
    def of(cls, shape: ModelShape, horizons: Sequence[int]) -> Arithmetic:
        keys = sum(horizon + 1 for horizon in horizons)
        return cls(_matrices(shape), 2 * shape.heads * shape.head_dim * keys)

    @property
    def total(self) -> int:
        return self.products + self.attention


def parameters(shape: ModelShape) -> int:
    """Weights of the model: every matrix once (the head is the embedding), and the norms."""
    return _matrices(shape) + (2 * shape.layers + 1) * shape.d_model


def _matrices(shape: ModelShape) -> int:
    heads, kv = shape.heads * shape.head_dim, 2 * shape.kv_heads * shape.head_dim
    layer = shape.d_model * (heads + kv) + heads * shape.d_model + 2 * shape.d_model * shape.d_ff
    return shape.layers * layer + shape.vocab_size * shape.d_model


def card(bundle: Bundle) -> dict[str, Any]:
    """{parameters, layers, d_model, heads, kv_heads, head_dim, d_ff, vocab_size, schedule, horizons,
    budget_tokens, multiply_adds {products, attention, total}, graphs: {name: {file_bytes, state_bytes,
    weights_read_bytes, state_read_bytes}}, schedules: rows as ``at_budget`` gives them}.

    *_read_bytes: of one token, every window full.
    """
    manifest = bundle.manifest
    shape, schedule = manifest.model, manifest.schedule
    found = Arithmetic.of(shape, schedule.horizons)
    sizes = ("layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab_size")
    graphs = {}
    for name, graph in manifest.graphs.items():
        graphs[name] = {
            "file_bytes": graph.bytes,
            "state_bytes": graph.state_bytes,
            "weights_read_bytes": weights_read(bundle, name),
            "state_read_bytes": read_bytes(graph.state),
        }
    return {
        "parameters": parameters(shape),
        **{size: getattr(shape, size) for size in sizes},
        "schedule": schedule.name,
        "horizons": list(schedule.horizons),
        "budget_tokens": schedule.budget_tokens,
        "multiply_adds": {
            "products": found.products,
            "attention": found.attention,
            "total": found.total,
        },
        "graphs": graphs,
        "schedules": at_budget(shape, schedule.budget_tokens),
    }


def at_budget(shape: ModelShape, budget_tokens: int) -> list[dict[str, Any]]:
    """Every named schedule at one budget: {schedule, horizons, state_read_bytes (float32), multiply_adds}.

    Those that cannot divide this budget over this depth are left out.
    """
    rows = []
    for name in schedules.NAMES:
        try:
            schedule = schedules.build(name, shape.layers, budget_tokens)
        except ScheduleError:
            continue
        state = fused_state(schedule.horizons, shape.kv_heads, shape.head_dim)
        rows.append(
            {
                "schedule": name,
                "horizons": list(schedule.horizons),
                "budget_tokens": schedule.budget_tokens,
                "state_read_bytes": read_bytes(state),
                "multiply_adds": Arithmetic.of(shape, schedule.horizons).total,
            }
        )
    return rows
