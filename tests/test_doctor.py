"""`dsmr doctor` on machines that lack one thing each: a line, the fix, and never a crash."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from click.testing import CliRunner, Result

from dsmr_export import doctor
from dsmr_export.cli_doctor import doctor as command
from dsmr_export.errors import BundleError, GraphError, TargetError
from dsmr_export.manifest import MANIFEST
from dsmr_export.runtime import cpu, selection, session
from dsmr_export.runtime.bundle import write_sums
from dsmr_export.runtime.selection import Attempt, Selection
from dsmr_export.targets import loader
from tests.tiny_bundle import make_bundle

PI_4 = cpu.Cpu("aarch64", 64, "Raspberry Pi 4 Model B Rev 1.4", frozenset({"asimd"}), 4, 2**32)
PI_5 = replace(PI_4, model="Raspberry Pi 5 Model B Rev 1.0", features=frozenset({"asimd", "asimddp"}))

MACHINE = {"cpu", "features", "memory", "target"}
SOFTWARE = {"system", "glibc", "python", "onnxruntime", "numpy", "mido", "platformdirs"}
MIDI = {"rtmidi", "sequencer", "ports", "fluidsynth"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with an int8 graph, as far as its manifest goes, for CPUs with dot products."""
    bundle = make_bundle(tmp_path_factory.mktemp("doctor") / "tiny")
    graphs = bundle.manifest.graphs
    asking = {"fp32": replace(graphs["fp32"], requires=("asimddp", "avx512_vnni"))}
    replace(
        bundle.manifest, graphs={**graphs, **asking}, preference=("fp32", "portable"), target="raspberry-pi-5"
    ).write(bundle.path / MANIFEST)
    write_sums(bundle.path)
    return bundle.path


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A Pi 5 with everything; a test takes one thing away."""
    sequencer = tmp_path / "seq"
    sequencer.touch()
    port = SimpleNamespace(get_ports=lambda: ["Midi Through:Midi Through Port-0 14:0"])
    rtmidi = SimpleNamespace(API_LINUX_ALSA=2, MidiIn=lambda api: port, MidiOut=lambda api: port)
    versions = {"python-rtmidi": "1.5.8"}
    real_version, real_import = metadata.version, import_module
    monkeypatch.setattr(cpu, "read", lambda: PI_5)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.41"))
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: TRIXIE)
    monkeypatch.setattr(doctor, "SEQUENCER", sequencer)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real_version(name))
    monkeypatch.setattr(doctor, "import_module", lambda n: rtmidi if n == "rtmidi" else real_import(n))
    monkeypatch.setattr(loader, "best_for", best_for, raising=False)
    return monkeypatch


BOOKWORM = {"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"}
TRIXIE = {"ID": "debian", "VERSION_ID": "13", "PRETTY_NAME": "Debian GNU/Linux 13 (trixie)"}


def best_for(architecture: str, features: frozenset[str], model: str) -> Any:
    assert (architecture, model) == ("aarch64", PI_5.model)
    return SimpleNamespace(name="raspberry-pi-5", summary="Cortex-A76, four cores")


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


def importing(healthy: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Makes the import of one package fail."""
    others = doctor.import_module
    healthy.setattr(doctor, "import_module", lambda n: raising(error)() if n == name else others(n))


def examine(path: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(doctor.examine(path).to_json()))
    return found


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def marks(found: dict[str, Any]) -> dict[str, str]:
    """Every line that is not ok."""
    return {
        f"{section}.{name}": line["mark"]
        for section in doctor.SECTIONS
        for name, line in found[section].items()
        if line["mark"] != doctor.OK
    }


def test_a_machine_with_everything(healthy: pytest.MonkeyPatch, tiny: Path) -> None:
    found = examine(tiny)
    assert marks(found) == {}
    assert list(found) == ["playable", "graph", *doctor.SECTIONS]
    assert set(found["machine"]) == MACHINE and set(found["software"]) == SOFTWARE
    assert set(found["bundle"]) == {"bundle", "self_test"} and set(found["midi"]) == MIDI
    assert set(found["graphs"]) == {"fp32", "portable"}
    assert (found["playable"], found["graph"]) == (True, "fp32")
    for section in doctor.SECTIONS:
        assert all({"mark", "text", "fix"} <= set(line) for line in found[section].values())
    assert found["machine"]["features"]["features"] == ["asimd", "asimddp"]
    assert found["machine"]["memory"]["bytes"] == PI_5.memory_bytes
    assert found["machine"]["target"]["name"] == "raspberry-pi-5"
    assert found["software"]["glibc"]["version"] == "2.41"
    assert found["bundle"]["bundle"]["target"] == "raspberry-pi-5"
    assert found["bundle"]["self_test"]["tried"][-1]["passed"] is True
    assert "asimddp" in found["graphs"]["fp32"]["text"] and found["graphs"]["fp32"]["runs_well"] is True
    assert found["midi"]["ports"]["inputs"] == ["Midi Through:Midi Through Port-0 14:0"]


def test_a_graph_that_this_cpu_is_not_for(healthy: pytest.MonkeyPatch, tiny: Path) -> None:
    healthy.setattr(cpu, "read", lambda: replace(PI_4, model=PI_5.model))
    found = examine(tiny)
    assert found["graph"] == "portable" and marks(found) == {"graphs.fp32": doctor.MISSING}
    assert "slow here: this CPU has none of asimddp, avx512_vnni" in found["graphs"]["fp32"]["text"]
    assert found["graphs"]["fp32"]["runs_well"] is False
    assert "portable would run" in found["bundle"]["self_test"]["text"]


def test_an_old_onnxruntime(healthy: pytest.MonkeyPatch, tiny: Path) -> None:
    healthy.setattr(onnxruntime, "__version__", "1.20.1")
    found = examine(tiny)
    line = found["graphs"]["fp32"]
    assert (line["mark"], line["onnxruntime_new_enough"]) == (doctor.PROBLEM, False)
    assert line["fix"] == "pip install 'onnxruntime>=1.29.0'" and "needs onnxruntime 1.29.0" in line["text"]
    # The portable graph needs 1.18 and plays; that the better one could not is said.
    assert found["graph"] == "portable"
    assert found["bundle"]["self_test"]["mark"] == doctor.PROBLEM
    assert "fp32 failed: graph fp32 needs onnxruntime 1.29.0" in found["bundle"]["self_test"]["text"]


def test_no_onnxruntime(healthy: pytest.MonkeyPatch, tiny: Path) -> None:
    error = GraphError(
        "onnxruntime cannot be imported (No module named 'onnxruntime'): pip install onnxruntime"
    )
    for module in (session, selection):
        healthy.setattr(module, "load_onnxruntime", raising(error))
    found = examine(tiny)
    assert found["software"]["onnxruntime"]["mark"] == doctor.PROBLEM
    assert found["software"]["onnxruntime"]["fix"] == "pip install --force-reinstall onnxruntime"
    assert "cannot be imported" in found["graphs"]["portable"]["text"]
    assert found["bundle"]["self_test"]["mark"] == doctor.PROBLEM
    assert (found["playable"], found["graph"]) == (False, None)


def test_a_32_bit_python(healthy: pytest.MonkeyPatch, tiny: Path) -> None:
    healthy.setattr(cpu, "read", lambda: replace(PI_5, bits=32))
    found = examine(tiny)
    line = found["software"]["python"]
    assert line["mark"] == doctor.PROBLEM and line["bits"] == 32
    assert "a 32-bit system under a 64-bit kernel (aarch64)" in line["text"]
    assert "install the 64-bit Raspberry Pi OS" in line["text"]
    assert "no wheels for 32-bit ARM" in found["software"]["onnxruntime"]["text"] and not found["playable"]


@pytest.mark.parametrize(
    "tags", ["Tag: cp311-cp311-manylinux_2_27_aarch64\nTag: cp311-cp311-manylinux_2_28_aarch64"]
)
def test_glibc_and_the_tags_of_the_installed_wheel(healthy: pytest.MonkeyPatch, tags: str) -> None:
    healthy.setattr(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: tags))
    healthy.setattr(platform, "libc_ver", lambda: ("glibc", "2.26"))
    line = examine(None)["software"]["glibc"]
    assert (line["mark"], line["onnxruntime_needs"]) == (doctor.PROBLEM, "2.27")
    assert "bookworm" in line["fix"] and "2.26" in line["text"]
    healthy.setattr(platform, "libc_ver", lambda: ("glibc", "2.27"))
    assert examine(None)["software"]["glibc"]["mark"] == doctor.OK


def test_no_glibc(healthy: pytest.MonkeyPatch) -> None:
    healthy.setattr(metadata, "distribution", raising(metadata.PackageNotFoundError("onnxruntime")))
    healthy.setattr(platform, "libc_ver", lambda: ("", ""))
    line = examine(None)["software"]["glibc"]
    assert (line["mark"], line["library"], line["onnxruntime_needs"]) == (doctor.PROBLEM, None, "2.28")
    assert "not glibc" in line["text"] and "Raspberry Pi OS" in line["fix"]


def test_an_onnxruntime_built_here_asks_for_no_glibc(healthy: pytest.MonkeyPatch) -> None:
    wheel = SimpleNamespace(read_text=lambda file: "Tag: cp311-cp311-linux_aarch64")
    healthy.setattr(metadata, "distribution", lambda name: wheel)
    healthy.setattr(platform, "libc_ver", lambda: ("", ""))
    line = examine(None)["software"]["glibc"]
    assert (line["mark"], line["onnxruntime_needs"]) == (doctor.OK, None)


@pytest.mark.parametrize("package", ["numpy", "mido", "platformdirs"])
def test_a_broken_package(healthy: pytest.MonkeyPatch, package: str) -> None:
    importing(healthy, package, ImportError("libopenblas.so: cannot open\nshared object file"))
    line = examine(None)["software"][package]
    assert (line["mark"], line["version"]) == (doctor.PROBLEM, None)
    assert line["fix"] == f"pip install --force-reinstall {package}"
    assert "libopenblas.so: cannot open shared object file" in line["text"]


def test_no_bundle(healthy: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = examine(tmp_path / "gone")
    assert "gone is not a folder" in found["bundle"]["bundle"]["text"]
    assert found["bundle"]["self_test"]["text"] == "not run: the bundle cannot be opened"
    assert (found["playable"], found["graphs"]) == (False, {})


def test_a_damaged_bundle(healthy: pytest.MonkeyPatch, tiny: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    subprocess.run(["cp", "-r", tiny, copied], check=True)
    (copied / "README.md").write_text("# mine\n")
    found = examine(copied)  # nobody needs the README to play
    assert found["bundle"]["bundle"]["mark"] == doctor.PROBLEM and found["playable"]
    assert "README.md was changed" in found["bundle"]["bundle"]["warnings"][0]
    (copied / "model.onnx").write_bytes(b"torn")
    found = examine(copied)
    assert "model.onnx was changed" in found["bundle"]["bundle"]["text"] and not found["playable"]


def test_fallbacks_of_the_self_test_are_said(healthy: pytest.MonkeyPatch, tiny: Path) -> None:
    tried = (
        Attempt("fp32", False, False, "golden vectors do not pass (KL 2)"),
        Attempt("fp32", True, True, "golden vectors pass (KL 0)"),
    )
    chosen = Selection("fp32", True, "this CPU has asimddp", tried)
    asked: list[bool] = []
    healthy.setattr(selection, "select", lambda bundle, fresh: asked.append(fresh) or chosen)
    line = examine(tiny)["bundle"]["self_test"]
    assert asked == [True]  # what is remembered may be what is wrong
    assert (line["mark"], line["safe"], line["graph"]) == (doctor.PROBLEM, True, "fp32")
    assert "fp32 failed: golden vectors do not pass (KL 2)" in line["text"]
    assert line["tried"][1] == {
        "graph": "fp32",
        "safe": True,
        "passed": True,
        "detail": "golden vectors pass (KL 0)",
    }


def test_no_graph_passes(healthy: pytest.MonkeyPatch, tiny: Path) -> None:
    healthy.setattr(selection, "select", raising(BundleError("no graph of tiny passes its golden vectors")))
    found = examine(tiny)
    assert (found["playable"], found["graph"]) == (False, None)
    assert "no graph of tiny passes" in found["bundle"]["self_test"]["text"]


def test_no_rtmidi(healthy: pytest.MonkeyPatch) -> None:
    importing(healthy, "rtmidi", ModuleNotFoundError("No module named 'rtmidi'", name="rtmidi"))
    healthy.setattr(sys, "version_info", (3, 11, 2))
    midi = examine(None)["midi"]
    assert (midi["rtmidi"]["mark"], midi["rtmidi"]["fix"]) == (
        doctor.MISSING,
        "pip install 'dsmr-export[live]'",
    )
    assert midi["ports"]["mark"] == doctor.MISSING and "not looked for" in midi["ports"]["text"]
    # No wheels of python-rtmidi for Python 3.13 (trixie): it is compiled there.
    healthy.setattr(sys, "version_info", (3, 13, 5))
    assert "libasound2-dev" in examine(None)["midi"]["rtmidi"]["fix"]


@pytest.mark.parametrize(
    ("system", "package"),
    [
        (BOOKWORM, "libasound2"),
        (TRIXIE, "libasound2t64"),
        ({"ID": "ubuntu", "VERSION_ID": "22.04"}, "libasound2"),
        ({"ID": "ubuntu", "VERSION_ID": "24.04"}, "libasound2t64"),
        (None, "libasound2"),
    ],
)
def test_no_libasound(healthy: pytest.MonkeyPatch, system: dict[str, str] | None, package: str) -> None:
    error = ImportError("libasound.so.2: cannot open shared object file: No such file or directory")
    importing(healthy, "rtmidi", error)
    release = (lambda: system) if system else raising(OSError("no os-release"))
    healthy.setattr(platform, "freedesktop_os_release", release)
    line = examine(None)["midi"]["rtmidi"]
    assert (line["mark"], line["fix"]) == (doctor.MISSING, f"sudo apt install {package}")


def test_rtmidi_fails_otherwise(healthy: pytest.MonkeyPatch) -> None:
    importing(healthy, "rtmidi", ImportError("undefined symbol: _ZN5RtMidi"))
    line = examine(None)["midi"]["rtmidi"]
    assert "undefined symbol" in line["text"] and "--force-reinstall" in line["fix"]


def test_no_sequencer(healthy: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    class SequencerError(OSError):
        """rtmidi's own SystemError is an OSError."""

    def open_port(api: int) -> Any:
        os.write(2, b"ALSA lib seq_hw.c:466:(snd_seq_hw_open) open /dev/snd/seq failed\n")
        raise SequencerError("MidiInAlsa::initialize: error creating\nALSA sequencer client object.")

    rtmidi = SimpleNamespace(API_LINUX_ALSA=2, MidiIn=open_port, MidiOut=open_port)
    others = doctor.import_module
    healthy.setattr(doctor, "import_module", lambda n: rtmidi if n == "rtmidi" else others(n))
    healthy.setattr(doctor, "SEQUENCER", Path("/nowhere/seq"))
    midi = examine(None)["midi"]
    assert midi["sequencer"] == {
        "mark": doctor.MISSING,
        "text": "/nowhere/seq does not exist: no ALSA ports",
        "fix": "sudo modprobe snd-seq",
        "exists": False,
        "usable": False,
    }
    assert midi["ports"]["mark"] == doctor.MISSING and midi["ports"]["inputs"] == []
    assert "error creating ALSA sequencer client object" in midi["ports"]["text"]
    assert "ALSA lib" not in capfd.readouterr().err
    os.write(2, b"back\n")
    assert capfd.readouterr().err == "back\n"  # file descriptor 2 is what it was


def test_a_sequencer_of_other_users(healthy: pytest.MonkeyPatch) -> None:
    healthy.setattr(os, "access", lambda path, mode: False)
    line = examine(None)["midi"]["sequencer"]
    assert (line["mark"], line["exists"], line["usable"]) == (doctor.MISSING, True, False)
    assert 'usermod -aG audio "$USER"' in line["fix"]


def test_no_fluidsynth(healthy: pytest.MonkeyPatch) -> None:
    healthy.setattr(doctor.shutil, "which", lambda name: None)
    line = examine(None)["midi"]["fluidsynth"]
    assert (line["mark"], line["path"]) == (doctor.MISSING, None)
    assert line["fix"] == "sudo apt install fluidsynth fluid-soundfont-gm"


def test_no_target_fits(healthy: pytest.MonkeyPatch) -> None:
    healthy.setattr(loader, "best_for", raising(TargetError("no target for riscv64: give a .toml file")))
    line = examine(None)["machine"]["target"]
    assert (line["mark"], line["text"]) == (doctor.MISSING, "no target for riscv64: give a .toml file")


PROBES = {
    "_processor": ("machine", "cpu"),
    "_target": ("machine", "target"),
    "_system": ("software", "system"),
    "_glibc": ("software", "glibc"),
    "_python": ("software", "python"),
    "_onnxruntime": ("software", "onnxruntime"),
    "_package": ("software", "numpy"),
    "_open": ("bundle", "bundle"),
    "_bundle": ("bundle", "bundle"),
    "_graphs": ("graphs", "graphs"),
    "_self_test": ("bundle", "self_test"),
    "_selection": ("bundle", "self_test"),
    "_rtmidi": ("midi", "rtmidi"),
    "_sequencer": ("midi", "sequencer"),
    "_ports": ("midi", "ports"),
    "_fluidsynth": ("midi", "fluidsynth"),
}


@pytest.mark.parametrize("probe", PROBES)
def test_whatever_a_probe_raises_becomes_a_line(healthy: pytest.MonkeyPatch, tiny: Path, probe: str) -> None:
    chosen = Selection("fp32", False, "runs on any CPU", (Attempt("fp32", False, True, ""),))
    healthy.setattr(selection, "select", lambda bundle, fresh: chosen)
    healthy.setattr(doctor, probe, raising(RuntimeError("out of\nluck")))
    section, name = PROBES[probe]
    line = examine(tiny)[section][name]
    assert line["mark"] in (doctor.MISSING, doctor.PROBLEM)
    assert line["text"] == "could not be examined (RuntimeError: out of luck)"


def test_a_processor_that_cannot_be_read(healthy: pytest.MonkeyPatch) -> None:
    healthy.setattr(cpu, "read", raising(RuntimeError("no /proc")))
    found = examine(None)
    assert found["machine"]["cpu"]["text"] == "could not be examined (RuntimeError: no /proc)"
    assert found["software"]["python"]["mark"] == doctor.OK


def test_command_prints_sections_marks_and_fixes(healthy: pytest.MonkeyPatch, tiny: Path) -> None:
    healthy.setattr(doctor, "SEQUENCER", Path("/nowhere/seq"))
    result = run(tiny)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(doctor.SECTIONS.values())
    assert "  ok       features: asimd, asimddp" in lines
    at = lines.index("  missing  sequencer: /nowhere/seq does not exist: no ALSA ports")
    assert lines[at + 1] == "           fix: sudo modprobe snd-seq"


def test_command_prints_one_json_object_on_one_line(healthy: pytest.MonkeyPatch, tiny: Path) -> None:
    result = run(tiny, "--json")
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == doctor.examine(tiny).to_json()


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_command_exits_with_1_only_if_nothing_can_be_played(
    healthy: pytest.MonkeyPatch, tmp_path: Path, json_option: tuple[str, ...]
) -> None:
    result = run(tmp_path / "gone", *json_option)
    assert result.exit_code == 1
    assert result.stderr == ("Error: this bundle cannot be played on this machine: see the problems above\n")
    assert "gone is not a folder" in result.stdout


def test_this_machine(tiny: Path) -> None:
    """Nothing is faked: the tests run where the base install does."""
    result = run(tiny, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["software"]) == SOFTWARE and set(found["midi"]) == MIDI
    assert {found["software"][name]["mark"] for name in SOFTWARE} == {doctor.OK}
    assert found["software"]["onnxruntime"]["version"] == onnxruntime.__version__
    assert found["machine"]["cpu"]["architecture"] == platform.machine()
    assert found["bundle"]["self_test"]["graph"] == found["graph"]


@pytest.mark.parametrize("module", ["dsmr_export.doctor", "dsmr_export.cli_doctor"])
def test_nothing_heavy_is_imported_before_its_probe(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert not loaded & {"numpy", "onnxruntime", "mido", "rtmidi", "torch", "onnx", "platformdirs", "tomllib"}
