"""Files that are whole or not there: whoever else writes them, and whatever a kill left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dsmr_export.errors import OutputError
from dsmr_export.runtime.files import remove_leftovers, write_atomically


def test_two_threads_that_write_one_file(tmp_path: Path) -> None:
    """Neither fails, and at any time the file is one of the two contents."""
    path, contents = tmp_path / "state", (b"a" * 100_000, b"b" * 50_000)
    write_atomically(path, contents[0])
    failures: list[Exception] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(40):
                write_atomically(path, content)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() in contents
    for thread in threads:
        thread.join()
    assert failures == [] and os.listdir(tmp_path) == ["state"]


def test_the_folder_is_synced_after_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name lives in its folder: without this a power cut could bring the old file back."""
    synced = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), sorted(os.listdir(tmp_path))))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "state", b"x")
    (temporary, before), (folder, after) = synced
    assert temporary.endswith(".tmp") and len(before) == 1
    assert (folder, after) == (str(tmp_path), ["state"])


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def without_folders(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", without_folders)
    write_atomically(tmp_path / "state", b"x")
    assert (tmp_path / "state").read_bytes() == b"x"


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "state", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"state: cannot be written \(No space left on device\)"):
        write_atomically(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_bytes() == b"old" and os.listdir(tmp_path) == ["state"]


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_the_dead_are_removed_and_nothing_else(tmp_path: Path, dead: int) -> None:
    path, own, thread = tmp_path / "my state [1].dsmr", os.getpid(), threading.get_native_id()
    gone = {f".{path.name}.{dead}.tmp", f".{path.name}.{dead}-{dead}.tmp", f".{path.name}.{own}-{dead}.tmp"}
    gone |= {f".{path.name}.{own}.tmp"}  # a board that booted again: this number was another process's
    stay = {
        path.name,
        f".{path.name}.{own}-{thread}.tmp",  # somebody writes it now
        f".{path.name}.1-1.tmp",  # alive, and not ours to ask
        f".other.dsmr.{dead}.tmp",
        f"{path.name}.{dead}.tmp",
        f".{path.name}.{dead}.tmp.bak",
        f".{path.name}..tmp",
        f".my state 1.dsmr.{dead}.tmp",  # were the name a pattern, it would fit
    }
    for name in gone | stay:
        (tmp_path / name).write_bytes(b"half")
    assert {found.name for found in remove_leftovers(path)} == gone
    assert set(os.listdir(tmp_path)) == stay


def test_a_kill_leaves_a_leftover_that_the_next_start_removes(tmp_path: Path) -> None:
    """A real SIGKILL in the middle of a write."""
    path = tmp_path / "state"
    code = (
        "import os, sys; from pathlib import Path; from dsmr_export.runtime.files import write_atomically\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "write_atomically(Path(sys.argv[1]), b'half')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert len(os.listdir(tmp_path)) == 1
    assert len(remove_leftovers(path)) == 1
    assert os.listdir(tmp_path) == []


def test_no_folder_no_leftovers(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "nowhere" / "state") == []
