"""Which MIDI system is there, and one line with its fix for everything that lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from dsmr_export.cli import main
from dsmr_export.errors import PortError
from dsmr_export.runtime.live import midi_api
from dsmr_export.runtime.live.midi_api import Api
from tests.jack import jack_server

FILES = "; files work without (--prompt, --save)"


class SequencerError(OSError):
    """rtmidi's own SystemError is an OSError."""


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """python-rtmidi on a machine without ALSA's sequencer and JACK; a test gives or takes one thing."""

    def open_port(api: int, *rest: Any) -> Any:
        raise SequencerError("MidiInAlsa::initialize: error creating\nALSA sequencer client object.")

    rtmidi = SimpleNamespace(
        API_LINUX_ALSA=2,
        API_UNIX_JACK=3,
        get_compiled_api=lambda: [2, 3],
        MidiIn=open_port,
        MidiOut=open_port,
    )
    monkeypatch.setattr(midi_api, "import_module", lambda name: rtmidi)
    monkeypatch.setattr(midi_api, "SEQUENCER", tmp_path / "seq")
    monkeypatch.delenv(midi_api.API_VARIABLE, raising=False)
    monkeypatch.delenv("JACK_DEFAULT_SERVER", raising=False)
    return monkeypatch


def refusal() -> str:
    with pytest.raises(PortError) as error:
        midi_api.find_api()
    line = str(error.value)
    assert "\n" not in line
    return line


def importing(patch: pytest.MonkeyPatch, error: ImportError) -> None:
    def fail(name: str) -> Any:
        raise error

    patch.setattr(midi_api, "import_module", fail)


def test_no_python_rtmidi(nothing: pytest.MonkeyPatch) -> None:
    importing(nothing, ModuleNotFoundError("No module named 'rtmidi'", name="rtmidi"))
    nothing.setattr(sys, "version_info", (3, 11, 2))
    assert refusal() == "MIDI ports need python-rtmidi: pip install 'dsmr-export[live]'" + FILES
    nothing.setattr(sys, "version_info", (3, 13, 5))  # no wheels: it is compiled there
    assert "libasound2-dev && pip install" in refusal()


def test_no_libasound(nothing: pytest.MonkeyPatch) -> None:
    importing(nothing, ImportError("libasound.so.2: cannot open shared object file:\nNo such file"))
    nothing.setattr("platform.freedesktop_os_release", lambda: {"ID": "debian", "VERSION_ID": "12"})
    reason = "(libasound.so.2: cannot open shared object file: No such file)"
    assert refusal() == f"python-rtmidi cannot be imported {reason}: sudo apt install libasound2{FILES}"


def test_a_broken_python_rtmidi(nothing: pytest.MonkeyPatch) -> None:
    importing(nothing, ImportError("undefined symbol: _ZN5RtMidi"))
    assert "(undefined symbol: _ZN5RtMidi): pip install 'dsmr-export[live]' --force-reinstall" in refusal()


def test_no_sequencer_and_no_jack(nothing: pytest.MonkeyPatch) -> None:
    alsa = f"{midi_api.SEQUENCER} does not exist (sudo modprobe snd-seq)"
    assert refusal() == f"no MIDI ports: {alsa}, and no JACK server runs{FILES}"
    nothing.setenv("DSMR_MIDI_API", "ALSA")
    assert refusal() == f"no MIDI ports: {alsa} (DSMR_MIDI_API=alsa allows nothing else){FILES}"
    nothing.setenv("DSMR_MIDI_API", "jack")
    nothing.setenv("JACK_DEFAULT_SERVER", "studio")
    named = "(DSMR_MIDI_API=jack allows nothing else)"
    assert refusal() == f"no MIDI ports: no JACK server runs as studio {named}{FILES}"
    nothing.setenv("DSMR_MIDI_API", "oss")
    assert refusal() == "DSMR_MIDI_API=oss is no MIDI system: set alsa or jack, or leave it away"


def test_a_sequencer_of_other_users(nothing: pytest.MonkeyPatch) -> None:
    midi_api.SEQUENCER.touch()
    nothing.setattr(os, "access", lambda path, mode: False)
    assert 'may not be opened by this user (sudo usermod -aG audio "$USER", then log in again)' in refusal()


def test_a_sequencer_that_fails_otherwise(nothing: pytest.MonkeyPatch) -> None:
    midi_api.SEQUENCER.touch()
    assert "ALSA's sequencer cannot be opened (MidiInAlsa::initialize: error creating ALSA seq" in refusal()


def test_a_python_rtmidi_that_was_built_without_one(nothing: pytest.MonkeyPatch) -> None:
    nothing.setattr(midi_api.load(), "get_compiled_api", lambda: [4])
    assert "this python-rtmidi was built without ALSA, and this python-rtmidi was built without" in refusal()


def test_alsa_is_preferred_and_jack_taken_where_it_is_alone(nothing: pytest.MonkeyPatch) -> None:
    rtmidi, allowed = midi_api.load(), {2, 3}

    def open_port(api: int, *rest: Any) -> Any:
        if api in allowed:
            return SimpleNamespace(delete=lambda: None)
        raise SequencerError("no")

    nothing.setattr(rtmidi, "MidiIn", open_port)
    assert midi_api.find_api() is Api.ALSA
    nothing.setenv("DSMR_MIDI_API", "jack")
    assert midi_api.find_api() is Api.JACK
    nothing.delenv("DSMR_MIDI_API")
    allowed.remove(2)
    assert midi_api.find_api() is Api.JACK


def test_alsa_and_jack_write_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both of them fail here, and say so on file descriptor 2 if they are let."""
    pytest.importorskip("rtmidi", reason="python-rtmidi is in the extra live")
    monkeypatch.setenv("JACK_DEFAULT_SERVER", "nobody")
    for api in Api:
        monkeypatch.setenv("DSMR_MIDI_API", api)
        if not (api is Api.ALSA and midi_api.SEQUENCER.exists()):
            refusal()
    os.write(2, b"heard\n")
    assert capfd.readouterr() == ("", "heard\n")


def test_nothing_is_imported_before_a_port_is_asked_for() -> None:
    code = "import sys, dsmr_export.runtime.live.ports; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"rtmidi", "numpy", "onnxruntime", "mido", "click"} & set(run.stdout.split())


def test_a_server_is_known_from_the_one_after_it() -> None:
    with jack_server() as server:
        if server is None:
            pytest.skip("ALSA has no server")
        first = midi_api.server(Api.JACK)
        assert first and first == midi_api.server(Api.JACK)
        server.stop()
        assert not midi_api.server(Api.JACK)
        server.start()
        assert midi_api.server(Api.JACK) not in (first, frozenset())
    assert midi_api.server(Api.ALSA) == frozenset()


def test_sockets_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(midi_api, "_SOCKETS", tmp_path / "unix")
    assert midi_api.server(Api.JACK) == frozenset()


def test_command_refuses_in_one_line(nothing: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke(main, ["ports", "--json"])
    assert (run.exit_code, run.stdout) == (1, "")
    assert run.stderr.startswith("Error: no MIDI ports: ") and run.stderr.count("\n") == 1
