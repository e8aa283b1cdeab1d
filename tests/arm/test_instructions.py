"""Instructions per token on ARM64: the kept counts hold, and no target's recipe needs more than fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsmr_export.runtime.selection import suits
from dsmr_export.targets import loader
from tests.arm import count, models, parts
from tests.arm.count import COMMAND, Count
from tests.arm.emulator import CPUS, DOT_PRODUCTS, Emulator

GATE = 0.02
"""How far a fresh count may be from the kept one, either way; repeated runs are within 0.3 % (count.py)."""

MODEL = "25m"
DEFAULT_AT_MOST = 1.05
"""Of fp32's instructions on the same processor: any recipe that a target has (issue 4)."""
INT8_AT_MOST = {"raspberry-pi-5": 0.80}

ARM_TARGETS = [name for name in loader.names() if "aarch64" in loader.load(name).architectures]


def case(model: str, cpu: str, *recipes: str, slow: bool = True) -> Any:
    marks = pytest.mark.slow if slow else ()
    name = "-".join([model, cpu, *([] if slow else recipes)])
    return pytest.param(model, cpu, recipes, marks=marks, id=name)


def suited(cpu: str) -> list[str]:
    """The recipes that targets allow on it."""
    return [recipe for recipe in models.RECIPES if not count.refused(cpu, recipe)]


@pytest.mark.parametrize(
    ("model", "cpu", "recipes"),
    [
        case("bundled", "cortex-a72", "fp32", "int8-dynamic", slow=False),
        case("bundled", "cortex-a76", "fp32", "int8-block128", slow=False),
        # A53 and A72 run the same kernels: what takes long is counted afresh on one of them.
        case("bundled", "cortex-a53", *models.RECIPES),
        case("bundled", "cortex-a76", *models.RECIPES),
        case("25m", "cortex-a53", "fp32", "int8-dynamic"),
        case("25m", "cortex-a72", *suited("cortex-a72")),
        case("25m", "cortex-a76", *suited("cortex-a76")),
    ],
)
def test_kept_counts_hold(
    model: str,
    cpu: str,
    recipes: tuple[str, ...],
    arm: Emulator,
    counted_graphs: Callable[[str], Path],
) -> None:
    if not arm.counts:
        pytest.skip("there was no gcc for the instruction counter when the emulation was set up")
    fresh = count.measure(arm, counted_graphs(model), cpu, recipes)
    kept = count.read()[model][cpu]
    assert list(fresh) == list(recipes)
    problems = [line for name in recipes for line in differences(name, kept.get(name), fresh[name])]
    assert not problems, f"{model} on {cpu}: {'; '.join(problems)}. If that is meant: {COMMAND}"


def test_sampling_takes_what_it_took(arm: Emulator) -> None:
    """Python and numpy: their instructions depend on addresses and hashes a little, so twice the gate."""
    if not arm.counts:
        pytest.skip("there was no gcc for the instruction counter when the emulation was set up")
    cpu = "cortex-a72"
    kept, fresh = count.read_sampling()[cpu], count.measure_sampling(arm, cpu)
    assert abs(fresh / kept - 1) <= 2 * GATE, f"{kept:,} instructions are now {fresh:,}: {COMMAND}"


POSITIONS = (10_000, 1_000_000, 1_000_000_000)


@pytest.mark.slow
def test_a_token_costs_the_same_wherever_it_is(arm: Emulator, counted_graphs: Callable[[str], Path]) -> None:
    """The 25 M model in int8; a stream has no length that it slows down with."""
    if not arm.counts:
        pytest.skip("there was no gcc for the instruction counter when the emulation was set up")
    found = count.measure_positions(arm, counted_graphs(MODEL), "cortex-a72", "int8-dynamic", POSITIONS)
    print(found)
    assert max(found.values()) <= 1.005 * min(found.values())


@pytest.mark.parametrize("cpu", CPUS)
def test_sampling_is_a_small_part_of_a_played_token(cpu: str) -> None:
    """By the kept counts: a twentieth of what the 25 M model's int8 step takes."""
    step = count.read()[MODEL][cpu]["int8-dynamic"]
    outside = count.read_sampling()[cpu] + step.kinds["host"]
    assert outside <= 0.05 * (step.instructions + count.read_sampling()[cpu])


def differences(name: str, kept: Count | None, fresh: Count) -> list[str]:
    """Where a count is off by more than the gate: the total by 2 %, a kind by 2 % of the total."""
    if kept is None:
        return [f"{name} has no kept count"]
    found = {
        "instructions": (kept.instructions, fresh.instructions),
        **{kind: (kept.kinds[kind], fresh.kinds[kind]) for kind in parts.KINDS},
    }
    return [
        f"{name}: {what} {before:,} are now {now:,} ({(now - before) / kept.instructions:+.1%} of all)"
        for what, (before, now) in found.items()
        if abs(now - before) > GATE * kept.instructions
    ]


def test_the_gate_fails_either_way_and_names_what_changed() -> None:
    kinds = dict.fromkeys(parts.KINDS, 100_000)
    kept = Count(600_000, kinds)
    assert differences("fp32", kept, Count(611_000, kinds)) == []
    assert differences("fp32", kept, Count(587_000, kinds)) == [
        "fp32: instructions 600,000 are now 587,000 (-2.2% of all)"
    ]
    # The total can stay when two kinds change.
    assert len(differences("fp32", kept, Count(600_000, kinds | {"norm": 80_000, "matmul": 120_000}))) == 2
    assert differences("fp32", None, kept) == ["fp32 has no kept count"]


@pytest.mark.parametrize("model", models.MODELS)
@pytest.mark.parametrize("cpu", CPUS)
def test_every_count_is_kept_and_its_kinds_add_up(model: str, cpu: str) -> None:
    kept = count.read()[model][cpu]
    assert set(kept) == set(models.RECIPES)
    for counted in kept.values():
        assert set(counted.kinds) == set(parts.KINDS)
        assert abs(sum(counted.kinds.values()) - counted.instructions) <= len(parts.KINDS)  # rounding
        assert min(counted.kinds.values()) > 0


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("recipe", models.RECIPES)
def test_the_parts_are_the_whole(cpu: str, recipe: str) -> None:
    """host is what the parts leave over of a step. Both models have eight layers and the same inputs and
    outputs, so it must be the same in both, though one has eleven times the weights: a part missed or counted
    twice would show in it."""
    small, large = (count.read()[model][cpu][recipe].kinds["host"] for model in models.MODELS)
    # Of the larger model's step; 100,000 are Python's, the binding's and onnxruntime's.
    assert abs(large - small) <= 0.005 * count.read()[MODEL][cpu][recipe].instructions
    assert 80_000 < small < 250_000


def ratio(cpu: str, recipe: loader.Recipe) -> float:
    kept, name = count.read()[MODEL][cpu], models.name_of(recipe)
    assert name in kept, f"{name} is not counted: add it to models.RECIPES and run {COMMAND}"
    return kept[name].instructions / kept["fp32"].instructions


@pytest.mark.parametrize("name", ARM_TARGETS)
def test_no_targets_recipe_needs_more_instructions_than_fp32(name: str) -> None:
    """By the kept counts, which test_kept_counts_hold holds. A generic target: on every processor it is for.

    A recipe counts where the processor would be given its graph (runtime.selection).
    """
    target = loader.load(name)
    own = [cpu for cpu in CPUS if cpu in target.cpu.model.lower()]
    dots = loader.has_dot_products(target.cpu.features)
    counted = 0
    for cpu in own or [cpu for cpu in CPUS if cpu == DOT_PRODUCTS or not dots]:
        features = ("asimd", "asimddp") if cpu == DOT_PRODUCTS else ("asimd",)
        for quantization in target.quantizations:
            recipe = target.recipe(quantization)
            if suits(recipe.requires, features):
                most = INT8_AT_MOST.get(name, DEFAULT_AT_MOST) if quantization == "int8" else DEFAULT_AT_MOST
                assert ratio(cpu, recipe) <= most
                counted += 1
    assert counted


@pytest.mark.parametrize("name", ARM_TARGETS)
def test_every_target_asks_for_the_attention_that_was_counted(name: str) -> None:
    environment = loader.load(name).session.environment
    assert environment["aarch64"]["ORT_GQA_DISABLE_FLASH_ATTENTION"] == "1"


@pytest.mark.parametrize("recipe", [recipe for recipe, counted in models.RECIPES.items() if counted.block])
@pytest.mark.parametrize("cpu", [cpu for cpu in CPUS if cpu != DOT_PRODUCTS])
def test_why_block_recipes_are_refused_without_dot_products(cpu: str, recipe: str) -> None:
    kept = count.read()[MODEL][cpu]
    assert kept[recipe].instructions > 3 * kept["fp32"].instructions
