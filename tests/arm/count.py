"""Counts the instructions per token of every model, processor and recipe, and keeps them in
instructions.json.

    python -m tests.arm.count [--write] [--model MODEL] [--cpu CPU] [--recipe RECIPE]

Each option can be given several times; what is not asked for keeps its old count. With --write the file is
written, else only the table is printed. tests/arm/test_instructions.py fails when a fresh count is 2 % away
from the file.

How repeatable counts are: one build of onnxruntime, one thread, a fixed hash seed and fixed random states
give the same instructions but for where memory happens to lie. Over runs of the same graph, alone or after
others, beside other work or not, totals moved by 0.1 %, those of dynamic int8 (which allocates at every
product) by 0.3 %, and a kind by no more than that of the total. The mean is over one period of the state's
layout (`STEPS`): in two of its steps rows are moved, which takes 4 % and 11 % more of the larger model.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dsmr_export.state import SLACK
from tests.arm import emulator, models, parts
from tests.arm.emulator import CPUS, DOT_PRODUCTS, HERE, Emulator

FILE = HERE / "instructions.json"
COMMAND = "python -m tests.arm.count --write"
STEPS = SLACK + 1
"""One period of the fused state: after it the layout is the same again."""


@dataclass(frozen=True)
class Count:
    """Instructions of one token: in total, and by kind (parts.KINDS), which add up to it."""

    instructions: int
    kinds: Mapping[str, int]


SAMPLED = 200
"""Tokens over which sampling is averaged: how many notes sound, and so what is allowed, differs."""

Counts = dict[str, dict[str, dict[str, Count]]]
"""By model, processor and recipe."""


def measure(
    arm: Emulator, folder: Path, cpu: str, recipes: Sequence[str], timeout_s: float = 1800
) -> dict[str, Count]:
    """Fresh counts of graphs in a folder of models.write."""
    run = arm.run(cpu, HERE / "guest_count.py", folder, str(STEPS), *recipes, count=True, timeout_s=timeout_s)
    return {found["name"]: Count(found["instructions"], found["kinds"]) for found in run.results}


def measure_positions(
    arm: Emulator, folder: Path, cpu: str, recipe: str, positions: Sequence[int]
) -> dict[int, int]:
    """Instructions of a token by its position in a stream whose windows are full."""
    where = [str(position) for position in positions]
    command = (HERE / "guest_position.py", folder, str(STEPS), recipe, *where)
    run = arm.run(cpu, *command, count=True, timeout_s=1800)
    return {found["position"]: found["instructions"] for found in run.results}


def measure_sampling(arm: Emulator, cpu: str) -> int:
    """Instructions of a played token besides its graph's step, with the bundled model's vocabulary."""
    run = arm.run(cpu, HERE / "guest_sampling.py", str(SAMPLED), count=True)
    return int(run.results[0]["sampling"])


def refused(cpu: str, recipe: str) -> bool:
    """Whether targets refuse this recipe to this processor: its count says why, and takes a minute."""
    return models.RECIPES[recipe].block and cpu != DOT_PRODUCTS


def read() -> Counts:
    kept = json.loads(FILE.read_text(encoding="utf-8"))["counts"] if FILE.exists() else {}
    return {
        model: {
            cpu: {recipe: Count(**count) for recipe, count in recipes.items()}
            for cpu, recipes in processors.items()
        }
        for model, processors in kept.items()
    }


def read_sampling() -> dict[str, int]:
    """By processor."""
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return dict(kept.get("sampling", {}))


def write(counts: Counts, sampling: Mapping[str, int], packages: Iterable[str]) -> None:
    """In the order of models, processors and recipes, so that a change shows as one."""
    ordered: dict[str, Any] = {
        model: {
            cpu: {
                recipe: {
                    "instructions": found.instructions,
                    "kinds": {kind: found.kinds[kind] for kind in parts.KINDS},
                }
                for recipe in models.RECIPES
                if (found := counts.get(model, {}).get(cpu, {}).get(recipe))
            }
            for cpu in CPUS
        }
        for model in models.MODELS
    }
    versions = {name: version for name, version in sorted(package.split("==") for package in packages)}
    about = {name: versions[name] for name in ("numpy", "onnxruntime")}
    text = json.dumps(
        {"made_by": COMMAND, "versions": about, "sampling": sampling, "counts": ordered}, indent=1
    )
    FILE.write_text(text + "\n", encoding="utf-8")


def table(counts: Counts) -> Iterable[str]:
    """Millions of instructions a token; ratio: to fp32 of the same model and processor."""
    yield f"{'model':8} {'cpu':11} {'recipe':24} {'total':>8} {'ratio':>6}" + "".join(
        f" {kind:>10}" for kind in parts.KINDS
    )
    for model, processors in counts.items():
        for cpu, recipes in processors.items():
            for recipe, count in recipes.items():
                base = recipes.get("fp32")
                ratio = f"{count.instructions / base.instructions:6.3f}" if base else " " * 6
                kinds = "".join(f" {count.kinds[kind] / 1e6:10.3f}" for kind in parts.KINDS)
                yield f"{model:8} {cpu:11} {recipe:24} {count.instructions / 1e6:8.3f} {ratio}{kinds}"


def _choice(names: Iterable[str]) -> Any:
    return {"type": click.Choice(list(names)), "multiple": True, "default": list(names)}


@click.command(help=__doc__)
@click.option("--write", "keep", is_flag=True, help="Rewrite instructions.json.")
@click.option("--model", "chosen", **_choice(models.MODELS))
@click.option("--cpu", "processors", **_choice(CPUS))
@click.option("--recipe", "recipes", **_choice(models.RECIPES))
def main(keep: bool, chosen: Sequence[str], processors: Sequence[str], recipes: Sequence[str]) -> None:
    counts, sampling = read(), read_sampling()
    with tempfile.TemporaryDirectory(prefix="dsmr-count-") as name:
        folder = Path(name)
        try:
            arm = Emulator(emulator.set_up(), emulator.unpacked_wheel(folder / "wheel"))
            if not arm.counts:
                raise emulator.Unavailable("gcc is missing; install it and set DSMR_ARM_FORCE=1")
        except (emulator.Unavailable, emulator.EmulatorError) as error:
            sys.exit(f"instructions cannot be counted here: {error}")
        for cpu in processors:
            click.echo(f"counting sampling on {cpu}", err=True)
            sampling[cpu] = measure_sampling(arm, cpu)
        for model in chosen:
            click.echo(f"{model}: making the graphs", err=True)
            graphs = models.write(folder / model, model, recipes)
            for cpu in processors:
                click.echo(f"{model}: counting on {cpu}", err=True)
                fresh = measure(arm, graphs, cpu, recipes)
                counts.setdefault(model, {}).setdefault(cpu, {}).update(fresh)
    for line in table(counts):
        click.echo(line)
    for cpu, count in sampling.items():
        click.echo(f"{'':8} {cpu:11} {'mask, pace, sampling':24} {count / 1e6:8.3f}")
    if keep:
        write(counts, sampling, (arm.folder / "packages.txt").read_text().split())
        click.echo(f"written: {FILE}", err=True)


if __name__ == "__main__":
    main()
