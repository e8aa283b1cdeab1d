"""`dsmr bench` as a command: what goes where, and what is refused before anything is measured."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from dsmr_export import cli
from dsmr_export.bench import growth
from dsmr_export.bench import run as bench


def dsmr(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], prog_name="dsmr")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few steps as there can be."""
    monkeypatch.setattr(bench, "PACED_S", 0.1)
    monkeypatch.setattr(bench, "THREAD_STEPS", bench.BLOCKS)
    monkeypatch.setattr(bench, "SEGMENT_ROUNDS", 1)


def test_tables_and_last_one_object(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path, short: None
) -> None:
    table, few = tmp_path / "bench.csv", ("--steps", "3", "--also-threads", "1", "--graph", "int8")
    arguments = ("bench", tiny_export, "--checkpoint", tiny_checkpoint, *few)
    result = dsmr(*arguments, "--csv", table)
    assert result.exit_code == 0, result.stderr
    *tables, last = result.stdout.splitlines()
    found: dict[str, Any] = json.loads(last, parse_constant=lambda text: pytest.fail(text))
    assert any("pytorch_eager" in line for line in tables) and any("p99 ms" in line for line in tables)
    assert set(found["graphs"]) == {"int8"} and found["reference"] == "int8"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows if row["kind"] == "graph"} == set(found["graphs"])


def test_json_alone_with_growth_and_its_plots(tiny_export: Path, tmp_path: Path, short: None) -> None:
    pytest.importorskip("matplotlib", reason="plots need it")
    plots = tmp_path / "plots"
    arguments = ("bench", tiny_export, "--json", "--peers", "none", "--steps", "3", "--also-threads", "1")
    result = dsmr(*arguments, "--graph", "int8", "--growth", "threads", "--plots", plots)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["peers"] == {} and list(found["growth"]) == ["threads"]
    assert [path.name for path in plots.iterdir()] == ["growth-threads.svg"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--peers", "lama_cpp"), ("no peer 'lama_cpp'", "they are", "all")),
        (("--growth", "horizons"), ("growth has no 'horizons'", "did you mean horizon")),
        (("--graph", "int7"), ("has no graph 'int7'", "int8")),
        (("--also-threads", "2,0"), ("threads is 0", "give 1 or more")),
        (("--graph", "portable", "--growth", "threads"), ("portable of", "cannot grow", "fused graph")),
        (("--checkpoint", "model/default"), ("not what the bundle was made from", "--checkpoint")),
    ],
)
def test_what_is_refused_before_anything_runs(
    tiny_export: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, str], words: tuple[str, ...]
) -> None:
    def never(*arguments: object) -> None:
        pytest.fail("something was started")

    monkeypatch.setattr(bench, "Remote", never)
    monkeypatch.setattr(growth, "Remote", never)
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    result = dsmr("bench", tiny_export, *options)
    assert result.exit_code == 1 and result.stdout == "" and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    for word in words:
        assert word in last


def test_numbers_of_threads_are_whole(tiny_export: Path) -> None:
    result = dsmr("bench", tiny_export, "--also-threads", "1,two")
    assert result.exit_code == click.UsageError.exit_code == 2
    assert "1,two" in result.stderr and "whole numbers with commas" in result.stderr


def test_a_csv_that_cannot_be_written_loses_nothing(tiny_export: Path, tmp_path: Path, short: None) -> None:
    where = tmp_path / "missing" / "bench.csv"
    few = ("--steps", "3", "--also-threads", "1", "--graph", "int8", "--peers", "none")
    result = dsmr("bench", tiny_export, *few, "--json", "--csv", where)
    assert result.exit_code == 1 and json.loads(result.stdout)["graphs"]
    assert f"Error: {where}: cannot be written" in result.stderr
