"""Loading: cache, unreadable files, several processes; and augmentation against the runtime's definition."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export.errors import DataError
from dsmr_export.model import data
from dsmr_export.model import tokenizer as tokens
from dsmr_export.runtime import midi
from dsmr_export.runtime.performance import Note, canonical, frame_at

TOKENIZER = tokens.default_tokenizer()


def song(index: int) -> list[Note]:
    return [Note(0, 10 + index, 60, 64), Note(20, 25, 62 + index, 80)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "music"
    path.mkdir()
    for index in range(3):
        midi.write_midi(song(index), path / f"{index}.mid")
    return path


def test_a_piece_is_its_performance_and_its_ids_between_bos_and_eos(folder: Path, tmp_path: Path) -> None:
    found = data.load(folder, None, TOKENIZER, cache=tmp_path / "cache")
    assert [piece.name for piece in found.pieces] == ["0.mid", "1.mid", "2.mid"]
    for index, piece in enumerate(found.pieces):
        assert piece.performance.tolist() == [list(note) for note in song(index)]
        assert piece.ids.tolist() == [1, *tokens.encode(song(index), TOKENIZER), 2]
        assert piece.ids.dtype == piece.performance.dtype == np.int32
    assert found.notes == 6
    assert found.tokens == sum(len(piece.ids) - 1 for piece in found.pieces)
    assert (found.skipped, found.dropped) == ([], 0)
    assert len(data.load(folder, None, TOKENIZER, limit=2).pieces) == 2


def test_the_second_time_comes_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = data.load(folder, None, TOKENIZER, cache=cache)
    read: list[str] = []

    def spy(source: bytes, *arguments: object) -> midi.Reading:
        read.append(str(arguments[-1]))
        return real(source, *arguments)  # type: ignore[arg-type]

    real = midi.read
    monkeypatch.setattr(midi, "read", spy)
    (folder / "0.mid").rename(folder / "moved.mid")  # found by content, not by name
    again = data.load(folder, None, TOKENIZER, cache=cache)
    assert read == []
    assert [piece.name for piece in again.pieces] == ["1.mid", "2.mid", "moved.mid"]
    assert again.pieces[2].ids.tolist() == first.pieces[0].ids.tolist()

    midi.write_midi(song(7), folder / "1.mid")
    entry = next(
        file for file in cache.iterdir() if np.load(file)["ids"].tolist() == first.pieces[2].ids.tolist()
    )
    entry.write_bytes(entry.read_bytes()[:100])
    changed = data.load(folder, None, TOKENIZER, cache=cache)
    assert read == ["1.mid", "2.mid"]  # one is new, the other's entry is damaged
    assert changed.pieces[1].ids.tolist() == first.pieces[2].ids.tolist()


def test_unreadable_files_are_named_counted_and_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "1.mid").write_bytes(b"not music")
    (folder / "3.mid").write_bytes(b"")
    found = data.load(folder, None, TOKENIZER, cache=tmp_path / "cache", progress=False)
    assert [piece.name for piece in found.pieces] == ["0.mid", "2.mid"]
    assert [name for name, _ in found.skipped] == ["1.mid", "3.mid"]
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("skipped 1.mid: is not a MIDI file")
    assert lines[1].startswith("skipped 3.mid: is empty")
    assert lines[2] == "skipped 2 of 4 files"


def test_a_file_missing_from_a_zip_is_skipped(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "0.mid", "set/0.mid")
        archive.writestr("set/set.csv", "split,midi_filename\ntrain,0.mid\ntrain,gone.mid\n")
    found = data.load(path, "train", TOKENIZER, cache=tmp_path / "cache")
    assert [piece.name for piece in found.pieces] == ["0.mid"]
    assert [name for name, _ in found.skipped] == ["gone.mid"]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mid").write_bytes(b"not music")
    with pytest.raises(
        DataError, match=r"none of 1 files could be read; the first: a\.mid: is not a MIDI file"
    ):
        data.load(tmp_path, None, TOKENIZER, cache=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_costs_time_only(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        assert len(data.load(folder, None, TOKENIZER, cache=tmp_path / "file" / "cache").pieces) == 3


def test_notes_without_a_token_are_counted(tmp_path: Path) -> None:
    midi.write_midi([Note(0, 1, 5, 64), Note(0, 1, 60, 64)], tmp_path / "low.mid")
    for _ in range(2):  # read, then cached
        assert data.load(tmp_path / "low.mid", None, TOKENIZER, cache=tmp_path / "cache").dropped == 1


def test_processes_give_what_one_gives(folder: Path, tmp_path: Path) -> None:
    for index in range(3, 12):
        midi.write_midi(song(index), folder / f"{index:02}.mid")
    (folder / "04.mid").write_bytes(b"MThd")
    one = data.load(folder, None, TOKENIZER, workers=1, cache=tmp_path / "one")
    two = data.load(folder, None, TOKENIZER, workers=2, cache=tmp_path / "two")
    assert [(piece.name, piece.ids.tolist()) for piece in one.pieces] == [
        (piece.name, piece.ids.tolist()) for piece in two.pieces
    ]
    assert one.skipped == two.skipped and len(one.skipped) == 1
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == sorted(
        file.name for file in (tmp_path / "two").iterdir()
    )


def test_held_out_pieces_are_long_enough_for_the_parity_check() -> None:
    """The export streams the first 8,192 tokens of 4 held-out pieces, and ``dsmr check`` whole ones."""
    lengths = [len(piece.ids) for piece in data.load(None, "test", TOKENIZER, progress=False).pieces]
    assert sum(length > 8192 for length in lengths) >= 4
    assert sum(length > 2000 for length in lengths) >= 10


# Augmentation

NOTES = st.lists(
    st.builds(
        lambda start, length, pitch, velocity: Note(start, start + length, pitch, velocity),
        st.integers(0, 200),
        st.integers(1, 100),
        st.sampled_from([21, 22, 60, 61, 107, 108]),
        st.integers(1, 127),
    ),
    max_size=30,
).map(canonical)


@given(NOTES, st.integers(-6, 6), st.floats(0.5, 2.0))
def test_augmented_is_the_canonical_performance_of_the_moved_notes(
    notes: list[Note], semitones: int, tempo: float
) -> None:
    step = 0.01 / tempo
    moved = [
        Note(frame_at(n.start * step), frame_at(n.end * step), n.pitch + semitones, n.velocity) for n in notes
    ]
    near_half = [abs((f / tempo) % 1 - 0.5) < 1e-9 for n in notes for f in (n.start, n.end)]
    if not any(near_half):  # where the two ways to write the same time could round apart
        assert data.augment(notes, semitones, tempo).tolist() == [list(note) for note in canonical(moved)]


@given(NOTES)
def test_not_moved_is_not_changed(notes: list[Note]) -> None:
    same = data.augment(np.array(notes, dtype=np.int32).reshape(-1, 4), 0, 1.0)
    assert same.tolist() == [list(note) for note in notes]
    assert same.shape == (len(notes), 4) and same.dtype == np.int32


def test_notes_that_leave_the_piano_are_lost() -> None:
    assert data.augment([Note(0, 10, 60, 64), Note(0, 10, 108, 64)], 1, 2.0).tolist() == [[0, 5, 61, 64]]
