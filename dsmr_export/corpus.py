"""Where pieces come from: one MIDI file, a folder, a zip laid out as MAESTRO, or the bundled corpus."""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dsmr_export.errors import DataError

BUNDLED = Path(__file__).parent / "assets" / "corpus" / "public-domain.zip"
SPLITS = ("train", "validation", "test")
VALIDATION_EVERY = 10
"""Where no splits are named, the first of every so many pieces is for validation, the rest for training."""
_MIDI_SUFFIXES = (".mid", ".midi")


@dataclass(frozen=True)
class Piece:
    """One MIDI file of a source. ``split`` is "" where there is none; ``member`` is its path inside a zip."""

    name: str
    split: str
    path: Path
    member: str | None = None

    def read(self, archive: zipfile.ZipFile | None = None) -> bytes:
        """The file's bytes; ``archive`` is its zip if already open. Raises ``DataError`` if unreadable."""
        try:
            if self.member is None:
                return self.path.read_bytes()
            if archive is not None:
                return archive.read(self.member)
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.member)
        except KeyError as error:
            raise DataError(
                f"{self.name}: is in the csv but not in {self.path}; get the data set again"
            ) from error
        except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(
                f"{self.name}: cannot be read from {self.path} ({error}); get it again"
            ) from error


def pieces(
    path: str | os.PathLike[str] | None = None, split: str | None = None, limit: int | None = None
) -> list[Piece]:
    """The pieces of a source, in the order of its csv (``midi_filename``, ``split``), else by name.

    ``path``: a MIDI file, a folder or a zip (both with or without a csv); None is the bundled corpus.
    ``split``: only those pieces; where no splits are named, the first of every ten pieces is `validation` and
    the rest `train`. ``limit``: only the first so many. Raises ``DataError`` for a source that is missing,
    damaged, without MIDI files, or without the split asked for.
    """
    source = BUNDLED if path is None else Path(path)
    if source.is_dir():
        found = _in_folder(source)
    elif not source.exists():
        raise DataError(f"{source}: no such file or folder; give a MIDI file, a folder, or MAESTRO's zip")
    elif source.suffix.lower() in _MIDI_SUFFIXES:
        found = [Piece(source.name, "", source)]
    elif zipfile.is_zipfile(source):
        found = _in_zip(source)
    else:
        raise DataError(f"{source}: neither MIDI (.mid, .midi) nor a zip nor a folder; give one of these")
    if not found:
        raise DataError(f"{source}: holds no MIDI files (.mid, .midi); give another file, folder or zip")
    if split is not None:
        found = _of_split(found, split, source)
    return found[:limit]


def default_split(path: str | os.PathLike[str] | None) -> str | None:
    """What is measured unless asked otherwise: `test` where a source names splits, else all (None)."""
    return "test" if any(piece.split for piece in pieces(path)) else None


def read_all(found: Iterable[Piece]) -> Iterator[tuple[Piece, bytes | DataError]]:
    """Each piece with its bytes, or with the error that reading it raised; a zip is opened only once."""
    archive: zipfile.ZipFile | None = None
    opened: Path | None = None
    try:
        for piece in found:
            try:
                if piece.member is not None and piece.path != opened:
                    if archive is not None:
                        archive.close()
                    archive, opened = None, None  # in case the next line fails
                    archive, opened = zipfile.ZipFile(piece.path), piece.path
                yield piece, piece.read(archive)
            except DataError as error:
                yield piece, error
            except (OSError, zipfile.BadZipFile) as error:
                yield (
                    piece,
                    DataError(f"{piece.name}: cannot be read from {piece.path} ({error}); get it again"),
                )
    finally:
        if archive is not None:
            archive.close()


def _of_split(found: list[Piece], split: str, source: Path) -> list[Piece]:
    have = sorted({piece.split for piece in found} - {""})
    if not have and split == "test":
        raise DataError(
            f"{source}: names no splits (no csv with the columns split and midi_filename); "
            f"leave out --split {split}"
        )
    if not have and len(found) < 2:
        raise DataError(
            f"{source}: holds one piece and names no splits; training needs two or more, of which it keeps "
            f"one in {VALIDATION_EVERY} for validation"
        )
    if not have:
        first = split == "validation"
        return [piece for index, piece in enumerate(found) if (index % VALIDATION_EVERY == 0) == first]
    if split not in have:
        raise DataError(f"{source}: has no split {split!r}; it has {', '.join(have)}")
    return [piece for piece in found if piece.split == split]


def _in_folder(folder: Path) -> list[Piece]:
    tables = sorted(folder.glob("*.csv")) + sorted(folder.glob("*/*.csv"))
    for table in tables:
        try:
            rows = _rows(table.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, csv.Error):
            continue  # some other csv, in some other encoding
        if rows is not None:
            return [Piece(name, split, table.parent / name) for name, split in rows]
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return [Piece(name, "", folder / name) for name in _midi_names(path.as_posix() for path in names)]


def _in_zip(source: Path) -> list[Piece]:
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.namelist()
            for member in sorted(members):
                if not member.lower().endswith(".csv"):
                    continue
                try:
                    rows = _rows(archive.read(member).decode("utf-8-sig"))
                except (UnicodeDecodeError, csv.Error):
                    continue
                if rows is not None:
                    base = PurePosixPath(member).parent
                    return [Piece(name, split, source, str(base / name)) for name, split in rows]
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{source}: is a damaged zip ({error}); get it again") from error
    return [Piece(name, "", source, name) for name in _midi_names(members)]


def _rows(text: str) -> list[tuple[str, str]] | None:
    """(midi_filename, split) of each line, or None if the csv is about something else."""
    reader = csv.DictReader(io.StringIO(text))
    if not {"split", "midi_filename"} <= set(reader.fieldnames or ()):
        return None
    return [(row["midi_filename"], row["split"] or "") for row in reader if row["midi_filename"]]


def _midi_names(names: Iterable[str]) -> list[str]:
    """The MIDI files among names, sorted; not the shadow files (``._name``) that macOS writes beside them."""
    return sorted(
        name
        for name in names
        if name.lower().endswith(_MIDI_SUFFIXES) and not PurePosixPath(name).name.startswith("._")
    )
