"""Variants against the numpy forward, the form of growth's tables, and their pictures; no times."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from dsmr_export.bench import growth_figure
from dsmr_export.bench.growth import (
    WHAT,
    FullSteps,
    PlaceSteps,
    Plan,
    Size,
    growth,
    interval,
)
from dsmr_export.errors import DsmrError, OutputError, ScheduleError
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.golden import check_golden
from dsmr_export.runtime.stream import Stream
from tests import tiny_bundle as tiny
from tests.exported import HORIZONS, reference, tolerance
from tests.reference import forward

pytestmark = pytest.mark.slow

SHORT = (3, 40, 9)
"""Other horizons than the bundle's (70, 5, 1): longer, shorter, and past every period."""
IDS = np.random.default_rng(3).integers(0, 311, 150)
CUTS = (1, 33, 34, 90, 120, 121)


@pytest.fixture(scope="module")
def bundle(tiny_export: Path) -> Bundle:
    return Bundle.open(tiny_export)


def fed(bundle: Bundle, graph: str, ids: NDArray[np.integer] = IDS) -> NDArray[np.float32]:
    stream = Stream(bundle, graph)
    return np.concatenate([stream.feed(part) for part in np.split(ids, CUTS)])


# --- variants ---


def test_a_rescheduled_graph_is_the_network_under_those_horizons(
    bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from dsmr_export import schedule as schedules
    from dsmr_export.bench import variants
    from dsmr_export.model import checkpoint

    made = Bundle.open(variants.rescheduled(bundle, ["fp32", "int8"], SHORT, tmp_path / "made"))
    network = checkpoint.load(tiny_checkpoint).network(schedules.explicit(SHORT))
    expected = reference(network, IDS)
    found = fed(made, "fp32")
    assert np.abs(found - expected).max() <= tolerance(expected)
    own = reference(checkpoint.load(tiny_checkpoint).network(schedules.explicit(HORIZONS)), IDS)
    assert np.abs(found - own).max() > 0.1  # horizons do make a difference here
    # dynamic int8 is a rounding away from fp32, not another network
    assert np.abs(fed(made, "int8") - expected).mean() < 0.2 * np.abs(own - expected).mean()
    assert made.manifest.schedule.horizons == SHORT
    for name in ("fp32", "int8"):
        assert check_golden(made, name).passed


def test_rescheduled_and_back_is_the_same_file(bundle: Bundle, tmp_path: Path) -> None:
    from dsmr_export.bench import variants

    there = Bundle.open(variants.rescheduled(bundle, ["int8"], SHORT, tmp_path / "there"))
    back = Bundle.open(variants.rescheduled(there, ["int8"], HORIZONS, tmp_path / "back"))
    assert onnx.load(back.path / back.graph("int8").file) == onnx.load(
        bundle.path / bundle.graph("int8").file
    )
    assert back.graph("int8") == bundle.graph("int8")


def test_a_sized_graph_is_a_network_of_that_size(bundle: Bundle, tmp_path: Path) -> None:
    from dsmr_export.bench import variants
    from dsmr_export.model.config import ModelConfig

    config = ModelConfig(2, 4, 2, 16, 64, 128, 311)
    made = Bundle.open(variants.sized(bundle, ["fp32", "int8"], config, (20, 6), tmp_path / "made"))
    model = onnx.load(made.path / made.graph("fp32").file)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {  # as a checkpoint has them: products transposed
        name: array if array.ndim == 1 or name == "embedding.weight" else array.T
        for name, array in stored.items()
    }
    expected = forward(
        weights,
        IDS.tolist(),
        heads=4,
        kv_heads=2,
        head_dim=16,
        horizons=(20, 6),
        rope_base=config.rope_base,
        norm_eps=config.norm_eps,
    )
    assert np.abs(fed(made, "fp32") - expected).max() <= tolerance(expected)
    assert made.manifest.model.d_ff == 128
    kinds = [node.op_type for node in onnx.load(made.path / made.graph("int8").file).graph.node]
    assert "MatMul" not in kinds and kinds.count("MatMulInteger") == 4 * 2 + 1
    assert check_golden(made, "int8").passed


@pytest.mark.parametrize(
    ("applied", "state", "expected"),
    [
        (
            {
                "kernel": "MatMulNBits",
                "accuracy_level": 4,
                "tensors": {"a": ("int8", 128), "b": ("int8", 64)},
            },
            "int8",
            ("block", 8, 128, 4),
        ),
        (
            {
                "kernel": "MatMulNBits",
                "accuracy_level": 4,
                "tensors": {
                    "a": ("int4", 64),
                    "head.weight": ("int8", 64),
                    "embedding.weight": ("int8", 128),
                },
            },
            "float32",
            ("block", 4, 64, 4),
        ),
        ({"kernel": "DynamicQuantizeMatMul", "tensors": {}}, "int8", ("dynamic", None, None, None)),
    ],
)
def test_a_recipe_is_read_from_the_manifest(
    bundle: Bundle, applied: dict[str, Any], state: str, expected: tuple[Any, ...]
) -> None:
    from dataclasses import replace

    from dsmr_export.bench import variants

    tensors = {
        name: {"type": kind, "block_size": block} for name, (kind, block) in applied["tensors"].items()
    }
    entry = replace(
        bundle.graph("int8"),
        quantization={**applied, "tensors": tensors},
        state=tuple(replace(tensor, dtype=state) for tensor in bundle.graph("int8").state),
    )
    manifest = replace(bundle.manifest, graphs={**bundle.manifest.graphs, "int8": entry})
    found = variants.recipe_of(Bundle(bundle.path, manifest, "", []), "int8")
    assert found is not None and found.state == state
    weights = found.weights
    assert (weights.kernel, weights.bits, weights.block_size, weights.accuracy_level) == expected
    assert variants.recipe_of(bundle, "fp32") is None


def test_what_cannot_be_rescheduled_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    from dsmr_export.bench import variants

    with pytest.raises(DsmrError, match=r"^2 horizons are given and .* has 3 layers: give one a layer$"):
        variants.rescheduled(bundle, ["fp32"], (3, 4), tmp_path / "a")
    with pytest.raises(DsmrError, match="^graph portable of .* is portable: only fused graphs are resch"):
        variants.rescheduled(bundle, ["portable"], SHORT, tmp_path / "b")


# --- steps ---


def test_full_steps_are_steps_of_a_full_state(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    restored = []
    restore = Stream.restore
    monkeypatch.setattr(Stream, "restore", lambda self, it: (restored.append(it), restore(self, it)))
    for graph in ("fp32", "portable"):
        FullSteps(bundle.path, graph, 1).step()
        for name, array in restored[-1].state.items():
            assert np.count_nonzero(array) > 0.9 * array.size, name
    fused, portable = restored
    assert fused.count == bundle.graph("fp32").stream.wrap_at
    assert portable.count == max(HORIZONS)


@pytest.mark.parametrize("walk", [False, True])
def test_places_are_where_they_say(bundle: Bundle, walk: bool) -> None:
    steps = PlaceSteps(bundle.path, "fp32", 1)
    for position in (500, 1100):
        steps.go(position, walk)
    stream = steps._stream
    for place, position in ((1, 1100), (0, 500), (1, 1100)):
        steps.at(place)
        assert stream.position == position
        assert stream.consumed == (position if walk else stream.consumed)
        assert stream.consumed > sum(HORIZONS)
        steps.step()
        assert stream.position == position + 1


def test_a_walk_hears_the_tokens_of_a_whole_stream(bundle: Bundle) -> None:
    """And a place is then as if they had been fed in one go."""
    steps = PlaceSteps(bundle.path, "fp32", 1)
    steps.go(300, walk=True)
    steps.go(700, walk=True)
    steps.at(1)
    whole = Stream(bundle, "fp32")
    whole.feed(np.resize(steps._ids, 700))
    assert np.allclose(steps._stream.logits, whole.logits, atol=1e-4)


def test_a_place_that_lies_behind_is_refused(bundle: Bundle) -> None:
    steps = PlaceSteps(bundle.path, "fp32", 1)
    steps.go(500, walk=True)
    with pytest.raises(DsmrError, match="^position 500 lies behind another one: give them in order"):
        steps.go(500, walk=True)


# --- tables ---

PLAN = Plan(
    horizons=(8, 40),
    positions=(600, 5000),
    sizes=(Size(1, 64), Size(2, 64)),
    horizon=16,
    threads=(1, 2),
    schedules=("two_scale:floor=1", "uniform:floor=1", "uniform"),  # the last needs a floor of 64 a layer
    rounds=2,
    steps=3,
    position_rounds=2,
    position_steps=3,
)


@pytest.fixture(scope="module")
def tables(bundle: Bundle) -> dict[str, list[dict[str, Any]]]:
    steps: dict[str, list[tuple[float, float]]] = {}

    def progress(what: str, done: float, total: float) -> None:
        steps.setdefault(what, []).append((done, total))

    found = growth(bundle, progress=progress, plan=PLAN, graphs=["int8"])
    for what, seen in steps.items():
        assert seen[-1][0] == seen[-1][1], what
        assert [done / total for done, total in seen] == sorted(done / total for done, total in seen), what
    return found


def test_every_row_says_what_it_is(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    assert tuple(tables) == WHAT
    own = {
        "horizon": [{"horizon": 8}, {"horizon": 40}],
        "position": [
            {"position": 600, "control": False, "walked": False},
            {"position": 5000, "control": False, "walked": False},
            {"position": 600, "control": True, "walked": False},
        ],
        "size": [
            # one layer of 4 · 64² and 2 · 64 · 256, its two norms; the last norm, 311 tokens
            {"layers": 1, "d_model": 64, "parameters": 49152 + 128 + 64 + 311 * 64},
            {"layers": 2, "d_model": 64, "parameters": 2 * (49152 + 128) + 64 + 311 * 64},
        ],
        "threads": [{"threads": 1}, {"threads": 2}],
        "schedules": [{"schedule": "two_scale"}, {"schedule": "uniform"}],
    }
    for name, rows in tables.items():
        assert [{key: row[key] for key in own[name][0]} for row in rows] == own[name]
        for row in rows:
            assert row["graph"] == "int8"
            assert set(row["step_ms"]) == {"p50", "p90", "p99", "max"}
            low, high = row["ratio_95"]
            assert row["ratio_min"] <= low <= row["ratio"] <= high <= row["ratio_max"]
        first = rows[0]
        assert (first["ratio"], first["ratio_min"], first["ratio_max"]) == (1, 1, 1)
    assert json.loads(json.dumps(tables)) == tables  # plain


def test_an_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of skewed values, whose mean is elsewhere: 95 of 100 times, give or take four standard errors."""
    rng = np.random.default_rng(0)
    for count in (20, 100):
        found = [interval(rng.exponential(size=count)) for _ in range(2000)]
        inside = np.mean([low <= np.log(2) <= high for low, high in found])
        assert 0.95 - 4 * np.sqrt(0.95 * 0.05 / 2000) <= inside <= 0.99, count
    assert interval(np.array([3.0, 1.0, 2.0])) == (1.0, 3.0)


def test_bytes_and_multiply_adds_grow_with_the_horizon(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], bundle: Bundle
) -> None:
    """By what 32 more keys and values of float32 a layer are, and nothing else; the file's header aside."""
    short, long = tables["horizon"]
    shape = bundle.manifest.model
    keys = 32 * shape.layers
    more = 2 * keys * shape.kv_heads * shape.head_dim * 4
    assert long["bytes_per_token"] - short["bytes_per_token"] == pytest.approx(more, abs=64)
    assert long["state_bytes"] - short["state_bytes"] == more
    assert long["multiply_adds"] - short["multiply_adds"] == 2 * keys * shape.heads * shape.head_dim


def test_schedules_of_one_budget_need_as_much(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """But for what the rules round away, less than a token a layer."""
    one, other = tables["schedules"]
    assert one["horizons"] != other["horizons"]
    tokens = abs(sum(one["horizons"]) - sum(other["horizons"]))
    assert tokens < len(one["horizons"])
    assert abs(one["multiply_adds"] - other["multiply_adds"]) == tokens * 2 * 4 * 16
    assert abs(one["state_bytes"] - other["state_bytes"]) == tokens * 2 * 2 * 16 * 4


def test_without_names_it_takes_fp32_and_what_the_bundle_prefers(bundle: Bundle) -> None:
    plan = Plan(threads=(1,), rounds=1, steps=1)
    found = growth(bundle, ["threads"], plan=plan)
    assert [row["graph"] for row in found["threads"]] == ["fp32", "int8"]
    assert list(found) == ["threads"]


def test_an_unknown_table_is_refused(bundle: Bundle) -> None:
    with pytest.raises(
        DsmrError, match=r"^growth has no 'horizons' \(did you mean horizon\?\): there are hor"
    ):
        growth(bundle, ["horizons"])


def test_without_the_extra_only_positions_and_threads_are_measured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    for table in ("horizon", "size", "schedules"):
        with pytest.raises(DsmrError, match=r"needs torch, .* pip install 'dsmr-export\[export\]'"):
            growth(bundle, [table])
    assert growth(bundle, ["threads"], plan=Plan(threads=(1,), rounds=1, steps=1), graphs=["fp32"])


def test_a_bundle_of_portable_graphs_has_no_growth(bundle: Bundle) -> None:
    from dataclasses import replace

    graphs = {"portable": bundle.graph("portable")}
    manifest = replace(bundle.manifest, graphs=graphs, default_graph="portable", preference=("portable",))
    with pytest.raises(DsmrError, match="has no fused graph: export it with --ops fused to measure growth"):
        growth(Bundle(bundle.path, manifest, "", []), ["threads"])


def test_a_budget_that_no_schedule_can_divide_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ScheduleError, match="a budget of 76 tokens is too small for 3 layers"):
        growth(bundle, ["schedules"], graphs=["fp32"])


def test_what_a_process_refuses_is_refused_here(tmp_path: Path) -> None:
    broken = tiny.make_bundle(tmp_path / "tiny")
    (broken.path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(DsmrError, match=r"model\.onnx was changed"):
        growth(broken, ["threads"], plan=Plan(threads=(1,), rounds=1, steps=1), graphs=["fp32"])


# --- pictures ---


def test_pictures_have_a_point_for_every_row(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    pytest.importorskip("matplotlib", reason="the extra `pictures`")
    value = {"position": "ratio", "schedules": "ratio"}
    found = growth_figure.figures(tables)
    assert tuple(found) == WHAT
    for name, figure in found.items():
        [axes] = figure.axes
        drawn = [
            float(v)
            for line in axes.lines
            for v in (line.get_xdata() if name == "schedules" else line.get_ydata())
        ]
        for row in tables[name]:
            wanted = row[value[name]] if name in value else row["step_ms"]["p50"]
            assert any(v == pytest.approx(wanted) for v in drawn), (name, row)
        low, high = axes.get_xlim() if name == "schedules" else axes.get_ylim()
        assert all(
            min(low, high) <= v <= max(low, high)
            for v in drawn
            if v in [row[value[name]] if name in value else row["step_ms"]["p50"] for row in tables[name]]
        )


def test_pictures_are_written_as_svg(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `pictures`")
    paths = growth_figure.write(tables, tmp_path / "new")
    assert [path.name for path in paths] == [f"growth-{name}.svg" for name in WHAT]
    assert sorted(tmp_path.joinpath("new").iterdir()) == sorted(paths)  # nothing unfinished
    for path in paths:
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    again = growth_figure.write(tables, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_no_rows_no_picture() -> None:
    assert growth_figure.figures({"horizon": []}) == {}


def test_a_place_where_pictures_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="plots cannot be written there .*; choose another folder"):
        growth_figure.write({}, tmp_path / "file")
