"""The sweep and the choice: every matrix once at every level, costs that are really each one's, a bound that
holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from dsmr_export.errors import BundleError, DsmrError
from dsmr_export.runtime import Bundle, Stream, metrics
from dsmr_export.targets import loader
from tests.exported import HORIZONS, pack_tiny, small_gate

pytest.importorskip("onnxscript", reason="torch's exporter needs it")
from dsmr_export import cli, parity, quantize, sensitivity, sensitivity_figure

PARTS = ("qkv", "out", "up", "down")
PRODUCTS = {f"layers.{i}.{part}.weight" for i in range(len(HORIZONS)) for part in PARTS} | {"head.weight"}
BLOCK4 = loader.load("x86-64-avx2").recipe("int4")
BLOCK8 = loader.load("x86-64-avx2").recipe("int8")
DYNAMIC = loader.load("generic").recipe("int8")


@pytest.fixture(scope="module")
def bundle(tiny_export: Path) -> Bundle:
    return Bundle.open(tiny_export)


@pytest.fixture(scope="module")
def pieces(bundle: Bundle) -> list[NDArray[np.int64]]:
    return [bundle.golden.input_ids[:150], bundle.golden.input_ids[200:300]]


@pytest.fixture(scope="module")
def costs(bundle: Bundle, pieces: list[NDArray[np.int64]]) -> list[sensitivity.Cost]:
    with sensitivity.weighing(bundle, BLOCK4, pieces) as scale:
        assert scale.tokens == 149 + 99
        return sensitivity.sweep(scale)


@pytest.fixture
def scale(bundle: Bundle, pieces: list[NDArray[np.int64]]) -> Iterator[sensitivity.Scale]:
    with sensitivity.weighing(bundle, BLOCK4, pieces) as made:
        yield made


def test_every_matrix_alone_at_every_level_of_its_recipe(
    bundle: Bundle, pieces: list[NDArray[np.int64]], costs: list[sensitivity.Cost]
) -> None:
    seen = [(cost.tensor, cost.level) for cost in costs]
    wanted = {(name, level) for name in PRODUCTS for level in ("int8", "int4")}
    assert len(seen) == len(set(seen)) and set(seen) == wanted | {("embedding.weight", "int8")}
    assert [cost.kl for cost in costs] == sorted((cost.kl for cost in costs), reverse=True)
    for recipe, more in ((DYNAMIC, set()), (BLOCK8, {("embedding.weight", "int8")})):
        with sensitivity.weighing(bundle, recipe, pieces[:1]) as scale:
            found = {(cost.tensor, cost.level) for cost in sensitivity.sweep(scale)}
        assert found == {(name, "int8") for name in PRODUCTS} | more


def test_a_cost_is_what_the_graph_with_that_matrix_alone_does(
    bundle: Bundle, pieces: list[NDArray[np.int64]], costs: list[sensitivity.Cost], tmp_path: Path
) -> None:
    """Made and streamed once more, by the runtime's own Stream, token by token as far as rounding allows."""
    cost = next(cost for cost in costs if cost.tensor == "layers.1.up.weight" and cost.level == "int4")
    source = bundle.path / "model.onnx"
    plan = dict.fromkeys(quantize.matrices(onnx.load(source)), "float") | {cost.tensor: "int4"}
    quantize.quantize(source, tmp_path / "one.onnx", BLOCK4, plan)
    smaller = source.stat().st_size - (tmp_path / "one.onnx").stat().st_size
    assert abs(smaller - cost.saved) < 200  # but for the names of what is stored
    from dsmr_export.runtime.runner import FusedRunner
    from dsmr_export.runtime.session import open_session

    runner = FusedRunner(open_session(tmp_path / "one.onnx"), bundle.graph("fp32"), bundle.manifest.model)
    exact, divergence, nll = Stream(bundle, "fp32"), [], []
    for ids in pieces:
        runner.reset()
        exact.reset()
        expected = exact.feed(ids[:-1])
        found = np.concatenate(
            [runner.run(ids[i : min(i + 128, len(ids) - 1)], i).copy() for i in range(0, len(ids) - 1, 128)]
        )
        divergence.append(metrics.kl_divergence(expected, found))
        nll.append(metrics.nll(found, ids[1:]) - metrics.nll(expected, ids[1:]))
    assert cost.kl == pytest.approx(np.concatenate(divergence).mean(), rel=1e-3)
    assert cost.change == pytest.approx(np.expm1(np.concatenate(nll).mean()), rel=1e-3)


def test_fewer_bits_cost_more_and_save_more(costs: list[sensitivity.Cost]) -> None:
    by = {(cost.tensor, cost.level): cost for cost in costs}
    for name in PRODUCTS:
        four, eight = by[name, "int4"], by[name, "int8"]
        assert four.kl > eight.kl and four.sqnr_db < eight.sqnr_db - 15
        assert four.saved > eight.saved > 0


@pytest.mark.parametrize("bound", [0.3, 0.02, 0.002])
def test_the_choice_is_inside_its_bound_and_smaller_than_what_it_gave_up(
    bundle: Bundle,
    scale: sensitivity.Scale,
    costs: list[sensitivity.Cost],
    bound: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random weights are harder to quantize than trained ones: only the bound counts here, not the gate."""
    monkeypatch.setattr(parity, "INT4", parity.Gate(relative_change=1.0))
    choice = sensitivity.choose(scale, "int4", costs, bound)
    assert abs(choice.best.change) <= bound
    assert choice.lowest.bytes <= choice.best.bytes < (bundle.path / "model.onnx").stat().st_size
    assert sum(choice.best.levels.values()) == len(PRODUCTS) + 1
    if abs(choice.lowest.change) > bound:
        assert choice.best.bytes > choice.lowest.bytes


def test_a_tighter_bound_never_gives_a_smaller_file(
    scale: sensitivity.Scale,
    costs: list[sensitivity.Cost],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By divergence, which has one sign: the gate's bound on it is tightened step by step."""
    sizes = []
    for kl in (1.0, 0.03, 0.003):
        monkeypatch.setattr(parity, "INT4", parity.Gate(relative_change=1.0, kl_mean=kl))
        choice = sensitivity.choose(scale, "int4", costs, 1.0)
        assert choice.best.kl <= kl
        sizes.append(choice.best.bytes)
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_what_cannot_be_swept_or_bounded_is_said(
    scale: sensitivity.Scale, pieces: list[NDArray[np.int64]], costs: list[sensitivity.Cost]
) -> None:
    missing = pytest.raises(BundleError, match=r"has no fp32 graph, which a sweep starts from: make a bundle")
    with missing, sensitivity.weighing(Bundle.open(), BLOCK4, pieces):
        pass
    for bound in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DsmrError, match="give a bound above 0, as in 0.001"):
            sensitivity.choose(scale, "int4", costs, bound)


def test_a_float_head_takes_the_embedding_with_it(
    scale: sensitivity.Scale, costs: list[sensitivity.Cost]
) -> None:
    """Both are one matrix in float: an int8 embedding beside a float head would be the larger file."""
    plans = list(sensitivity._raised(scale, costs))
    assert set(plans[-1].values()) == {"float"}
    for before, after in zip(plans, plans[1:], strict=False):
        changed = [name for name in after if after[name] != before[name]]
        if "head.weight" in changed and after["head.weight"] == "float":
            assert after["embedding.weight"] == "float"
    sizes = [scale.weigh(plan).bytes for plan in (plans[0], plans[-1])]
    assert sizes[0] < sizes[1]


def test_the_picture_has_a_row_a_matrix(costs: list[sensitivity.Cost], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the train extra")
    from dsmr_export import figures

    figure = sensitivity_figure.draw(costs)
    [axes] = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[-1] == "embedding" and names[0] == "head" and len(names) == len(PRODUCTS) + 1
    assert [path.suffix for path in figures.save(figure, tmp_path, "sweep")] == [".png", ".svg"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, ["quantize", *map(str, arguments)])


def test_the_command_sweeps_chooses_and_records_the_choice(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "INT4", parity.Gate(relative_change=10.0))
    monkeypatch.setattr(parity, "QUANTIZED", parity.Gate(relative_change=10.0))
    output = tmp_path / "mixed"
    with small_gate():
        result = run(
            *(tiny_export, "--sweep", "--max-change", 0.02, "--tokens", 64, "--limit", 1, "--json"),
            *("--checkpoint", tiny_checkpoint, "--plots", tmp_path / "plots", "-o", output),
        )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    plan = found["choice"]["plan"]
    assert set(plan) == PRODUCTS | {"embedding.weight"} and abs(found["choice"]["change"]) <= 0.02
    assert {entry["tensor"] for entry in found["tensors"]} == set(plan)
    graph = Bundle.open(output).graph("int4")
    assert graph.quantization is not None
    recorded = {name: entry["type"] for name, entry in graph.quantization["tensors"].items()}
    assert recorded == {name: level for name, level in plan.items() if level != "float"}
    assert sorted(os.listdir(tmp_path / "plots")) == ["sensitivity.png", "sensitivity.svg"]
    assert "int8" in Bundle.open(output).manifest.graphs, "what the bundle had stays"


def test_the_command_refuses_before_it_sweeps(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it swept")

    monkeypatch.setattr(sensitivity, "sweep", never)
    (tmp_path / "file").write_text("")
    own = ("--checkpoint", tiny_checkpoint)
    for options, code, message in (
        ((tiny_export,), 2, "give --sweep, --max-change or both"),
        ((tiny_export, "--sweep", "--target", "raspberry-pi-4"), 1, "refuses int4"),
        ((tmp_path / "nothing", "--sweep"), 1, "is not a folder"),
        ((tiny_export, "--max-change", "0", *own), 1, "give a bound above 0"),
        # the bundled checkpoint is not what this bundle was made from
        ((tiny_export, "--max-change", "0.1"), 1, "is not what the bundle was made from"),
        ((tiny_export, "--max-change", "0.1", *own, "-o", tiny_export), 1, "--force to replace it"),
        ((tiny_export, "--sweep", "--plots", tmp_path / "file"), 1, "file"),
    ):
        result = run(*options)
        assert (result.exit_code, message in " ".join(result.output.split())) == (code, True), result.output


def test_a_bundle_of_ones_own_profile_needs_its_file(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import resources

    text = resources.files("dsmr_export.targets").joinpath("x86-64-avx2.toml").read_text(encoding="utf-8")
    profile = tmp_path / "mine.toml"
    profile.write_text(text.replace('name = "x86-64-avx2"', 'name = "my-board"'), encoding="utf-8")
    with small_gate():
        bundle = pack_tiny(tiny_checkpoint, tmp_path / "b", ops=("fused",), target=str(profile)).path
    refused = run(bundle, "--sweep")
    assert refused.exit_code == 1
    assert "was made for my-board, a profile of your own: give its file as --target" in refused.output
    monkeypatch.setattr(sensitivity, "sweep", lambda *_: [])
    assert run(bundle, "--sweep", "--target", profile).exit_code == 0
