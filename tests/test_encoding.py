"""Whole pieces encoded and decoded in numpy, against miditok and against the runtime's, event by event."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miditok import MIDILike, TokenizerConfig

from dsmr_export import corpus
from dsmr_export.errors import CheckpointError
from dsmr_export.model import data
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.encoding import Codec
from dsmr_export.runtime import events, midi
from dsmr_export.runtime.events import EventTable
from dsmr_export.runtime.performance import Note, Performance, canonical

TOKENIZER = tokens.default_tokenizer()
CODEC = Codec.of(TOKENIZER)
TABLE = CODEC.table
BINS = np.array(sorted(TABLE.velocities))

TWO_RESOLUTIONS_OF_MIDITOK = MIDILike(
    TokenizerConfig(
        beat_res={(0, 1): 50, (1, 4): 10},
        special_tokens=["PAD", "BOS", "EOS"],
        use_pitchdrum_tokens=False,
        use_time_signatures=False,
    )
)
TWO_RESOLUTIONS = Codec.of(TWO_RESOLUTIONS_OF_MIDITOK)

PERFORMANCES = st.lists(
    st.builds(
        lambda start, length, pitch, velocity: Note(start, start + length, pitch, velocity),
        st.integers(0, 700) | st.sampled_from([99, 100, 101, 200, 12_345]),
        st.integers(1, 400),
        st.integers(58, 62) | st.integers(21, 108),
        st.integers(1, 127),
    ),
    max_size=25,
).map(canonical)

IDS = st.lists(
    st.integers(0, len(TABLE) - 1) | st.sampled_from([0, 1, 2, 42, 43, 130, 131, 190, 191, 211, 212]),
    max_size=60,
)


def binned(notes: Performance) -> list[list[int]]:
    """Rows of the notes with velocities replaced by the nearest that has a token, ties to the louder."""
    rows = []
    for start, end, pitch, velocity in notes:
        distance = np.abs(BINS - velocity)
        rows.append([start, end, pitch, int(BINS[distance == distance.min()].max())])
    return rows


def test_every_bundled_piece_is_encoded_as_by_miditok_and_comes_back() -> None:
    pieces = data.load(None, None, TOKENIZER, progress=False).pieces  # ids by miditok
    assert len(pieces) == 113
    for piece in pieces:
        notes = CODEC.decode(piece.ids)
        assert notes.dtype == np.int32
        assert notes.tolist() == [list(note) for note in events.decode(piece.ids.tolist(), TABLE)], piece.name
        assert CODEC.encode(notes).tolist() == piece.ids[1:-1].tolist(), piece.name
        assert CODEC.piece(notes).tolist() == piece.ids.tolist()


def test_files_as_mido_reads_them_are_encoded_as_by_miditok() -> None:
    """With the velocities of the files, which decoded pieces no longer have."""
    for piece in corpus.pieces(None, "test")[:2]:
        notes = midi.read_midi(piece.read())
        ids = CODEC.encode(np.array(notes, dtype=np.int32))
        assert ids.dtype == np.uint16
        assert ids.tolist() == tokens.encode(notes, TOKENIZER)
        assert CODEC.decode(ids).tolist() == binned(notes)


@given(PERFORMANCES)
def test_any_performance_is_encoded_as_by_miditok_and_by_the_runtime(notes: Performance) -> None:
    ids = CODEC.encode(notes).tolist()
    assert ids == tokens.encode(notes, TOKENIZER)
    assert ids == events.encode(notes, TABLE)


@given(PERFORMANCES)
def test_decoded_again_only_velocities_are_rounded(notes: Performance) -> None:
    for ids in (CODEC.encode(notes), CODEC.piece(notes)):
        found = CODEC.decode(ids)
        assert found.shape == (len(notes), 4)
        assert found.tolist() == binned(notes)
        assert found.tolist() == [list(note) for note in events.decode(ids.tolist(), TABLE)]


@given(IDS)
def test_any_ids_are_decoded_as_by_the_runtime(ids: list[int]) -> None:
    expected = [list(note) for note in events.decode(ids, TABLE)]
    assert CODEC.decode(ids).tolist() == expected
    assert CODEC.decode(np.array(ids, dtype=np.uint16)).tolist() == expected


@given(PERFORMANCES, st.data())
def test_a_changed_piece_is_decoded_as_by_the_runtime(notes: Performance, change: st.DataObject) -> None:
    """One id lost, doubled or replaced: nearly what `encode` writes."""
    ids = CODEC.piece(notes).tolist()
    place = change.draw(st.integers(0, len(ids) - 1))
    ids[place : place + 1] = change.draw(
        st.sampled_from([[], [ids[place]] * 2]) | st.integers(0, len(TABLE) - 1).map(lambda token: [token])
    )
    assert CODEC.decode(ids).tolist() == [list(note) for note in events.decode(ids, TABLE)]


def test_nothing_is_encoded_as_nothing() -> None:
    assert CODEC.encode([]).tolist() == [] and CODEC.encode([]).dtype == np.uint16
    assert CODEC.piece(np.zeros((0, 4), dtype=np.int32)).tolist() == [1, 2]
    assert CODEC.decode([]).shape == CODEC.decode([1, 2]).shape == (0, 4)


@given(PERFORMANCES)
def test_gaps_without_a_token_of_their_own_are_said_as_the_runtime_says_them(notes: Performance) -> None:
    steps = [value if value in (1, 5, 20) else 20 for value in range(1, 101)]
    kept = iter(steps)
    values = [
        next(kept) if kind == "shift" else value
        for kind, value in zip(TABLE.kinds, TABLE.values, strict=True)
    ]
    few = dataclasses.replace(TABLE, values=tuple(values))
    ids = Codec(few).encode(notes).tolist()
    assert ids == events.encode(notes, few)
    assert Codec(few).decode(ids).tolist() == binned(notes)


@given(PERFORMANCES)
def test_coarser_long_shifts_are_chained_as_by_miditok(notes: Performance) -> None:
    assert TWO_RESOLUTIONS.encode(notes).tolist() == tokens.encode(notes, TWO_RESOLUTIONS_OF_MIDITOK)
    assert TWO_RESOLUTIONS.decode(TWO_RESOLUTIONS.encode(notes))[:, :3].tolist() == [
        list(note[:3]) for note in notes
    ]


def table_of(shifts: int) -> EventTable:
    return EventTable(
        10,
        ("special", "special", "on", "off", "velocity", *["shift"] * shifts),
        ("bos", "eos", 60, 60, 64, *range(1, shifts + 1)),
    )


def test_a_vocabulary_of_16_bits_is_the_largest() -> None:
    largest = Codec(table_of(65_536 - 5))
    notes = [Note(65_531, 65_532, 60, 64)]
    assert largest.encode(notes).tolist() == [65_535, 2, 4, 5, 3]
    assert largest.decode(largest.encode(notes)).tolist() == [list(notes[0])]
    with pytest.raises(CheckpointError, match="65,537 ids does not fit the 16 bits a token"):
        Codec(table_of(65_537 - 5))


def test_a_vocabulary_without_ends_is_refused() -> None:
    headless = dataclasses.replace(table_of(3), values=("pad", "eos", 60, 60, 64, 1, 2, 3))
    with pytest.raises(CheckpointError, match="has no BOS or no EOS token"):
        Codec(headless)
