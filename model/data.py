"""Pieces as performances and token ids: read in parallel, cached by content, and varied for training."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsmr_export import corpus
from dsmr_export import progress as bars
from dsmr_export.errors import DataError, MidiError, OutputError
from dsmr_export.model import tokenizer as tokens
from dsmr_export.runtime import midi
from dsmr_export.runtime.performance import PIANO_RANGE, Performance

if TYPE_CHECKING:
    from miditok import MIDILike

CACHE_FORMAT = 1
"""Raise it when the canonical performance changes: what was cached before is then read again."""

_FEW = 8
"""So few files are read here: starting processes would take longer."""

Notes = NDArray[np.int32]
"""A performance as an array [N, 4] of start, end, pitch, velocity."""


@dataclass(frozen=True)
class TokenizedPiece:
    """One piece. ``performance`` int32 [N, 4]; ``ids`` int32 [T], BOS first and EOS last."""

    name: str
    split: str
    performance: Notes
    ids: NDArray[np.int32]
    dropped: int = 0


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
        return sum(len(piece.performance) for piece in self.pieces)

    @property
    def dropped(self) -> int:
        """Notes left out because the vocabulary has no token for their pitch."""
        return sum(piece.dropped for piece in self.pieces)


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
    source has nothing that can be read.
    """
    found = corpus.pieces(path, split, limit)
    folder = default_cache() if cache is None else cache
    recipe = hashlib.sha256(f"{CACHE_FORMAT} {tokens.to_json(tokenizer)}".encode()).hexdigest()
    done: dict[int, TokenizedPiece] = {}
    failed: dict[int, str] = {}
    missing: list[tuple[int, corpus.Piece, bytes, Path]] = []
    for index, (piece, data) in enumerate(corpus.read_all(found)):
        if isinstance(data, DataError):
            failed[index] = str(data)
            continue
        file = folder / f"{hashlib.sha256(recipe.encode() + data).hexdigest()}.npz"
        known = _from_cache(file, piece)
        if known is not None:
            done[index] = known
        else:
            missing.append((index, piece, data, file))
    for index, result in _tokenize_all(missing, tokenizer, workers, progress):
        if isinstance(result, str):
            failed[index] = result
        else:
            done[index] = result
    skipped = [(found[index].name, reason) for index, reason in sorted(failed.items())]
    _report(skipped, len(found))
    if not done:
        raise DataError(f"{path}: none of {len(found)} files could be read; the first: {skipped[0][1]}")
    return Corpus([done[index] for index in sorted(done)], skipped)


def default_cache() -> Path:
    """Where tokenized pieces are kept: a folder that may be deleted at any time."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("dsmr-export")) / "tokens"


def with_ends(ids: Sequence[int], tokenizer: MIDILike) -> NDArray[np.int32]:
    """BOS + ids + EOS: a whole piece, int32 [T + 2]."""
    special = tokens.special_ids(tokenizer)
    return np.array([special["bos"], *ids, special["eos"]], dtype=np.int32)


def augment(
    performance: Notes | Performance, semitones: int, tempo: float, pitch_range: tuple[int, int] = PIANO_RANGE
) -> Notes:
    """The performance transposed and played ``tempo`` times as fast, canonical again: int32 [N', 4].

    Notes that leave ``pitch_range`` are lost. The same as ``runtime.performance.canonical`` of the moved
    notes (a test says so), in numpy, because the trainer does it for every piece of every epoch.
    """
    start, end, pitch, velocity = np.array(performance, dtype=np.int32).reshape(-1, 4).T
    pitch = pitch + semitones
    start = np.floor(start / tempo + 0.5).astype(np.int32)
    end = np.maximum(np.floor(end / tempo + 0.5).astype(np.int32), start + 1)
    notes = np.stack([start, end, pitch, velocity], axis=1)[
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


def _tokenize_all(
    missing: list[tuple[int, corpus.Piece, bytes, Path]],
    tokenizer: MIDILike,
    workers: int | None,
    progress: bool,
) -> Iterator[tuple[int, TokenizedPiece | str]]:
    """(index, piece or the reason why not), in the order of completion."""
    if not missing:
        return
    workers = min(workers or _processors(), len(missing))
    with bars.counter("reading MIDI", len(missing), progress) as advance:
        if workers == 1 or len(missing) <= _FEW:
            for index, piece, data, file in missing:
                yield index, _tokenize(piece, data, file, tokenizer)
                advance(1)
            return
        # spawn, not fork: the child of a process with threads (torch, the progress bar) can hang.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            jobs = {
                pool.submit(_tokenize, piece, data, file, tokenizer): index
                for index, piece, data, file in missing
            }
            for job in as_completed(jobs):
                yield jobs[job], job.result()
                advance(1)


def _tokenize(piece: corpus.Piece, data: bytes, file: Path, tokenizer: MIDILike) -> TokenizedPiece | str:
    try:
        reading = midi.read(data, tokens.pitch_range(tokenizer), tokens.step_ms(tokenizer), piece.name)
    except MidiError as error:
        return str(error)
    performance = np.array(reading.performance, dtype=np.int32)
    ids = with_ends(tokens.encode(performance, tokenizer), tokenizer)
    packed = io.BytesIO()
    np.savez_compressed(packed, performance=performance, ids=ids, dropped=np.int32(reading.dropped))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        midi.write_atomically(file, packed.getvalue())
    except (OSError, OutputError):
        pass  # a cache that cannot be written (read-only home, full disk) costs time, nothing else
    return TokenizedPiece(piece.name, piece.split, performance, ids, reading.dropped)


def _from_cache(file: Path, piece: corpus.Piece) -> TokenizedPiece | None:
    try:
        with np.load(file) as stored:
            return TokenizedPiece(
                piece.name, piece.split, stored["performance"], stored["ids"], int(stored["dropped"])
            )
    except Exception:  # absent or damaged in whatever way: read the MIDI again
        return None


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
