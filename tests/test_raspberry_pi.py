"""examples/raspberry-pi: the aarch64 set resolves, and the install script refuses, plans and installs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dsmr_export import __version__
from tests import wheel

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "raspberry-pi"
BASE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]

# What each system of Raspberry Pi OS has: constraints, Python, glibc 2.N.
SYSTEMS = [("constraints-bookworm-py311.txt", "3.11", 36), ("constraints-trixie-py313.txt", "3.13", 41)]


def pins(path: Path) -> dict[str, str]:
    """Canonical name -> version."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines)
    return {canonicalize_name(name): version for name, version in found.items()}


def resolve(
    arguments: Sequence[str], python: str, glibc: int, work: Path
) -> subprocess.CompletedProcess[str]:
    """pip's answer for aarch64, in work/report.json. pip knows only the platforms named, not older ones."""
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, glibc + 1))]
    named = [argument for platform in platforms for argument in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
    command += ["--timeout", "60", "--retries", "1", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", python, "--target", str(work / "target")]
    command += ["--report", str(work / "report.json"), *named, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def skip_without_index(python: str, glibc: int, work: Path) -> None:
    """Skips where pip finds no wheel of numpy at all for aarch64: then there is no index, not a wrong pin."""
    probe = resolve(["--no-deps", "numpy"], python, glibc, work)
    if probe.returncode:
        errors = [line for line in probe.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"no package index can be reached: {errors[0] if errors else 'pip failed'}")


@pytest.mark.parametrize(("file", "python", "glibc"), SYSTEMS)
def test_pip_resolves_the_aarch64_set(file: str, python: str, glibc: int, tmp_path: Path) -> None:
    answer = resolve(["--constraint", str(FOLDER / file), *BASE], python, glibc, tmp_path)
    if answer.returncode:
        skip_without_index(python, glibc, tmp_path)
        pytest.fail(answer.stderr)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    chosen = {entry["metadata"]["name"]: entry for entry in report["install"]}
    # Nothing floats: what pip chose is what the file pins, all of it.
    assert {canonicalize_name(name): entry["metadata"]["version"] for name, entry in chosen.items()} == pins(
        FOLDER / file
    )
    for entry in chosen.values():
        wheel = entry["download_info"]["url"].rpartition("/")[2]
        assert re.search(r"-(none-any|[\w.]*_aarch64)\.whl$", wheel), wheel
    tag = python.replace(".", "")
    assert f"cp{tag}-cp{tag}-" in chosen["onnxruntime"]["download_info"]["url"]


def test_a_pin_without_wheels_is_a_failure_not_a_skip(tmp_path: Path) -> None:
    """What tells the two apart: the index answers for numpy, so the wrong pin is what failed."""
    skip_without_index("3.11", 36, tmp_path)
    # onnxruntime 1.16 was the last but a few years before Python 3.13.
    assert resolve(["onnxruntime==1.16.0"], "3.13", 41, tmp_path).returncode


def test_without_an_index_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(pytest.skip.Exception, match="no package index can be reached: ERROR: .*numpy"):
        skip_without_index("3.11", 36, tmp_path)


@pytest.mark.parametrize("file", [file for file, _, _ in SYSTEMS])
def test_every_base_requirement_is_pinned_at_a_version_it_allows(file: str) -> None:
    found = pins(FOLDER / file)
    for requirement in map(Requirement, BASE):
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("file", [file for file, _, _ in SYSTEMS])
def test_versions_are_those_of_the_lock(file: str) -> None:
    """A package that has no aarch64 wheel at the lock's version would be named here, with the reason."""
    assert pins(FOLDER / file).items() <= pins(ROOT / "constraints.txt").items()


@pytest.mark.slow
def test_constraints_are_what_their_script_makes(tmp_path: Path) -> None:
    skip_without_index("3.11", 36, tmp_path)
    run = subprocess.run([FOLDER / "constraints.sh", tmp_path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for file, _, _ in SYSTEMS:
        assert (tmp_path / file).read_text() == (FOLDER / file).read_text()


# The install script, on machines made of three programs.

UNAME = '#!/bin/sh\necho "$FAKE_MACHINE"\n'
GETCONF = """#!/bin/sh
case $1 in
    LONG_BIT) echo "$FAKE_LONG_BIT" ;;
    *) [ -n "$FAKE_LIBC" ] && echo "$FAKE_LIBC" ;;
esac
"""
# Python, its venv, its pip and the dsmr that this pip would install.
PYTHON = """#!/bin/sh
[ -z "$FAKE_BROKEN" ] || exit 127
case "$1 $2" in
    "-c "*calcsize*) echo "$FAKE_PYTHON" ;;
    "-c "*ensurepip*) [ -z "$FAKE_NO_VENV" ] ;;
    "-c "*) ;;
    "-m venv")
        for folder; do :; done
        mkdir -p "$folder/bin"
        touch "$folder/pyvenv.cfg"
        sed 's/^.*FAKE_BROKEN.*$//' "$0" >"$folder/bin/python"
        printf '#!/bin/sh\\necho "doctor was here: $1"\\n[ -z "$FAKE_SICK" ]\\n' >"$folder/bin/dsmr"
        chmod +x "$folder/bin/python" "$folder/bin/dsmr"
        echo "venv $*"
        ;;
    "-m pip") echo "pip $*" && [ -z "$FAKE_OFFLINE" ] ;;
esac
"""
PI = {
    "FAKE_MACHINE": "aarch64",
    "FAKE_LONG_BIT": "64",
    "FAKE_LIBC": "glibc 2.36",
    "FAKE_PYTHON": "3.11 64",
}


class Machine:
    """A folder with the fake programs first on PATH, and a home."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.home.mkdir()
        self.programs = root / "programs"
        self.programs.mkdir()
        for name, text in {"uname": UNAME, "getconf": GETCONF, "python3": PYTHON}.items():
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)
        self.wheel = root / "dsmr_export-1-py3-none-any.whl"
        self.wheel.touch()

    def install(self, *arguments: str | Path, **facts: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | PI | facts
        environment |= {"PATH": f"{self.programs}:{os.environ['PATH']}", "HOME": str(self.home)}
        return subprocess.run(
            [FOLDER / "install.sh", *arguments], env=environment, capture_output=True, text=True
        )


@pytest.fixture
def pi(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"FAKE_MACHINE": "armv7l", "FAKE_LONG_BIT": "32"},
            ("32-bit system (armv7l)", "64-bit Raspberry Pi OS"),
        ),
        ({"FAKE_MACHINE": "i686", "FAKE_LONG_BIT": "32"}, ("32-bit system (i686)",)),
        ({"FAKE_MACHINE": "armv6l"}, ("32-bit system (armv6l)", "Zero W cannot run dsmr")),
        ({"FAKE_MACHINE": "riscv64"}, ("no onnxruntime wheels for riscv64", "64-bit ARM or x86")),
        (
            {"FAKE_LONG_BIT": "32"},
            ("a 32-bit system under a 64-bit kernel (aarch64)", "install the 64-bit Raspberry Pi OS"),
        ),
        ({"FAKE_PYTHON": "3.11 32"}, ("python3 has 32 bits", "64-bit Raspberry Pi OS")),
        ({"FAKE_PYTHON": "3.10 64"}, ("Python 3.10, dsmr needs 3.11", "bookworm", "--python")),
        ({"FAKE_PYTHON": "3.9 64"}, ("Python 3.9, dsmr needs 3.11",)),
        ({"FAKE_LIBC": ""}, ("no glibc", "Debian or Ubuntu")),
        ({"FAKE_LIBC": "glibc 2.27"}, ("glibc 2.27 is too old", "need 2.28", "bookworm or newer")),
        ({"FAKE_BROKEN": "yes"}, ("python3 does not run", "sudo apt install python3")),
        ({"FAKE_NO_VENV": "yes"}, ("cannot make environments", "sudo apt install python3-venv")),
        ({"FAKE_OFFLINE": "yes"}, ("pip could not install it", "online")),
        ({"FAKE_SICK": "yes"}, ("installed in", "dsmr doctor does not pass here")),
    ],
)
def test_install_refuses(pi: Machine, facts: dict[str, str], words: tuple[str, ...]) -> None:
    run = pi.install("--wheel", pi.wheel, **facts)
    assert run.returncode == 1
    message = run.stderr.splitlines()
    assert len(message) == 1 and message[0].startswith("install.sh: ")
    assert all(word in message[0] for word in words), message
    # What cannot work is refused before anything is made.
    assert (pi.home / "dsmr").exists() == bool({"FAKE_OFFLINE", "FAKE_SICK"} & set(facts))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--frob",), "unknown argument: --frob"), (("--venv",), "--venv needs a value")],
)
def test_install_says_its_usage(pi: Machine, arguments: tuple[str, ...], words: str) -> None:
    run = pi.install(*arguments)
    assert run.returncode == 2 and words in run.stderr and "Usage: install.sh" in run.stderr
    assert "Usage: install.sh" in pi.install("--help").stdout


def test_install_refuses_a_wheel_that_is_not_there(pi: Machine) -> None:
    run = pi.install("--wheel", "gone.whl")
    assert run.returncode == 1 and "gone.whl does not exist" in run.stderr


def test_install_refuses_to_take_over_a_folder(pi: Machine) -> None:
    (pi.home / "dsmr").mkdir()
    (pi.home / "dsmr" / "diary.txt").touch()
    run = pi.install("--wheel", pi.wheel)
    assert run.returncode == 1 and "is not a virtual environment: give another folder" in run.stderr
    assert [path.name for path in (pi.home / "dsmr").iterdir()] == ["diary.txt"]


def test_install_away_from_the_tree_wants_a_wheel(pi: Machine, tmp_path: Path) -> None:
    alone = tmp_path / "a" / "b" / "install.sh"
    alone.parent.mkdir(parents=True)
    shutil.copy(FOLDER / "install.sh", alone)
    environment = os.environ | PI | {"PATH": f"{pi.programs}:{os.environ['PATH']}", "HOME": str(pi.home)}
    run = subprocess.run([alone], env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and "give a wheel with --wheel" in run.stderr


@pytest.mark.parametrize(
    ("python", "constraints"),
    [
        ("3.11", "constraints-bookworm-py311.txt"),
        ("3.13", "constraints-trixie-py313.txt"),
        ("3.12", None),
    ],
)
def test_dry_run_says_what_would_be_done_and_does_nothing(
    pi: Machine, python: str, constraints: str | None
) -> None:
    run = pi.install("--dry-run", "--wheel", pi.wheel, "--live", FAKE_PYTHON=f"{python} 64")
    assert run.returncode == 0, run.stderr
    plan = [line for line in run.stdout.splitlines() if line.startswith("would run: ")]
    venv = pi.home / "dsmr"
    assert plan[0] == f"would run: python3 -m venv {venv}"
    given = f" --constraint {FOLDER / constraints}" if constraints else ""
    pip = f"would run: {venv}/bin/python -m pip install --disable-pip-version-check"
    assert plan[1] == f"{pip}{given} {pi.wheel}\\[live\\]"
    assert plan[-1] == f"would run: {venv}/bin/dsmr doctor"
    assert f"system: aarch64, glibc 2.36, Python {python}" in run.stdout
    assert ("there is no tested list for Python 3.12" in run.stdout) == (constraints is None)
    assert not venv.exists()


def test_install_twice_and_after_the_python_has_gone(pi: Machine) -> None:
    venv = pi.home / "dsmr"
    first = pi.install("--wheel", pi.wheel)
    assert first.returncode == 0, first.stderr
    assert "doctor was here: doctor" in first.stdout and f"installed: {venv}/bin/dsmr" in first.stdout
    # The environment keeps its own Python, so a broken system's one does not matter.
    second = pi.install("--wheel", pi.wheel, FAKE_BROKEN="yes")
    assert second.returncode == 0, second.stderr
    assert "which is there already" in second.stdout and "venv -m" not in second.stdout
    (venv / "bin" / "python").unlink()
    third = pi.install("--wheel", pi.wheel)
    assert third.returncode == 0, third.stderr
    assert "made again" in third.stdout and "venv -m venv --clear" in third.stdout


def test_dry_run_from_the_tree_leaves_it_as_it_is(pi: Machine) -> None:
    run = pi.install("--dry-run")
    assert f"source: {ROOT}" in run.stdout.splitlines()
    copying = [line for line in run.stdout.splitlines() if line.startswith("would run: cp")]
    copied = [word.removeprefix(f"{ROOT}/") for line in copying for word in line.split()[4:-1]]
    assert copied == list(wheel.PACKAGED)


def copied_tree(folder: Path) -> Path:
    """What is packaged, and the example: building leaves files in its tree."""
    wheel.copy_tree(folder)
    shutil.copytree(FOLDER, folder / "examples" / FOLDER.name)
    return folder


def really_install(script: Path, venv: Path, *arguments: str | Path) -> str:
    """Runs the script on this machine, with the Python of the tests; what it printed."""
    command = [script, "--venv", venv, "--python", sys.executable, *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode and "pip could not install it" in run.stderr:
        probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--timeout", "60"]
        reachable = subprocess.run([*probe, "--dest", venv, "mido"], capture_output=True, text=True)
        if reachable.returncode:
            pytest.skip(f"no package index can be reached: {reachable.stderr.strip()[:200]}")
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_install_a_wheel_for_real(tmp_path: Path) -> None:
    tree = copied_tree(tmp_path / "tree")
    made = wheel.build(tree, tmp_path)
    venv = tmp_path / "dsmr"
    for _ in range(2):  # the second time the same wheel is installed again
        printed = really_install(FOLDER / "install.sh", venv, "--wheel", made)
        assert f"installed: {venv}/bin/dsmr" in printed and "would run: " in printed
    run = subprocess.run([venv / "bin" / "dsmr", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in run.stdout
    freeze = subprocess.run(
        [venv / "bin" / "python", "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout
    installed = dict(line.split("==") for line in freeze.splitlines() if "==" in line)
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    for file in FOLDER.glob(f"constraints-*-{version}.txt"):  # the base install, no more and no less
        assert {canonicalize_name(name): pin for name, pin in installed.items()} == pins(file)


@pytest.mark.slow
def test_install_the_tree_for_real(tmp_path: Path) -> None:
    tree = copied_tree(tmp_path / "tree")
    before = sorted(path.relative_to(tree) for path in tree.rglob("*"))
    printed = really_install(tree / "examples" / FOLDER.name / "install.sh", tmp_path / "dsmr")
    assert "would run: " in printed
    assert sorted(path.relative_to(tree) for path in tree.rglob("*")) == before


def test_readme_names_every_file() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in text for path in FOLDER.iterdir() if path.name != "README.md")
