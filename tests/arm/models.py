"""The graphs whose instructions are counted: two models, each in the recipes that targets use or refuse.

Straight from the exporter and the quantizers, without an export's golden vectors and parity, which would take
minutes for the larger model and would say nothing of weights that are random.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dsmr_export import export
from dsmr_export.bench import variants
from dsmr_export.manifest import MANIFEST, Manifest, SessionEntry
from dsmr_export.model import checkpoint
from dsmr_export.model.network import DSMR
from dsmr_export.quantize import GraphRecipe
from dsmr_export.runtime.bundle import default_path
from dsmr_export.targets import loader
from tests.arm import parts
from tests.exported import random_network

MODELS = ("bundled", "25m")
HORIZONS_25M = (2048,) * 2 + (256,) * 6
SHAPE_25M = {"heads": 8, "kv_heads": 8, "head_dim": 64, "d_model": 512, "d_ff": 2048, "vocab_size": 311}


@dataclass(frozen=True)
class Counted:
    """weights: None = float32. state: float32 or int8."""

    weights: loader.Recipe | None = None
    state: str = "float32"

    @property
    def block(self) -> bool:
        """Whether a CPU without dot products is refused it."""
        return self.weights is not None and self.weights.kernel == "block"

    @property
    def recipe(self) -> GraphRecipe | None:
        """None = fp32."""
        return None if self.weights is None else GraphRecipe(self.weights, self.state)


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


def write(folder: Path, model: str, recipes: Iterable[str]) -> Path:
    """A folder with NAME.onnx and its parts for every recipe, and a manifest from which a stream can be
    opened."""
    folder.mkdir(parents=True, exist_ok=True)
    net, source = network(model), folder / "source.onnx"
    export.export_graph(net, "fused", source)
    entry = replace(export.trial_entry(net, "fused", source), sha256="0" * 64)
    graphs = {
        name: variants.make_graph(RECIPES[name].recipe, source, folder / f"{name}.onnx", entry)
        for name in dict.fromkeys(("fp32", *recipes))
    }
    for name in graphs:
        parts.write_parts(folder / f"{name}.onnx")
    source.unlink()
    session = loader.load("generic-arm64").session
    base = Manifest.read(default_path())  # what its tokens mean does not matter here
    manifest = replace(
        variants.manifest_of(base, model, export.model_shape(net.config), net.horizons, graphs),
        session=SessionEntry(
            session.threads,
            dict(session.options),
            {architecture: dict(variables) for architecture, variables in session.environment.items()},
        ),
    )
    manifest.write(folder / MANIFEST)
    return folder
