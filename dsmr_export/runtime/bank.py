"""A folder of saved states with names: "inside the slow movement" is inside%20the%20slow%20movement.dsmr."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

from dsmr_export.errors import OutputError, StateError, nearest
from dsmr_export.runtime import saved_state
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.saved_state import SavedState

SUFFIX = ".dsmr"
MAX_FILE_NAME = 220
"""Bytes of a file's name: file systems take 255, and while it is written it has a longer one."""


@dataclass(frozen=True)
class Entry:
    """One file of a bank. ``problem`` is why it cannot be loaded, in one line; None where it can be."""

    name: str
    path: Path
    problem: str | None


class Bank:
    """States of one bundle by name. The folder is made when the first one is saved."""

    def __init__(self, folder: str | os.PathLike[str], bundle: Bundle) -> None:
        self.folder = Path(folder)
        self.bundle = bundle

    def path(self, name: str) -> Path:
        """The file of a name. Raises ``StateError`` for a name that is empty, too long, or not text."""
        if not name.strip():
            raise StateError(f"{self.folder}: a state needs a name; give one that is not empty")
        try:
            file = quote(name, safe="") + SUFFIX
        except UnicodeEncodeError as error:
            raise StateError(f"{self.folder}: the name {name!r} is not text; give another one") from error
        if len(file) > MAX_FILE_NAME:
            raise StateError(
                f"{self.folder}: the name {name[:20]!r}... makes a file name of {len(file)} bytes, more than "
                f"{MAX_FILE_NAME}; give a shorter one"
            )
        return self.folder / file

    def entries(self) -> list[Entry]:
        """Every state of the folder by name; none where there is no folder yet.

        The files' headers and sizes are checked, their arrays only when they are loaded. Raises
        ``StateError`` for a folder that cannot be read.
        """
        try:
            files = [path for path in self.folder.iterdir() if path.name.endswith(SUFFIX)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(
                f"{self.folder}: cannot be read ({error.strerror or error}); give a folder of saved states"
            ) from error
        return sorted((self._entry(path) for path in files), key=lambda entry: (entry.name, entry.path))

    def names(self) -> list[str]:
        """The names that can be loaded, sorted."""
        return [entry.name for entry in self.entries() if entry.problem is None]

    def save(self, name: str, state: SavedState) -> Path:
        """Keep a state under a name, in place of an older one; its file. Raises ``StateError`` for a name as
        ``path``, ``OutputError`` if it cannot be written."""
        path = self.path(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be made ({error.strerror or error}); choose another folder"
            ) from error
        saved_state.write(path, replace(state, name=name))
        return path

    def load(self, name: str) -> SavedState:
        """The state of a name. Raises ``StateError`` where there is none, and as ``saved_state.read``."""
        path = self._existing(name)
        return replace(saved_state.read(path, self.bundle), name=name)

    def delete(self, name: str) -> None:
        """Remove a state. Raises ``StateError`` where there is none, or it cannot be removed."""
        path = self._existing(name)
        try:
            path.unlink()
        except OSError as error:
            raise StateError(
                f"{path}: cannot be removed ({error.strerror or error}); check the folder's permissions"
            ) from error

    def _existing(self, name: str) -> Path:
        path = self.path(name)
        if not os.path.exists(path):
            known = self.names()
            there = ", ".join(known[:20]) if known else "none"
            raise StateError(
                f"{self.folder}: has no state named {name!r}{nearest(name, known)}; there are: {there}"
            )
        return path

    def _entry(self, path: Path) -> Entry:
        name = unquote(path.name.removesuffix(SUFFIX), errors="replace")
        try:
            if self.path(name) != path:
                raise StateError(f"{path}: was not named by a bank; rename it to {self.path(name).name}")
            saved_state.peek(path, self.bundle)
        except StateError as error:
            return Entry(name, path, str(error))
        return Entry(name, path, None)
