"""What every target's recipes come to: the table of README.md, as Markdown.

    python -m scripts.target_table [--data maestro-v3.0.0-midi.zip --split test --limit 20]

The bundled checkpoint under its own schedule, exported for every target in every quantization that the
target has. Targets whose graphs are made alike and counted on one CPU share a row. Perplexity change, KL and
top-1 are those of `dsmr check`, in randomly cut segments; bytes read are those of one token when every window
is full, weights and state. ARM instructions are the kept counts of tests/arm/instructions.json
(`python -m tests.arm.count` makes them again), in millions a token; the second table has them by kind, and
those of a model of 25 M parameters.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from dsmr_export import budget, export, pack, parity, quantize
from dsmr_export.cli_training import pieces_through_miditok
from dsmr_export.model import checkpoint as checkpoints
from dsmr_export.options import data_options
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.targets import loader
from tests.arm.models import name_of
from tests.arm.parts import KINDS

COUNTS = Path(__file__).resolve().parent.parent / "tests" / "arm" / "instructions.json"
EMULATED = {
    "raspberry-pi-zero-2w": "cortex-a53",
    "raspberry-pi-3": "cortex-a53",
    "raspberry-pi-4": "cortex-a72",
    "raspberry-pi-5": "cortex-a76",
    "generic-arm64": "cortex-a53",
    "generic-arm64-dotprod": "cortex-a76",
}
"""The CPU that stands for a target in the emulator."""


@dataclass
class Row:
    """One way of making a graph on one CPU (None: not emulated), and the targets that it serves."""

    quantization: str
    recipe: quantize.GraphRecipe | None
    cpu: str | None
    targets: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What decides the graph."""
        return "fp32" if self.recipe is None else name_of(self.recipe.weights)


def rows() -> list[Row]:
    """Every target and quantization, alike ones together."""
    found: dict[tuple[str, str | None], Row] = {}
    for name in loader.names():
        target = loader.load(name)
        for quantization in ("none", *target.quantizations):
            recipe = None
            if quantization != "none":
                weights = target.recipe(quantization)
                recipe = quantize.GraphRecipe(weights, weights.state)
            row = Row(quantization, recipe, EMULATED.get(name))
            found.setdefault((row.key, row.cpu), row).targets.append(name)
    return list(found.values())


def measure(row: Row, pieces: list[Any], folder: Path) -> tuple[dict[str, Any], Bundle]:
    """Parity figures of a row's graph, and the bundle that holds it."""
    graph = "fp32" if row.recipe is None else row.quantization
    request = pack.Request(
        folder / row.key, quantize=(row.quantization,), target=row.targets[0], gate=False, name=row.key
    )
    if not request.output.exists():
        pack.pack(request)
    bundle, source = Bundle.open(request.output), checkpoints.load()
    network = source.network(source.schedule)
    result = parity.check(bundle, pieces, network, graphs=[graph], stepwise=False)
    return result["graphs"][graph], bundle


def lines(pieces: list[Any]) -> Iterator[str]:
    """The table of all targets, line by line."""
    counted = counts()["bundled"]
    head = "targets | `--quantize` | graph | file | state | change | KL | top-1 | reads a token | ARM"
    yield f"| {head} |"
    yield "|" + "---|" * 10
    shape = export.model_shape(checkpoints.load().config)
    measured: dict[str, tuple[dict[str, Any], Bundle]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in rows():
            if row.key not in measured:
                measured[row.key] = measure(row, pieces, Path(folder))
            figures, bundle = measured[row.key]
            graph = "fp32" if row.recipe is None else row.quantization
            entry, target = bundle.graph(graph), loader.load(row.targets[0])
            needs = budget.needs(shape, bundle.manifest.schedule.horizons, graph, row.recipe, target)
            found = counted.get(row.cpu or "", {}).get(row.key)
            yield (
                f"| {', '.join(row.targets)} | {row.quantization} | {row.key} | {entry.bytes / 1e6:.2f} MB "
                f"| {entry.state_bytes / 1e6:.2f} MB | {figures['relative_change']:+.1e} "
                f"| {figures['kl_mean']:.1e} | {figures['top1_agreement']:.4f} "
                f"| {needs.weights_read / 1e6:.2f} + {needs.state_read / 1e6:.2f} MB "
                f"| {'–' if found is None else format(found['instructions'] / 1e6, '.2f')} |"
            )


def kinds() -> Iterator[str]:
    """Millions of instructions a token by kind, of both models on every CPU, and their ratio to fp32's."""
    yield "| model | CPU | graph | in all | / fp32 | " + " | ".join(KINDS) + " |"
    yield "|" + "---|" * (5 + len(KINDS))
    for model, cpus in counts().items():
        for cpu, graphs in cpus.items():
            for graph, found in graphs.items():
                ratio = found["instructions"] / graphs["fp32"]["instructions"]
                parts = (found["instructions"], *(found["kinds"].get(kind, 0) for kind in KINDS))
                whole, *rest = (f"{part / 1e6:.2f}" for part in parts)
                yield f"| {model} | {cpu} | {graph} | {whole} | {ratio:.2f} | {' | '.join(rest)} |"


def counts() -> Mapping[str, Any]:
    """model -> CPU -> graph -> {instructions, kinds}."""
    kept: Mapping[str, Any] = json.loads(COUNTS.read_text(encoding="utf-8"))["counts"]
    return kept


@click.command(help=__doc__)
@data_options
def main(data_path: Path | None, split: str | None, limit: int | None) -> None:
    pieces = pieces_through_miditok(checkpoints.load(), data_path, split, limit)
    click.echo(f"{sum(len(ids) - 1 for ids in pieces):,} tokens of {len(pieces)} pieces\n")
    for line in lines(pieces):
        click.echo(line)
    click.echo()
    for line in kinds():
        click.echo(line)


if __name__ == "__main__":
    main()
