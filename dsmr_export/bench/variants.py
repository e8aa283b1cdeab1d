"""Graphs of other horizons, schedules and sizes, to measure speed on.

A `rescheduled` bundle has the very weights of another one: horizons are an attribute of each attention and
the rows of its state, so its graphs are rewritten, not exported. A `sized` bundle has random weights,
straight from the exporter and the quantizers, under the recipes of another bundle. Neither is checked for
parity; the golden vectors say what the graphs gave when they were made.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from dsmr_export import export, quantize, quantize_state
from dsmr_export.errors import DsmrError
from dsmr_export.manifest import MANIFEST, FileEntry, GraphEntry, Manifest, ModelShape, ScheduleEntry
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.network import DSMR
from dsmr_export.quantize import GraphRecipe
from dsmr_export.runtime.bundle import Bundle, file_sha256, write_sums
from dsmr_export.runtime.stream import Stream
from dsmr_export.state import StreamRule, fused_capacity, quantized_state
from dsmr_export.targets.loader import BITS, Recipe

STATE_SCALE = 0.03
"""Of int8 state that is not calibrated, every channel: what a step costs does not depend on scales."""
GOLDEN_TOKENS = 32


def rescheduled(bundle: Bundle, graphs: Iterable[str], horizons: Sequence[int], folder: Path) -> Path:
    """Writes a bundle of these graphs under other horizons, one a layer, and returns its folder (made here).

    Raises DsmrError for a graph that is not fused or another number of layers.
    """
    if len(horizons) != bundle.manifest.model.layers:
        raise DsmrError(
            f"{len(horizons)} horizons are given and {bundle.path} has "
            f"{bundle.manifest.model.layers} layers: give one a layer"
        )
    folder.mkdir(parents=True)
    made = {}
    for name in graphs:
        entry = bundle.graph(name)
        if entry.ops != "fused":
            raise DsmrError(
                f"graph {name} of {bundle.path} is {entry.ops}: only fused graphs are rescheduled"
            )
        made[name] = _with_horizons(bundle.path / entry.file, folder / entry.file, entry, horizons)
    return finish(folder, bundle, bundle.manifest.model, horizons, made)


def sized(
    bundle: Bundle, graphs: Iterable[str], config: ModelConfig, horizons: Sequence[int], folder: Path
) -> Path:
    """Writes a bundle with random weights of another size, each graph made as the bundle's graph of that name
    was, and returns its folder (made here)."""
    folder.mkdir(parents=True)
    network, source = random_network(config, horizons), folder / "source.onnx"
    export.export_graph(network, "fused", source)
    first = export.trial_entry(network, "fused", source)
    made = {
        name: make_graph(recipe_of(bundle, name), source, folder / f"{name}.onnx", first) for name in graphs
    }
    source.unlink()
    return finish(folder, bundle, export.model_shape(config), horizons, made)


def random_network(config: ModelConfig, horizons: Sequence[int], seed: int = 0) -> DSMR:
    """A network in eval mode: matrices of variance 1/K, norms around 1, no two alike, which an exporter would
    store once."""
    network, generator = DSMR(config, horizons), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            mean, deviation = (1.0, 0.1) if weight.ndim == 1 else (0.0, weight.shape[1] ** -0.5)
            weight.normal_(mean, deviation, generator=generator)
    return network.eval()


def make_graph(recipe: GraphRecipe | None, source: Path, target: Path, entry: GraphEntry) -> GraphEntry:
    """Writes the graph of a recipe (None = fp32) from the fp32 one; what a runner must know of it, given that
    of the fp32 one. `sha256` stays as it was."""
    state, applied = entry.state, entry.quantization
    if recipe is None:
        shutil.copyfile(source, target)
    else:
        errors = quantize.quantize(source, target, recipe.weights, recipe.plan)
        applied = quantize.describe(target.stem, recipe.weights, errors)
        if recipe.state == "int8":
            scales = {tensor.input: np.full(tensor.shape[1::2], STATE_SCALE, np.float32) for tensor in state}
            quantize_state.quantize_state(target, state, scales)
            state = quantized_state(state, {name: scale.ravel().tolist() for name, scale in scales.items()})
    return replace(entry, file=target.name, bytes=target.stat().st_size, quantization=applied, state=state)


def recipe_of(bundle: Bundle, graph: str) -> GraphRecipe | None:
    """How a graph of a bundle was quantized, as its manifest tells; None = fp32. A plan of its own, for its
    own layers, is left out."""
    entry = bundle.graph(graph)
    if entry.quantization is None:
        return None
    applied: dict[str, Any] = entry.quantization
    state = entry.state[0].dtype
    if applied["kernel"] != "MatMulNBits":
        dynamic = Recipe("dynamic", state, "a bundle", activations="u8", weights="s8", per_channel=True)
        return GraphRecipe(dynamic, state)
    products = {name: how for name, how in applied["tensors"].items() if name != export.EMBEDDING}
    block = Recipe(
        "block",
        state,
        "a bundle",
        bits=min(BITS[how["type"]] for how in products.values()),
        block_size=max(how["block_size"] for how in products.values()),
        accuracy_level=applied["accuracy_level"],
    )
    return GraphRecipe(block, state)


def manifest_of(
    base: Manifest, name: str, model: ModelShape, horizons: Sequence[int], graphs: Mapping[str, GraphEntry]
) -> Manifest:
    """The base's manifest around other graphs: what its tokens mean stays, what was measured of it goes."""
    return replace(
        base,
        name=name,
        model=model,
        schedule=ScheduleEntry("", tuple(horizons), sum(horizons)),
        graphs=dict(graphs),
        default_graph=next(iter(graphs)),
        preference=(),
        parity={},
    )


def finish(
    folder: Path,
    base: Bundle,
    model: ModelShape,
    horizons: Sequence[int],
    graphs: Mapping[str, GraphEntry],
) -> Path:
    """Makes a folder of graphs a bundle: tokenizer, golden vectors, manifest, hashes."""
    entries = {
        name: replace(entry, sha256=file_sha256(folder / entry.file)) for name, entry in graphs.items()
    }
    manifest = manifest_of(base.manifest, folder.name, model, horizons, entries)
    shutil.copyfile(base.path / manifest.tokenizer.file, folder / manifest.tokenizer.file)
    golden = folder / manifest.golden.file
    _write_golden(golden, Bundle(folder, manifest, identity="", notes=[]), base.golden.input_ids)
    manifest = replace(manifest, golden=FileEntry(manifest.golden.file, file_sha256(golden)))
    manifest.write(folder / MANIFEST)
    write_sums(folder)
    return folder


def _write_golden(path: Path, bundle: Bundle, ids: NDArray[np.int64]) -> None:
    """What the graphs themselves give for the first of these tokens: it tells damage, not wrong graphs."""
    inputs = ids[:GOLDEN_TOKENS]
    arrays: dict[str, Any] = {
        "input_ids": inputs,
        "segments": np.array([len(inputs)]),
        "positions": np.arange(len(inputs)),
    }
    arrays |= {f"logits.{name}": Stream(bundle, name).feed(inputs) for name in bundle.manifest.graphs}
    np.savez(path, **arrays)


def _with_horizons(source: Path, target: Path, entry: GraphEntry, horizons: Sequence[int]) -> GraphEntry:
    """Rewrites a fused graph: the window of every attention, the rows of every state."""
    model = onnx.load(source)
    rows: dict[str, int] = {}
    state = []
    for tensor in entry.state:
        horizon = horizons[tensor.layer]
        one, heads, _, width = tensor.shape
        shape = (one, heads, fused_capacity(horizon, entry.stream.slack), width)
        state.append(replace(tensor, shape=shape, horizon=horizon))
        rows |= dict.fromkeys((tensor.input, tensor.output), shape[2])
    windows = {tensor.input: tensor.horizon + 1 for tensor in state}
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            [window] = [each for each in node.attribute if each.name == "local_window_size"]
            [window.i] = {windows[name] for name in node.input if name in windows}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in rows:
            value.type.tensor_type.shape.dim[2].dim_value = rows[value.name]
    target.write_bytes(model.SerializeToString())
    rule = StreamRule.of(horizons, entry.stream.slack, entry.stream.max_segment)
    return replace(entry, file=target.name, bytes=target.stat().st_size, state=tuple(state), stream=rule)
