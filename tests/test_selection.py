"""Which graph a machine runs: by its CPU, by its golden vectors, and only once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dsmr_export.errors import BundleError, GraphError
from dsmr_export.manifest import Manifest
from dsmr_export.runtime import Bundle, Stream, cpu, golden, selection
from dsmr_export.runtime.golden import GoldenResult
from tests.tiny_bundle import make_bundle

DOT = frozenset({"asimd", "asimddp"})


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The handmade bundle, on a machine that remembers nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_bundle(tmp_path / "bundle")


def on(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    machine = replace(cpu.read(), features=frozenset(features), model="test")
    monkeypatch.setattr(selection.cpu, "read", lambda: machine)


def four_graphs(bundle: Bundle) -> Manifest:
    """Graphs of an export with --quantize int8,int4: int4 wants dot products."""
    fp32 = bundle.manifest.graphs["fp32"]
    graphs = {
        "fp32": fp32,
        "int8": fp32,
        "int4": replace(fp32, requires=("asimddp", "avx2")),
        "portable": bundle.manifest.graphs["portable"],
    }
    preference = ("int4", "int8", "fp32", "portable")
    return replace(bundle.manifest, graphs=graphs, preference=preference, default_graph="int8")


@pytest.mark.parametrize(
    ("features", "order"),
    [
        ({"asimd", "asimddp"}, ["int4", "int8", "fp32", "portable"]),
        ({"avx2"}, ["int4", "int8", "fp32", "portable"]),
        ({"asimd"}, ["int8", "fp32", "portable", "int4"]),
        (set(), ["int8", "fp32", "portable", "int4"]),
    ],
)
def test_order_is_the_preference_with_what_the_cpu_lacks_at_the_end(
    bundle: Bundle, features: set[str], order: list[str]
) -> None:
    found = selection.ordered(four_graphs(bundle), features)
    assert [name for name, _ in found] == order
    assert dict(found)["int4"] == bool(features & {"asimddp", "avx2"})


def test_a_bundle_of_an_older_version_runs_its_default_first(bundle: Bundle) -> None:
    manifest = replace(bundle.manifest, default_graph="portable")
    assert selection.ordered(manifest, set()) == [("portable", True), ("fp32", True)]


def test_the_first_graph_that_passes_is_taken_and_remembered(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = counted(monkeypatch)
    found = selection.select(bundle)
    assert (found.graph, found.safe, found.remembered) == ("fp32", False, False)
    assert "runs on any CPU; golden vectors pass" in found.reason and runs == ["fp32"]
    again = selection.select(bundle)
    assert again == replace(found, remembered=True) and runs == ["fp32"], "the golden vectors ran once"
    assert selection.select(bundle, fresh=True) == found and runs == ["fp32", "fp32"]


def test_another_cpu_bundle_or_onnxruntime_is_asked_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = counted(monkeypatch)
    selection.select(bundle)
    on(monkeypatch, "avx2")
    selection.select(bundle)
    onnxruntime = selection.load_onnxruntime()
    monkeypatch.setattr(onnxruntime, "__version__", "99.0.0")
    selection.select(bundle)
    selection.select(make_bundle(tmp_path / "other", (4, 20, 1)))
    assert len(runs) == 4


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs whose golden vectors are run, as they are."""
    runs: list[str] = []
    real = golden.check_golden

    def check(bundle: Bundle, graph: str, safe: bool) -> GoldenResult:
        runs.append(graph)
        return real(bundle, graph, safe=safe)

    monkeypatch.setattr(selection, "check_golden", check)
    return runs


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[str, bool], bool]) -> list[tuple[str, bool]]:
    tried: list[tuple[str, bool]] = []

    def check(_: Bundle, graph: str, safe: bool) -> GoldenResult:
        tried.append((graph, safe))
        return GoldenResult(graph, 10, 0.5, 0.25, 0.5, passed=not fails(graph, safe))

    monkeypatch.setattr(selection, "check_golden", check)
    return tried


def test_a_mismatch_is_tried_with_safer_options_then_the_next_graph_and_said(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tried = failing(monkeypatch, lambda graph, safe: graph == "fp32")
    found = selection.select(bundle, said.append)
    assert tried == [("fp32", False), ("fp32", True), ("portable", False)]
    assert (found.graph, found.safe) == ("portable", False)
    assert found.reason.endswith("; failed here: fp32"), "also at the next load, which says the reason alone"
    assert said == [
        "graph fp32: golden vectors do not pass (KL 2.5e-01, top-1 0.5000, logits 5.0e-01 apart)",
        "graph fp32 with safer session options: golden vectors do not pass (KL 2.5e-01, top-1 0.5000, "
        "logits 5.0e-01 apart)",
    ]
    assert [attempt.passed for attempt in found.tried] == [False, False, True]


def test_safer_options_stay_in_force_also_when_remembered(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda graph, safe: not safe)
    assert bundle.selected(lambda text: None).safe and bundle.selected().graph == "fp32"
    opened = Bundle.open(bundle.path)
    assert opened.selected().remembered and opened.selected().safe
    options = opened.session().get_session_options()
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert options.get_session_config_entry("mlas.disable_kleidiai") == "1"
    assert opened.session("portable").get_session_options().graph_optimization_level.name == "ORT_ENABLE_ALL"


def test_a_graph_that_does_not_load_is_passed_over(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an onnxruntime that is too old for it: other options would not help, so it is tried once."""
    tried: list[str] = []

    def check(_: Bundle, graph: str, safe: bool) -> GoldenResult:
        tried.append(graph)
        if graph == "fp32":
            raise GraphError("graph fp32 needs onnxruntime 1.29.0 and this is 1.20.0")
        return GoldenResult(graph, 10, 0.0, 0.0, 1.0, passed=True)

    monkeypatch.setattr(selection, "check_golden", check)
    assert selection.select(bundle).graph == "portable"
    assert tried == ["fp32", "portable"]


def test_a_graph_that_loads_and_does_not_run_is_passed_over(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a kernel is missing or memory runs out: onnxruntime raises its own exceptions then."""
    tried: list[tuple[str, bool]] = []

    def check(_: Bundle, graph: str, safe: bool) -> GoldenResult:
        tried.append((graph, safe))
        if graph == "fp32":
            raise RuntimeError("Failed to allocate memory for requested buffer")
        return GoldenResult(graph, 10, 0.0, 0.0, 1.0, passed=True)

    monkeypatch.setattr(selection, "check_golden", check)
    found = selection.select(bundle)
    assert tried == [("fp32", False), ("fp32", True), ("portable", False)] and found.graph == "portable"
    assert found.tried[0].detail == (
        "golden vectors cannot be run (Failed to allocate memory for requested buffer)"
    )


def test_damaged_golden_vectors_are_not_a_graphs_fault(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*_: object, **__: object) -> GoldenResult:
        raise BundleError("golden.npz cannot be read")

    monkeypatch.setattr(selection, "check_golden", check)
    with pytest.raises(BundleError, match="golden.npz cannot be read"):
        selection.select(bundle)


def test_without_anybody_to_tell_a_failure_is_a_warning(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda graph, safe: graph == "fp32" and not safe)
    with pytest.warns(UserWarning, match="graph fp32: golden vectors do not pass"):
        stream = Stream(bundle)
    assert stream.graph == "fp32"


def test_sessions_of_the_self_test_do_not_stay(bundle: Bundle) -> None:
    """Weights twice in memory are what a small board has no room for."""
    Stream(bundle, threads=2)
    assert list(bundle._sessions) == [("fp32", 2, False)]


def test_a_named_graph_is_taken_as_it_is_whatever_was_selected(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda graph, safe: not safe)
    bundle.selected(lambda text: None)
    Stream(bundle, "fp32")
    assert list(bundle._sessions) == [("fp32", 1, False)]
    Stream(bundle)
    assert list(bundle._sessions)[1:] == [("fp32", 1, True)]


def test_nothing_that_passes_is_one_line_that_says_what_to_do(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda graph, safe: True)
    with pytest.raises(BundleError, match="no graph of .* passes its golden vectors .*dsmr doctor") as caught:
        bundle.selected(lambda text: None)
    assert "\n" not in str(caught.value) and "portable with safer session options" in str(caught.value)


def test_a_graph_that_is_named_is_not_tested(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda graph, safe: True)
    assert Stream(bundle, "fp32").graph == "fp32"


def test_a_slow_graph_is_taken_only_where_nothing_else_is(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "asimd")
    only = {"fp32": replace(bundle.manifest.graphs["fp32"], requires=("asimddp", "avx2"))}
    lacking = Bundle(bundle.path, replace(bundle.manifest, graphs=only, preference=()), "x", [])
    failing(monkeypatch, lambda graph, safe: False)
    reason = selection.select(lacking).reason
    assert reason.startswith("slow here: this CPU has none of asimddp, avx2, but no better graph passes")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"KEY": 1}', '{"KEY": {"graph": "fp32"}}'])
def test_a_damaged_memory_is_made_anew(
    bundle: Bundle, tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "cache" / "dsmr-export" / "self-test.json"
    selection.select(bundle)
    [key] = json.loads(memory.read_text())
    memory.write_text(content.replace("KEY", key))
    assert not selection.select(bundle).remembered
    assert selection.select(bundle).remembered


def test_an_unwritable_cache_only_costs_the_time(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert selection.select(bundle).graph == "fp32"
    assert not selection.select(bundle).remembered
