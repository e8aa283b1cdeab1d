"""The graphs whose instructions are counted: two models, each in the recipes that targets use or refuse.

Straight from the exporter and the quantizers, without an export's golden vectors and parity, which would take
minutes for the larger model and would say nothing of weights that are random.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dsmr_export import export, quantize, quantize_state
from dsmr_export.manifest import MANIFEST, GraphEntry, Manifest, ScheduleEntry, SessionEntry
from dsmr_export.model import checkpoint
from dsmr_export.model.network import DSMR
from dsmr_export.runtime.bundle import default_path
from dsmr_export.state import quantized_state
from dsmr_export.targets import loader
from tests.arm import parts
from tests.exported import random_network

MODELS = ("bundled", "25m")
HORIZONS_25M = (2048,) * 2 + (256,) * 6
SHAPE_25M = {"heads": 8, "kv_heads": 8, "head_dim": 64, "d_model": 512, "d_ff": 2048, "vocab_size": 311}

STATE_SCALE = 0.03
"""Of int8 state, every channel: the states are random, and what is counted does not depend on scales."""


@dataclass(frozen=True)
class Counted:
    """weights: None = float32. state: float32 or int8."""

    weights: loader.Recipe | None = None
    state: str = "float32"

    @property
    def block(self) -> bool:
        """Whether a CPU without dot products is refused it."""
        return self.weights is not None and self.weights.kernel == "block"


def _recipe(kernel: str, **facts: int | str | bool) -> loader.Recipe:
    return loader.Recipe(kernel, "float32", "counted by tests/arm", **facts)  # type: ignore[arg-type]


_dynamic = _recipe("dynamic", activations="u8", weights="s8", per_channel=True)
RECIPES = {
    "fp32": Counted(),
    "int8-dynamic": Counted(_dynamic),
    "int8-dynamic+int8-state": Counted(_dynamic, "int8"),
    "int8-block128": Counted(_recipe("block", bits=8, block_size=128, accuracy_level=4)),
    "int4-block64": Counted(_recipe("block", bits=4, block_size=64, accuracy_level=4)),
}


def name_of(recipe: loader.Recipe) -> str:
    """The name in RECIPES of what a target asks for, made from its facts: it need not be there."""
    dynamic = recipe.kernel == "dynamic"
    weights = "int8-dynamic" if dynamic else f"int{recipe.bits}-block{recipe.block_size}"
    return weights if recipe.state == "float32" else f"{weights}+{recipe.state}-state"


@functools.cache
def network(model: str) -> DSMR:
    """bundled: the checkpoint of the package with its own schedule. 25m: random weights."""
    if model == "25m":
        return random_network(HORIZONS_25M, **SHAPE_25M)
    source = checkpoint.load()
    return source.network(source.schedule)


def make_graph(recipe: Counted, source: Path, target: Path, entry: GraphEntry) -> GraphEntry:
    """Writes the graph of a recipe from the fp32 one; what a runner must know of it, given that of the fp32
    one."""
    state = entry.state
    if recipe.weights is None:
        target.write_bytes(source.read_bytes())
    else:
        quantize.quantize(source, target, recipe.weights)
    if recipe.state == "int8":
        scales = {tensor.input: np.full(tensor.shape[1::2], STATE_SCALE, np.float32) for tensor in state}
        quantize_state.quantize_state(target, state, scales)
        state = quantized_state(state, {name: scale.ravel().tolist() for name, scale in scales.items()})
    return replace(entry, file=target.name, bytes=target.stat().st_size, state=state)


def write(folder: Path, model: str, recipes: Iterable[str]) -> Path:
    """A folder with NAME.onnx and its parts for every recipe, and a manifest from which a stream can be
    opened."""
    folder.mkdir(parents=True, exist_ok=True)
    net, source = network(model), folder / "source.onnx"
    export.export_graph(net, "fused", source)
    entry = replace(export.trial_entry(net, "fused", source), sha256="0" * 64)
    graphs = {
        name: make_graph(RECIPES[name], source, folder / f"{name}.onnx", entry)
        for name in dict.fromkeys(("fp32", *recipes))
    }
    for name in graphs:
        parts.write_parts(folder / f"{name}.onnx")
    source.unlink()
    session = loader.load("generic-arm64").session
    manifest = replace(
        Manifest.read(default_path()),  # what its tokens mean does not matter here
        name=model,
        model=export.model_shape(net.config),
        schedule=ScheduleEntry("", net.horizons, sum(net.horizons)),
        graphs=graphs,
        default_graph="fp32",
        preference=(),
        session=SessionEntry(
            session.threads,
            dict(session.options),
            {architecture: dict(variables) for architecture, variables in session.environment.items()},
        ),
    )
    manifest.write(folder / MANIFEST)
    return folder
