"""Schedules: the rules stated in dsmr_export.schedule, for every name, and every mistake a user can make."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export import schedule
from dsmr_export.errors import ScheduleError
from dsmr_export.schedule import FLOOR, NAMES, Schedule, build, changes, compact, describe, explicit

names = st.sampled_from(NAMES)
layer_counts = st.integers(1, 48)


@given(name=names, layers=layer_counts, spare=st.integers(0, 200_000))
def test_budget_is_never_exceeded_and_no_layer_is_below_the_floor(name: str, layers: int, spare: int) -> None:
    budget = FLOOR * layers + spare
    built = build(name, layers, budget)
    assert built.name == name
    assert len(built.horizons) == layers
    assert built.budget_tokens == sum(built.horizons) <= budget
    assert min(built.horizons) >= FLOOR
    # Rounding down loses less than a few tokens a layer: the budget is spent, not only respected.
    assert budget - built.budget_tokens <= 2 * layers


@given(name=names, layers=layer_counts, spare=st.integers(0, 50_000), floor=st.integers(1, 300))
def test_floor_parameter_replaces_the_floor(name: str, layers: int, spare: int, floor: int) -> None:
    built = build(f"{name}:floor={floor}", layers, floor * layers + spare)
    assert min(built.horizons) >= floor
    assert built.budget_tokens <= floor * layers + spare


@given(name=names, layers=layer_counts, spare=st.integers(0, 50_000), floor=st.integers(1, 300))
def test_text_round_trips_without_a_budget(name: str, layers: int, spare: int, floor: int) -> None:
    built = build(f"{name}:floor={floor}", layers, floor * layers + spare)
    assert build(str(built), layers) == built


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40))
def test_explicit_list_round_trips(horizons: list[int]) -> None:
    built = explicit(horizons)
    assert built.horizons == tuple(horizons)
    assert build(built.text, len(horizons)) == built


@given(layers=layer_counts, spare=st.integers(0, 200_000))
def test_two_scale_rule_of_the_design(layers: int, spare: int) -> None:
    budget = FLOOR * layers + spare
    n_long = max(1, layers // 4)
    short = max(FLOOR, budget // (4 * layers))
    long = (budget - (layers - n_long) * short) // n_long
    assert build("two_scale", layers, budget).horizons == (long,) * n_long + (short,) * (layers - n_long)


# Worked by hand for 8 layers and 5,632 tokens.
@pytest.mark.parametrize(
    ("text", "horizons"),
    [
        ("full", (704,) * 8),
        ("uniform", (704,) * 8),
        ("two_scale", (2288, 2288, 176, 176, 176, 176, 176, 176)),
        ("reverse_two_scale", (176, 176, 176, 176, 176, 176, 2288, 2288)),
        ("progressive_ascending", (64, 246, 429, 612, 795, 978, 1161, 1344)),
        ("progressive_descending", (1344, 1161, 978, 795, 612, 429, 246, 64)),
        ("selective_uniform", (2624, 64, 64, 64, 2624, 64, 64, 64)),
        ("perceiver_ar_like", (5184, 64, 64, 64, 64, 64, 64, 64)),
        ("interleaved", (176, 176, 176, 2288, 176, 176, 176, 2288)),
        ("interleaved:k=1", (176, 1232, 176, 1232, 176, 1232, 176, 1232)),
    ],
)
def test_worked_examples(text: str, horizons: tuple[int, ...]) -> None:
    assert build(text, 8, 5632).horizons == horizons


def test_own_parameters_need_no_budget() -> None:
    assert build("full:cap=1024", 4).horizons == (1024,) * 4
    assert build("two_scale:long=2048,short=256,n_long=2", 8).horizons == (2048,) * 2 + (256,) * 6
    assert build("two_scale:long=2048", 4).horizons == (2048, FLOOR, FLOOR, FLOOR)
    assert build("progressive_ascending:low=100,high=400", 4).horizons == (100, 200, 300, 400)
    assert build("uniform:budget=4096", 4).horizons == (1024,) * 4


def test_names_are_forgiving_about_hyphens_and_case() -> None:
    assert build("Two-Scale", 8, 5632) == build("two_scale", 8, 5632)


def test_selective_random_follows_its_seed() -> None:
    drawn = {build(f"selective_random:n_long=3,seed={seed}", 12, 12_000).horizons for seed in range(20)}
    assert len(drawn) > 10
    assert all(sum(h > FLOOR for h in horizons) == 3 for horizons in drawn)
    assert build("selective_random:seed=7", 12, 12_000) == build("selective_random:seed=7", 12, 12_000)
    # Written down: a bundle made with one Python must mean the same layers under another.
    horizons = build("selective_random:n_long=3,seed=1", 12, 12_000).horizons
    assert [layer for layer, horizon in enumerate(horizons) if horizon > FLOOR] == [0, 8, 9]


def test_interleaved_with_fewer_layers_than_a_period_keeps_one_long_layer() -> None:
    assert build("interleaved:k=5", 3, 1200).horizons == (100, 100, 1000)


def test_a_default_budget_is_used_only_where_one_is_needed_and_is_no_limit() -> None:
    assert build("two_scale", 8, default_budget=5632) == build("two_scale", 8, 5632)
    assert build("9000x8", 8, default_budget=5632).budget_tokens == 72_000
    assert build("full:cap=9000", 8, default_budget=5632).budget_tokens == 72_000
    assert build("two_scale:budget=1024", 8, default_budget=5632).budget_tokens <= 1024


def test_compact_and_describe() -> None:
    assert compact((2048, 2048, 256)) == "2048x2,256"
    assert describe(build("2048x2,256x6", 8)) == "explicit: 2048x2,256x6 = 5,632 tokens in 8 layers"
    assert describe(build("perceiver_ar_like", 4, 4096)).endswith(
        "= 4,096 tokens in 4 layers (layers without memory in the published schedule keep 64 tokens here)"
    )
    assert "without memory" not in describe(build("two_scale", 4, 4096))


def test_changes_says_what_differs() -> None:
    trained = build("2048x2,256x6", 8)
    assert changes(trained, build("two_scale:long=2048,short=256", 8)) == []
    sentences = changes(trained, build("1024x2,256x5,512", 8))
    assert sentences[0].endswith("5,632 -> 3,840 tokens of state")
    assert sentences[1:3] == [
        "layers 0-1: horizon 2,048 -> 1,024 tokens (shorter)",
        "layer 7: horizon 256 -> 512 tokens (longer)",
    ]
    assert "longer horizons than trained" in sentences[3]
    assert len(changes(trained, build("1024x8", 8))) == 4
    assert len(changes(trained, build("128x8", 8))) == 3
    with pytest.raises(ScheduleError, match="4 layers, the model was trained with 8"):
        changes(trained, build("64x4", 4))


@pytest.mark.parametrize(
    ("text", "budget", "message"),
    [
        ("", 5632, "the schedule is empty"),
        (
            "two_scales",
            5632,
            r"'two_scales' \(did you mean two_scale\?\); there are: full, uniform, two_scale",
        ),
        ("xyz", 5632, "unknown schedule 'xyz'; there are: full"),
        ("2048x2,256x5", None, "lists 7 horizons, the model has 8 layers"),
        ("64x999999", None, "lists 999999 horizons"),
        ("2048y2", None, "cannot read '2048y2'; write HORIZON or HORIZONxLAYERS"),
        ("2048x2,,256x6", None, "cannot read ''"),
        ("0x8", None, "layer 0 has horizon 0; it must be a whole number >= 1"),
        ("two_scale", None, "needs a budget in tokens"),
        ("two_scale", 511, "511 tokens is too small for 8 layers that keep at least 64 .* the least is 512"),
        ("two_scale:floor=0", 512, "floor must be at least 1"),
        ("two_scale:short=100", 799, "the least is 800"),
        ("progressive_ascending:low=100", 799, "the least is 800"),
        (
            "two_scale:lng=9",
            None,
            r"'lng' \(did you mean long\?\); it has: long, short, n_long, budget, floor",
        ),
        ("full:", None, "needs a budget"),
        ("full:cap", None, "cap must be a whole number, got ''"),
        ("full:cap=ten", None, "cap must be a whole number, got 'ten'"),
        ("full:cap=-1", None, "cap must be a whole number, got '-1'"),
        ("full:cap=1,cap=2", None, "cap is given twice"),
        ("full:cap=32", None, "gives layer 0 32 tokens, below the floor of 64; add floor=32 if you mean it"),
        ("full:cap=1024", 8191, "keeps 8,192 tokens, more than the budget of 8,191"),
        ("1024x8", 8191, "keeps 8,192 tokens, more than the budget of 8,191"),
        ("two_scale:budget=5632", 5631, "the budget is also given as 5631"),
        ("two_scale:n_long=9", 5632, "n_long must be 1 to 8"),
        ("two_scale:n_long=0", 5632, "n_long must be 1 to 8"),
        ("two_scale:long=100,short=200", None, r"long \(100\) must not be less than short \(200\)"),
        ("progressive_ascending:low=200,high=100", None, r"high \(100\) must not be less than low \(200\)"),
        ("interleaved:k=0", 5632, "k .* must be at least 1"),
    ],
)
def test_mistakes_get_one_clear_line(text: str, budget: int | None, message: str) -> None:
    with pytest.raises(ScheduleError, match=message) as caught:
        build(text, 8, budget)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("horizons", [[], [0], [-1], [True], [2.0]])
def test_explicit_refuses_what_is_not_a_horizon(horizons: list[int]) -> None:
    with pytest.raises(ScheduleError):
        explicit(horizons)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ScheduleError, match="at least one layer"):
        build("two_scale", 0, 5632)


@given(st.text(max_size=30))
def test_any_text_builds_or_raises_schedule_error(text: str) -> None:
    with contextlib.suppress(ScheduleError):
        assert isinstance(build(text, 4, 4096), Schedule)


def test_module_documents_every_name() -> None:
    assert schedule.__doc__ is not None
    assert [line for line in schedule.__doc__.splitlines() if line in NAMES] == list(NAMES)
