"""Options that several commands share, and those that are made from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from dsmr_export.corpus import SPLITS
from dsmr_export.model.train_config import TrainConfig

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)

bundle_argument = click.argument("bundle", type=PATH, required=False)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
reference_option = click.option(
    "--checkpoint",
    type=PATH,
    help="The checkpoint that the bundle was made from.  [default: the bundled one]",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads to compute with."
)


def data_options(command: Command) -> Command:
    """--data, --split and --limit, the same for every command that reads pieces."""
    for option in (
        click.option("--limit", type=click.IntRange(1), help="Only the first N pieces."),
        click.option(
            "--split",
            type=click.Choice(SPLITS),
            help="Which part of the data.  [default: test, or all where no splits are named]",
        ),
        click.option(
            "--data",
            "data_path",
            type=PATH,
            help="MIDI file, folder, or MAESTRO's zip.  [default: the bundled pieces]",
        ),
    ):
        command = option(command)
    return command


def comma_list(*allowed: str) -> Callable[[click.Context, click.Parameter, str | None], tuple[str, ...]]:
    def parse(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
        if value is None:
            return ()
        items = tuple(dict.fromkeys(item.strip() for item in value.split(",")))
        unknown = [item for item in items if item not in allowed]
        if unknown or ("none" in items and len(items) > 1):
            raise click.BadParameter(
                f"{value!r} is not one of {', '.join(allowed)}, or some of them with commas"
            )
        return items

    return parse


def whole_numbers(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """0,1,2 as numbers."""
    items = [] if value is None else [item.strip() for item in value.split(",")]
    if not all(item.isascii() and item.isdigit() for item in items):
        raise click.BadParameter(f"{value!r} is not a list of whole numbers with commas, as in 0,1,2")
    return tuple(dict.fromkeys(int(item) for item in items))


def train_options(command: Command) -> Command:
    """One option per field of TrainConfig, from its name, type and default, which needs no torch."""
    return train_options_but()(command)


def train_options_but(*without: str) -> Callable[[Command], Command]:
    """The same without the fields of those names."""

    def decorate(command: Command) -> Command:
        for option in _train_options(without):
            command = option(command)
        return command

    return decorate


def _train_options(without: Sequence[str]) -> Iterator[Callable[[Command], Command]]:
    """The last option first, as decorators apply."""
    kinds = {"int": int, "float": float, "str": str, "int | None": int, "float | None": float}
    for field in reversed(fields(TrainConfig)):
        if field.name in without:
            continue
        name, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if field.type == "bool":
            yield click.option(name, is_flag=True, help=text)
        else:
            yield click.option(
                name,
                type=kinds[str(field.type)],
                default=field.default,
                show_default=field.default is not None,
                help=text,
            )
