"""Each peer's step gives what it should, by a numpy forward; and who is absent says why.

Peers run in processes of their own here too: threads, logs and a crash stay there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the peers' checkpoints need PyTorch")

from dsmr_export.bench import peers as bench_peers
from dsmr_export.bench.peers import AbsentError, Work, llama_cpp
from dsmr_export.bench.peers.apart import apart
from dsmr_export.bench.process import Remote
from dsmr_export.errors import CheckpointError
from tests import exported, reference

pytestmark = pytest.mark.slow

HORIZONS = (23, 5, 1, 9)
SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 32, "d_model": 64, "d_ff": 96}
STEPS = 7
"""More than the shortest horizon, so that tokens of the steps themselves are evicted too."""

needs_executorch = pytest.mark.skipif(
    find_spec("executorch") is None, reason="executorch is not installed: its wheel and 24 more packages"
)
needs_llama = pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed: it is compiled for minutes"
)
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")


def write_checkpoint(folder: Path, **shape: int) -> Any:
    """Random weights with rows of a multiple of 32, which Q8_0 needs; returns the network."""
    from dsmr_export import schedule as schedules
    from dsmr_export.model import checkpoint, tokenizer

    network = exported.random_network(HORIZONS, **{**SHAPE, **shape})
    text = tokenizer.to_json(tokenizer.default_tokenizer())
    checkpoint.save(folder, network, schedules.explicit(HORIZONS), text)
    return network


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("peers")
    write_checkpoint(folder / "checkpoint")
    (folder / "files").mkdir()
    ids = np.random.default_rng(1).integers(3, 311, size=2 * max(HORIZONS))
    return Work(folder / "checkpoint", HORIZONS, 1, ids, folder / "files")


@contextmanager
def opened(peer: str, work: Work) -> Iterator[Remote]:
    remote = Remote(bench_peers.peers()[peer].open, work)
    try:
        yield remote.wait()
    finally:
        remote.close()


def logits_after(peer: str, work: Work) -> NDArray[np.float32]:
    """Logits [V] of the last of some steps."""
    with opened(peer, work) as remote:
        for _ in range(STEPS):
            remote.ask("step")
        return remote.ask("logits")  # type: ignore[no-any-return]


def expected(work: Work) -> NDArray[np.float64]:
    """The same by the numpy forward: all of the ids, then the first ones again."""
    network = exported.random_network(HORIZONS, **SHAPE)
    return exported.reference(network, np.concatenate([work.ids, work.ids[:STEPS]]))[-1]


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float64], bound: float) -> None:
    """bound: relative to the largest logit."""
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


def divergence(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    """KL divergence in nats of `found` from `wanted`, both logits [V]."""
    p, q = (
        x - np.log(np.exp(x - x.max()).sum()) - x.max() for x in (wanted.astype(float), found.astype(float))
    )
    return float((np.exp(p) * (p - q)).sum())


# What each computes. 1e-5 of the largest logit is float32's own error (as in tests/exported.py).


def test_pytorch_eager(work: Work) -> None:
    assert_close(logits_after("pytorch_eager", work), expected(work), 1e-5)


def test_pytorch_compile(work: Work) -> None:
    """Takes its compiling steps too: these feed the same tokens before the counted ones."""
    from dsmr_export.bench.peers.pytorch import COMPILING_STEPS

    network = exported.random_network(HORIZONS, **SHAPE)
    wanted = exported.reference(network, np.concatenate([work.ids, work.ids[: COMPILING_STEPS + STEPS]]))[-1]
    try:
        found = logits_after("pytorch_compile", work)
    except AbsentError as error:
        pytest.skip(str(error))
    assert_close(found, wanted, 1e-5)


def test_naive_export(work: Work) -> None:
    """Angles in float32 at positions below 100: 1e-5 more."""
    assert_close(logits_after("naive_export", work), expected(work), 2e-5)


@needs_openvino
def test_openvino(work: Work) -> None:
    assert_close(logits_after("openvino", work), expected(work), 2e-5)


@needs_openvino
def test_openvino_with_8_bit_weights(work: Work) -> None:
    """Not the fp32 answer, but near it: int8 weights that were not used, or wrong ones, would show."""
    found, wanted = logits_after("openvino_int8", work), expected(work)
    assert np.abs(found - wanted).max() > 1e-4 * np.abs(wanted).max()
    assert divergence(found, wanted) < 0.02


@needs_executorch
def test_executorch(work: Work) -> None:
    found, wanted = logits_after("executorch", work), expected(work)
    assert np.abs(found - wanted).max() > 1e-4 * np.abs(wanted).max()
    assert divergence(found, wanted) < 0.02


def llama_expected(work: Work, reach: bool, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float64]:
    """The numpy forward with ReLU² over one context for all layers, whose last token is the last step's."""
    monkeypatch.setattr(reference, "gelu", lambda x: np.maximum(x, 0) ** 2)
    network = exported.random_network(HORIZONS, **SHAPE)
    tokens = llama_cpp.context_tokens(HORIZONS, reach)
    network.horizons = (tokens,) * len(HORIZONS)
    return exported.reference(network, np.array([*work.ids[: tokens - 1], work.ids[STEPS - 1]]))[-1]


@needs_llama
@needs_gguf
@pytest.mark.parametrize("reach", [False, True])
def test_llama_cpp_has_our_weights(work: Work, reach: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With float32 weights: what differs is the float16 state, 2^-11 of each key and value."""
    name = "llama_cpp_f32_reach" if reach else "llama_cpp_f32"
    assert_close(logits_after(name, work), llama_expected(work, reach, monkeypatch), 2e-3)


@needs_llama
@needs_gguf
@pytest.mark.parametrize("name", ["llama_cpp_q8_0", "llama_cpp_q8_0_reach", "llama_cpp_q8_0_state_q8_0"])
def test_llama_cpp_in_8_bits(work: Work, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, wanted = logits_after(name, work), llama_expected(work, "reach" in name, monkeypatch)
    assert divergence(found, wanted) < 0.02


def test_llama_cpp_tokens() -> None:
    """Equal state: as many in all as the schedule; equal reach: the longest horizon everywhere."""
    assert llama_cpp.context_tokens((2048, 2048, *[256] * 6), reach=False) == 704
    assert llama_cpp.context_tokens((2048, 2048, *[256] * 6), reach=True) == 2048


@needs_gguf
def test_rows_that_q8_0_cannot_store(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", d_ff=80)
    work = Work(tmp_path / "checkpoint", HORIZONS, 1, np.arange(9), tmp_path)
    with pytest.raises(AbsentError, match=r"Q8_0 needs rows of a multiple of 32 weights, layers\.0\.down"):
        llama_cpp.write_weights(work, "Q8_0", tmp_path / "weights.gguf")


@needs_llama
@needs_gguf
def test_a_state_that_q8_0_cannot_store(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", head_dim=16)
    work = Work(tmp_path / "checkpoint", HORIZONS, 1, np.arange(9), tmp_path)
    with (
        pytest.raises(AbsentError, match="context of 9 tokens in Q8_0: heads must be a multiple of 32 wide"),
        opened("llama_cpp_q8_0_state_q8_0", work),
    ):
        pass


# Who is absent says why.


def test_each_says_what_it_is() -> None:
    found = bench_peers.peers()
    assert list(found)[:3] == ["pytorch_eager", "pytorch_compile", "naive_export"]
    for name, peer in found.items():
        assert peer.name == name and peer.what and "its forward alone" in peer.equal and peer.needs
    assert len({peer.what for peer in found.values()}) == len(found)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_peers, "find_spec", lambda name: None)
    found = bench_peers.peers()
    assert found["pytorch_eager"].absent() == "torch not installed: pip install 'dsmr-export[train]'"
    assert "llama-cpp-python and gguf and torch not installed" in str(found["llama_cpp_f32"].absent())
    assert "pip install 'dsmr-export[bench]'" in str(found["openvino"].absent())


def test_nobody_is_absent_whose_packages_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_peers, "find_spec", lambda name: object())
    assert {peer.absent() for peer in bench_peers.peers().values()} == {None}


def test_a_broken_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise OSError('libllama.so: wrong ELF class\\nand more')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    with pytest.raises(AbsentError) as error:
        bench_peers.load("llama_cpp")
    assert str(error.value) == (
        "llama-cpp-python is installed but cannot be imported, install it again: "
        "OSError: libllama.so: wrong ELF class"
    )


def test_no_compiler(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with Python but no C++ compiler, and nothing compiled before."""
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with (
        pytest.raises(AbsentError, match="torch.compile cannot compile here: .*"),
        opened("pytorch_compile", work),
    ):
        pass


# Work that is done apart.


def test_apart_gives_the_answer_of_another_process() -> None:
    assert apart("asking", os.getpid) != os.getpid()
    assert apart("adding", sum, [1, 2, 3]) == 6


def test_what_apart_could_not_do() -> None:
    with pytest.raises(AbsentError, match="counting failed: ValueError: invalid literal for int"):
        apart("counting", int, "three")
    with pytest.raises(AbsentError, match="leaving failed: ended with 3"):
        apart("leaving", os._exit, 3)
    from dsmr_export.model import checkpoint

    with pytest.raises(CheckpointError, match="config.json is missing"):
        apart("loading", checkpoint.load, "/nowhere")
