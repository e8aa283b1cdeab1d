"""`dsmr targets`: the device profiles, all of them in a table, or everything about one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table

from dsmr_export.options import json_option
from dsmr_export.runtime import cpu
from dsmr_export.terminal import print_json, stdout

if TYPE_CHECKING:
    from dsmr_export.targets.loader import Recipe, Target


@click.command()
@click.argument("name", required=False)
@click.option("--toml", "as_toml", is_flag=True, help="Print NAME's file, to begin one of your own.")
@json_option
def targets(name: str | None, as_toml: bool, as_json: bool) -> None:
    """List the device profiles, or show everything about one: its NAME, the path of a TOML file, or auto.

    What a choice rests on is said beside it. A profile of your own is a TOML file with the keys of a built-in
    one; dsmr export takes its path as --target.

    \b
    Example:
      dsmr targets
      dsmr targets raspberry-pi-5
      dsmr targets raspberry-pi-5 --toml > my-board.toml
    """
    from dsmr_export.targets import loader

    if name == "auto":
        machine = cpu.read()
        name = loader.best_for(machine.architecture, machine.features, machine.model).name
    chosen = [loader.load(each) for each in ([name] if name else loader.names())]
    if as_toml:
        if name is None:
            raise click.UsageError("--toml prints one profile: give its NAME")
        click.echo(loader.text_of(name)[0], nl=False)
        return
    if as_json:
        found = [_plain(target) for target in chosen]
        print_json(found[0] if name else {"targets": found})
    else:
        stdout().print(_details(chosen[0]) if name else _overview(chosen))


def _plain(target: Target) -> dict[str, Any]:
    """All of a profile; of a recipe what its kernel has."""
    recipes = {
        name: {key: value for key, value in asdict(recipe).items() if value is not None}
        | {"requires": recipe.requires}
        for name, recipe in target.recipes.items()
    }
    return asdict(target) | {"recipes": recipes}


def _overview(chosen: Sequence[Target]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("target", "CPU", "for us", "int8", "int4", "state"):
        table.add_column(column, justify="right" if column == "for us" else "left", no_wrap=True)
    for target in chosen:
        states = dict.fromkeys(recipe.state for recipe in target.recipes.values())
        table.add_row(
            target.name,
            target.cpu.model,
            f"{target.memory.for_us_mb:,} MB",
            _kernel(target.recipes.get("int8")),
            _kernel(target.recipes.get("int4")),
            ", ".join(states) or "–",
        )
    return table


def _kernel(recipe: Recipe | None) -> str:
    if recipe is None:
        return "–"
    return "dynamic" if recipe.kernel == "dynamic" else f"blocks of {recipe.block_size}"


def _details(target: Target) -> Table:
    """One part of the profile after the other, each with its source."""
    table = Table(box=None, show_header=False, pad_edge=False, title=f"{target.name}: {target.summary}")
    table.title_justify = "left"
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for part, lines, source in _parts(target):
        table.add_row("", "")
        for index, line in enumerate(lines):
            table.add_row("" if index else part, line)
        if source:
            table.add_row("", f"Source: {source}")
    return table


def _parts(target: Target) -> Iterator[tuple[str, list[str], str]]:
    """(heading, lines, source)"""
    from dsmr_export.errors import TargetError
    from dsmr_export.targets.loader import QUANTIZATIONS

    cpu, memory, system, session = target.cpu, target.memory, target.system, target.session
    architectures, features = ", ".join(target.architectures), ", ".join(cpu.features) or "none in common"
    yield "CPU", [cpu.model, f"{architectures}; cores: {cpu.cores}; features: {features}"], cpu.source
    sizes = f"{memory.for_us_mb:,} of {memory.total_mb:,} MB for us"
    yield "memory", [sizes, f"bandwidth: up to {memory.bandwidth_gb_per_s:g} GB/s"], memory.source
    python = f"Python {', '.join(system.python)}; onnxruntime {system.min_onnxruntime} or newer"
    yield "system", [*system.os, python], system.source
    for name in QUANTIZATIONS:
        try:
            recipe = target.recipe(name)
        except TargetError as error:
            yield name, [str(error)], ""
        else:
            yield name, list(_recipe(recipe)), recipe.source
    settings = [f"{option} = {value}" for option, value in session.options.items()]
    for architecture, variables in session.environment.items():
        where = "" if architecture == "all" else f" (on {architecture})"
        settings += [f"{variable}={value}{where}" for variable, value in variables.items()]
    yield "session", [f"threads: {session.threads}", *settings], session.source


def _recipe(recipe: Recipe) -> Iterator[str]:
    if recipe.kernel == "dynamic":
        yield f"dynamic: {recipe.activations} activations x {recipe.weights} weights, one scale a column"
    else:
        yield (
            f"block: MatMulNBits, {recipe.bits} bit, blocks of {recipe.block_size} at most, "
            f"accuracy_level {recipe.accuracy_level}"
        )
        yield f"runs on CPUs with {' or '.join(recipe.requires)}"
    yield f"recurrent state: {recipe.state}"
