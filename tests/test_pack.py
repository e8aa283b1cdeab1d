"""Bundles as folders: whole or not there at all, whatever goes wrong while one is written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsmr_export.errors import (
    CheckpointError,
    DsmrError,
    OutputError,
    OutputExistsError,
    ParityError,
    ScheduleError,
    TargetError,
)
from dsmr_export.manifest import Manifest
from dsmr_export.runtime import Bundle, check_golden
from tests.exported import HORIZONS, SHAPE, pack_tiny, ready_graphs

pytest.importorskip("onnxscript", reason="needs the export extra")
from dsmr_export import export, pack, parity, quantize
from dsmr_export.targets import loader as targets

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def ready(tiny_export: Path) -> Iterator[list[str]]:
    """Graphs come from the bundle that was exported once; everything else runs."""
    with ready_graphs(tiny_export) as asked:
        yield asked


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what a bundle holds ------------------------------------------------------------------------------------

DESIGN_KEYS = {
    "": "format format_version name model schedule tokenizer vocabulary target graphs default_graph events "
    "grammar special golden parity provenance",
    "model": "layers heads kv_heads head_dim d_model d_ff vocab_size rope_base",
    "schedule": "name horizons budget_tokens",
    "tokenizer": "file sha256",
    "golden": "file sha256",
    "events": "step_ms tokens",
    "special": "pad bos eos",
    "provenance": "checkpoint_sha256 data command versions licence",
    "graphs.fp32": "file sha256 bytes ops opset ir_version min_onnxruntime quantization state stream",
    "graphs.fp32.stream": "slack period capacity wrap_at max_segment rope_rows",
    "graphs.fp32.state.0": "layer kind input output shape dtype horizon",
    "parity.fp32": "perplexity reference_perplexity relative_change kl_mean kl_max top1_agreement "
    "max_abs_logit by_position",
}
"""Section 5 of the design: where -> keys. Others may be added."""


def at(data: Any, path: str) -> Any:
    for key in filter(None, path.split(".")):
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data


def test_manifest_has_every_key_of_the_design(tiny_export: Path) -> None:
    import json

    data = json.loads((tiny_export / "manifest.json").read_text())
    for path, keys in DESIGN_KEYS.items():
        assert set(keys.split()) <= set(at(data, path)), path
    assert (data["format"], data["format_version"]) == ("dsmr-bundle", 1)
    assert list(data["graphs"]) == list(data["parity"]) == ["fp32", "int8", "portable"]
    assert data["default_graph"] == "int8"
    assert data["schedule"] == {"name": "70,5,1", "horizons": list(HORIZONS), "budget_tokens": 76}
    assert data["model"] == {"layers": 3, "rope_base": 10000.0, **SHAPE}
    assert len(data["vocabulary"]) == len(data["events"]["tokens"]) == 311
    assert data["graphs"]["fp32"]["quantization"] is None
    assert data["graphs"]["int8"]["quantization"]["tensors"]["head.weight"]["sqnr_db"] > 30
    assert data["provenance"]["data"] == "random" and "torch" in data["provenance"]["versions"]


def test_stream_rule_is_the_designs(tiny_export: Path) -> None:
    """Section 4: the numbers a host needs to keep the token count bounded."""
    for entry in Manifest.read(tiny_export).graphs.values():
        rule, capacity = entry.stream, max(HORIZONS) + 1 + 16
        assert (rule.slack, rule.period, rule.capacity) == (16, 17, capacity)
        assert rule.max_segment >= 512
        assert rule.wrap_at == capacity + 17 and rule.rope_rows == capacity + 34 + rule.max_segment


def test_sums_are_what_coreutils_verifies(tiny_export: Path) -> None:
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("needs sha256sum (coreutils)")
    found = subprocess.run(
        [program, "--strict", "-c", "SHA256SUMS"], cwd=tiny_export, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
    listed = {line.split(":")[0] for line in found.stdout.splitlines()}
    assert listed == set(content(tiny_export)) - {"SHA256SUMS"}


def test_card_says_where_the_bundle_comes_from(tiny_export: Path) -> None:
    card, manifest = (tiny_export / "README.md").read_text(), Manifest.read(tiny_export)
    assert manifest.provenance["checkpoint_sha256"] in card
    assert "horizons 70,5,1 = 76 tokens" in card
    for name, entry in manifest.graphs.items():
        assert f"| {name} | {entry.file} | {entry.bytes:,} |" in card


def test_golden_vectors_evict_in_every_layer_and_pass(tiny_export: Path) -> None:
    bundle = Bundle.open(tiny_export)
    golden, rule = bundle.golden, bundle.graph().stream
    assert len(golden.input_ids) == golden.segments.sum() >= 512
    assert golden.input_ids[0] == bundle.manifest.special.bos
    assert len(golden.input_ids) > rule.wrap_at + rule.period, "long enough to evict and to wrap the count"
    assert golden.segments.min() == 1 and len(set(golden.segments.tolist())) > 10
    assert len(golden.positions) == len(set(golden.positions.tolist())) == 512
    for name in bundle.manifest.graphs:
        result = check_golden(bundle, name)
        assert result.passed and result.positions == 512


def test_golden_logits_are_those_of_the_network(tiny_export: Path, tiny_checkpoint: Path) -> None:
    from dsmr_export.model import checkpoint
    from tests.exported import reference, tolerance

    golden = Bundle.open(tiny_export).golden
    expected = reference(checkpoint.load(tiny_checkpoint).network(), golden.input_ids)[golden.positions]
    for name in ("fp32", "portable"):
        assert np.abs(golden.logits[name] - expected).max() <= tolerance(expected)


def test_exporting_again_gives_the_same_graphs(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A bundle can be made again: the bytes of its graphs are a function of the checkpoint."""
    from dsmr_export.model import checkpoint

    network = checkpoint.load(tiny_checkpoint).network()
    export.export_graph(network, "fused", tmp_path / "model.onnx")
    recipe = targets.load("generic").recipe("int8")
    quantize.quantize(tmp_path / "model.onnx", tmp_path / "model.int8.onnx", recipe)
    for file in ("model.onnx", "model.int8.onnx"):
        assert (tmp_path / file).read_bytes() == (tiny_export / file).read_bytes()


def test_packing_again_gives_the_same_files(
    ready: list[str], tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    again = content(pack_tiny(tiny_checkpoint, tmp_path / "bundle").path)
    assert ready == ["model.onnx", "model.portable.onnx", "model.int8.onnx"]
    assert again == content(tiny_export)


def test_graphs_not_kept_leave_no_trace(ready: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What a device needs is one graph; parity is checked on all before."""
    packed = pack_tiny(tiny_checkpoint, tmp_path / "b", ops=("fused",), keep=("int8",))
    bundle = Bundle.open(packed.path)
    assert list(bundle.manifest.graphs) == list(bundle.manifest.parity) == ["int8"]
    assert list(bundle.golden.logits) == ["int8"] and "model.onnx" not in content(packed.path)
    assert list(packed.parity["graphs"]) == ["fp32", "int8"]
    assert pack.summary(packed)["graphs"]["int8"]["state_bytes"] == bundle.graph("int8").state_bytes


def test_a_target_from_a_file_goes_by_its_name(
    ready: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Not by where the file lies on the machine that exported."""
    generic = resources.files("dsmr_export.targets").joinpath("generic.toml").read_text(encoding="utf-8")
    (tmp_path / "my.toml").write_text(generic.replace('name = "generic"', 'name = "my-board"'))
    packed = pack_tiny(tiny_checkpoint, tmp_path / "b", target=str(tmp_path / "my.toml"))
    assert packed.manifest.target == "my-board"


def test_a_schedule_other_than_the_trained_one_says_what_changes(
    ready: list[str], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def stop(*_: Any) -> None:
        raise ParityError("far enough")

    monkeypatch.setattr(pack, "_write_graphs", stop)
    with pytest.raises(ParityError):
        pack.pack(pack.Request(tmp_path / "b", tiny_checkpoint, schedule="9,9,9"), said.append)
    assert said[0].startswith("explicit: 9x3 = 27 tokens")
    assert any("layer 0: horizon 70 -> 9" in line for line in said)


def test_folders_on_the_way_are_made_and_unmade(
    ready: list[str], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_tiny(tiny_checkpoint, tmp_path / "a" / "b" / "bundle", ops=("fused",))
    Bundle.open(tmp_path / "a" / "b" / "bundle")
    monkeypatch.setattr(parity, "EXACT", parity.Gate(relative_change=-1.0))
    with pytest.raises(ParityError):
        pack_tiny(tiny_checkpoint, tmp_path / "c" / "d" / "bundle", gate=True)
    assert os.listdir(tmp_path) == ["a"]


# --- what is refused before anything is written -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"quantize": ("int8",), "ops": ("portable",)},
            DsmrError,
            "add fused to --ops or use --quantize none",
        ),
        ({"schedule": "70,5"}, ScheduleError, "lists 2 horizons, the model has 3 layers"),
        ({"schedule": "no_such"}, ScheduleError, "two_scale"),
        ({"schedule": "two_scale", "budget": 100}, ScheduleError, "64"),
        ({"schedule": "70,5,1", "budget": 75}, ScheduleError, "76 tokens, more than the budget of 75"),
        ({"target": "no-such-board"}, TargetError, "no-such-board"),
        ({"checkpoint": Path("nowhere")}, CheckpointError, "nowhere"),
    ],
)
def test_requests_that_make_no_sense(
    ready: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[DsmrError],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as found:
        pack.pack(pack.Request(**{"output": tmp_path / "b", "checkpoint": tiny_checkpoint, **options}))
    assert "\n" not in str(found.value)
    assert not ready and not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "c")
    weights = (tmp_path / "c/model.safetensors").read_bytes()
    (tmp_path / "c/model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="model.safetensors is truncated"):
        pack.pack(pack.Request(tmp_path / "b", tmp_path / "c"))
    assert os.listdir(tmp_path) == ["c"]


# --- an output that is there --------------------------------------------------------------------------------


def test_an_existing_output_is_not_touched(
    ready: list[str], tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_export, tmp_path / "b")
    with pytest.raises(OutputExistsError, match="--force"):
        pack_tiny(tiny_checkpoint, tmp_path / "b")
    assert not ready and content(tmp_path / "b") == content(tiny_export)


def test_force_replaces_a_bundle(
    ready: list[str], tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_export, tmp_path / "b")
    (tmp_path / "b" / "stale").write_text("of the old one")
    pack_tiny(tiny_checkpoint, tmp_path / "b", force=True, ops=("fused",))
    assert os.listdir(tmp_path) == ["b"]
    assert not {"stale", "model.portable.onnx"} & set(content(tmp_path / "b"))
    Bundle.open(tmp_path / "b")


@pytest.mark.parametrize("what", ["folder", "file"])
def test_force_replaces_bundles_only(
    ready: list[str], tiny_checkpoint: Path, tmp_path: Path, what: str
) -> None:
    """`-o ~ --force` must not delete a home folder."""
    output = tmp_path / "b"
    if what == "folder":
        output.mkdir()
        (output / "thesis.tex").write_text("three years")
    else:
        output.write_text("three years")
    before = content(tmp_path)
    with pytest.raises(OutputExistsError, match="is not a bundle"):
        pack_tiny(tiny_checkpoint, output, force=True)
    assert content(tmp_path) == before


def test_force_takes_an_empty_folder(ready: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    pack_tiny(tiny_checkpoint, tmp_path / "b", force=True)
    Bundle.open(tmp_path / "b")


# --- failures while a bundle is being written ---------------------------------------------------------------


def fail_at(monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException) -> None:
    """Raises `error` when pack reaches a stage."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    module, name = {
        "export": (export, "export_graph"),
        "quantize": (quantize, "quantize"),
        "manifest": (pack, "_manifest"),
        "golden": (pack, "_write_golden"),
        "parity": (parity, "check"),
        "sums": (pack, "write_sums"),
        "open": (pack.Bundle, "open"),
        "rename": (os, "rename"),
    }[stage]
    real, calls = getattr(module, name), []

    def fail_second(*arguments: Any) -> None:
        """The first rename puts the old bundle aside; fail between it and the second."""
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        real(*arguments)

    monkeypatch.setattr(module, name, fail_second if stage == "rename" else fail)


STAGES = ("export", "quantize", "manifest", "golden", "parity", "sums", "open", "rename")


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_leaves_no_half_bundle_and_the_old_one(
    ready: list[str],
    tiny_export: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    shutil.copytree(tiny_export, tmp_path / "b")
    fail_at(monkeypatch, stage, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pack_tiny(tiny_checkpoint, tmp_path / "b", force=True)
    assert os.listdir(tmp_path) == ["b"] and content(tmp_path / "b") == content(tiny_export)
    if stage != "rename":
        with pytest.raises(KeyboardInterrupt):
            pack_tiny(tiny_checkpoint, tmp_path / "new")
        assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    ready: list[str],
    tiny_export: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    shutil.copytree(tiny_export, tmp_path / "b")
    fail_at(monkeypatch, stage, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(OutputError, match=r"b could not be written \(the disk is full\)") as error:
        pack_tiny(tiny_checkpoint, tmp_path / "b", force=True)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["b"] and content(tmp_path / "b") == content(tiny_export)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if not mount or not umount or os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    options = [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(options, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small file system")
    yield folder
    subprocess.run([umount, str(folder)], check=True)


def test_a_disk_that_is_really_full(ready: list[str], tiny_checkpoint: Path, small_disk: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full"):
        pack_tiny(tiny_checkpoint, small_disk / "b")
    assert os.listdir(small_disk) == []


def test_a_file_size_limit_is_one_line_too(ready: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As a full disk, but to be had without root: the kernel refuses to write on (EFBIG)."""
    resource = pytest.importorskip("resource", reason="needs POSIX")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            pack_tiny(tiny_checkpoint, tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_an_output_that_cannot_be_made(ready: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="could not be written"):
        pack_tiny(tiny_checkpoint, tmp_path / "file" / "b")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("old", [False, True])
def test_outside_the_gates_there_is_no_bundle(
    ready: list[str],
    tiny_export: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
) -> None:
    if old:
        shutil.copytree(tiny_export, tmp_path / "b")
    monkeypatch.setattr(parity, "QUANTIZED", parity.Gate(relative_change=0.0))
    with pytest.raises(ParityError, match="int8: relative perplexity change .*--no-gate"):
        pack_tiny(tiny_checkpoint, tmp_path / "b", gate=True, force=old)
    assert os.listdir(tmp_path) == (["b"] if old else [])
    if old:
        assert content(tmp_path / "b") == content(tiny_export)


def test_no_gate_writes_the_bundle_and_its_figures(
    ready: list[str], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "QUANTIZED", parity.Gate(relative_change=0.0))
    packed = pack_tiny(tiny_checkpoint, tmp_path / "b")
    assert not packed.parity["passed"] and packed.parity["failures"][0].startswith("int8: ")
    assert Bundle.open(tmp_path / "b").manifest.parity["int8"]["kl_mean"] > 0


def test_the_gate_looks_at_the_longest_held_out_pieces(tiny_checkpoint: Path) -> None:
    from dsmr_export.model import data, tokenizer

    assert (pack.GATE_PIECES, pack.GATE_TOKENS) == (4, 8192)
    chosen = tokenizer.load(tiny_checkpoint / "tokenizer.json")
    pieces = pack.held_out(chosen)
    lengths = sorted(
        (len(p.ids) for p in data.load(None, "test", chosen, progress=False).pieces), reverse=True
    )
    assert [len(ids) for ids in pieces] == [min(length, 8193) for length in lengths[:4]]


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_real_ctrl_c(tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """SIGINT to the program while it writes: one line, exit code 1, the old bundle as it was."""
    shutil.copytree(tiny_export, tmp_path / "b")
    command = [
        sys.executable, "-c", "from dsmr_export.cli import export_main; export_main()",
        "--checkpoint", str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--force",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert wait_for(lambda: len(os.listdir(tmp_path)) > 1, 120), "never began to write"
    time.sleep(1)  # into torch's exporter
    for _ in range(
        4
    ):  # one that arrives inside a callback of torch's is lost there: who pressed it does again
        process.send_signal(signal.SIGINT)
        if wait_for(lambda: process.poll() is not None, 6):
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and not out
    assert "Traceback" not in err and re.search(r"Aborted!\s*$", err)
    assert os.listdir(tmp_path) == ["b"] and content(tmp_path / "b") == content(tiny_export)


def test_a_budget_alone_is_shared_out_by_the_checkpoints_own_rule(tiny_checkpoint: Path) -> None:
    prepared = pack.prepare(pack.Request(Path("b"), budget=8192))
    assert prepared.schedule.name == "two_scale" and prepared.schedule.budget_tokens == 8192
    with pytest.raises(ScheduleError, match="more than the budget of 70"):  # a list of horizons has no rule
        pack.prepare(pack.Request(Path("b"), checkpoint=tiny_checkpoint, budget=70))
