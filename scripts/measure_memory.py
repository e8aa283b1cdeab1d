"""Measures what dsmr_export/budget.py estimates: the memory of a process that plays a graph.

    python scripts/measure_memory.py [BUNDLE ...]

Every graph runs in a process of its own, which does to memory what `dsmr play` does: the command line's
imports, session, state, a prompt that fills every window, then single steps. A row for each: the estimate's
parts, their sum, and the peak (VmHWM), in MB of 1,000,000 bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from dsmr_export import budget
from dsmr_export.manifest import Manifest
from dsmr_export.quantize import GraphRecipe
from dsmr_export.runtime.bundle import default_path
from dsmr_export.targets import loader

PLAYER = """
import sys
import numpy as np
import dsmr_export.cli
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.play import Performer
bundle = Bundle.open(sys.argv[1])
performer = Performer(bundle, graph=sys.argv[2])
shifts = np.flatnonzero([kind == "shift" for kind in bundle.event_table.kinds])
performer.begin(np.resize(shifts, bundle.graph(sys.argv[2]).stream.capacity + 1024).tolist())
tokens = performer.play()
for _ in range(50):
    next(tokens)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def estimate(manifest: Manifest, graph: str) -> budget.Needs:
    """What `budget.needs` says of a graph that is already there."""
    target, entry = loader.load(manifest.target or "generic"), manifest.graphs[graph]
    recipe = None
    if entry.quantization is not None:
        tensors = entry.quantization["tensors"]
        matrices = budget.matrix_shapes(manifest.model)
        plan = {name: tensors[name]["type"] if name in tensors else "float" for name in matrices}
        recipe = GraphRecipe(target.recipe(graph), entry.state[0].dtype, plan)
    return budget.needs(manifest.model, manifest.schedule.horizons, graph, recipe, target)


def peak(folder: Path, graph: str, environment: Mapping[str, str] | None = None) -> int:
    """Bytes: the most memory that a process which plays the graph had (VmHWM)."""
    command = [sys.executable, "-c", PLAYER, str(folder), graph]
    variables = {**os.environ, **(environment or {})}
    run = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return int(run.stdout)


@click.command(help=__doc__)
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path))
@click.option("--arm", is_flag=True, help="Attend as on ARM: without the flash kernel.")
def main(bundles: Sequence[Path], arm: bool) -> None:
    environment = {"ORT_GQA_DISABLE_FLASH_ATTENTION": "1"} if arm else {}
    click.echo("graph      runtime  weights    state workspace estimate     peak")
    for folder in bundles or [default_path()]:
        manifest = Manifest.read(folder)
        click.echo(f"{manifest.name} (target {manifest.target})")
        for name in manifest.graphs:
            found = estimate(manifest, name)
            parts = found.runtime, found.weights, found.state, found.workspace, found.memory
            row = " ".join(f"{part / 1e6:8.1f}" for part in (*parts, peak(folder, name, environment)))
            click.echo(f"  {name:8} {row}")


if __name__ == "__main__":
    main()
