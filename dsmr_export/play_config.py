"""`--config FILE`: a TOML file whose keys are a command's long options. What is on the command line wins."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from dsmr_export.errors import DsmrError, nearest
from dsmr_export.options import State

Command = TypeVar("Command", bound=Callable[..., Any])


def config_option(command: Command) -> Command:
    """Adds --config to a command: the file's values become defaults before any other option is looked at.

    They go through click's `default_map`, which covers options and, since click 8.0, arguments too. So types
    and callbacks apply as to the command line, and `ctx.get_parameter_source` says DEFAULT_MAP.
    """
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="TOML file with any of these options; its paths are relative to its folder.",
    )(command)


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **load(path, context.command)}


def load(path: Path, command: click.Command) -> dict[str, Any]:
    """The values of a file by parameter name, for `default_map`.

    A key is a long option with - or _ (`top-p`), or the name of an argument (`bundle`). An option that may be
    given several times takes a list, a flag true or false; a pair --x/--no-x goes by x. Paths are relative
    to the file's folder, ~ is the home. Raises DsmrError in one line that names the file and the key.
    """
    parameters = dict(_parameters(command))
    found: dict[str, Any] = {}
    read = _read(path)
    names = {key.replace("_", "-") for key in read}
    for key, value in read.items():
        name = key.replace("_", "-")
        if name not in parameters:
            raise DsmrError(f"{path}: {key} is not an option of it{_meant(name, command, parameters)}")
        parameter = parameters[name]
        if parameter.name in found:
            raise DsmrError(f"{path}: {key} is given twice, with - and with _ or under two names: keep one")
        assert parameter.name is not None
        found[parameter.name] = _checked(path, key, value, parameter, command)
        # A state without a separator may be the name of one in the bank, and is a file where there is none.
        if isinstance(parameter.type, State) and (os.sep in value or "bank" not in names):
            found[parameter.name] = _absolute(path, key, value)
    return found


def _parameters(command: click.Command) -> Iterator[tuple[str, click.Parameter]]:
    """(key, parameter) of everything that reaches the command: not --help, --version or --config itself."""
    for parameter in command.params:
        if not parameter.expose_value:
            continue
        if isinstance(parameter, click.Argument):
            yield (parameter.name or "").replace("_", "-"), parameter
        for option in parameter.opts:
            if option.startswith("--"):
                yield option.removeprefix("--"), parameter


def _meant(name: str, command: click.Command, known: dict[str, click.Parameter]) -> str:
    for parameter in command.params:
        if f"--{name}" in parameter.secondary_opts:
            return f" (write {parameter.opts[0].removeprefix('--')} = false)"
    return nearest(name, sorted(known)) or ": see --help"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DsmrError(f"{path}: cannot be read ({error.strerror}): give another --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DsmrError(f"{path}: is not TOML: {error}") from error


def _checked(path: Path, key: str, value: Any, parameter: click.Parameter, command: click.Command) -> Any:
    """The value as `default_map` takes it: checked with the parameter's type, and not yet converted by it."""
    many = parameter.multiple or parameter.nargs != 1
    wanted = f"a list, as in {key} = […]" if many else _wanted(parameter)
    if not _fits(value, parameter, many):
        raise DsmrError(f"{path}: {key} is {_kind(value)}, and has to be {wanted}")
    if isinstance(parameter.type, (click.Path, click.File)):
        value = _each(value, lambda text: _absolute(path, key, text))
    try:
        parameter.type_cast_value(click.Context(command), value)
    except click.BadParameter as error:
        raise DsmrError(f"{path}: {key}: {error.message}") from error
    return value


def _fits(value: Any, parameter: click.Parameter, many: bool) -> bool:
    """Whether TOML's type is the parameter's: click would take "5" for a number, and true for one."""
    if many:
        nested = parameter.multiple and parameter.nargs != 1
        if not isinstance(value, list):
            return False
        if nested:
            return all(isinstance(one, list) and all(_is_plain(part) for part in one) for one in value)
        return all(_fits(one, parameter, False) for one in value)
    kinds = _kinds(parameter)
    return isinstance(value, kinds) and (not isinstance(value, bool) or kinds == (bool,))


def _kinds(parameter: click.Parameter) -> tuple[type, ...]:
    """The types of TOML that the parameter takes; a type of our own decides by itself, by text or number."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return (bool,)
    return _KINDS.get(type(parameter.type), (str, int, float))


_KINDS: dict[type[click.ParamType], tuple[type, ...]] = {
    type(click.BOOL): (bool,),
    type(click.INT): (int,),
    click.IntRange: (int,),
    type(click.FLOAT): (int, float),
    click.FloatRange: (int, float),
    type(click.STRING): (str,),
    click.Choice: (str,),
    click.Path: (str,),
    click.File: (str,),
    State: (str,),
}


def _wanted(parameter: click.Parameter) -> str:
    names = {bool: "true or false", str: 'text, in "quotes"', int: "a whole number"}
    kinds = _kinds(parameter)
    if len(kinds) == 1:
        return names[kinds[0]]
    return "text or a number" if str in kinds else "a number"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    names = ((str, "text"), (int, "a whole number"), (float, "a number"), (list, "a list"), (dict, "a table"))
    return next((name for kind, name in names if isinstance(value, kind)), "a date or time")


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _each(value: Any, change: Callable[[str], str]) -> Any:
    return [_each(one, change) for one in value] if isinstance(value, list) else change(value)


def _absolute(path: Path, key: str, text: str) -> str:
    if not text:
        raise DsmrError(f"{path}: {key} is empty: give a path, or leave it out")
    if text == "-":  # stdin or stdout
        return text
    try:
        return str(path.absolute().parent / Path(text).expanduser())
    except RuntimeError as error:
        raise DsmrError(f"{path}: {key}: {text} names a home that is not known") from error
