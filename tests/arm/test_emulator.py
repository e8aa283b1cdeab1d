"""The emulation itself: made once, made anew when what it was made from changes, and skipped with the
reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.arm import emulator
from tests.arm.emulator import CPUS, HERE, ROOT, SETUP, Emulator, EmulatorError, Unavailable

OFFLINE = """#!/bin/sh
echo "E: Could not connect to the archive" >&2
exit 100
"""
FACTS = """
import importlib.util, json, platform
import dsmr_export.cli
from dsmr_export.runtime import cpu
found = [name for name in ("torch", "onnx", "miditok") if importlib.util.find_spec(name)]
print(json.dumps({"machine": platform.machine(), "features": sorted(cpu.read().features), "heavy": found}))
"""


def programs(folder: Path, **scripts: str) -> str:
    """A PATH on which these programs come first."""
    folder.mkdir()
    for name, text in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(text)
        path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def setup(script: Path, folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": path, "PYTHON": sys.executable}
    return subprocess.run([script, folder], env=environment, capture_output=True, text=True)


def test_it_is_made_once(arm_folder: Path, tmp_path: Path) -> None:
    """The second time nothing is asked of the network: apt is one that always fails."""
    again = setup(SETUP, arm_folder, programs(tmp_path / "bin", apt_get=OFFLINE))
    assert (again.returncode, again.stdout) == (0, f"already set up: {arm_folder}\n"), again.stderr


def test_it_is_in_the_users_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the cache folder of this run of the tests, where it would be made at every run."""
    assert not emulator.FOLDER.is_relative_to(os.environ["XDG_CACHE_HOME"])
    monkeypatch.delenv("DSMR_ARM_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert emulator.cache_folder() == Path("/cache/dsmr-export/arm64")
    monkeypatch.setenv("DSMR_ARM_DIR", "/elsewhere")
    assert emulator.cache_folder() == Path("/elsewhere")


@pytest.mark.parametrize("change", ["nothing", "constraints.txt", "pyproject.toml", "setup.sh"])
def test_it_is_made_anew_when_what_it_was_made_from_changes(
    change: str, arm_folder: Path, tmp_path: Path
) -> None:
    tree, folder = tmp_path / "tree", tmp_path / "arm64"
    (tree / "tests" / "arm").mkdir(parents=True)
    folder.mkdir()
    for name in ("setup.sh", "run-arm.sh", "count.c"):
        shutil.copy(HERE / name, tree / "tests" / "arm")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tree)
    for name in (".stamp", "packages.txt"):
        shutil.copy(arm_folder / name, folder)
    script = tree / "tests" / "arm" / "setup.sh"
    if change == "constraints.txt":
        (tree / change).write_text((tree / change).read_text().replace("\nnumpy==", "\nnumpy==0."))
    elif change == "pyproject.toml":
        (tree / change).write_text((tree / change).read_text().replace('"mido>=', '"mido>=0'))
    elif change == "setup.sh":
        script.write_text(script.read_text() + "# changed\n")
    again = setup(script, folder, programs(tmp_path / "bin", apt_get=OFFLINE))
    if change == "nothing":
        assert again.returncode == 0 and "already set up" in again.stdout
    else:
        assert again.returncode == emulator.UNAVAILABLE  # it went to fetch
        assert not (folder / ".stamp").exists()


@pytest.mark.parametrize(
    ("scripts", "reason"),
    [
        ({"apt_get": OFFLINE}, "apt-get update failed: E: Could not connect to the archive"),
        ({"uname": "#!/bin/sh\necho aarch64\n"}, "on x86-64 only (this is aarch64)"),
    ],
)
def test_where_it_cannot_be_had_the_reason_is_one_line(
    scripts: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", **scripts))
    with pytest.raises(Unavailable) as raised:
        emulator.set_up(tmp_path / "arm64")
    assert reason in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    for name in ("dirname", "bash"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    run = setup(SETUP, tmp_path / "arm64", str(tmp_path))
    assert (run.returncode, run.stderr) == (emulator.UNAVAILABLE, "setup.sh: apt-get is missing\n")


def test_what_was_made_and_does_not_work_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a reason to skip."""
    script = tmp_path / "setup.sh"
    script.write_text("#!/bin/sh\necho 'setup.sh: cortex-a76 refuses SDOT, which it has' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(emulator, "SETUP", script)
    with pytest.raises(EmulatorError, match="refuses SDOT"):
        emulator.set_up(tmp_path / "arm64")


def test_without_it_tests_skip_and_the_summary_says_why(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", apt_get=OFFLINE)
    environment = os.environ | {"PATH": path, "DSMR_ARM_DIR": str(tmp_path / "arm64")}
    test = f"{Path(__file__).relative_to(ROOT)}::test_it_is_made_once"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "1 skipped" in run.stdout, run.stdout
    assert "nothing was run on ARM64" in run.stdout
    assert "apt-get update failed: E: Could not connect to the archive" in run.stdout


@pytest.mark.parametrize("cpu", CPUS)
def test_a_guest_is_a_device(cpu: str, arm: Emulator) -> None:
    """ARM64, with its own features and the base install, in which the command line imports."""
    [facts] = arm.run(cpu, "-c", FACTS).results
    features = ["asimd", "asimddp"] if cpu == emulator.DOT_PRODUCTS else ["asimd"]
    assert facts == {"machine": "aarch64", "features": features, "heavy": []}


def test_a_guest_that_fails_is_an_error_with_its_last_words(arm: Emulator) -> None:
    with pytest.raises(EmulatorError, match=r"(?s)exit status 1\n.*ValueError: no"):
        arm.run("cortex-a53", "-c", "raise ValueError('no')")


def test_a_guest_that_hangs_is_ended(arm: Emulator) -> None:
    assert arm.attempt("cortex-a53", "-c", "while True: pass", timeout_s=1).status == -9


def test_an_unknown_processor_is_refused(arm: Emulator) -> None:
    finished = arm.attempt("cortex-m0", "-c", "")
    assert finished.status == 3 and "no cortex-m0 in" in finished.stderr


def test_peak_memory_is_the_guests(arm: Emulator) -> None:
    """64 MB more than one that does nothing; a guest that does nothing needs less than the tests
    themselves."""
    idle = arm.run("cortex-a53", "-c", "import time; time.sleep(0.2)").peak_bytes
    code = "import time; held = bytearray(b'x') * 64_000_000; time.sleep(0.2)"
    busy = arm.run("cortex-a53", "-c", code).peak_bytes
    assert idle < 60_000_000
    assert 60_000_000 < busy - idle < 70_000_000
