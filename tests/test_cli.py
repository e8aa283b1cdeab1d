"""The command line: help with examples, refusals and JSON of one line, results apart from progress."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from dsmr_export import __version__, cli, corpus, errors, parity
from dsmr_export.runtime import cpu
from dsmr_export.runtime.bundle import file_sha256, write_sums
from tests.exported import ready_graphs

FIGURES = {
    "perplexity",
    "reference_perplexity",
    "relative_change",
    "kl_mean",
    "kl_max",
    "top1_agreement",
    "max_abs_logit",
    "by_position",
}


def dsmr(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], prog_name="dsmr")


def refused(result: Result, *words: str, code: int = 1) -> str:
    """The one line of a refusal: nothing on stdout, no traceback; it names what `words` say."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert lines and lines[-1].startswith("Error: ") and "Traceback" not in result.stderr
    for word in words:
        assert word in lines[-1]
    return lines[-1]


def one_json(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1 and result.stdout.endswith("\n")
    found: dict[str, Any] = json.loads(result.stdout, parse_constant=lambda text: pytest.fail(text))
    return found


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.fixture
def bundle(tiny_export: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be changed at will."""
    return Path(shutil.copytree(tiny_export, tmp_path / "bundle"))


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.mid"
    path.write_bytes(min((piece.read() for piece in corpus.pieces(None, "test")), key=len))
    return path


COMMANDS = list(commands(cli.main))
COMMAND_NAMES = [" ".join(("dsmr", *path)) for path, _ in COMMANDS]


# --- help and usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=COMMAND_NAMES)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], command: click.Command) -> None:
    result = dsmr(*path, "--help")
    assert result.exit_code == 0
    program = " ".join(("dsmr", *path))
    assert f"Usage: {program}" in result.stdout
    lines = result.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip() == "Example:")
    example = lines[start + 1].strip()
    # `dsmr-export` is `dsmr export`
    assert example.startswith((program, program.replace("dsmr export", "dsmr-export")))
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{program} {parameter.opts[0]} has no help"


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=COMMAND_NAMES)
def test_examples_use_options_that_exist(path: tuple[str, ...], command: click.Command) -> None:
    known = {opt for parameter in command.params for opt in parameter.opts}
    text = command.help or ""
    for line in text[text.index("Example:") :].splitlines()[1:]:
        words = line.split()
        if words[:2] == ["dsmr", path[-1] if path else ""]:
            assert {word for word in words if word.startswith("-")} <= known, line


def test_version() -> None:
    assert dsmr("--version").stdout == f"dsmr, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["check", "--no-such-option"],
        ["export", "--quantize", "int3"],
        ["export", "--quantize", "none,int8"],
        ["export", "--ops", "slow"],
        ["check", "--split", "half"],
        ["check", "--limit", "0"],
        ["check", "--seed", "-1"],
        ["play"],
        ["export", "--opset", "17"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    refused(dsmr(*arguments), code=2)


def subclasses(kind: type) -> Iterator[type]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


@pytest.mark.parametrize("kind", list(subclasses(errors.DsmrError)), ids=lambda kind: kind.__name__)
def test_every_error_of_the_library_is_one_line(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path | None) -> None:
        raise kind("what, where,\n  and what to do")

    monkeypatch.setattr(cli, "open_bundle", fail)
    assert refused(dsmr("info")) == "Error: what, where, and what to do"


def test_a_mistake_of_ours_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path | None) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "open_bundle", fail)
    assert isinstance(dsmr("info").exception, ZeroDivisionError)


# --- export -------------------------------------------------------------------------------------------------


def test_export_prints_where_it_is_and_the_table(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with ready_graphs(tiny_export):
        result = dsmr("export", "--checkpoint", tiny_checkpoint, "-o", tmp_path / "b", "--no-gate")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"bundle: {tmp_path / 'b'}"
    assert "int8, worst tensor: layers." in result.stdout
    header = next(line.split() for line in result.stdout.splitlines() if "KL mean" in line)
    assert " ".join(header) == "graph file state perplexity PyTorch change KL mean KL max top-1"
    rows = [line.split() for line in result.stdout.splitlines() if re.match(" *(fp32|int8) ", line)]
    assert [row[0] for row in rows] == ["fp32", "int8"]
    assert not re.search("exporting|quantizing|golden", result.stdout)
    assert "exporting model.onnx" in result.stderr and "golden vectors" in result.stderr


def test_export_as_json(tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with ready_graphs(tiny_export):
        result = dsmr(
            "export", "--checkpoint", tiny_checkpoint, "-o", tmp_path / "b", "--no-gate", "--json",
            "--quantize", "none", "--ops", "fused,portable",
        )  # fmt: skip
    found = one_json(result)
    assert list(found["graphs"]) == ["fp32", "portable"]
    assert {"path", "schedule", "tokens", "pieces", "passed"} <= set(found)
    assert found["passed"] is True and (found["tokens"], found["pieces"]) == (600, 2)
    for figures in found["graphs"].values():
        assert FIGURES | {"file", "bytes", "state_bytes"} <= set(figures)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schedule", "no_such"], ["no_such", "two_scale"]),
        (["--schedule", "5,5"], ["2 horizons", "3 layers"]),
        (["--schedule", "two_scale", "--budget", "20"], ["64"]),
        (["--quantize", "int8", "--ops", "portable"], ["--ops"]),
        (["--target", "no-such-board"], ["no-such-board"]),
    ],
)
def test_export_refuses_in_one_line(
    tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    refused(dsmr("export", "--checkpoint", tiny_checkpoint, "-o", tmp_path / "b", *arguments), *words)
    assert os.listdir(tmp_path) == []


def test_export_does_not_overwrite(bundle: Path, tiny_checkpoint: Path) -> None:
    refused(dsmr("export", "--checkpoint", tiny_checkpoint, "-o", bundle), str(bundle), "--force")


def test_export_says_which_tensor_has_the_wrong_shape(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "c")
    config = json.loads((tmp_path / "c/config.json").read_text())
    (tmp_path / "c/config.json").write_text(json.dumps(config | {"d_ff": 100}))
    result = dsmr("export", "--checkpoint", tmp_path / "c", "-o", tmp_path / "b")
    refused(result, "layers.0.up.weight", "[100, 48]", "[96, 48]")


def test_export_without_torch_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without_torch: None
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(dsmr("export"), "torch", "pip install 'dsmr-export[export]'")
    refused(dsmr("train", "--out", "run"), "torch", "pip install 'dsmr-export[train]'")
    refused(dsmr("eval"), "torch", "pip install 'dsmr-export[train]'")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device: torch and what comes with it cannot be found, nor imported."""
    import importlib.util

    absent = {"torch", "onnx", "onnxscript", "miditok", "symusic", "safetensors", "optimum"}
    real = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name.split(".")[0] in absent else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(parity, "find_spec", find_spec)
    for name in [*sys.modules]:
        if name.split(".")[0] in absent or name.startswith("dsmr_export.model"):
            monkeypatch.delitem(sys.modules, name)
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)


# --- check --------------------------------------------------------------------------------------------------


def test_check_against_pytorch(bundle: Path, tiny_checkpoint: Path, prompt: Path) -> None:
    """int8 of random weights is outside the gates: the figures are printed, and the exit code is 1."""
    arguments = ("check", bundle, "--checkpoint", tiny_checkpoint, "--data", prompt)
    result = dsmr(*arguments, "--json")
    assert result.exit_code == 1 and result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert {"graphs", "tokens", "pieces", "passed"} <= set(found) and found["pieces"] == 1
    assert list(found["graphs"]) == ["fp32", "int8", "portable"]
    for figures in found["graphs"].values():
        assert set(figures) >= FIGURES
        assert sum(row["tokens"] for row in figures["by_position"]) == found["tokens"]
        assert all(set(row) >= FIGURES - {"by_position"} for row in figures["by_position"])
    assert found["passed"] is False
    assert all(failure.startswith("int8") for failure in found["failures"])
    refusal = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(refusal) == 1 and "int8: kl_mean" in refusal[0]


def float_only(folder: Path) -> None:
    """Takes the int8 graph out of a bundle."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    (folder / data["graphs"].pop("int8")["file"]).unlink()
    data["parity"].pop("int8")
    path.write_text(json.dumps(data | {"default_graph": "fp32", "preference": ["fp32", "portable"]}))
    write_sums(folder)


def test_check_passes_and_prints_the_drift(bundle: Path, tiny_checkpoint: Path, prompt: Path) -> None:
    float_only(bundle)
    result = dsmr("check", bundle, "--checkpoint", tiny_checkpoint, "--data", prompt)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "passed"
    assert result.stdout.count("token by token") == 2 and "0 – 1,024" in result.stdout


def test_check_of_one_graph(bundle: Path, tiny_checkpoint: Path, prompt: Path) -> None:
    check = ("check", bundle, "--checkpoint", tiny_checkpoint, "--data", prompt)
    found = one_json(dsmr(*check, "--graph", "fp32", "--json"))
    assert list(found["graphs"]) == ["fp32"] and found["passed"]
    refused(dsmr(*check, "--graph", "int3"), "has no graph 'int3'", "int8")


def test_check_refuses_another_checkpoint(bundle: Path, tmp_path: Path) -> None:
    from tests.exported import HORIZONS, write_checkpoint

    other = write_checkpoint(tmp_path / "other", HORIZONS, seed=1)
    refused(
        dsmr("check", bundle, "--checkpoint", other.path),
        "not what the bundle was made from",
        other.sha256[:12],
    )


@pytest.mark.parametrize("there", [False, True])
def test_check_without_its_checkpoint_runs_the_golden_vectors(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The bundled checkpoint is another one, or is not there at all."""
    from dsmr_export.model import checkpoint
    from tests.exported import HORIZONS, write_checkpoint

    if there:
        write_checkpoint(tmp_path / "default", HORIZONS, seed=1)
    monkeypatch.setattr(checkpoint, "DEFAULT", tmp_path / "default")
    result = dsmr("check", bundle)
    assert result.exit_code == 0, result.stderr
    reason = "--checkpoint" if there else "config.json is missing"
    assert re.fullmatch(rf"checkpoint .*{reason}.*: golden vectors instead\n", result.stderr)
    assert result.stdout.count("pass") == 4  # three graphs, and the verdict


def test_check_on_a_device(bundle: Path, prompt: Path, without_torch: None) -> None:
    golden = one_json(dsmr("check", bundle, "--json"))
    assert golden["passed"] is True and set(golden["golden"]) == {"fp32", "int8", "portable"}
    found = one_json(dsmr("check", bundle, "--data", prompt, "--json"))
    assert found["passed"] is True and found["pieces"] == 1
    for figures in found["graphs"].values():
        assert figures["perplexity"] > 1 and set(figures) >= FIGURES
        assert figures["reference_perplexity"] is figures["kl_mean"] is None
    text = dsmr("check", bundle, "--data", prompt)
    reason = "torch is not installed (pip install 'dsmr-export[export]')"
    assert text.exit_code == 0 and f"no reference perplexity: {reason}\n" in text.stdout
    assert text.stderr == f"{reason}: golden vectors instead\n"


def test_check_on_a_device_gives_the_workshops_perplexity(
    bundle: Path, tiny_checkpoint: Path, prompt: Path, request: pytest.FixtureRequest
) -> None:
    """The same tokens, read without miditok: perplexity without torch is that with it."""
    float_only(bundle)
    workshop = one_json(dsmr("check", bundle, "--checkpoint", tiny_checkpoint, "--data", prompt, "--json"))
    request.getfixturevalue("without_torch")
    device = one_json(dsmr("check", bundle, "--data", prompt, "--json"))
    for name, figures in device["graphs"].items():
        assert figures["perplexity"] == workshop["graphs"][name]["perplexity"]


def test_check_fails_on_golden_vectors_that_differ(bundle: Path, without_torch: None) -> None:
    arrays = dict(np.load(bundle / "golden.npz"))
    arrays["logits.fp32"][100, 7] += 0.01  # ten times the bound
    np.savez_compressed(bundle / "golden.npz", **arrays)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["golden"]["sha256"] = file_sha256(bundle / "golden.npz")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    write_sums(bundle)
    result = dsmr("check", bundle)
    assert result.exit_code == 1 and result.stdout.count("FAIL") == 1
    assert "Error: not passed: the golden vectors differ" in result.stderr


def test_a_graph_that_gives_no_numbers_fails_in_one_line(
    bundle: Path, tiny_checkpoint: Path, prompt: Path
) -> None:
    """NaN is null in JSON, and never inside a gate."""
    import onnx
    from onnx import numpy_helper

    float_only(bundle)
    model = onnx.load(bundle / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "norm.weight")
    weight.CopyFrom(numpy_helper.from_array(np.full(48, np.nan, np.float32), "norm.weight"))
    onnx.save(model, bundle / "model.onnx")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["fp32"]["sha256"] = file_sha256(bundle / "model.onnx")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    write_sums(bundle)
    result = dsmr("check", bundle, "--checkpoint", tiny_checkpoint, "--data", prompt, "--json")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    found = json.loads(result.stdout, parse_constant=lambda text: pytest.fail(text))
    assert found["graphs"]["fp32"]["kl_mean"] is found["graphs"]["fp32"]["kl_max"] is None
    assert found["passed"] is False and all(text.startswith("fp32") for text in found["failures"])


# --- bundles that are not whole -----------------------------------------------------------------------------

READERS = [("check",), ("info",), ("bench",), ("play", "--save", "out.mid")]


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_one_changed_byte_is_refused_by_every_command(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = bytearray((bundle / "model.int8.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.int8.onnx").write_bytes(content)
    refused(dsmr(command[0], bundle, *command[1:]), "model.int8.onnx", "was changed")
    assert not (tmp_path / "out.mid").exists()


@pytest.mark.parametrize("file", ["manifest.json", "golden.npz", "tokenizer.json", "model.onnx"])
def test_a_byte_of_any_file_counts(bundle: Path, file: str) -> None:
    content = bytearray((bundle / file).read_bytes())
    content[-2] ^= 1
    (bundle / file).write_bytes(content)
    refused(dsmr("info", bundle), file)


def test_a_manifest_from_a_newer_format(bundle: Path) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(data | {"format_version": 2}))
    write_sums(bundle)
    refused(dsmr("check", bundle), "format_version is 2", "upgrade")


def test_an_onnxruntime_too_old_names_both_versions(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.28.2")
    play = ("play", bundle, "--save", bundle.parent / "x.mid", "--seconds", "1")
    refused(dsmr(*play, "--graph", "int8"), "1.29.0", "1.28.2")
    fallen_back = dsmr(*play)
    assert fallen_back.exit_code == 0
    *passed_over, chosen = [line for line in fallen_back.stderr.splitlines() if line.startswith("graph ")]
    assert [line.split(":")[0] for line in passed_over] == ["graph int8", "graph fp32"]
    assert all("1.29.0" in line and "1.28.2" in line for line in passed_over)
    assert chosen.startswith("graph portable: runs on any CPU")


def test_a_target_to_copy_and_that_of_this_machine(tmp_path: Path) -> None:
    text = dsmr("targets", "raspberry-pi-5", "--toml").stdout
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('name = "raspberry-pi-5"', 'name = "mine"'))
    assert one_json(dsmr("targets", path, "--json"))["name"] == "mine"
    assert dsmr("targets", "--toml").exit_code == 2
    assert one_json(dsmr("targets", "auto", "--json"))["architectures"]


def test_play_says_which_graph_it_runs_and_what_is_odd_about_a_named_one(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = ("play", bundle, "--save", bundle.parent / "x.mid", "--seconds", "1")
    assert "graph int8: runs on any CPU; golden vectors pass" in dsmr(*play).stderr
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["graphs"]["int8"]["requires"] = ["asimddp", "avx2"]
    path.write_text(json.dumps(manifest))
    write_sums(bundle)
    machine = dataclasses.replace(cpu.read(), features=frozenset())
    monkeypatch.setattr(cpu, "read", lambda: machine)
    assert "graph fp32: runs on any CPU" in dsmr(*play).stderr
    named = dsmr(*play, "--graph", "int8")
    assert "graph int8 is slow here: this CPU has none of asimddp, avx2" in named.stderr


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_no_bundle_there(tmp_path: Path, command: tuple[str, ...]) -> None:
    refused(dsmr(command[0], tmp_path / "nowhere", *command[1:]), "nowhere")


def test_info(bundle: Path) -> None:
    text = dsmr("info", bundle)
    assert text.exit_code == 0 and "schedule 70,5,1: 70,5,1 = 76 tokens" in text.stdout
    found = one_json(dsmr("info", bundle, "--json"))
    assert found["path"] == str(bundle) and found["schedule"]["horizons"] == [70, 5, 1]


def test_info_of_a_bundle_that_somebody_else_made(bundle: Path) -> None:
    """Provenance is free; a card that was edited is worth a warning and no more."""
    data = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(data | {"provenance": {}}))
    write_sums(bundle)
    (bundle / "README.md").write_text("my notes")
    result = dsmr("info", bundle)
    assert result.exit_code == 0 and "data: unknown; licence unknown" in result.stdout
    assert re.fullmatch(r"warning: .*README\.md was changed.*\n", result.stderr)


def test_targets() -> None:
    result = dsmr("targets")
    assert result.exit_code == 0 and "raspberry-pi-zero-2w" in result.stdout
    assert "any ARM64 or x86-64 Linux" in dsmr("targets", "generic").stdout
    refused(dsmr("targets", "no-such-board"), "no-such-board", "generic")


def test_eval_gives_the_reference_of_check(bundle: Path, tiny_checkpoint: Path, prompt: Path) -> None:
    float_only(bundle)
    found = one_json(dsmr("eval", tiny_checkpoint, "--data", prompt, "--json"))
    checked = one_json(dsmr("check", bundle, "--checkpoint", tiny_checkpoint, "--data", prompt, "--json"))
    assert found["tokens"] == checked["tokens"]
    reference = checked["graphs"]["fp32"]["reference_perplexity"]
    assert found["perplexity"] == pytest.approx(reference, rel=1e-6)  # float32 logits in other segments


def test_a_folder_needs_no_splits(tiny_checkpoint: Path, prompt: Path, tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    shutil.copy(prompt, tmp_path / "music" / "a.mid")
    of_folder = one_json(dsmr("eval", tiny_checkpoint, "--data", tmp_path / "music", "--json"))
    assert of_folder == one_json(dsmr("eval", tiny_checkpoint, "--data", prompt, "--json"))
    arguments = ("eval", tiny_checkpoint, "--data", tmp_path / "music", "--split", "test")
    refused(dsmr(*arguments), "names no splits", "leave out --split test")


def test_data_that_is_not_there(tiny_checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    refused(dsmr("eval", tiny_checkpoint, "--data", tmp_path / "nowhere.zip"), "nowhere.zip")
    (tmp_path / "empty").mkdir()
    arguments = ("check", bundle, "--checkpoint", tiny_checkpoint, "--data", tmp_path / "empty")
    refused(dsmr(*arguments), "no MIDI files")


# --- the programs themselves --------------------------------------------------------------------------------


def program(name: str, *arguments: str | Path, blocked: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs an entry point in a fresh interpreter; `blocked`: one in which torch cannot be imported."""
    block = "import sys; sys.modules.update(dict.fromkeys(('torch', 'miditok', 'onnx', 'symusic'))); "
    call = f"from dsmr_export.cli import {name}; {name}()"
    return subprocess.run(
        [sys.executable, "-c", (block if blocked else "") + call, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_dsmr_export_is_dsmr_export(tmp_path: Path) -> None:
    run = program("export_main", "--schedule", "no_such", "--checkpoint", tmp_path)
    assert run.returncode == 1 and not run.stdout
    assert run.stderr.startswith("Error: checkpoint ") and run.stderr.count("\n") == 1


def test_a_device_has_no_torch_and_needs_none(bundle: Path, prompt: Path, tmp_path: Path) -> None:
    run = program("main", "check", bundle, "--json", blocked=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["passed"] is True
    run = program("main", "play", bundle, "--prompt", prompt, "--save", tmp_path / "o.mid", "--seconds", "1",
                  blocked=True)  # fmt: skip
    assert run.returncode == 0 and (tmp_path / "o.mid").is_file(), run.stderr


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dsmr_export.cli import main; main(['--help'], standalone_mode=False); "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'miditok', 'numpy', 'mido'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
