"""A bundle folder: verified whole when opened; graphs and golden vectors are loaded when asked for."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dsmr_export.errors import BundleError
from dsmr_export.manifest import MANIFEST, FileEntry, GraphEntry, Manifest
from dsmr_export.runtime.events import EventTable
from dsmr_export.runtime.golden import Golden
from dsmr_export.runtime.grammar import Grammar
from dsmr_export.runtime.session import check_interface, open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from dsmr_export.runtime.selection import Selection

SUMS = "SHA256SUMS"
AGAIN = "copy the bundle again, or export it again"


def default_path() -> Path:
    """The prebuilt bundle inside the installed package (it need not exist in a source tree)."""
    return Path(__file__).resolve().parent.parent / "assets" / "default"


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in lower-case hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundle_files(folder: Path) -> list[str]:
    """Every file below `folder` but SHA256SUMS itself, as sorted paths with `/`."""
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p != folder / SUMS
    )


def write_sums(folder: str | os.PathLike[str]) -> None:
    """Writes SHA256SUMS over every file, in the form that `sha256sum -c` reads: an export's last step."""
    root = Path(folder)
    lines = [f"{file_sha256(root / file)}  {file}\n" for file in bundle_files(root)]
    (root / SUMS).write_text("".join(lines), encoding="utf-8")


def verify(folder: str | os.PathLike[str]) -> tuple[dict[str, str], list[str]]:
    """Compares every file with SHA256SUMS; returns ({file: sha256}, warnings).

    A file that is changed, missing or not listed raises BundleError naming it; under README.md and report/,
    which no host needs, it only makes a warning.
    """
    root = Path(folder)
    listed = _read_sums(root)
    found = set(bundle_files(root))
    notes = []
    for file in sorted(found | set(listed)):
        if file not in found:
            problem = f"{root / file} is missing"
        elif file not in listed:
            problem = f"{root / file} is not in {SUMS}"
        elif _sha256(root / file) != listed[file]:
            problem = f"{root / file} was changed (its SHA-256 is not the one in {SUMS})"
        else:
            continue
        if file != "README.md" and not file.startswith("report/"):
            raise BundleError(f"{problem}: {AGAIN}")
        notes.append(problem)
    return listed, notes


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): {AGAIN}") from error


def _read_sums(root: Path) -> dict[str, str]:
    if not root.is_dir():
        raise BundleError(f"{root} is not a folder: give the bundle folder that dsmr-export wrote")
    path = root / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise BundleError(f"{path} does not exist, so {root} is not a whole bundle: {AGAIN}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read ({error}): {AGAIN}") from error
    sums = {}
    for number, line in enumerate(lines, 1):
        digest, separator, file = line.partition("  ")
        if len(digest) != 64 or not separator or not file:
            raise BundleError(f"{path} line {number} is not `SHA-256, two spaces, file`: {AGAIN}")
        sums[file] = digest
    return sums


class Bundle:
    """An opened bundle.

    identity: SHA-256 of the manifest, which holds the hash of every graph; ties saved states to the bundle.
    """

    def __init__(self, path: Path, manifest: Manifest, identity: str, notes: list[str]) -> None:
        self.path = path
        self.manifest = manifest
        self.identity = identity
        self.warnings = notes
        self._sessions: dict[tuple[str, int, bool], InferenceSession] = {}
        self._selection: Selection | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> Bundle:
        """Opens and verifies the bundle at `path` (None: the prebuilt one of the package).

        Raises BundleError naming the file that is changed, missing or left over, or what the manifest
        lacks. Changes to README.md and report/ only warn.
        """
        folder = default_path() if path is None else Path(path)
        if path is None and not folder.is_dir():
            raise BundleError(
                f"{folder} does not exist: this package has no prebuilt bundle, make one with dsmr-export"
            )
        sums, notes = verify(folder)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        manifest = Manifest.read(folder / MANIFEST)
        _check_entry(folder, "tokenizer", manifest.tokenizer, sums)
        _check_entry(folder, "golden", manifest.golden, sums)
        for name, graph in manifest.graphs.items():
            _check_entry(folder, f"graphs.{name}", graph, sums)
        return cls(folder, manifest, sums[MANIFEST], notes)

    def selected(self, say: Callable[[str], None] | None = None) -> Selection:
        """Which graph this machine runs, and how (runtime.selection.select): found out once.

        say: gets a line about each graph that failed (None: they are warnings). Raises BundleError where none
        passes its golden vectors.
        """
        from dsmr_export.runtime.selection import select

        if self._selection is None:
            self._selection = select(self, say or _warn)
        return self._selection

    @property
    def default_graph(self) -> str:
        """The graph that this machine runs when none is named."""
        return self.selected().graph

    @property
    def threads(self) -> int:
        """Of one call, where the caller names no number: the target's."""
        return self.manifest.session.threads if self.manifest.session else 1

    def graph(self, name: str | None = None) -> GraphEntry:
        """A graph's entry (None: the default's). Raises BundleError with the names of those there are."""
        graphs, name = self.manifest.graphs, name or self.default_graph
        if name not in graphs:
            raise BundleError(f"{self.path} has no graph {name!r}: it has {', '.join(graphs)}")
        return graphs[name]

    def session(
        self, name: str | None = None, threads: int | None = None, safe: bool | None = None
    ) -> InferenceSession:
        """A graph's session, opened once for each way of asking and shared: the state is the caller's.

        threads: None = the bundle's. safe: with safer options (session.open_session); None = as was selected
        where no graph is named, else no. Raises BundleError (unknown graph), GraphError (onnxruntime too
        old, or not what the manifest says).
        """
        if safe is None:
            safe = name is None and self.selected().safe
        entry, name = self.graph(name), name or self.default_graph
        threads = self.threads if threads is None else threads
        key = name, threads, safe
        if key not in self._sessions:
            session = open_session(
                self.path / entry.file, threads, entry.min_onnxruntime, name, self.manifest.session, safe
            )
            check_interface(session, entry, name)
            self._sessions[key] = session
        return self._sessions[key]

    @cached_property
    def event_table(self) -> EventTable:
        """What each id means as MIDI. Raises BundleError for a table that cannot say every performance."""
        return EventTable.from_entry(self.manifest.events)

    def grammar(self, allow_eos: bool = False, ordered: bool = False) -> Grammar:
        """A fresh grammar: the mask that `Stream.generate` takes, advanced by the caller over what it fed."""
        return Grammar(self.event_table, self.manifest.grammar, allow_eos, ordered)

    @cached_property
    def golden(self) -> Golden:
        """The golden vectors, loaded at first use. Raises BundleError if their form is wrong."""
        return Golden.read(self.path / self.manifest.golden.file, self.manifest)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def _check_entry(folder: Path, where: str, entry: FileEntry | GraphEntry, sums: dict[str, str]) -> None:
    if entry.file not in sums:
        raise BundleError(f"{folder / MANIFEST}: {where}.file {entry.file} is not in the bundle: {AGAIN}")
    if sums[entry.file] != entry.sha256:
        raise BundleError(f"{folder / MANIFEST}: {where}.sha256 is not that of {entry.file}: {AGAIN}")
