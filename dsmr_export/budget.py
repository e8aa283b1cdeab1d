"""What a bundle needs on a device, before it is made: file, memory, bytes read per token, and what would fit.

Sizes of files and states follow from shapes. What Python and onnxruntime take, and how much of a file stays
in memory, was measured (scripts/measure_memory.py prints it, tests/test_budget.py compares estimate and
process)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsmr_export import quantize
from dsmr_export import schedule as schedules
from dsmr_export.errors import ScheduleError, TargetError
from dsmr_export.export import EMBEDDING, HEAD
from dsmr_export.manifest import ModelShape
from dsmr_export.quantize import EMBEDDING_BLOCK, FLOAT, INT8, GraphRecipe, block_of
from dsmr_export.runtime.play import PROMPT_SEGMENT
from dsmr_export.runtime.selection import suits
from dsmr_export.schedule import Schedule
from dsmr_export.state import fused_state, read_bytes, state_bytes
from dsmr_export.targets.loader import BITS, Target

MB = 1_000_000
RUNTIME_BYTES = 54 * MB
"""Resident: Python, numpy, onnxruntime, this package's runtime and command line."""
SESSION_BYTES = 20 * MB
"""Resident: an onnxruntime session beside its weights."""
RESIDENT = {"float": 1.3, "dynamic": 2.3, "block": 1.8}
"""Peak of a session per byte of stored weights, by kernel: onnxruntime packs a copy of them while it
loads."""
GRAPH_BYTES, LAYER_BYTES = 3_000, 3_600
"""Of a file: names, nodes, inputs and outputs of the graph, and of each layer."""
SCORE_COPIES = 2.5
"""Attention without the flash kernel keeps whole score matrices of a segment: so many float32 copies."""


@dataclass(frozen=True)
class Needs:
    """What one graph takes on a device, in bytes.

    file: on disk. weights: resident, packing copies included. runtime: Python, onnxruntime and the session.
    workspace: of a prompt's longest segment. weights_read, state_read: by each token, every window full.
    """

    graph: str
    file: int
    weights: int
    state: int
    workspace: int
    runtime: int
    weights_read: int
    state_read: int

    @property
    def memory(self) -> int:
        """All that has to be in memory at once."""
        return self.weights + self.state + self.workspace + self.runtime

    @property
    def read(self) -> int:
        """Bytes that a token reads from memory, if no cache held any of them."""
        return self.weights_read + self.state_read


def needs(
    shape: ModelShape, horizons: Sequence[int], graph: str, recipe: GraphRecipe | None, target: Target
) -> Needs:
    """Of a fused graph; recipe None = fp32 (or portable, whose state is a little smaller and kept twice)."""
    shapes = matrix_shapes(shape)
    stored, read = {}, {}
    if recipe is None:
        kernel, plan, state_type = FLOAT, dict.fromkeys(shapes, FLOAT), "float32"
    else:
        kernel, state_type = recipe.weights.kernel, recipe.state
        plan = dict(recipe.plan or quantize.default_plan(recipe.weights, shapes))
    for name, (rows, columns) in shapes.items():
        block = recipe.weights.block_size if recipe else None
        stored[name] = _matrix_bytes(name, rows, columns, plan[name], block)
        read[name] = stored[name] // rows if name == EMBEDDING else stored[name]
    if plan[HEAD] == FLOAT == plan[EMBEDDING]:
        stored[HEAD] = 0  # the embedding's own bytes, read again
    state = fused_state(horizons, shape.kv_heads, shape.head_dim, state_type)
    copies = 1 if graph != "portable" else 2
    norms = 4 * (2 * shape.layers + 1) * shape.d_model
    weights = sum(stored.values()) + norms
    return Needs(
        graph=graph,
        file=weights + GRAPH_BYTES + LAYER_BYTES * shape.layers,
        weights=int(weights * RESIDENT[kernel]),
        state=copies * state_bytes(state),
        workspace=_workspace(shape, horizons, target),
        runtime=RUNTIME_BYTES + SESSION_BYTES,
        weights_read=sum(read.values()) + norms,
        state_read=read_bytes(state),
    )


def matrix_shapes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """(K, N) of every product by its weight's name, and (V, d_model) of the embedding."""
    heads = shape.heads * shape.head_dim
    shapes = {EMBEDDING: (shape.vocab_size, shape.d_model)}
    for layer in range(shape.layers):
        shapes |= {
            f"layers.{layer}.qkv.weight": (shape.d_model, heads + 2 * shape.kv_heads * shape.head_dim),
            f"layers.{layer}.out.weight": (heads, shape.d_model),
            f"layers.{layer}.up.weight": (shape.d_model, shape.d_ff),
            f"layers.{layer}.down.weight": (shape.d_ff, shape.d_model),
        }
    return shapes | {HEAD: (shape.d_model, shape.vocab_size)}


def require(found: Needs, shape: ModelShape, target: Target) -> None:
    """Raises TargetError, with the numbers and with what would fit, where a bundle does not fit its
    target."""
    if fits(found, target):
        return
    raise TargetError(f"{sentence(found, target)}: it does not fit; {_advice(shape, target)}")


def largest_two_scale(shape: ModelShape, limit: int, state_type: str) -> Schedule:
    """The two_scale schedule with the largest budget whose state, spare rows included, takes at most `limit`.

    Raises ScheduleError where not even the smallest does.
    """

    def inside(tokens: int) -> bool:
        horizons = schedules.build("two_scale", shape.layers, tokens).horizons
        return state_bytes(fused_state(horizons, shape.kv_heads, shape.head_dim, state_type)) <= limit

    least = schedules.FLOOR * shape.layers
    tokens = _largest(least, inside)
    if tokens is None:
        horizons = schedules.build("two_scale", shape.layers, least).horizons
        smallest = state_bytes(fused_state(horizons, shape.kv_heads, shape.head_dim, state_type))
        raise ScheduleError(
            f"--budget-bytes {limit:,} is too small: {shape.layers} layers of at least "
            f"{schedules.FLOOR} tokens take {smallest:,} bytes as {state_type}; give that, "
            "or a list as --schedule"
        )
    return schedules.build("two_scale", shape.layers, tokens)


def sentence(found: Needs, target: Target) -> str:
    """One line: what the target has for us, and what of it goes where."""
    parts = {
        "Python and onnxruntime": found.runtime,
        "weights": found.weights,
        "recurrent state": found.state,
        "workspace": found.workspace,
    }
    listed = ", ".join(f"{text} {size / MB:,.1f}" for text, size in parts.items())
    memory, room = f"{found.memory / MB:,.0f}", f"{target.memory.for_us_mb:,} MB"
    return (
        f"{target.name}: {found.graph} needs about {memory} of {room} ({listed}); "
        f"its file {found.file / MB:,.2f} MB"
    )


def tokens_per_s(found: Needs, target: Target) -> float:
    """An estimate, and an upper bound: the target's published memory bandwidth over the bytes a token
    reads."""
    return target.memory.bandwidth_gb_per_s * 1e9 / found.read


def alternatives(
    shape: ModelShape, budget_tokens: int, graph: str, recipe: GraphRecipe | None, target: Target
) -> Iterator[tuple[Schedule, Needs]]:
    """two_scale of several budgets around this one, each with what it needs: rows of a table."""
    least = schedules.FLOOR * shape.layers
    budgets = (budget_tokens // 4, budget_tokens // 2, budget_tokens, 2 * budget_tokens, 4 * budget_tokens)
    for tokens in sorted({max(least, tokens) for tokens in budgets}):
        schedule = schedules.build("two_scale", shape.layers, tokens)
        yield schedule, needs(shape, schedule.horizons, graph, recipe, target)


def as_json(rows: Sequence[tuple[Schedule, Needs]], target: Target) -> dict[str, Any]:
    """The first row is what was asked for, the others are alternatives."""

    def plain(schedule: Schedule, found: Needs) -> dict[str, Any]:
        return {
            "schedule": schedule.text,
            "budget_tokens": schedule.budget_tokens,
            **asdict(found),
            "memory": found.memory,
            "read": found.read,
            "tokens_per_s_estimate": tokens_per_s(found, target),
            "fits": fits(found, target),
        }

    own, *others = (plain(*row) for row in rows)
    return {**own, "target": target.name, "for_us": target.memory.for_us_mb * MB, "alternatives": others}


def fits(found: Needs, target: Target) -> bool:
    """Whether the target has the memory."""
    return found.memory <= target.memory.for_us_mb * MB


def caveat(target: Target) -> str:
    """What the estimate of tokens per second is worth."""
    return (
        f"tokens/s: an estimate and an upper bound, {target.memory.bandwidth_gb_per_s:g} GB/s over the "
        f"bytes that a token reads; the source of that bandwidth: dsmr targets {target.name}"
    )


def _matrix_bytes(name: str, rows: int, columns: int, level: str, block_size: int | None) -> int:
    """Values and scales of a product [K, N], or of the embedding [V, K]."""
    if level == FLOAT:
        return 4 * rows * columns
    if name == EMBEDDING:
        return rows * columns + 4 * rows * (columns // block_of(columns, EMBEDDING_BLOCK))
    if block_size is None:  # a scale and a zero point a column
        return rows * columns + 5 * columns
    block = block_of(rows, block_size)
    blocks = -(-rows // block)
    return columns * blocks * (block * BITS[level] // 8 + 4)


def _workspace(shape: ModelShape, horizons: Sequence[int], target: Target) -> int:
    """Of a prompt's segment: activations and logits, and scores where the flash kernel is off."""
    width = 2 * shape.d_ff + 4 * shape.d_model + 3 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    activations = 4 * PROMPT_SEGMENT * (width + 2 * shape.vocab_size)
    whole = any("ORT_GQA_DISABLE_FLASH_ATTENTION" in names for names in target.session.environment.values())
    scores = 4 * shape.heads * PROMPT_SEGMENT * (max(horizons) + PROMPT_SEGMENT)
    return activations + (int(SCORE_COPIES * scores) if whole else 0)


def _advice(shape: ModelShape, target: Target) -> str:
    """What would fit: the largest two_scale beside each recipe's weights that all the target's CPUs run."""
    fitting = []
    for name, weights in target.recipes.items():
        if not suits(weights.requires, target.cpu.features):
            continue
        for state, option in (("float32", "none"), (INT8, "int8")):
            schedule = _largest_inside(shape, name, GraphRecipe(weights, state), target)
            if schedule is not None:
                options = f"--quantize {name}" + (
                    "" if state == weights.state else f" --quantize-state {option}"
                )
                fitting.append(f"{options} --schedule two_scale --budget {schedule.budget_tokens}")
    if not fitting:
        return "no schedule or quantization of this model does: take a smaller model or a larger target"
    return "what would fit: " + "; or ".join(fitting)


def _largest_inside(shape: ModelShape, graph: str, recipe: GraphRecipe, target: Target) -> Schedule | None:
    """The largest two_scale with which a graph fits its target, or None."""

    def inside(tokens: int) -> bool:
        horizons = schedules.build("two_scale", shape.layers, tokens).horizons
        return fits(needs(shape, horizons, graph, recipe, target), target)

    tokens = _largest(schedules.FLOOR * shape.layers, inside)
    return None if tokens is None else schedules.build("two_scale", shape.layers, tokens)


def _largest(low: int, inside: Callable[[int], bool]) -> int | None:
    """The largest whole number from `low` on that is inside, where all below one that is are inside too."""
    if not inside(low):
        return None
    high = 2 * low
    while inside(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return low
