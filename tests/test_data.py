"""Loading: cache, unreadable files, several processes; and augmentation against the runtime's definition."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miditok import MIDILike, TokenizerConfig

from dsmr_export.errors import CheckpointError, DataError, OutputError
from dsmr_export.model import data, shards
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.encoding import Codec
from dsmr_export.runtime import midi
from dsmr_export.runtime.performance import Note, canonical, frame_at

TOKENIZER = tokens.default_tokenizer()


BINS = sorted(int(token.split("_")[1]) for token in TOKENIZER.vocab if token.startswith("Velocity_"))


def song(index: int) -> list[Note]:
    return [Note(0, 10 + index, 60, 64), Note(20, 25, 62 + index, 80)]


def binned(notes: list[Note]) -> list[list[int]]:
    """Rows of the notes with velocities replaced by the nearest that has a token, ties to the louder."""
    return [[*note[:3], min(BINS, key=lambda bin_: (abs(bin_ - note.velocity), -bin_))] for note in notes]


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read as MIDI from here on, in this process."""
    names: list[str] = []

    def spy(source: bytes, *arguments: object) -> midi.Reading:
        names.append(str(arguments[-1]))
        return real(source, *arguments)  # type: ignore[arg-type]

    real = midi.read
    monkeypatch.setattr(midi, "read", spy)
    return names


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
        assert piece.ids.tolist() == [1, *tokens.encode(song(index), TOKENIZER), 2]
        assert piece.performance.tolist() == binned(song(index))
        assert (piece.ids.dtype, piece.performance.dtype) == (np.uint16, np.int32)
        assert (piece.notes, piece.seconds) == (2, 0.25)
        assert piece.digest == hashlib.sha256(struct.pack(f"<{len(piece.ids)}H", *piece.ids)).hexdigest()
    assert (found.notes, found.seconds) == (6, 0.75)
    assert found.tokens == sum(len(piece.ids) - 1 for piece in found.pieces)
    assert (found.skipped, found.dropped) == ([], 0)
    assert len(data.load(folder, None, TOKENIZER, limit=2).pieces) == 2


def test_the_second_time_comes_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = data.load(folder, None, TOKENIZER, cache=cache)
    read = reads(monkeypatch)
    (folder / "0.mid").rename(folder / "moved.mid")  # found by content, not by name
    again = data.load(folder, None, TOKENIZER, cache=cache)
    assert read == []
    assert [piece.name for piece in again.pieces] == ["1.mid", "2.mid", "moved.mid"]
    assert again.pieces[2].ids.tolist() == first.pieces[0].ids.tolist()

    midi.write_midi(song(7), folder / "1.mid")
    changed = data.load(folder, None, TOKENIZER, cache=cache)
    assert read == ["1.mid"]
    assert changed.fingerprint != again.fingerprint


def test_another_tokenizer_finds_nothing_of_the_first(folder: Path, tmp_path: Path) -> None:
    coarse = MIDILike(
        TokenizerConfig(
            beat_res={(0, 2): 25},
            num_velocities=8,
            special_tokens=["PAD", "BOS", "EOS"],
            use_pitchdrum_tokens=False,
            use_time_signatures=False,
        )
    )
    fine = data.load(folder, None, TOKENIZER, cache=tmp_path / "cache")
    other = data.load(folder, None, coarse, cache=tmp_path / "cache")
    assert [piece.seconds for piece in fine.pieces] == [0.25] * 3
    assert [piece.seconds for piece in other.pieces] == [0.26] * 3  # frames of 20 ms, halves go up
    assert other.fingerprint != fine.fingerprint


def test_a_tokenizer_that_a_device_cannot_repeat_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "encode", lambda notes, tokenizer: [7])
    with pytest.raises(CheckpointError, match=r"miditok encodes 0\.mid otherwise than a device would"):
        data.load(folder, None, TOKENIZER, cache=tmp_path / "cache")


def test_ids_are_read_only_views_into_a_mapped_file(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):  # just written, then found
        pieces = data.load(folder, None, TOKENIZER, cache=tmp_path / "cache").pieces
        shared = pieces[0].ids.base
        assert shared is not None and isinstance(shared.base, np.memmap)
        assert all(piece.ids.base is shared for piece in pieces)
        with pytest.raises(ValueError, match="read-only"):
            pieces[0].ids[0] = 7


@pytest.mark.parametrize("keep", [0, 3, 10, 48])
def test_a_shard_cut_short_is_read_again(
    keep: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = data.load(folder, None, TOKENIZER, cache=tmp_path / "cache")
    (shard,) = (tmp_path / "cache").rglob("*.ids")
    content = shard.read_bytes()
    assert len(content) > 48
    shard.unlink()  # as another process would see it: not under the feet of the first one's mapping
    shard.write_bytes(content[:keep])
    read = reads(monkeypatch)
    again = data.load(folder, None, TOKENIZER, cache=tmp_path / "cache")
    assert again.fingerprint == whole.fingerprint
    assert [p.ids.tolist() for p in again.pieces] == [p.ids.tolist() for p in whole.pieces]
    assert read, "some had to be read"
    read.clear()
    assert data.load(folder, None, TOKENIZER, cache=tmp_path / "cache").fingerprint == whole.fingerprint
    assert read == []


def test_the_fingerprint_is_of_names_and_ids_in_order(folder: Path, tmp_path: Path) -> None:
    def fingerprint(workers: int = 1, limit: int | None = None) -> str:
        return data.load(folder, None, TOKENIZER, limit, workers, cache=tmp_path / f"{workers}").fingerprint

    first = fingerprint()
    assert len(first) == 64 and first == fingerprint() == fingerprint(workers=2)
    assert first != fingerprint(limit=2)
    (folder / "2.mid").rename(folder / "3.mid")
    assert fingerprint() != first


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


def test_a_cache_that_cannot_be_written_costs_time_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = data.load(folder, None, TOKENIZER, cache=tmp_path / "cache").fingerprint

    def is_as_expected(cache: Path) -> None:
        for _ in range(2):
            found = data.load(folder, None, TOKENIZER, cache=cache)
            assert found.fingerprint == expected
            assert not found.pieces[0].ids.flags.writeable

    (tmp_path / "file").write_bytes(b"")
    is_as_expected(tmp_path / "file" / "cache")

    def full(path: Path, content: bytes) -> None:
        raise OutputError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(shards, "write_atomically", full)
    is_as_expected(tmp_path / "full")


def test_a_read_only_cache_costs_time_only(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    if os.access(cache, os.W_OK):
        pytest.skip("this user may write anywhere (root)")
    for _ in range(2):
        assert len(data.load(folder, None, TOKENIZER, cache=cache).pieces) == 3
    assert list(cache.iterdir()) == []


def test_many_pieces_make_many_shards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data.load(folder, None, TOKENIZER, cache=tmp_path / "one")
    monkeypatch.setattr(data, "SHARD_TOKENS", 10)
    for _ in range(2):
        found = data.load(folder, None, TOKENIZER, cache=tmp_path / "many")
        assert found.fingerprint == whole.fingerprint
    assert len(list((tmp_path / "one").rglob("*.ids"))) == 1
    assert len(list((tmp_path / "many").rglob("*.ids"))) == 3


class Deadly(MIDILike):
    """Kills the process that it is sent to."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (1,)


def test_a_reading_process_that_dies_is_reported(folder: Path, tmp_path: Path) -> None:
    for index in range(3, 12):
        midi.write_midi(song(index), folder / f"{index:02}.mid")
    deadly = Deadly(TOKENIZER.config)
    with pytest.raises(DataError, match=r"a process that read MIDI files died .* start again"):
        data.load(folder, None, deadly, workers=2, progress=False, cache=tmp_path / "cache")


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
    assert one.fingerprint == two.fingerprint
    assert sorted(file.name for file in (tmp_path / "one").rglob("*.*")) == sorted(
        file.name for file in (tmp_path / "two").rglob("*.*")
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


@given(NOTES, st.integers(-6, 6), st.floats(0.5, 2.0), st.integers(-130, 130))
def test_augmented_is_the_canonical_performance_of_the_moved_notes(
    notes: list[Note], semitones: int, tempo: float, velocity: int
) -> None:
    step = 0.01 / tempo
    moved = [
        Note(
            frame_at(n.start * step),
            frame_at(n.end * step),
            n.pitch + semitones,
            min(max(n.velocity + velocity, 1), 127),
        )
        for n in notes
    ]
    near_half = [abs((f / tempo) % 1 - 0.5) < 1e-9 for n in notes for f in (n.start, n.end)]
    if not any(near_half):  # where the two ways to write the same time could round apart
        found = data.augment(notes, semitones, tempo, velocity)
        assert found.tolist() == [list(note) for note in canonical(moved)]
        assert Codec.of(TOKENIZER).encode(found).tolist() == tokens.encode(found, TOKENIZER)


@given(NOTES)
def test_not_moved_is_not_changed(notes: list[Note]) -> None:
    same = data.augment(np.array(notes, dtype=np.int32).reshape(-1, 4), 0, 1.0)
    assert same.tolist() == [list(note) for note in notes]
    assert same.shape == (len(notes), 4) and same.dtype == np.int32


def test_notes_that_leave_the_piano_are_lost() -> None:
    assert data.augment([Note(0, 10, 60, 64), Note(0, 10, 108, 64)], 1, 2.0).tolist() == [[0, 5, 61, 64]]
