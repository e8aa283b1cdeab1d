"""The state in int8: what calibration sees, what the graph caches, and that it streams like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from dsmr_export.runtime import Bundle, Stream, metrics
from dsmr_export.runtime.bundle import Bundle as Opened
from tests.exported import pack_tiny, small_gate

pytest.importorskip("onnxscript", reason="torch's exporter needs it")


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with int8 and int4 weights over int8 state, and fp32 as ever."""
    output = tmp_path_factory.mktemp("state") / "bundle"
    with small_gate():
        return pack_tiny(
            tiny_checkpoint,
            output,
            target="x86-64-avx2",
            quantize=("int8", "int4"),
            quantize_state="int8",
            ops=("fused",),
        ).path


@pytest.fixture
def bundle(folder: Path) -> Opened:
    return Bundle.open(folder)


def test_quantized_graphs_have_int8_state_and_fp32_keeps_its_own(bundle: Opened) -> None:
    graphs = bundle.manifest.graphs
    assert {t.dtype for t in graphs["fp32"].state} == {"float32"}
    for name in ("int8", "int4"):
        entry = graphs[name]
        assert {t.dtype for t in entry.state} == {"int8"}
        assert [t.shape for t in entry.state] == [t.shape for t in graphs["fp32"].state]
        assert entry.state_bytes * 4 == graphs["fp32"].state_bytes
        assert entry.quantization is not None and entry.quantization["state"]["calibration"].startswith("max")
        model = onnx.load(bundle.path / entry.file)
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
        for tensor in entry.state:
            assert kinds[tensor.input] == kinds[tensor.output] == onnx.TensorProto.INT8


def test_the_manifest_has_the_scales_of_the_graph_one_a_channel(bundle: Opened) -> None:
    entry = bundle.graph("int8")
    model = onnx.load(bundle.path / entry.file)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in entry.state:
        scale = stored[f"{tensor.input}.scale"]
        assert scale.shape == (1, tensor.shape[1], 1, tensor.shape[3]) and (scale > 0).all()
        assert np.array_equal(np.float32(tensor.scale), scale.ravel())


def test_what_is_cached_is_what_fp32_caches_to_half_a_step(bundle: Opened) -> None:
    """int8 state over the same weights would hold round(x / scale): the first layer's keys depend on nothing
    before them, so its cache can be worked out from the fp32 graph's. (Weights are int8 too: two steps.)"""
    exact, rounded = Stream(bundle, "fp32"), Stream(bundle, "int8")
    ids = bundle.golden.input_ids[:40]
    exact.feed(ids)
    rounded.feed(ids)
    entry = bundle.graph("int8")
    for tensor in entry.state[:2]:
        scale = np.reshape(tensor.scale, (1, tensor.shape[1], 1, tensor.shape[3]))
        expected = exact._runner.state[tensor.input] / scale
        found = rounded._runner.state[tensor.input].astype(np.float64)
        assert np.abs(found).max() > 60, "the calibration reaches the range of these tokens"
        assert np.abs(np.clip(expected, -128, 127) - found).mean() < 1.0


def test_int8_state_costs_little(bundle: Opened) -> None:
    """KL against fp32 of the same order as that of int8 weights with float state: the state adds no more."""
    ids = bundle.golden.input_ids[:400]
    exact = Stream(bundle, "fp32").feed(ids)
    assert metrics.kl_divergence(exact, Stream(bundle, "int8").feed(ids)).mean() < 5e-3


@pytest.mark.parametrize("graph", ["int8", "int4"])
def test_snapshots_carry_it(bundle: Opened, graph: str) -> None:
    stream = Stream(bundle, graph)
    ids = bundle.golden.input_ids
    stream.feed(ids[:150])
    before = stream.snapshot()
    assert {array.dtype for array in before.state.values()} == {np.dtype(np.int8)}
    once = stream.feed(ids[150:200])
    stream.restore(before)
    assert np.array_equal(stream.feed(ids[150:200]), once)


@pytest.mark.parametrize("graph", ["int8", "int4"])
def test_the_stream_has_no_end(bundle: Opened, graph: str) -> None:
    """Many wraps of the count, far away and near (test_endless.py).

    A key is rotated by another angle there, so it rounds to other steps; on random weights that noise is of
    the size that the golden rule allows between CPUs, so twice it is allowed here. The bundled model keeps
    the rule itself: the slow test below."""
    from tests.endless import far_and_near

    found = far_and_near(bundle, graph, 4_000)
    assert found.kl_mean <= 2e-3 and found.top1 >= 0.93


@pytest.mark.slow
def test_the_bundled_model_says_the_same_anywhere(tmp_path: Path) -> None:
    from dsmr_export import pack
    from tests.endless import MEGABYTE, measure

    request = pack.Request(tmp_path / "b", quantize_state="int8", keep=("int8",))
    with small_gate():
        found = measure(pack.pack(request).path, "int8", 100_000)
    assert found.kl_mean <= 1e-3 and found.top1 >= 0.97
    assert found.growth < 5 * MEGABYTE


@pytest.mark.parametrize("position", [0, 20_000, 10**6, 10**9])
def test_no_key_is_clipped_wherever_it_is_rotated_to(bundle: Opened, position: int) -> None:
    """The tokens that were calibrated on, at other positions: a pair's length is what the scales reach, so no
    channel of a key that the fp32 graph caches there lies beyond the steps of int8."""
    exact = Stream(bundle, "fp32", position=position)
    entry = bundle.graph("int8")
    for start in range(0, 512, 64):
        exact.feed(bundle.golden.input_ids[start : start + 64])
        for tensor in entry.state:
            scale = np.reshape(tensor.scale, (1, tensor.shape[1], 1, tensor.shape[3]))
            steps = np.abs(exact._runner.state[tensor.input] / scale)
            # other music than calibration's may reach a little further; unpaired scales reach 160 and more
            assert steps.max() < 127 * 1.15


def test_calibration_reaches_the_largest_magnitude_seen(bundle: Opened) -> None:
    """Worked out from a state that was kept long enough to hold every token at once."""
    from dsmr_export import quantize_state
    from dsmr_export.runtime.runner import FusedRunner
    from dsmr_export.runtime.session import open_session

    entry = bundle.graph("fp32")
    runner = FusedRunner(open_session(bundle.path / entry.file), entry, bundle.manifest.model)
    ids = bundle.golden.input_ids[:64].astype(np.int64)
    pieces = [ids, ids[::-1].copy()]
    scales = quantize_state.calibrate(runner, pieces)
    states = []  # layer 0 has a horizon of 70: all 64 tokens are there
    for piece in pieces:
        runner.reset()
        runner.run(piece, 0)
        states.append({name: array[0, :, :64].astype(np.float64) for name, array in runner.state.items()})
    values = np.max([np.abs(state["past_key_values.0.value"]).max(axis=1) for state in states], axis=0)
    assert np.allclose(scales["past_key_values.0.value"] * 127, values, rtol=1e-6)
    # layers of shorter horizons: every token is seen before it is evicted, whatever the segment
    from dsmr_export.runtime.runner import RUNNERS

    runner = RUNNERS["fused"](open_session(bundle.path / entry.file), entry, bundle.manifest.model)
    seen = {tensor.input: 0.0 for tensor in entry.state if tensor.kind == "value"}
    for piece in pieces:
        runner.reset()
        for position, token in enumerate(piece):
            runner.step(int(token), position)
            for name in seen:
                seen[name] = np.maximum(seen[name], np.abs(runner.state[name][0]).max(axis=1))
    for name, values in seen.items():
        assert np.allclose(scales[name] * 127, values, rtol=1e-4), name
    half = scales["past_key_values.0.key"].shape[1] // 2
    for j in range(half):
        reach = max(
            float(np.sqrt(k[:, :, j] ** 2 + k[:, :, j + half] ** 2)[head].max())
            for state in states
            for k in [state["past_key_values.0.key"]]
            for head in [0]
        )
        for channel in (j, j + half):
            assert scales["past_key_values.0.key"][0, channel] * 127 == pytest.approx(reach, rel=1e-6)
