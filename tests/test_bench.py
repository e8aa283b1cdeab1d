"""The bench's form: which keys, which peers, what is refused; not its figures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dsmr_export import parity
from dsmr_export.bench import architecture, graphs, guests, render
from dsmr_export.bench import run as bench
from dsmr_export.errors import BundleError, CheckpointError, DsmrError
from dsmr_export.manifest import MANIFEST
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.bundle import write_sums
from tests import tiny_bundle as tiny

HORIZONS = (3, 20, 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle's weights as a checkpoint folder."""
    pytest.importorskip("torch", reason="PyTorch is the peer")
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("checkpoint")
    weights = {name: torch.from_numpy(array) for name, array in tiny.weights(len(HORIZONS)).items()}
    save_file(weights, folder / "model.safetensors")
    config = {
        "layers": len(HORIZONS),
        "heads": tiny.HEADS,
        "kv_heads": tiny.KV_HEADS,
        "head_dim": tiny.D,
        "d_model": tiny.D_MODEL,
        "d_ff": tiny.D_FF,
        "vocab_size": tiny.V,
        "rope_base": tiny.BASE,
        "norm_eps": tiny.EPS,
        "schedule": "3x1,20x1,1x1",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def made_from(bundle: Bundle, sha256: str) -> Bundle:
    manifest = dataclasses.replace(bundle.manifest, provenance={"checkpoint_sha256": sha256})
    manifest.write(bundle.path / MANIFEST)
    write_sums(bundle.path)
    return Bundle.open(bundle.path)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from dsmr_export.model.checkpoint import load

    made = tiny.make_bundle(tmp_path_factory.mktemp("bench") / "tiny", HORIZONS)
    return made_from(made, load(checkpoint).sha256)


@pytest.fixture(scope="module")
def result(bundle: Bundle, checkpoint: Path) -> dict[str, Any]:
    """A whole run, as short as it can be, which several tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "PACED_S", 0.1)
        patch.setattr(bench, "THREAD_STEPS", bench.BLOCKS)
        return bench.run(bundle, checkpoint, 45, also_threads=(2,))


def test_the_keys_of_its_json(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    assert set(result["graphs"]) == {"fp32", "portable"} == set(result["profile"])
    peer = result["peers"]["pytorch_eager"]
    for figures in (*result["graphs"].values(), peer):
        step_ms = figures["step_ms"]
        assert list(step_ms) == ["p50", "p90", "p99", "max"]
        assert 0 < step_ms["p50"] <= step_ms["p90"] <= step_ms["p99"] <= step_ms["max"]
        assert figures["tokens_per_s"] > 0 and figures["peak_mb"] > 10
    for figures in result["graphs"].values():
        assert 0 < figures["python_share"] < 1 and 0 < figures["paced_cpu_share"] < 2
        assert min(figures[key] for key in ("load_ms", "load_warm_ms", "first_ms", "music_s_per_s")) > 0
        assert set(figures["segment_tokens_per_s"]) == {"16", "64", "256"}
        assert min(figures["segment_tokens_per_s"].values()) > 0
        assert sum(figures["histogram"]["counts"]) == result["steps"]
        assert set(figures["threads"]) == {"2"}
    assert 0 < peer["ratio_min"] <= peer["ratio"] <= peer["ratio_max"]
    assert set(result["ratios"]) == {"portable_over_fp32", "fp32_over_portable"}
    assert result["reference"] == result["default_graph"] == "fp32"
    assert result["steps"] >= 45 and result["threads"] == 1 and result["rounds"] == bench.BLOCKS
    bound = result["bandwidth"]
    assert bound["fraction"] == pytest.approx(bound["least_ms"] / result["graphs"]["fp32"]["step_ms"]["p50"])
    assert {"processor", "architecture", "cores", "system"} <= set(result["machine"])
    assert result["versions"]["onnxruntime"] and result["versions"]["torch"]


def test_what_it_prints(result: dict[str, Any]) -> None:
    text = rendered(result)
    for part in ("multiply-adds", "p99 ms", "tokens/s", "/ fp32", "S=256", "attention", "onnxruntime "):
        assert part in text
    for name in ("fp32", "portable", "pytorch_eager"):
        assert f"\n {name} " in text


def test_its_rows_as_csv(result: dict[str, Any]) -> None:
    table = list(csv.DictReader(io.StringIO(render.as_csv(result))))
    assert [(row["kind"], row["name"], row["threads"]) for row in table] == [
        *((kind, name, count) for name in ("fp32", "portable") for kind, count in KINDS),
        ("peer", "pytorch_eager", "1"),
    ]
    graph = result["graphs"]["portable"]
    row = next(row for row in table if row["kind"] == "graph" and row["name"] == "portable")
    assert float(row["step_ms_p99"]) == graph["step_ms"]["p99"]
    assert float(row["segment_64"]) == graph["segment_tokens_per_s"]["64"]
    assert table[-1]["load_ms"] == "" and float(table[-1]["ratio"]) > 0


KINDS = (("graph", "1"), ("threads", "2"))


def test_every_state_is_full(bundle: Bundle) -> None:
    """Past the largest capacity and one turn of its slack, so that every layer of every graph evicts."""
    for graph in bundle.manifest.graphs.values():
        rows = max(tensor.shape[2] for tensor in graph.state)
        assert len(graphs.filling(bundle)) > rows + graph.stream.slack


def test_the_steps_are_those_of_play(bundle: Bundle) -> None:
    """What is timed is right: it plays what a performer plays that heard the same."""
    from dsmr_export.runtime.play import SAMPLING, Performer

    ids = graphs.filling(bundle)
    steps = graphs.GraphSteps(bundle.path, "fp32", 1, ids)
    performer = Performer(bundle, SAMPLING, graph="fp32", threads=1)
    performer.begin(ids.tolist())
    playing = performer.play()
    assert [next(steps._tokens) for _ in range(50)] == [next(playing) for _ in range(50)]
    assert steps.kernel_ns > 0


def test_the_segments_leave_the_stream_whole(bundle: Bundle) -> None:
    steps = graphs.GraphSteps(bundle.path, "fp32", 1, graphs.filling(bundle))
    before = steps._stream.position
    assert steps.segments(16) > 0
    assert steps._stream.position == before + graphs.SEGMENT_TOKENS + 16
    steps.step()


def test_seconds_of_music(bundle: Bundle) -> None:
    """As far as the decoder gets with the same ids."""
    from dsmr_export.runtime.events import Decoder

    ids, decoder = bundle.golden.input_ids[:200], Decoder(bundle.event_table)
    for token in ids.tolist():
        for _ in decoder.push(token):
            pass
    assert decoder.frame > 0
    seconds = decoder.frame * bundle.event_table.step_ms / 1000
    assert graphs.music_seconds(bundle, ids) == pytest.approx(seconds)


def test_parameters_and_multiply_adds_are_those_of_the_graph(bundle: Bundle) -> None:
    """Independent of the arithmetic: the initializers of the ONNX file, and the rows of its state."""
    import onnx

    model = onnx.load(bundle.path / bundle.manifest.graphs["fp32"].file)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    products = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    shape = bundle.manifest.model
    card = architecture.card(bundle)
    head = shape.vocab_size * shape.d_model
    weights = sum(size for name, size in sizes.items() if name in products and size != head)
    assert card["multiply_adds"]["products"] == weights + head
    state = bundle.manifest.graphs["portable"].state  # horizon rows, and one for the token itself
    cached = sum(int(np.prod(tensor.shape)) // tensor.shape[2] * (tensor.shape[2] + 1) for tensor in state)
    queries = shape.heads // shape.kv_heads
    assert card["multiply_adds"]["attention"] == cached * queries
    norms = sum(size for size in sizes.values() if size == shape.d_model)
    assert card["parameters"] == weights + head + norms


def test_schedules_of_one_budget_cost_the_same(bundle: Bundle) -> None:
    rows = architecture.at_budget(bundle.manifest.model, 2048)
    assert len(rows) > 5
    same = [row for row in rows if row["budget_tokens"] == 2048]
    assert len({row["multiply_adds"] for row in same}) == len({row["state_read_bytes"] for row in same}) == 1


def test_without_torch_the_peer_is_named_as_absent(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "find_spec", lambda name: None)
    work, absent = guests.invite(bundle, None, guests.chosen(["pytorch_eager"]), 1, np.zeros(1, int), Path())
    assert work is None and "pip install 'dsmr-export[export]'" in absent["pytorch_eager"]


def test_a_checkpoint_of_something_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for, it is refused; the bundled one, which nobody asked for, is only absent."""
    from dsmr_export.model import checkpoint as checkpoints

    monkeypatch.setattr(checkpoints, "DEFAULT", checkpoint)
    other = made_from(tiny.make_bundle(tmp_path / "other", HORIZONS), "0" * 64)
    with pytest.raises(CheckpointError, match="not what the bundle was made from"):
        bench.run(other, checkpoint, 1)
    _, absent = guests.invite(other, None, guests.chosen(["pytorch_eager"]), 1, np.zeros(1, int), Path())
    assert "--checkpoint" in absent["pytorch_eager"]


def test_an_absent_peer_is_printed(result: dict[str, Any]) -> None:
    absent = {"pytorch_eager": {"absent": "torch is not installed"}}
    text = rendered(result | {"peers": absent})
    assert "pytorch_eager: absent, torch is not installed" in text


def rendered(result: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=140)
    render.render(result, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_what_is_refused(bundle: Bundle) -> None:
    with pytest.raises(DsmrError, match="steps is 0: give 1 or more"):
        bench.run(bundle, None, 0)
    with pytest.raises(DsmrError, match="threads is 0"):
        bench.run(bundle, None, 1, threads=0)
    with pytest.raises(DsmrError, match="no peer 'pytorch_eagre' .did you mean pytorch_eager"):
        bench.run(bundle, None, 1, peers=["pytorch_eagre"])
    with pytest.raises(BundleError, match="has no graph 'int7'"):
        bench.run(bundle, None, 1, names=["int7"])


def test_a_cold_start_reads_the_files_again(tmp_path: Path) -> None:
    """The page cache has nothing of a file whose pages it was asked to drop (Linux's mincore says so)."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system has no posix_fadvise: load_ms is a warm start there")
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 4_000_000)
    os.sync()  # dirty pages cannot be dropped
    assert resident(path) == 1.0
    graphs._forget(tmp_path)
    assert resident(path) < 0.1


def resident(path: Path) -> float:
    """Share of a file's pages that are in the page cache."""
    import ctypes
    import mmap

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        pages = -(-len(memory) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        view = ctypes.c_char.from_buffer(memory)
        libc = ctypes.CDLL(None, use_errno=True)
        size, address = ctypes.c_size_t(len(memory)), ctypes.c_void_p(ctypes.addressof(view))
        assert libc.mincore(address, size, found) == 0, ctypes.get_errno()
        del view
    return sum(flag & 1 for flag in found) / pages
