"""What every command does alike: one line for what is refused, results on stdout, JSON on one line."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console

from dsmr_export.errors import DsmrError

TABLE_WIDTH = 110
"""Columns of a table where stdout is no terminal: enough for the widest row."""


class Refusing(click.Group):
    """Turns what the library refuses into one line on stderr and exit code 1; never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        with refusing():
            return super().invoke(ctx)


@contextmanager
def refusing() -> Iterator[None]:
    try:
        yield
    except DsmrError as error:
        raise click.ClickException(" ".join(str(error).split())) from error
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise click.ClickException(
            f"this command needs {error.name}, which the base install leaves out: "
            f"pip install 'dsmr-export[{extra}]'"
        ) from error


_EXTRAS = {
    **dict.fromkeys(("torch", "safetensors", "miditok", "symusic"), "train"),
    **dict.fromkeys(("matplotlib", "jinja2"), "pictures"),
    **dict.fromkeys(("onnx", "onnxscript", "optimum"), "export"),
}


def require(package: str, extra: str) -> None:
    """Refuses early, before any work, where an extra is not installed."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise DsmrError(
            f"this command needs {package}, which the base install leaves out: "
            f"pip install 'dsmr-export[{extra}]'"
        )


def stdout() -> Console:
    """Tables keep their width when stdout is a pipe, whatever COLUMNS says.

    No markup: `pip install 'dsmr-export[export]'` and folders with brackets are printed as they are.
    """
    width = None if sys.stdout.isatty() else TABLE_WIDTH
    return Console(width=width, markup=False, highlight=False)


def stderr() -> Console:
    return Console(stderr=True, markup=False, highlight=False)


def print_json(values: Any) -> None:
    click.echo(json.dumps(_finite(values), allow_nan=False))


def _finite(values: Any) -> Any:
    """What JSON has no word for, NaN and infinity, becomes null."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def command_line() -> str:
    """The command as it was given, for what is written about its results."""
    return " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
