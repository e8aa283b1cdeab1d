"""The prebuilt bundle that the package ships is what a fresh export of the bundled checkpoint makes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dsmr_export import pack
from dsmr_export.manifest import Manifest
from dsmr_export.model import checkpoint
from dsmr_export.runtime import Bundle, check_golden
from tests import scripts

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The release script's own request, with a parity check of a few tokens: its figures are not compared."""
    request = dataclasses.replace(
        scripts.load("make_default_bundle").REQUEST, output=tmp_path_factory.mktemp("fresh") / "bundle"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "GATE_PIECES", 1)
        patch.setattr(pack, "GATE_TOKENS", 512)
        pack.pack(request)
    return Bundle.open(request.output)


def comparable(manifest: Manifest) -> dict[str, object]:
    """Everything but what the machine decides: figures of parity and golden logits, versions."""
    values = manifest.to_json()
    del values["parity"], values["golden"], values["provenance"]["versions"]
    return values


def test_prebuilt_bundle_is_a_fresh_export_byte_for_byte_where_the_machine_has_no_say(fresh: Bundle) -> None:
    prebuilt = Bundle.open()
    assert comparable(prebuilt.manifest) == comparable(fresh.manifest)  # the graph's SHA-256 among it
    for name in ("input_ids", "segments", "positions"):
        assert np.array_equal(getattr(prebuilt.golden, name), getattr(fresh.golden, name))


def test_prebuilt_bundle_passes_its_golden_vectors_here() -> None:
    result = check_golden(Bundle.open())
    assert result.passed, result


def test_golden_vectors_are_long_enough_to_evict_in_every_layer() -> None:
    bundle = Bundle.open()
    state = bundle.graph().state
    assert len(bundle.golden.input_ids) > max(tensor.shape[2] for tensor in state)
    assert len(set(bundle.golden.segments.tolist())) > 10


def test_prebuilt_bundle_is_of_the_bundled_checkpoint_and_small() -> None:
    bundle = Bundle.open()
    assert bundle.manifest.provenance["checkpoint_sha256"] == checkpoint.load().sha256
    assert bundle.manifest.generation is not None
    assert bundle.manifest.generation.pace == checkpoint.load().pace > 0
    assert list(bundle.manifest.graphs) == ["int8"]
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) < 5 * MEGABYTE
