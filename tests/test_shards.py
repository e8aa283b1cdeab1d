"""The cache of token ids: what is written is found, by anyone, at any time, and damage is never believed."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export.errors import OutputError
from dsmr_export.model import shards
from dsmr_export.model.shards import Entry, Shards, digest_of


def an_entry(ids: list[int], notes: int = 3) -> Entry:
    array = np.array(ids, dtype=np.uint16)
    return Entry(array, notes, 1.25, 0, digest_of(array))


SOME = {
    "a": an_entry([1, 65_535, 2]),
    "b": an_entry([1, 2], notes=0),
    "c": an_entry([1, *range(300), 2], notes=100),
}


def is_whole(folder: Path, expected: dict[str, Entry] = SOME) -> bool:
    """Whether a new reader finds all of it, as it was written."""
    stored = Shards(folder)
    for key, entry in expected.items():
        found = stored.find(key)
        if found is None:
            return False
        assert found.ids.tolist() == entry.ids.tolist()
        assert (found.notes, found.seconds, found.dropped) == (entry.notes, entry.seconds, entry.dropped)
        assert found.digest == entry.digest
    return True


def the_ids(folder: Path) -> Path:
    (path,) = folder.glob("*.ids")
    return path


def test_what_is_written_is_found_at_once_and_later(tmp_path: Path) -> None:
    stored = Shards(tmp_path / "new" / "folder")
    assert stored.find("a") is None
    stored.write(SOME)
    found = stored.find("a")
    assert found is not None and found.ids.tolist() == [1, 65_535, 2]
    assert is_whole(tmp_path / "new" / "folder")
    assert Shards(tmp_path / "new" / "folder").find("d") is None


def test_the_files_are_what_the_docstring_says(tmp_path: Path) -> None:
    Shards(tmp_path).write(SOME)
    content = the_ids(tmp_path).read_bytes()
    assert content == struct.pack("<307H", 1, 65_535, 2, 1, 2, 1, *range(300), 2)
    (index,) = tmp_path.glob("*.json")
    for path in (the_ids(tmp_path), index):
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    told = json.loads(index.read_text())
    assert told["ids"] == the_ids(tmp_path).name
    place = told["pieces"]["c"]
    piece = content[2 * place["offset"] : 2 * (place["offset"] + place["tokens"])]
    assert place["digest"] == hashlib.sha256(piece).hexdigest() == SOME["c"].digest
    assert len(list(tmp_path.iterdir())) == 2  # nothing temporary stays


def test_ids_are_views_into_one_mapped_file(tmp_path: Path) -> None:
    Shards(tmp_path).write(SOME)
    stored = Shards(tmp_path)
    views = [stored.find(key) for key in SOME]
    whole = views[0].ids.base if views[0] else None
    assert whole is not None and isinstance(whole.base, np.memmap) and len(whole) == 307
    for view in views:
        assert view is not None and view.ids.base is whole
        assert not view.ids.flags.writeable and view.ids.dtype == np.uint16


def test_a_view_outlives_its_file(tmp_path: Path) -> None:
    """Someone may empty the cache, or replace a file in it, while a run reads."""
    stored = Shards(tmp_path)
    stored.write(SOME)
    found = stored.find("c")
    stored.write({"z": an_entry([7])})
    for path in tmp_path.iterdir():
        path.unlink()
    assert found is not None and found.ids.tolist() == SOME["c"].ids.tolist()
    assert not is_whole(tmp_path)


@given(data=st.data())
def test_damage_anywhere_is_seen_and_mended(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file cut short, a changed byte, or a file gone: a piece is found as it was written, or not at all."""
    folder = tmp_path_factory.mktemp("shards")
    Shards(folder).write(SOME)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["cut", "changed", "gone"])):
        case "cut":
            path.write_bytes(content[:place])
        case "changed":
            content[place] ^= data.draw(st.integers(1, 255))
            path.write_bytes(content)
        case "gone":
            path.unlink()
    assert not is_whole(folder)
    damaged = Shards(folder)
    damaged.write({key: entry for key, entry in SOME.items() if damaged.find(key) is None})
    assert all(damaged.find(key) for key in SOME)
    assert is_whole(folder)


def test_a_piece_before_the_damage_is_still_there(tmp_path: Path) -> None:
    Shards(tmp_path).write(SOME)
    content = the_ids(tmp_path).read_bytes()
    the_ids(tmp_path).write_bytes(content[:100])
    stored = Shards(tmp_path)
    assert stored.find("a") and stored.find("b") and not stored.find("c")


def test_the_same_pieces_written_again_mend_the_file_in_place(tmp_path: Path) -> None:
    Shards(tmp_path).write(SOME)
    the_ids(tmp_path).write_bytes(b"")
    Shards(tmp_path).write(SOME)
    assert is_whole(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kept", [".ids", ".json"])
def test_a_writer_killed_half_way_leaves_nothing_that_is_believed(kept: str, tmp_path: Path) -> None:
    Shards(tmp_path).write(SOME)
    for path in tmp_path.iterdir():
        if path.suffix != kept:
            path.unlink()
    (tmp_path / ".half.json.77.tmp").write_bytes(b'{"ids": "')
    (tmp_path / "other.json").write_bytes(b"{}")
    (tmp_path / "folder.json").mkdir()
    assert not any(Shards(tmp_path).find(key) for key in SOME)


def test_the_index_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full after the ids: no index, and the error says so."""

    def only_ids(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            assert the_ids(path.parent).is_file()
            raise OutputError(f"{path}: cannot be written (No space left on device)")
        real(path, content)

    real = shards.write_atomically
    monkeypatch.setattr(shards, "write_atomically", only_ids)
    stored = Shards(tmp_path)
    with pytest.raises(OutputError, match="No space left"):
        stored.write(SOME)
    assert stored.find("a") is None
    assert Shards(tmp_path).find("a") is None


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    stored = Shards(tmp_path / "file" / "folder")
    assert stored.find("a") is None
    with pytest.raises(OutputError, match=r"file/folder: cannot be made \(Not a directory\)"):
        stored.write(SOME)


# Several processes

WRITERS, SHARED = 4, 12

WRITER = """
import sys
from pathlib import Path
import numpy as np
from dsmr_export.model.shards import Entry, Shards, digest_of

folder, writer, shared = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for number in [*range(shared), *range(100 * writer, 100 * writer + shared)]:
    stored = Shards(folder)
    ids = np.array([1, *[number] * (number + 1), 2], dtype=np.uint16)
    if stored.find(f"piece {number}") is None:
        stored.write({f"piece {number}": Entry(ids, number, 1.25, 0, digest_of(ids))})
    assert stored.find(f"piece {number}").ids.tolist() == ids.tolist()
"""
"""Writes its own pieces and the shared ones, each a pair of files, beside others that do the same."""


def test_processes_that_write_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(number), str(SHARED)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(1, WRITERS + 1)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    for writer in writers:  # all are up: now they go
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0] * WRITERS
    numbers = [*range(SHARED), *(100 * n + k for n in range(1, WRITERS + 1) for k in range(SHARED))]
    assert is_whole(tmp_path, {f"piece {n}": an_entry([1, *[n] * (n + 1), 2], notes=n) for n in numbers})
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert len(list(tmp_path.glob("*.ids"))) == len(numbers)  # equal pairs are one


def test_a_read_only_folder_is_read(tmp_path: Path) -> None:
    Shards(tmp_path).write(SOME)
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write anywhere (root)")
        assert is_whole(tmp_path)
        with pytest.raises(OutputError, match="Permission denied"):
            Shards(tmp_path).write({"z": an_entry([7])})
    finally:
        tmp_path.chmod(0o700)
