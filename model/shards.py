"""A cache of token ids: many pieces a file, memory-mapped, found by the content of what they were made of.

A folder holds pairs of files, each written whole and never changed: `NAME.ids`, the ids of many pieces one
after the other, uint16, little-endian; and its index `OTHER.json`, which says where each piece lies, its
length in notes and seconds, and its SHA-256. Each file is named by the SHA-256 of what it holds. So damage of
any kind is seen, and a damaged piece counts as absent. The index is renamed into place last: what it names is
there. Any number of processes may write at once: each writes its own pair, and equal pairs are one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import OutputError
from dsmr_export.runtime.files import write_atomically

Ids = NDArray[np.uint16]

_STORED = np.dtype("<u2")
_NAME_LENGTH = 32  # hex digits of the SHA-256: 128 bits


@dataclass(frozen=True)
class Entry:
    """One piece. ``ids`` uint16 [T], read-only; ``seconds`` to the end of the last note; ``dropped``: notes
    that had no token; ``digest``: SHA-256 of the ids as stored.
    """

    ids: Ids
    notes: int
    seconds: float
    dropped: int
    digest: str


@dataclass(frozen=True)
class _Place:
    """What an index says of one piece; ``offset`` in tokens from the start of its file."""

    offset: int
    tokens: int
    notes: int
    seconds: float
    dropped: int
    digest: str


def digest_of(ids: Ids) -> str:
    """SHA-256 of token ids as stored, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype=_STORED).data).hexdigest()


class Shards:
    """What a folder holds now, and what is written into it from here. A folder that is not there is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, list[tuple[str, _Place]]] = {}  # by key: the files that should have it
        self._mapped: dict[str, Ids | None] = {}
        for index in sorted(folder.glob("*.json")):
            self._read_index(index)

    def find(self, key: str) -> Entry | None:
        """The piece of that key, its ids a view into a mapped file; None if absent or damaged."""
        for file, place in self._places.get(key, []):
            shard = self._map(file)
            if shard is None:
                continue
            ids = shard[place.offset : place.offset + place.tokens]
            if len(ids) == place.tokens and digest_of(ids) == place.digest:
                return Entry(ids, place.notes, place.seconds, place.dropped, place.digest)
        return None

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Store pieces by key as one pair of files. Raises ``OutputError``; then the folder is as it was,
        but for a file of ids that no index names.
        """
        packed = b"".join(entry.ids.astype(_STORED).tobytes() for entry in entries.values())
        file = f"{_name(packed)}.ids"
        places: dict[str, _Place] = {}
        offset = 0
        for key, entry in entries.items():
            places[key] = _Place(
                offset, len(entry.ids), entry.notes, entry.seconds, entry.dropped, entry.digest
            )
            offset += len(entry.ids)
        index = json.dumps({"ids": file, "pieces": {key: asdict(place) for key, place in places.items()}})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made ({error.strerror or error})") from error
        write_atomically(self.folder / file, packed)
        write_atomically(self.folder / f"{_name(index.encode())}.json", index.encode())
        self._mapped.pop(file, None)  # it may have replaced a damaged one
        self._add(file, places)

    def _add(self, file: str, places: Mapping[str, _Place]) -> None:
        for key, place in places.items():
            self._places.setdefault(key, []).append((file, place))

    def _read_index(self, path: Path) -> None:
        """Take note of an index; one that cannot be read or is not what was written is passed over."""
        try:
            text = path.read_bytes()
        except OSError:
            return
        if _name(text) == path.stem:
            index: dict[str, Any] = json.loads(text)
            self._add(index["ids"], {key: _Place(**place) for key, place in index["pieces"].items()})

    def _map(self, file: str) -> Ids | None:
        """A file of ids, mapped once and read-only; None if it is not there or cut short within a token."""
        if file not in self._mapped:
            try:
                # As a plain array: every slice of a memmap would run code of that class.
                self._mapped[file] = np.asarray(np.memmap(self.folder / file, dtype=_STORED, mode="r"))
            except (OSError, ValueError):
                self._mapped[file] = None
        return self._mapped[file]


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_NAME_LENGTH]
