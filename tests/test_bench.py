"""The bench's form: which keys, which peers, who takes turns with whom; not its figures."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dsmr_export import bench, parity
from dsmr_export.errors import CheckpointError, DsmrError, GraphError
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


def test_the_keys_of_its_json(bundle: Bundle, checkpoint: Path) -> None:
    rounds: list[tuple[int, int]] = []
    result = bench.run(bundle, checkpoint, 45, progress=lambda *call: rounds.append(call))
    assert json.loads(json.dumps(result)) == result
    assert set(result["graphs"]) == {"fp32", "portable"}
    peer = result["peers"]["pytorch_eager"]
    for figures in (*result["graphs"].values(), peer):
        step_ms = figures["step_ms"]
        assert list(step_ms) == ["p50", "p90", "p99", "max"]
        assert 0 < step_ms["p50"] <= step_ms["p90"] <= step_ms["p99"] <= step_ms["max"]
        assert figures["tokens_per_s"] > 0
    assert all(0 < figures["python_share"] < 1 for figures in result["graphs"].values())
    assert 0 < peer["ratio_min"] <= peer["ratio"] <= peer["ratio_max"]
    assert set(result["ratios"]) == {"portable_over_fp32"}
    assert result["steps"] >= 45 and result["threads"] == 1
    assert rounds == [(i + 1, bench.BLOCKS) for i in range(bench.BLOCKS)]
    assert {"processor", "architecture", "cores", "system"} <= set(result["machine"])
    assert result["versions"]["onnxruntime"] and result["versions"]["torch"]


def test_every_state_is_full(bundle: Bundle) -> None:
    """Past the largest capacity and one turn of its slack, so that every layer of every graph evicts."""
    for graph in bundle.manifest.graphs.values():
        rows = max(tensor.shape[2] for tensor in graph.state)
        assert len(bench.filling(bundle)) > rows + graph.stream.slack


def test_eager_steps_are_the_networks(bundle: Bundle, checkpoint: Path) -> None:
    """What is timed is right: after some steps its state gives the numpy forward's logits."""
    import torch

    from dsmr_export.model.checkpoint import load

    ids = bench.filling(bundle)
    steps = bench.EagerSteps(load(checkpoint), HORIZONS, 1, ids)
    for _ in range(5):
        steps.step()
    with torch.no_grad():
        logits, _ = steps._network(torch.tensor([[7]]), steps._state)
    steps.close()
    expected = tiny.reference([*ids, *ids[:5], 7], HORIZONS)[-1]
    assert np.abs(logits[0, -1].numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_pytorch_gets_its_threads_back(bundle: Bundle, checkpoint: Path) -> None:
    import torch

    before = torch.get_num_threads()
    bench.run(bundle, checkpoint, 1, threads=before + 1)
    assert torch.get_num_threads() == before


def test_they_take_turns() -> None:
    order: list[str] = []

    class Named:
        kernel_ns = None

        def __init__(self, name: str) -> None:
            self.name = name

        def step(self) -> None:
            order.append(self.name)

    times, shares = bench._take_turns({"A": Named("A"), "B": Named("B")}, 3, 2, lambda done, total: None)
    turn = bench.SETTLE_STEPS + 2
    warm = ["A"] * bench.WARM_STEPS + ["B"] * bench.WARM_STEPS
    assert order == warm + (["A"] * turn + ["B"] * turn) * 3
    assert times["A"].shape == (3, 2) and shares == {"A": None, "B": None}


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is ten times slower in one round changes no ratio."""
    noise = np.array([[1.0], [10.0], [1.0]])
    found = bench._ratio(np.full((3, 4), 6.0) * noise, np.full((3, 4), 2.0) * noise)
    assert found == {"ratio": 3.0, "ratio_min": 3.0, "ratio_max": 3.0}


def test_without_torch_the_peer_is_named_as_absent(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "find_spec", lambda name: None)
    result = bench.run(bundle, None, 1)
    assert "pip install 'dsmr-export[export]'" in result["peers"]["pytorch_eager"]["absent"]
    assert "pytorch_eager: absent, torch is not installed" in rendered(result)


def test_a_checkpoint_of_something_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for, it is refused; the bundled one, which nobody asked for, is only absent."""
    from dsmr_export.model import checkpoint as checkpoints

    monkeypatch.setattr(checkpoints, "DEFAULT", checkpoint)
    other = made_from(tiny.make_bundle(tmp_path / "other", HORIZONS), "0" * 64)
    with pytest.raises(CheckpointError, match="not what the bundle was made from"):
        bench.run(other, checkpoint, 1)
    assert "--checkpoint" in bench.run(other, None, 1)["peers"]["pytorch_eager"]["absent"]


def test_what_it_prints(bundle: Bundle, checkpoint: Path) -> None:
    text = rendered(bench.run(bundle, checkpoint, 1))
    for part in ("fp32", "portable", "pytorch_eager", "p99 ms", "tokens/s", "/ fp32", "onnxruntime "):
        assert part in text


def rendered(result: dict[str, object]) -> str:
    console = Console(file=io.StringIO(), width=140)
    bench.render(result, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_numbers_below_one_are_refused(bundle: Bundle) -> None:
    with pytest.raises(DsmrError, match="steps is 0: give 1 or more"):
        bench.run(bundle, None, 0)
    with pytest.raises(GraphError, match="threads is 0"):
        bench.run(bundle, None, 1, threads=0)
