"""--config: a TOML file gives what the flags would, on a command with an option of every kind."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmr_export.cli_play import play
from dsmr_export.errors import DsmrError
from dsmr_export.options import BYTES, comma_list
from dsmr_export.play_config import config_option, load
from dsmr_export.terminal import Refusing

SEEN: dict[str, Any] = {}


@click.group(cls=Refusing)
def main() -> None:
    pass


@main.command()
@config_option
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--temperature", type=click.FloatRange(0), default=1.0)
@click.option("--top-k", type=click.IntRange(0), default=0)
@click.option("--any-int", type=int)
@click.option("--mode", type=click.Choice(["continue", "duet", "loop"]), default="continue")
@click.option("--midi-in")
@click.option("--virtual", is_flag=True)
@click.option("--thru/--no-thru", default=True)
@click.option("--cc", multiple=True)
@click.option("--load", "loads", type=click.Path(path_type=Path), multiple=True)
@click.option("--range", "span", type=int, nargs=2)
@click.option("--zone", type=(str, int), multiple=True)
@click.option("--bank", "-b", type=click.Path(path_type=Path))
@click.option("--size", type=BYTES)
@click.option("--quantize", callback=comma_list("none", "int8"))
@click.option("--answer", type=bool)
@click.option("-v", "--verbose", count=True)
@click.option("--save", required=True)
@click.pass_context
def fake(context: click.Context, **options: Any) -> None:
    SEEN.clear()
    SEEN.update(options, sources={name: context.get_parameter_source(name) for name in options})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc" / "play.toml"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["fake", *map(str, arguments)], prog_name="dsmr")


def given_by(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return {name: value for name, value in SEEN.items() if name != "sources"}


EVERYTHING = """
bundle = "my-bundle"
temperature = 0.9
top-k = 3
any_int = -7
mode = "duet"
midi-in = "Keystation"
virtual = true
thru = false
cc = ["temperature=21", "pace=22"]
load = ["a.state", "/b.state"]
range = [1, 9]
zone = [["low", 1], ["high", 2]]
bank = "../bank"
size = "2MB"
quantize = "int8,none"
answer = false
verbose = 2
save = "x"
"""


def test_a_file_is_equal_to_the_flags(path: Path) -> None:
    path.write_text(EVERYTHING.replace(',none"', '"'))
    folder = path.parent
    flags = [
        folder / "my-bundle",
        "--temperature",
        "0.9",
        "--top-k",
        "3",
        "--any-int",
        "-7",
        "--mode",
        "duet",
    ]
    flags += [
        "--midi-in",
        "Keystation",
        "--virtual",
        "--no-thru",
        "--cc",
        "temperature=21",
        "--cc",
        "pace=22",
    ]
    flags += ["--load", folder / "a.state", "--load", "/b.state", "--range", "1", "9", "--zone", "low", "1"]
    flags += ["--zone", "high", "2", "-b", folder / "../bank", "--size", "2MB", "--quantize", "int8"]
    flags += ["--answer", "false", "-vv", "--save", "x"]
    assert given_by("--config", path) == given_by(*flags)
    assert set(tomllib.loads(EVERYTHING)) - {"load", "range"} <= {name.replace("_", "-") for name in SEEN} | {
        "any_int"
    }


def test_the_command_line_wins(path: Path) -> None:
    path.write_text(EVERYTHING.replace(',none"', '"'))
    found = given_by("--config", path, "--temperature", "1.5", "--thru", "--cc", "x=1", "other")
    assert (found["temperature"], found["thru"], found["cc"], found["bundle"]) == (
        1.5,
        True,
        ("x=1",),
        Path("other"),
    )
    assert found["top_k"] == 3
    assert SEEN["sources"]["top_k"] is ParameterSource.DEFAULT_MAP
    assert SEEN["sources"]["temperature"] is ParameterSource.COMMANDLINE


def test_what_is_not_named_keeps_its_default(path: Path) -> None:
    path.write_text("save = 'x'\n")
    assert given_by("--config", path) == given_by("--save", "x")


def test_it_does_not_matter_where_the_option_stands(path: Path) -> None:
    path.write_text("save = 'x'\ntop_k = 5\n")
    assert given_by("--temperature", "1", "--config", path) == given_by(
        "--config", path, "--temperature", "1"
    )
    assert SEEN["top_k"] == 5


def test_relative_paths_are_relative_to_the_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text('save = "x"\nbank = "banks/a"\nbundle = "~/bundle"\nload = ["-", "b"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    found = given_by("--config", Path("etc") / "play.toml")
    assert found["bank"] == tmp_path / "etc" / "banks" / "a"
    assert found["bundle"] == Path("/home/somebody/bundle")
    assert found["loads"] == (Path("-"), tmp_path / "etc" / "b")
    assert found["save"] == "x"  # text, not a path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temprature = 1", ("temprature", "did you mean temperature?")),
        ("midi_inn = 'x'", ("midi_inn", "did you mean midi-in?")),
        ("colour = 1", ("colour is not an option", "--help")),
        ("config = 'other.toml'", ("config is not an option",)),
        ("help = true", ("help is not an option",)),
        ("no-thru = true", ("no-thru", "write thru = false")),
        ("top-k = 1\ntop_k = 2", ("top_k is given twice",)),
        ("temperature = 'hot'", ("temperature is text, and has to be a number",)),
        ("temperature = true", ("temperature is true", "a number")),
        ("temperature = -1.0", ("temperature: ", "0")),
        ("top-k = 1.5", ("top-k is a number, and has to be a whole number",)),
        ("top-k = false", ("top-k is false", "a whole number")),
        ("top-k = -1", ("top-k: -1",)),
        ("mode = 'solo'", ("mode: 'solo'", "'duet'")),
        ("mode = 1", ('mode is a whole number, and has to be text, in "quotes"',)),
        ("midi-in = ['a']", ("midi-in is a list, and has to be text",)),
        ("virtual = 'yes'", ("virtual is text, and has to be true or false",)),
        ("virtual = 1", ("virtual is a whole number", "true or false")),
        ("answer = 1", ("answer is a whole number", "true or false")),
        ("thru = 0", ("thru is a whole number", "true or false")),
        ("cc = 'temperature=21'", ("cc is text, and has to be a list",)),
        ("cc = [1]", ("cc is a list", "has to be a list")),
        ("range = [1, 2, 3]", ("range: ",)),
        ("zone = ['low']", ("zone is a list",)),
        ("zone = [['low', 'x']]", ("zone: 'x'",)),
        ("bank = ''", ("bank is empty",)),
        ("bank = '~nobody-at-all/x'", ("bank: ~nobody-at-all/x names a home",)),
        ("size = 'huge'", ("size: 'huge' is not a size",)),
        ("size = true", ("size is true",)),
        ("save = 2026-11-24", ("save is a date or time",)),
        ("[midi]\nin = 'x'", ("midi",)),
        ("mode = duet\n", ("is not TOML", "line 1")),
        ("mode = 'duet'\nmode = 'loop'", ("is not TOML",)),
    ],
)
def test_refusals_name_the_file_and_the_key_in_one_line(
    path: Path, text: str, words: tuple[str, ...]
) -> None:
    path.write_text(text)
    result = run("--config", path, "--save", "x")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {path}: ") and all(word in line for word in words), line


def test_files_that_cannot_be_read(path: Path) -> None:
    for make, words in (
        (lambda: None, "No such file"),
        (path.mkdir, "Is a directory"),
        (lambda: (path.rmdir(), path.write_bytes(b"mode = '\xff'")), "is not TOML"),
    ):
        make()
        result = run("--config", path, "--save", "x")
        assert result.exit_code == 1 and result.stderr.count("\n") == 1
        assert str(path) in result.stderr and words in result.stderr


def test_a_callback_has_its_say(path: Path) -> None:
    path.write_text("quantize = 'int3'\nsave = 'x'\n")
    result = run("--config", path)
    assert result.exit_code == 2 and "--quantize" in result.stderr and "int3" in result.stderr


def test_help_needs_no_file() -> None:
    result = run("--config", "/nowhere.toml", "--help")
    assert "--config" in run("--help").output and result.exit_code in (0, 1)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_file_or_a_refusal(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        load(path, fake)
    except DsmrError as error:
        assert str(path) in str(error)


def toml(value: Any) -> str:
    """A value as TOML writes it; floats as Python does."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return f"'{value}'" if isinstance(value, str) else repr(value)


WORD = st.text("abcdefgh -=", min_size=1, max_size=8)
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 5), st.floats(-3, 3), WORD),
    lambda inner: st.lists(inner, max_size=3),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(sorted(tomllib.loads(EVERYTHING))), VALUES))
def test_what_is_loaded_is_what_click_takes(path: Path, values: dict[str, Any]) -> None:
    """click never refuses what a file was accepted with, callbacks apart."""
    values.pop("quantize", None)
    path.write_text("\n".join(f"{key} = {toml(value)}" for key, value in values.items()) + os.linesep)
    try:
        load(path, fake)
    except DsmrError:
        return
    assert run("--config", path, "--save", "x").exit_code == 0


def test_a_state_is_a_file_beside_the_settings_or_a_name_in_the_bank(path: Path) -> None:
    folder = path.parent
    path.write_text('load-state = "evening"\nsave-state = "states/end"\n')
    assert load(path, play) == {
        "load_state": str(folder / "evening"),
        "save_state": str(folder / "states/end"),
    }
    path.write_text('bank = "states"\nload-state = "evening"\nsave-state = "./end"\n')
    found = load(path, play)
    assert found["load_state"] == "evening" and found["save_state"] == str(folder / "end")
