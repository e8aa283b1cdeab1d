"""Where a page goes: a file of one's own, or a bundle's report/, whose SHA256SUMS then lists it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dsmr_export.errors import OutputError, OutputExistsError
from dsmr_export.runtime.bundle import SUMS, Bundle, file_sha256, verify
from dsmr_export.runtime.files import remove_leftovers, write_atomically

FOLDER, INDEX = "report", "index.html"
DEFAULT = Path("dsmr-report.html")
MARK = b'<meta name="generator" content="dsmr report'
"""Stands in the first bytes of every page, and tells one from other files."""
HEAD_BYTES = 512


@dataclass(frozen=True)
class Place:
    """path: of the page. inside: its name in the bundle (report/index.html); None where it is elsewhere."""

    path: Path
    inside: str | None


def place(bundle: Bundle, named: bool, output: Path | None, force: bool) -> Place:
    """Where the page goes, seen to be writable before any work is done.

    named: a bundle folder was given, and without ``output`` the page goes into it. Raises OutputError,
    OutputExistsError for a file that is there and no page (force replaces it).
    """
    inside = None
    path = output or (bundle.path / FOLDER / INDEX if named else DEFAULT)
    root, real = bundle.path.resolve(), path.resolve()
    if real.is_relative_to(root):
        inside = real.relative_to(root).as_posix()
        if not inside.startswith(f"{FOLDER}/"):
            raise OutputError(
                f"{path}: is inside the bundle, where only {FOLDER}/ may have a page; leave out -o, or "
                "give a file elsewhere"
            )
    if inside is not None:
        _require_folder(bundle.path)  # where its SHA256SUMS is replaced
        _make_folder(path.parent)
    _require_folder(path.parent)
    _require_page(path, force)
    return Place(path, inside)


def write(where: Place, html: str, bundle: Bundle) -> None:
    """Writes the page, whole or not at all. In a bundle also its line of SHA256SUMS, and no other: a file
    that was changed by somebody else stays known as changed. Raises OutputError."""
    remove_leftovers(where.path)
    write_atomically(where.path, html.encode())
    if where.inside is not None:
        _list(bundle.path, where.inside)


def _list(folder: Path, file: str) -> None:
    """The new sums are made below report/, where a leftover only warns, and renamed into place."""
    listed, _ = verify(folder)
    listed[file] = file_sha256(folder / file)
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(listed.items()))
    new = folder / FOLDER / f"{SUMS}.new"
    write_atomically(new, text.encode())
    try:
        os.replace(new, folder / SUMS)
    except OSError as error:
        raise OutputError(
            f"{folder / SUMS}: cannot be written ({error.strerror}); give a file elsewhere with -o"
        ) from error
    finally:
        new.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made ({error.strerror}); give a file elsewhere with -o"
        ) from error


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise OutputError(f"{folder}: there is no such folder; make it, or give another file with -o")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: nothing can be written there; give a file elsewhere with -o")


def _require_page(path: Path, force: bool) -> None:
    """Only a page, or an empty file, is replaced without being told to."""
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is not a file; give another name with -o")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); give another name with -o"
        ) from error
    if head and MARK not in head and not force:
        raise OutputExistsError(
            f"{path} is there already and is no page of dsmr report: give another name with -o, or --force"
        )
