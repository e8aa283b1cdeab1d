"""The table of README.md: every target and quantization is in it once, with the counts that are kept."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from dsmr_export.targets import loader
from tests import scripts

pytest.importorskip("onnxscript", reason="needs the export extra")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return scripts.load("target_table")


def test_every_target_and_quantization_is_in_one_row(script: ModuleType) -> None:
    found = [(target, row.quantization) for row in script.rows() for target in row.targets]
    wanted = {(name, q) for name in loader.names() for q in ("none", *loader.load(name).quantizations)}
    assert len(found) == len(wanted) and set(found) == wanted


def test_targets_share_a_row_only_if_their_graphs_are_made_alike(script: ModuleType) -> None:
    for row in script.rows():
        if row.recipe is None:
            continue
        recipes = [loader.load(name).recipe(row.quantization) for name in row.targets]
        facts = {(r.kernel, r.bits, r.block_size, r.accuracy_level, r.state) for r in recipes}
        assert len(facts) == 1
        assert len({script.EMULATED.get(name) for name in row.targets}) == 1


def test_kinds_add_up_to_the_kept_totals(script: ModuleType) -> None:
    kept = json.loads((scripts.ROOT / "tests" / "arm" / "instructions.json").read_text())["counts"]
    _, _, *rows = script.kinds()
    seen = set()
    for row in rows:
        model, cpu, graph, whole, ratio, *kinds = (cell.strip() for cell in row.strip("|").split("|"))
        seen.add((model, cpu, graph))
        total = kept[model][cpu][graph]["instructions"] / 1e6
        assert float(whole) == pytest.approx(total, abs=0.006)
        assert sum(map(float, kinds)) == pytest.approx(total, abs=0.06)
        fp32 = kept[model][cpu]["fp32"]["instructions"] / 1e6
        assert float(ratio) == pytest.approx(total / fp32, abs=0.006)
    assert seen == {(m, c, g) for m, cpus in kept.items() for c, graphs in cpus.items() for g in graphs}


def test_emulated_cpus_have_what_their_targets_say(script: ModuleType) -> None:
    """A target with dot products is counted on the processor that has them, and no other is."""
    for name, cpu in script.EMULATED.items():
        assert ("asimddp" in loader.load(name).cpu.features) == (cpu == "cortex-a76")
