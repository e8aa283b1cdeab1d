"""Pieces as token ids: read in parallel, kept in memory-mapped shards, and varied for training."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsmr_export import corpus
from dsmr_export import progress as bars
from dsmr_export.errors import CheckpointError, DataError, MidiError, OutputError
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.encoding import Codec, Ids, Notes
from dsmr_export.model.shards import Entry, Shards, digest_of
from dsmr_export.runtime import midi
from dsmr_export.runtime.performance import PIANO_RANGE, Performance

if TYPE_CHECKING:
    from miditok import MIDILike

CACHE_FORMAT = 2
"""Raise it when the canonical performance or the shards change: what was cached before is read again."""

SHARD_TOKENS = 2**21
"""Pieces are written to the cache when so many tokens (4 MB) have come together."""

_FEW = 8
"""So few files are read here: starting processes would take longer."""


@dataclass(frozen=True)
class TokenizedPiece:
    """One piece. ``ids`` uint16 [T], BOS first and EOS last, read-only, mapped from the cache if possible.

    ``seconds``: from 0 to the end of the last note. ``dropped``: notes for whose pitch there is no token.
    ``digest``: SHA-256 of the ids.
    """

    name: str
    split: str
    ids: Ids
    notes: int
    seconds: float
    dropped: int
    digest: str
    codec: Codec

    @property
    def performance(self) -> Notes:
        """The notes that the ids say, decoded anew each time: int32 [N, 4]."""
        return self.codec.decode(self.ids)


@dataclass(frozen=True)
class Corpus:
    """What ``load`` found: the pieces, and (name, reason) of the files that could not be read."""

    pieces: list[TokenizedPiece]
    skipped: list[tuple[str, str]]

    @property
    def tokens(self) -> int:
        """Tokens that are predicted: all but each piece's BOS."""
        return sum(len(piece.ids) - 1 for piece in self.pieces)

    @property
    def notes(self) -> int:
        return sum(piece.notes for piece in self.pieces)

    @property
    def seconds(self) -> float:
        """Of music."""
        return sum(piece.seconds for piece in self.pieces)

    @property
    def dropped(self) -> int:
        """Notes left out because the vocabulary has no token for their pitch."""
        return sum(piece.dropped for piece in self.pieces)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the pieces' names and ids, in order: another one means other data."""
        lines = [f"{piece.name}\0{piece.digest}\n" for piece in self.pieces]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def load(
    path: str | os.PathLike[str] | None,
    split: str | None,
    tokenizer: MIDILike,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    cache: Path | None = None,
) -> Corpus:
    """The pieces of a source (see ``corpus.pieces``), tokenized, in the source's order.

    What was read before comes from the ``cache`` folder (default: the user's), found by the content of file
    and tokenizer. ``workers`` processes (default: the processors this process may use) read the rest. A file
    that cannot be read is named on stderr, listed in ``skipped`` and left out. Raises ``DataError`` if the
    source has nothing that can be read, or a process that reads it dies; ``CheckpointError`` for a tokenizer
    that a device could not repeat.
    """
    codec = Codec.of(tokenizer)
    found = corpus.pieces(path, split, limit)
    folder = default_cache() if cache is None else cache
    recipe = hashlib.sha256(f"{CACHE_FORMAT} {tokens.to_json(tokenizer)}".encode()).hexdigest()
    shards = Shards(folder / recipe)
    entries: dict[int, Entry] = {}
    failed: dict[int, str] = {}
    missing: list[_Missing] = []
    for index, (piece, data) in enumerate(corpus.read_all(found)):
        if isinstance(data, DataError):
            failed[index] = str(data)
            continue
        key = hashlib.sha256(data).hexdigest()
        entry = shards.find(key)
        if entry is not None:
            entries[index] = entry
        else:
            missing.append(_Missing(index, piece.name, key, data))
    for batch in _batches(_tokenize_all(missing, tokenizer, workers, progress), failed):
        entries |= {file.index: entry for file, entry in _store(shards, batch)}
    skipped = [(found[index].name, reason) for index, reason in sorted(failed.items())]
    _report(skipped, len(found))
    if not entries:
        raise DataError(f"{path}: none of {len(found)} files could be read; the first: {skipped[0][1]}")
    return Corpus([_piece(found[index], entries[index], codec) for index in sorted(entries)], skipped)


def default_cache() -> Path:
    """Where tokenized pieces are kept: a folder that may be deleted at any time."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("dsmr-export")) / "tokens"


def augment(
    performance: Notes | Performance,
    semitones: int,
    tempo: float,
    velocity: int = 0,
    pitch_range: tuple[int, int] = PIANO_RANGE,
) -> Notes:
    """The performance transposed, ``tempo`` times as fast, and ``velocity`` louder: canonical int32 [N', 4].

    Notes that leave ``pitch_range`` are lost. The same as ``runtime.performance.canonical`` of the moved
    notes (a test says so), in numpy, because the trainer does it for every piece of every epoch.
    """
    start, end, pitch, loudness = np.array(performance, dtype=np.int32).reshape(-1, 4).T
    pitch, loudness = pitch + semitones, np.clip(loudness + velocity, 1, 127)
    start = np.floor(start / tempo + 0.5).astype(np.int32)
    end = np.maximum(np.floor(end / tempo + 0.5).astype(np.int32), start + 1)
    notes = np.stack([start, end, pitch, loudness], axis=1)[
        (pitch >= pitch_range[0]) & (pitch <= pitch_range[1])
    ]
    notes = notes[np.lexsort((notes[:, 3], notes[:, 0], notes[:, 2]))]  # by pitch, start, velocity; stable
    same_pitch = notes[1:, 2] == notes[:-1, 2]
    keep = np.ones(len(notes), dtype=bool)
    keep[:-1] = ~(
        same_pitch & (notes[1:, 0] == notes[:-1, 0])
    )  # of one (frame, pitch) the loudest, which is last
    notes = notes[keep]
    same_pitch = notes[1:, 2] == notes[:-1, 2]
    notes[:-1, 1] = np.where(same_pitch, np.minimum(notes[:-1, 1], notes[1:, 0]), notes[:-1, 1])
    return notes[np.lexsort((notes[:, 2], notes[:, 0]))]


@dataclass(frozen=True)
class _Missing:
    """A file that the cache does not have: its place in the source, its key in the cache, its content."""

    index: int
    name: str
    key: str
    data: bytes


def _tokenize_all(
    missing: list[_Missing], tokenizer: MIDILike, workers: int | None, progress: bool
) -> Iterator[tuple[_Missing, Entry | str]]:
    """Each file with what was read, or the reason why not, in the same order."""
    if not missing:
        return
    workers = min(workers or _processors(), len(missing))
    with bars.counter("reading MIDI", len(missing), progress) as advance:
        if workers == 1 or len(missing) <= _FEW:
            for file in missing:
                yield file, _tokenize(file, tokenizer)
                advance(1)
            return
        # spawn, not fork: the child of a process with threads (torch, the progress bar) can hang.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                for file, result in zip(
                    missing, pool.map(_tokenize, missing, repeat(tokenizer)), strict=True
                ):
                    yield file, result
                    advance(1)
            except BrokenProcessPool as error:
                raise DataError(
                    "a process that read MIDI files died (killed, or out of memory); start again: "
                    "what was read so far is mostly kept"
                ) from error


def _tokenize(file: _Missing, tokenizer: MIDILike) -> Entry | str:
    step_ms = tokens.step_ms(tokenizer)
    try:
        reading = midi.read(file.data, tokens.pitch_range(tokenizer), step_ms, file.name)
    except MidiError as error:
        return str(error)
    performance = np.array(reading.performance, dtype=np.int32)
    ids = Codec.of(tokenizer).piece(performance)
    # A device writes what the codec writes; published results rest on what miditok writes.
    if ids[1:-1].tolist() != tokens.encode(performance, tokenizer):
        raise CheckpointError(
            f"tokenizer: miditok encodes {file.name} otherwise than a device would, event by event; "
            "go back to the default options, one by one"
        )
    ids.flags.writeable = False
    seconds = int(performance[:, 1].max()) * step_ms / 1000
    return Entry(ids, len(performance), seconds, reading.dropped, digest_of(ids))


def _batches(
    results: Iterator[tuple[_Missing, Entry | str]], failed: dict[int, str]
) -> Iterator[list[tuple[_Missing, Entry]]]:
    """What was read, as much at a time as makes a shard; what was not goes to ``failed``."""
    batch: list[tuple[_Missing, Entry]] = []
    count = 0
    for file, result in results:
        if isinstance(result, str):
            failed[file.index] = result
            continue
        batch.append((file, result))
        count += len(result.ids)
        if count >= SHARD_TOKENS:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


def _store(shards: Shards, batch: list[tuple[_Missing, Entry]]) -> list[tuple[_Missing, Entry]]:
    """The batch from the cache; as it is where the cache cannot be written (read-only home, full disk),
    which costs time, nothing else.
    """
    try:
        shards.write({file.key: entry for file, entry in batch})
    except OutputError:
        return batch
    return [(file, shards.find(file.key) or entry) for file, entry in batch]


def _piece(piece: corpus.Piece, entry: Entry, codec: Codec) -> TokenizedPiece:
    return TokenizedPiece(
        piece.name, piece.split, entry.ids, entry.notes, entry.seconds, entry.dropped, entry.digest, codec
    )


def _report(skipped: list[tuple[str, str]], total: int) -> None:
    for _, reason in skipped:
        print(f"skipped {reason}", file=sys.stderr)
    if skipped:
        print(f"skipped {len(skipped)} of {total} files", file=sys.stderr)


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # not Linux
