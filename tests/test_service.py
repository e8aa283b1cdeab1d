"""The service: what systemd is told, what it says of the unit, and that install.sh puts all in its place."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dsmr_export import cli, cli_status
from dsmr_export.play_config import load
from dsmr_export.runtime.live import service
from tests.test_raspberry_pi import FOLDER, Machine

UNIT = FOLDER / "dsmr-play.service"
SETTINGS = FOLDER / "dsmr-play.toml"


# --- what systemd is told -----------------------------------------------------------------------------------


@pytest.fixture(params=["file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A datagram socket as systemd listens on, and the environment that names it."""
    name = f"@dsmr-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0") if request.param == "abstract" else name)
        listener.settimeout(5)
        yield listener, {"NOTIFY_SOCKET": name}


def test_each_word_is_one_datagram(systemd: tuple[socket.socket, dict[str, str]]) -> None:
    listener, environment = systemd
    assert service.ready(environment) and service.alive(environment)
    assert service.say("listening,\n 3 ports", environment) and service.stopping(environment)
    said = [listener.recv(1000) for _ in range(4)]
    assert said == [b"READY=1", b"WATCHDOG=1", b"STATUS=listening, 3 ports", b"STOPPING=1"]


@pytest.mark.parametrize("address", [None, "", "@", "vsock:2:1234", "/nowhere/notify"])
def test_nothing_happens_where_nobody_listens(address: str | None) -> None:
    assert not service.ready({} if address is None else {"NOTIFY_SOCKET": address})


def test_without_an_environment_it_is_the_processes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert service.alive_every_s() == 5.0


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_told_twice_as_often_as_it_waits(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert service.alive_every_s(environment) == seconds


# --- the unit and its settings ------------------------------------------------------------------------------


def verify(unit: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    return subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Only the program is another one: /opt/dsmr is not on this machine."""
    unit = tmp_path / "dsmr-play.service"
    text = UNIT.read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/dsmr/bin/dsmr", "/bin/true"))
    run = verify(unit)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    # And it looks at what it is given: a word that does not exist is said.
    unit.write_text(text.replace("/opt/dsmr/bin/dsmr", "/bin/true").replace("DynamicUser", "DynamicUsr"))
    assert "DynamicUsr" in verify(unit).stderr


def test_the_sandbox_is_tight(tmp_path: Path) -> None:
    """systemd's own mark: 0 is closed, 10 is open; an unconfined service has 9.6."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    command = ["systemd-analyze", "security", "--offline=true", UNIT]
    run = subprocess.run(command, capture_output=True, text=True)
    mark = re.search(r"Overall exposure level for dsmr-play.service: (\d+\.\d)", run.stdout)
    if mark is None:
        pytest.skip(f"this systemd-analyze marks no unit offline: {run.stderr.strip()[:100]}")
    assert float(mark[1]) <= 2.0, run.stdout


def test_the_sequencer_is_left_open() -> None:
    """DeviceAllow= of char-alsa is what PrivateDevices= would take away: /dev/snd has no other class."""
    assert "char-alsa rw" in values("DeviceAllow") and not values("PrivateDevices")
    assert "audio" in values("SupplementaryGroups")[0].split()
    assert values("Wants") == ["modprobe@snd_seq.service"]


def test_the_folders_of_the_unit_are_those_of_the_settings() -> None:
    found = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))
    (state,), (runtime,) = values("StateDirectory"), values("RuntimeDirectory")
    assert all(found[name].startswith(f"/var/lib/{state}/") for name in ("autosave-file", "bank"))
    assert found["status-socket"] == f"/run/{runtime}/play.sock" == str(cli_status.SERVICE_SOCKET)
    assert values("ExecStart") == ["/opt/dsmr/bin/dsmr play --config /etc/dsmr/dsmr-play.toml"]


def all_set() -> str:
    """The settings with every key that is commented out put in force: a comment has a space after its #."""
    return re.sub(r"^#(?=\S)", "", SETTINGS.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_settings_name_everything_that_can_be_set() -> None:
    named = set(tomllib.loads(all_set()))
    assert {"bundle", "midi-in", "mode", "temperature", "cc", "autosave", "status-socket"} <= named
    play = cli.main.commands["play"]
    options = {
        option.removeprefix("--")
        for parameter in play.params
        if isinstance(parameter, click.Option) and parameter.expose_value and not parameter.hidden
        for option in parameter.opts
        if option.startswith("--")
    }
    # Those for files, for one run, or for a terminal have no place in a service.
    for_files = {"prompt", "save", "seconds", "with-prompt", "variations", "events", "picture"}
    assert options - named <= for_files | {"graph", "json", "view"}


def test_dsmr_play_takes_the_settings(tmp_path: Path) -> None:
    play = cli.main.commands["play"]
    path = tmp_path / "dsmr-play.toml"
    for text in (SETTINGS.read_text(encoding="utf-8"), all_set()):
        path.write_text(text, encoding="utf-8")
        load(path, play)


def test_inference_needs_no_memory_that_is_writable_and_executable(tmp_path: Path) -> None:
    """MemoryDenyWriteExecute= of the unit, by the kernel's own means (prctl PR_SET_MDWE, Linux 6.3)."""
    code = (
        "import ctypes, os, sys\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(77)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'dsmr_export.cli', 'play', *sys.argv[1:]])\n"
    )
    made = tmp_path / "made.mid"
    command = [sys.executable, "-c", code, "--save", made, "--seconds", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert run.returncode == 0 and made.exists(), run.stderr


# --- install.sh --service -----------------------------------------------------------------------------------

SYSTEMCTL = '#!/bin/sh\necho "systemctl $*"\n'


@pytest.fixture
def pi(tmp_path: Path) -> Machine:
    """The machine of tests/test_raspberry_pi.py, with systemd; its root is below the test's folder."""
    machine = Machine(tmp_path)
    systemctl = machine.programs / "systemctl"
    systemctl.write_text(SYSTEMCTL)
    systemctl.chmod(0o755)
    (tmp_path / "root" / "etc").mkdir(parents=True)
    return machine


def install(pi: Machine, *arguments: str | Path, **facts: str) -> subprocess.CompletedProcess[str]:
    root = pi.home.parent / "root"
    given = ("--service", "--wheel", pi.wheel, "--venv", root / "opt" / "dsmr", *arguments)
    return pi.install(*given, **{"DESTDIR": str(root), **facts})


def test_install_a_service(pi: Machine) -> None:
    run = install(pi)
    assert run.returncode == 0, run.stderr
    root = pi.home.parent / "root"
    unit, settings = root / "etc/systemd/system/dsmr-play.service", root / "etc/dsmr/dsmr-play.toml"
    assert f"{pi.wheel}[live]" in run.stdout  # a service without ports would be silent
    assert settings.read_text() == SETTINGS.read_text()
    assert (unit.stat().st_mode & 0o777, settings.stat().st_mode & 0o777) == (0o644, 0o644)
    changed = set(unit.read_text().splitlines()) - set(UNIT.read_text().splitlines())
    assert changed == {f"ExecStart={root}/opt/dsmr/bin/dsmr play --config /etc/dsmr/dsmr-play.toml"}
    run_verify = verify(unit)
    assert (run_verify.returncode, run_verify.stderr) == (0, "")
    told = [line for line in run.stdout.splitlines() if line.startswith("systemctl ")]
    assert told == [
        "systemctl daemon-reload",
        "systemctl enable dsmr-play.service",
        "systemctl try-restart dsmr-play.service",
    ]


def test_install_again_keeps_the_settings_and_renews_the_unit(pi: Machine) -> None:
    assert install(pi).returncode == 0
    root = pi.home.parent / "root"
    unit, settings = root / "etc/systemd/system/dsmr-play.service", root / "etc/dsmr/dsmr-play.toml"
    installed = unit.read_text()
    settings.write_text("mode = 'loop'\n")
    unit.write_text("an older one\n")
    run = install(pi)
    assert run.returncode == 0, run.stderr
    assert settings.read_text() == "mode = 'loop'\n" and "stays as it is" in run.stdout
    assert unit.read_text() == installed


def test_dry_run_of_a_service_changes_nothing(pi: Machine) -> None:
    run = pi.install("--service", "--dry-run", "--wheel", pi.wheel, DESTDIR=str(pi.home.parent / "root"))
    assert run.returncode == 0, run.stderr
    assert "would run: python3 -m venv /opt/dsmr" in run.stdout
    assert "would run: systemctl enable dsmr-play.service" in run.stdout
    assert list((pi.home.parent / "root" / "etc").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "facts", "words"),
    [
        (("--venv", "/home/pi/dsmr"), {}, ("/home/pi/dsmr, which is in a home", "--venv", "/opt/dsmr")),
        (("--venv", "/opt/my dsmr"), {}, ("'/opt/my dsmr'", "without spaces", "--venv")),
        ((), {"DESTDIR": "/nowhere"}, ("writes into /etc", "sudo")),
        ((), {"FAKE_PYTHON": "3.11 64 /home/pi/.pyenv"}, ("in a home (/home/pi/.pyenv)", "--python")),
    ],
)
def test_install_refuses_a_service_that_could_not_start(
    pi: Machine, arguments: tuple[str, ...], facts: dict[str, str], words: tuple[str, ...]
) -> None:
    run = install(pi, *arguments, **facts)
    message = run.stderr.splitlines()
    assert run.returncode == 1 and len(message) == 1, run.stderr
    assert all(word in message[0] for word in words), message
    assert list((pi.home.parent / "root").rglob("*")) == [pi.home.parent / "root" / "etc"]


def test_install_refuses_a_service_without_systemd(pi: Machine) -> None:
    (pi.programs / "systemctl").unlink()
    tools = ("bash", "dirname", "sort", "head", "cat", "realpath", "ls")
    for tool in tools:  # a machine that has nothing but these
        (pi.programs / tool).symlink_to(shutil.which(tool) or tool)
    run = subprocess.run(
        [FOLDER / "install.sh", "--service", "--wheel", pi.wheel],
        env={"PATH": str(pi.programs), "HOME": str(pi.home), "FAKE_MACHINE": "aarch64"}
        | {"FAKE_LONG_BIT": "64", "FAKE_LIBC": "glibc 2.36", "FAKE_PYTHON": "3.11 64"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and "needs systemd" in run.stderr
