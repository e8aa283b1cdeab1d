"""The bundled model on a stream that never ends: 200,000 tokens of music from position 1e9 and from 0.

test_stream.py holds the runtime to the same with a graph made by hand; this is what people get.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dsmr_export.errors import CheckpointError
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.bundle import default_path
from tests.endless import MEGABYTE, far_and_near, measure

TOKENS = 200_000


@pytest.mark.slow
def test_float_logits_are_the_same_anywhere(tmp_path: Path) -> None:
    """Within 1e-3 on every logit and 5 MB of memory: the issue's bounds."""
    pytest.importorskip("onnxscript", reason="the float graph is exported afresh")
    from dsmr_export import pack
    from tests.exported import small_gate

    with small_gate():
        try:
            packed = pack.pack(pack.Request(tmp_path / "b", schedule="two_scale", quantize=("none",)))
        except CheckpointError as error:
            pytest.skip(f"no bundled checkpoint: {error}")
    found = measure(packed.path, "fp32", TOKENS)
    assert found.max_abs_logit <= 1e-3
    assert found.growth < 5 * MEGABYTE


@pytest.mark.slow
def test_the_shipped_bundle_says_the_same_anywhere() -> None:
    """By the rule of the golden vectors: int8 rounds what float only nearly repeats.

    Where an activation lies on the edge of two steps, a difference of 1e-6 moves it by a whole one.
    """
    if not default_path().is_dir():
        pytest.skip(f"{default_path()} is not there: make default-bundle")
    found = measure(default_path(), Bundle.open().default_graph, TOKENS)
    assert found.kl_mean <= 1e-3 and found.top1 >= 0.97
    assert found.growth < 5 * MEGABYTE


def test_a_short_one_of_an_exported_bundle(tiny_export: Path) -> None:
    """The same on random weights, at every run of the tests; 4,000 tokens wrap the count many times."""
    bundle = Bundle.open(tiny_export)
    assert bundle.graph().stream.wrap_at * 10 < 4_000
    for name in ("fp32", "portable"):
        assert far_and_near(bundle, name, 4_000).max_abs_logit <= 1e-3
    int8 = far_and_near(bundle, "int8", 4_000)
    assert int8.kl_mean <= 1e-3 and int8.top1 >= 0.97
