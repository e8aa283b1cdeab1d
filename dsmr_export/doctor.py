"""What a machine has and lacks for playing a bundle, and the command that fixes each lack.

It must answer on the machine where everything else fails: whatever a probe raises becomes a line, and nothing
but the standard library is imported before its probe.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dsmr_export.errors import DsmrError, GraphError
from dsmr_export.runtime import cpu
from dsmr_export.runtime.live import midi_api
from dsmr_export.runtime.live.midi_api import SEQUENCER

if TYPE_CHECKING:
    from rich.console import Console

    from dsmr_export.runtime.bundle import Bundle
    from dsmr_export.runtime.selection import Selection

Value = TypeVar("Value")

OK, MISSING, PROBLEM = "ok", "missing", "problem"
"""Missing: something optional, or a graph that this machine is not for. Problem: what should be mended."""

SECTIONS = {
    "machine": "Machine",
    "software": "Software",
    "bundle": "Bundle",
    "graphs": "Graphs",
    "midi": "MIDI and sound",
}

ONNXRUNTIME_GLIBC = (2, 28)
"""What onnxruntime's wheels are built against (the tag of 1.31's), where none is installed that says so."""


@dataclass(frozen=True)
class Finding:
    """One line. section, name: its key in JSON. facts: what the text is made of, under stable names."""

    section: str
    name: str
    mark: str
    text: str
    fix: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """Everything found, in the order to read it.

    graph: the one that would run; None: the bundle cannot be played.
    """

    findings: tuple[Finding, ...]
    graph: str | None

    @property
    def playable(self) -> bool:
        return self.graph is not None

    def to_json(self) -> dict[str, Any]:
        """{playable, graph, SECTION: {NAME: {mark, text, fix, and its facts}}}."""
        found: dict[str, Any] = {"playable": self.playable, "graph": self.graph, **{s: {} for s in SECTIONS}}
        for line in self.findings:
            found[line.section][line.name] = {
                "mark": line.mark,
                "text": line.text,
                "fix": line.fix,
                **line.facts,
            }
        return found


def examine(path: Path | None = None) -> Diagnosis:
    """Looks at this machine and the bundle at `path` (None: the prebuilt one). Never raises.

    The bundle's golden vectors run, whatever is remembered of earlier runs.
    """
    chart = _Chart()
    known = chart.attempt("machine", "cpu", cpu.read)
    if known is not None:
        chart.note("machine", "cpu", partial(_processor, known))
    machine = known or cpu.Cpu(platform.machine(), 64, cpu.UNKNOWN, frozenset(), 1, None)
    chart.note("machine", "target", partial(_target, machine), mark=MISSING)
    chart.note("software", "system", _system)
    chart.note("software", "glibc", _glibc)
    chart.note("software", "python", partial(_python, machine))
    chart.note("software", "onnxruntime", _onnxruntime)
    for package in ("numpy", "mido", "platformdirs"):
        chart.note("software", package, partial(_package, package))
    selection: Selection | None = None
    bundle = chart.attempt("bundle", "bundle", partial(_open, path))
    if bundle is not None:
        chart.note("bundle", "bundle", partial(_bundle, bundle))
        chart.note("graphs", "graphs", partial(_graphs, bundle, machine))
        selection = chart.attempt("bundle", "self_test", partial(_self_test, bundle))
    else:
        chart.note("bundle", "self_test", _no_self_test)
    if selection is not None:
        chart.note("bundle", "self_test", partial(_selection, selection))
    chart.note("midi", "rtmidi", _rtmidi, mark=MISSING)
    chart.note("midi", "sequencer", _sequencer, mark=MISSING)
    chart.note("midi", "ports", _ports, mark=MISSING)
    chart.note("midi", "fluidsynth", _fluidsynth, mark=MISSING)
    return Diagnosis(tuple(chart.findings), selection.graph if selection else None)


class _Chart:
    """Collects findings; what a probe raises becomes one."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def note(
        self, section: str, name: str, probe: Callable[[], Iterable[Finding]], mark: str = PROBLEM
    ) -> None:
        self.findings += self.attempt(section, name, lambda: list(probe()), mark) or []

    def attempt(
        self, section: str, name: str, probe: Callable[[], Value], mark: str = PROBLEM
    ) -> Value | None:
        """The probe's value; None, and a finding with that mark, where it raises."""
        try:
            return probe()
        except DsmrError as error:  # says itself what to do
            text = " ".join(str(error).split())
        except Exception as error:  # a machine can be broken in any way
            text = f"could not be examined ({type(error).__name__}: {' '.join(str(error).split())})"
        self.findings.append(Finding(section, name, mark, text))
        return None


def _processor(machine: cpu.Cpu) -> Iterator[Finding]:
    facts = {"architecture": machine.architecture, "model": machine.model, "cores": machine.cores}
    yield Finding(
        "machine",
        "cpu",
        OK,
        f"{machine.model}, {machine.architecture}, cores: {machine.cores}",
        facts=facts,
    )
    features = sorted(machine.features)
    text = ", ".join(features) or f"none of {', '.join(cpu.FEATURES)}"
    yield Finding("machine", "features", OK, text, facts={"features": features})
    size = machine.memory_bytes
    text = "unknown" if size is None else f"{size / 2**20:,.0f} MiB"
    yield Finding("machine", "memory", OK, text, facts={"bytes": size})


def _target(machine: cpu.Cpu) -> Iterator[Finding]:
    from dsmr_export.targets import loader

    target = loader.best_for(machine.architecture, machine.features, machine.model)
    yield Finding("machine", "target", OK, f"{target.name}: {target.summary}", facts={"name": target.name})


def _system() -> Iterator[Finding]:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    facts = {"name": name, "kernel": platform.release()}
    yield Finding("software", "system", OK, f"{name}, kernel {platform.release()}", facts=facts)


def _glibc() -> Iterator[Finding]:
    library, version = platform.libc_ver()
    needed = _onnxruntime_glibc()
    least = ".".join(map(str, needed or ()))
    facts = {"library": library or None, "version": version or None, "onnxruntime_needs": least or None}
    wants = f"onnxruntime's wheels need glibc {least} or newer"
    if needed is None:
        yield Finding(
            "software", "glibc", OK, f"{library or 'another C library'} {version}".strip(), facts=facts
        )
    elif library != "glibc":
        text = f"this system's C library is not glibc, and {wants}"
        yield Finding("software", "glibc", PROBLEM, text, "use Raspberry Pi OS, Debian or Ubuntu", facts)
    elif _numbers(version) < needed:
        fix = "use Raspberry Pi OS bookworm (Debian 12) or newer"
        yield Finding("software", "glibc", PROBLEM, f"{version}, and {wants}", fix, facts)
    else:
        yield Finding("software", "glibc", OK, f"{version} ({wants})", facts=facts)


def _onnxruntime_glibc() -> tuple[int, ...] | None:
    """The oldest glibc that the installed wheel's tags admit; None for a build without such a tag."""
    try:
        tags = metadata.distribution("onnxruntime").read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        return ONNXRUNTIME_GLIBC
    found = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)_", tags)]
    return min(found, default=None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _python(machine: cpu.Cpu) -> Iterator[Finding]:
    facts = {"version": platform.python_version(), "bits": machine.bits, "executable": sys.executable}
    text = f"{platform.python_version()}, {machine.bits} bits"
    try:
        cpu.require_64_bit(machine)
    except DsmrError as error:
        yield Finding("software", "python", PROBLEM, str(error), facts=facts)
    else:
        yield Finding("software", "python", OK, text, facts=facts)


def _onnxruntime() -> Iterator[Finding]:
    from dsmr_export.runtime.session import load_onnxruntime

    try:
        version = load_onnxruntime().__version__
    except GraphError as error:
        fix = "pip install --force-reinstall onnxruntime"
        yield Finding("software", "onnxruntime", PROBLEM, str(error), fix, {"version": None})
    else:
        yield Finding("software", "onnxruntime", OK, version, facts={"version": version})


def _package(name: str) -> Iterator[Finding]:
    fix = f"pip install --force-reinstall {name}"
    try:
        import_module(name)
    except Exception as error:  # a damaged package can raise anything
        text = f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        yield Finding("software", name, PROBLEM, text, fix, {"version": None})
    else:
        version = metadata.version(name)
        yield Finding("software", name, OK, version, facts={"version": version})


def _open(path: Path | None) -> Bundle:
    from dsmr_export.runtime.bundle import Bundle

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are findings
        return Bundle.open(path)


def _bundle(bundle: Bundle) -> Iterator[Finding]:
    notes = list(bundle.warnings)
    target = bundle.manifest.target
    text = f"{bundle.manifest.name} in {bundle.path}, made for {target or 'no target in particular'}"
    facts = {
        "path": str(bundle.path),
        "name": bundle.manifest.name,
        "target": target,
        "warnings": notes,
    }
    yield Finding("bundle", "bundle", PROBLEM if notes else OK, "; ".join([text, *notes]), facts=facts)


def _graphs(bundle: Bundle, machine: cpu.Cpu) -> Iterator[Finding]:
    from dsmr_export.runtime.selection import suits
    from dsmr_export.runtime.session import load_onnxruntime, version_tuple

    try:
        installed = version_tuple(load_onnxruntime().__version__)
    except DsmrError:  # a line of its own
        installed = ()
    for name, graph in bundle.manifest.graphs.items():
        well = suits(graph.requires, machine.features)
        new_enough = installed >= version_tuple(graph.min_onnxruntime)
        facts = {
            "bytes": graph.bytes,
            "state_bytes": graph.state_bytes,
            "requires": list(graph.requires),
            "runs_well": well,
            "min_onnxruntime": graph.min_onnxruntime,
            "onnxruntime_new_enough": new_enough,
        }
        text = f"{graph.bytes / 1e6:.1f} MB, state {graph.state_bytes / 1e6:.1f} MB; "
        having = sorted(set(graph.requires) & machine.features)
        if not installed:
            text += "onnxruntime cannot be imported"
            yield Finding("graphs", name, PROBLEM, text, facts=facts)
        elif not new_enough:
            text += f"needs onnxruntime {graph.min_onnxruntime} or newer"
            fix = f"pip install 'onnxruntime>={graph.min_onnxruntime}'"
            yield Finding("graphs", name, PROBLEM, text, fix, facts)
        elif well:
            text += f"this CPU has {', '.join(having)}" if having else "runs well on any CPU"
            yield Finding("graphs", name, OK, text, facts=facts)
        else:
            text += f"slow here: this CPU has none of {', '.join(graph.requires)}"
            yield Finding("graphs", name, MISSING, text, facts=facts)


def _self_test(bundle: Bundle) -> Selection:
    from dsmr_export.runtime.selection import select

    return select(bundle, fresh=True)


def _no_self_test() -> Iterator[Finding]:
    yield Finding("bundle", "self_test", PROBLEM, "not run: the bundle cannot be opened")


def _selection(found: Selection) -> Iterator[Finding]:
    tried = [{"graph": a.graph, "safe": a.safe, "passed": a.passed, "detail": a.detail} for a in found.tried]
    facts = {"graph": found.graph, "safe": found.safe, "reason": found.reason, "tried": tried}
    failed = [
        f"{a.graph}{' with safer session options' if a.safe else ''} failed: {a.detail}"
        for a in found.tried
        if not a.passed
    ]
    text = "; ".join([f"{found.graph} would run: {found.reason}", *failed])
    yield Finding("bundle", "self_test", PROBLEM if failed or found.safe else OK, text, facts=facts)


def _rtmidi() -> Iterator[Finding]:
    try:
        import_module("rtmidi")
    except ModuleNotFoundError:
        text = "python-rtmidi is not installed: files only, no MIDI ports"
        yield Finding("midi", "rtmidi", MISSING, text, midi_api.how_to_install(), {"version": None})
    except ImportError as error:
        reason = " ".join(str(error).split())
        fix = midi_api.how_to_mend(reason)
        yield Finding("midi", "rtmidi", MISSING, f"cannot be imported ({reason})", fix, {"version": None})
    else:
        version = metadata.version("python-rtmidi")
        yield Finding("midi", "rtmidi", OK, f"python-rtmidi {version}", facts={"version": version})


def _sequencer() -> Iterator[Finding]:
    there = SEQUENCER.exists()
    usable = there and os.access(SEQUENCER, os.R_OK | os.W_OK)
    facts = {"exists": there, "usable": usable}
    if not there:
        text = f"{SEQUENCER} does not exist: no ALSA ports"
        yield Finding("midi", "sequencer", MISSING, text, "sudo modprobe snd-seq", facts)
    elif not usable:
        text, fix = f"{SEQUENCER} may not be opened by this user", 'sudo usermod -aG audio "$USER"'
        yield Finding("midi", "sequencer", MISSING, text, f"{fix}, then log in again", facts)
    else:
        yield Finding("midi", "sequencer", OK, str(SEQUENCER), facts=facts)


def _ports() -> Iterator[Finding]:
    """What ALSA's sequencer offers, or a JACK server; the absence of each part is a finding of its own."""
    nothing: dict[str, Any] = {"inputs": [], "outputs": []}
    try:
        rtmidi = import_module("rtmidi")
    except ImportError:
        text = "not looked for: python-rtmidi cannot be imported"
        yield Finding("midi", "ports", MISSING, text, facts=nothing)
        return
    reasons = []
    for system, constant in (("ALSA", "API_LINUX_ALSA"), ("JACK", "API_UNIX_JACK")):
        try:
            with _quiet_stderr():
                api = getattr(rtmidi, constant)
                facts = {
                    "inputs": list(rtmidi.MidiIn(api).get_ports()),
                    "outputs": list(rtmidi.MidiOut(api).get_ports()),
                }
        except Exception as error:  # rtmidi's own SystemError where there is no sequencer, no server
            reasons.append(f"{system} cannot be used ({' '.join(str(error).split())})")
        else:
            counts = ", ".join(f"{kind}: {'; '.join(names) or 'none'}" for kind, names in facts.items())
            yield Finding("midi", "ports", OK, f"{system}, {counts}", facts=facts)
            return
    yield Finding("midi", "ports", MISSING, "; ".join(reasons), facts=nothing)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """ALSA's C library writes to file descriptor 2, past Python's sys.stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _fluidsynth() -> Iterator[Finding]:
    path = shutil.which("fluidsynth")
    facts = {"path": path}
    if path:
        yield Finding("midi", "fluidsynth", OK, path, facts=facts)
    else:
        text, fix = (
            "not installed: no sound on this machine",
            "sudo apt install fluidsynth fluid-soundfont-gm",
        )
        yield Finding("midi", "fluidsynth", MISSING, text, fix, facts)


def render(diagnosis: Diagnosis, console: Console) -> None:
    """Prints what `examine` found, a section at a time, each fix below its line."""
    for section, title in SECTIONS.items():
        lines = [line for line in diagnosis.findings if line.section == section]
        if lines:
            console.print(title, style="bold")
        for line in lines:
            name = line.name.replace("_", "-")
            console.print(f"  {line.mark:<8} {name}: {line.text}", soft_wrap=True)
            if line.fix:
                console.print(f"           fix: {line.fix}", soft_wrap=True)
