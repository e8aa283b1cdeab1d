"""Opening a bundle: what is whole opens, what is not is refused by the name of its file."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dsmr_export.errors import BundleError, GraphError
from dsmr_export.manifest import Manifest, SessionEntry
from dsmr_export.runtime import Bundle, check_golden
from dsmr_export.runtime import bundle as bundle_module
from dsmr_export.runtime.bundle import write_sums
from dsmr_export.runtime.session import open_session, version_tuple
from tests.tiny_bundle import build_fused, make_bundle, manifest_of


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def folder(original: Bundle, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original.path, tmp_path / "tiny"))


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_whole_bundle_opens(original: Bundle) -> None:
    assert original.warnings == []
    assert original.default_graph == "fp32"
    assert original.graph() is original.graph("fp32")
    assert original.graph("portable").ops == "portable"
    assert original.session("fp32") is original.session("fp32")


def test_sums_are_what_sha256sum_reads(original: Bundle) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("needs coreutils' sha256sum")
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=original.path, check=True
    )


FILES = ["model.onnx", "model.portable.onnx", "golden.npz", "tokenizer.json", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
def test_one_changed_bit_names_the_file(folder: Path, file: str) -> None:
    flip_one_bit(folder / file)
    with pytest.raises(BundleError, match=rf"{file} was changed"):
        Bundle.open(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(BundleError, match=rf"{file} is missing"):
        Bundle.open(folder)


def test_a_left_over_file_is_named(folder: Path) -> None:
    (folder / "model.old.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"model\.old\.onnx is not in SHA256SUMS"):
        Bundle.open(folder)


def test_readme_and_report_only_warn(folder: Path) -> None:
    (folder / "README.md").write_text("# changed by its reader\n")
    (folder / "report").mkdir()
    (folder / "report" / "drift.png").write_bytes(b"x")
    with pytest.warns(UserWarning, match="was changed|is not in"):
        bundle = Bundle.open(folder)
    assert [Path(note.split()[0]).name for note in bundle.warnings] == ["README.md", "drift.png"]


def test_not_a_bundle(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.open(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="SHA256SUMS does not exist"):
        Bundle.open(tmp_path / "empty")
    (folder / "SHA256SUMS").write_text("hello\n")
    with pytest.raises(BundleError, match="SHA256SUMS line 1"):
        Bundle.open(folder)
    monkeypatch.setattr(bundle_module, "default_path", lambda: tmp_path / "assets")
    with pytest.raises(BundleError, match="no prebuilt bundle"):
        Bundle.open()


def test_no_path_opens_the_prebuilt_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "default_path", lambda: folder)
    assert Bundle.open().path == folder


def test_manifest_and_sums_must_agree(folder: Path) -> None:
    """A graph exchanged together with its line in SHA256SUMS, but not in the manifest."""
    flip_one_bit(folder / "model.onnx")
    write_sums(folder)
    with pytest.raises(BundleError, match=r"graphs\.fp32\.sha256 is not that of model\.onnx"):
        Bundle.open(folder)
    (folder / "model.onnx").unlink()
    write_sums(folder)
    with pytest.raises(BundleError, match=r"model\.onnx is not in the bundle"):
        Bundle.open(folder)


def test_a_newer_format_is_refused(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"format_version": 1', '"format_version": 2'))
    write_sums(folder)
    with pytest.raises(BundleError, match="format_version is 2"):
        Bundle.open(folder)


def test_an_unknown_graph_lists_the_known(original: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no graph 'int4': it has fp32, portable"):
        original.graph("int4")


def test_an_old_onnxruntime_names_both_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.28.0")
    bundle = Bundle.open(folder)
    with pytest.raises(GraphError, match=r"needs onnxruntime 1\.29\.0 and this is 1\.28\.0"):
        bundle.session("fp32")
    bundle.session("portable")


def test_sessions_have_the_devices_options(original: Bundle) -> None:
    options = original.session("fp32", threads=2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "50"


def test_a_bundle_may_add_to_the_options_and_not_take_away(
    original: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ARM target says nothing of x86, where its int8 sums would saturate; nobody switches telemetry on."""
    monkeypatch.delenv("ORT_GQA_DISABLE_FLASH_ATTENTION", raising=False)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    environment = {"all": {"ORT_GQA_DISABLE_FLASH_ATTENTION": "0", "ORT_DISABLE_TELEMETRY": "0"}}
    setup = SessionEntry(1, {"session.intra_op.spin_duration_us": "7"}, environment)
    session = open_session(original.path / "model.onnx", setup=setup)
    options = session.get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "7"
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert os.environ.pop("ORT_GQA_DISABLE_FLASH_ATTENTION") == "0"


def in_a_fresh_python(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    code = "import sys, dsmr_export.runtime; print({'numpy', 'onnxruntime'} & set(sys.modules))"
    assert in_a_fresh_python(code) == "set()"
    code = "import sys; from dsmr_export.runtime import *; print({'onnxruntime', 'torch'} & set(sys.modules))"
    assert in_a_fresh_python(code) == "set()"


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    """A hook on the import, because what matters is the environment at that moment."""
    code = """
import os, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Hook())
from dsmr_export.runtime.session import load_onnxruntime
load_onnxruntime()
"""
    assert in_a_fresh_python(code) == "1"


def test_versions_are_compared_as_numbers() -> None:
    assert version_tuple("1.9.1") < version_tuple("1.29.0") < version_tuple("1.31.0.dev20260101")
    assert version_tuple("1.29") <= version_tuple("1.29.0")


def test_a_graph_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(GraphError, match=r"graph model\.onnx .* cannot be loaded"):
        open_session(tmp_path / "model.onnx")
    with pytest.raises(GraphError, match="threads is 0"):
        open_session(tmp_path / "model.onnx", threads=0)


def test_a_graph_that_is_not_what_the_manifest_says(folder: Path) -> None:
    """The graph of another schedule: its shapes differ, and it has a layer less."""
    horizons = (3, 20, 1)
    build_fused(folder / "model.onnx", (4, 20))
    manifest_of(folder, horizons).write(folder / "manifest.json")
    write_sums(folder)
    with pytest.raises(GraphError) as error:
        Bundle.open(folder).session("fp32")
    assert "input past_key_values.2.key is missing" in str(error.value)
    assert "past_key_values.0.key has shape [1, 2, 21, 16], the manifest says [1, 2, 20, 16]" in str(
        error.value
    )


@pytest.mark.parametrize("graph", ["fp32", "portable"])
def test_golden_vectors_pass(original: Bundle, graph: str) -> None:
    """The expected logits are the numpy forward's."""
    result = check_golden(original, graph)
    assert result.passed and result.top1 == 1.0 and result.kl_mean < 1e-9
    assert result.max_abs_logit < 1e-4  # float32 against float64; the pass rule is 1e-3


def rewrite_golden(folder: Path, **changes: np.ndarray) -> Bundle:
    with np.load(folder / "golden.npz") as arrays:
        found = {name: arrays[name] for name in arrays.files} | changes
    np.savez(folder / "golden.npz", **{name: array for name, array in found.items() if array is not None})
    manifest_of(folder, Manifest.read(folder).schedule.horizons).write(folder / "manifest.json")
    write_sums(folder)
    return Bundle.open(folder)


def test_golden_vectors_of_another_model_fail(folder: Path) -> None:
    with np.load(folder / "golden.npz") as arrays:
        logits = arrays["logits.fp32"]
    bundle = rewrite_golden(
        folder, **{"logits.fp32": logits + np.eye(1, logits.shape[1], 5, dtype=np.float32)}
    )
    result = check_golden(bundle, "fp32")
    assert not result.passed and result.max_abs_logit == pytest.approx(1.0, abs=1e-3)
    assert check_golden(bundle, "portable").passed


@pytest.mark.parametrize(("noise", "passed"), [(0.02, True), (2.0, False)])
def test_quantized_graphs_pass_by_kl_and_top1(folder: Path, noise: float, passed: bool) -> None:
    """Differences that no float graph may have, which a quantized one has from CPU to CPU."""
    with np.load(folder / "golden.npz") as arrays:
        logits = arrays["logits.fp32"]
    moved = logits + np.random.default_rng(0).normal(scale=noise, size=logits.shape).astype(np.float32)
    found = rewrite_golden(folder, **{"logits.fp32": moved}).manifest
    graphs = found.graphs | {"fp32": dataclasses.replace(found.graphs["fp32"], quantization={"bits": 8})}
    dataclasses.replace(found, graphs=graphs).write(folder / "manifest.json")
    write_sums(folder)
    result = check_golden(Bundle.open(folder), "fp32")
    assert result.passed is passed and result.max_abs_logit > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"logits.portable": None},
        {"segments": np.array([1, 2])},
        {"positions": np.array([10**6])},
        {"input_ids": np.zeros(146, np.float32)},
        {"logits.fp32": np.zeros((3, 40), np.float32)},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_golden_file_of_the_wrong_form_is_refused(folder: Path, changes: dict[str, np.ndarray]) -> None:
    with pytest.raises(BundleError, match=r"golden\.npz (has no|holds arrays)"):
        rewrite_golden(folder, **changes).golden  # noqa: B018


def test_a_golden_file_that_is_no_npz_is_refused(folder: Path) -> None:
    (folder / "golden.npz").write_bytes(b"not an archive")
    manifest_of(folder, (3, 20, 1)).write(folder / "manifest.json")
    write_sums(folder)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        Bundle.open(folder).golden  # noqa: B018
