"""Options that several commands share, and those that are made from a configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dsmr_export.corpus import SPLITS
from dsmr_export.model.train_config import TrainConfig

if TYPE_CHECKING:
    from dsmr_export.runtime.bundle import Bundle

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class Bytes(click.ParamType):
    """A size: plain bytes, or with a unit (kB, MB, GB = powers of 1,000; KiB, MiB, GiB = of 1,024)."""

    name = "bytes"
    UNITS: Mapping[str, int] = {
        "": 1,
        "k": 1000,
        "kb": 1000,
        "m": 1000**2,
        "mb": 1000**2,
        "g": 1000**3,
        "gb": 1000**3,
        "kib": 1024,
        "mib": 1024**2,
        "gib": 1024**3,
    }

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?) ?([a-z]*)", str(value).strip().lower(), re.ASCII)
        size = float(match[1]) * self.UNITS.get(match[2], 0) if match else 0
        if size < 1:
            self.fail(f"{value!r} is not a size: give bytes, or a number with kB, MB, KiB or MiB, as in 2MB")
        return int(size)


BYTES = Bytes()


class State(click.ParamType):
    """A saved state: a file, or the name of one in a bank. Who has the bank tells them apart."""

    name = "file"


STATE = State()

bundle_argument = click.argument("bundle", type=PATH, required=False)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
reference_option = click.option(
    "--checkpoint",
    type=PATH,
    help="The checkpoint that the bundle was made from.  [default: the bundled one]",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Threads to compute with.  [default: the bundle's]"
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


def open_bundle(path: Path | None) -> Bundle:
    """The bundle that a command was given, its warnings said on stderr."""
    import warnings

    from dsmr_export.runtime import Bundle

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below, without the line of code
        opened = Bundle.open(path)
    for note in opened.warnings:
        click.echo(f"warning: {note}", err=True)
    return opened


def say_graph(bundle: Bundle, graph: str | None) -> None:
    """Says on stderr which graph this machine runs and why, or what is odd about the one that was named."""
    from dsmr_export.runtime import cpu
    from dsmr_export.runtime.selection import suits

    if graph is None:
        chosen = bundle.selected(lambda text: click.echo(text, err=True))
        click.echo(f"graph {chosen.graph}: {chosen.reason}", err=True)
    elif not suits(requires := bundle.graph(graph).requires, cpu.read().features):
        click.echo(f"graph {graph} is slow here: this CPU has none of {', '.join(requires)}", err=True)


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
