"""Lanes: every token of every piece is read once, in order, and each piece begins with an empty state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export.model.lanes import IGNORE, Batch, Ids, Lanes

LENGTHS = st.lists(st.integers(1, 40), max_size=8)


def pieces_of(lengths: list[int]) -> list[list[int]]:
    """Ids that say where they are from: piece · 100 + place."""
    return [[100 * (n + 1) + place for place in range(length)] for n, length in enumerate(lengths)]


def dealt(pieces: Sequence[Ids], lanes: int, segment: int) -> Lanes:
    return Lanes(lambda n: pieces[n] if n < len(pieces) else None, lanes, segment)


def drain(source: Lanes) -> list[Batch]:
    batches = []
    while (batch := source.next()) is not None:
        batches.append(batch)
    return batches


@given(LENGTHS, st.integers(1, 4), st.integers(1, 16))
def test_every_piece_is_read_once_from_left_to_right(lengths: list[int], lanes: int, segment: int) -> None:
    pieces = pieces_of(lengths)
    inputs: dict[int, list[int]] = defaultdict(list)
    targets: dict[int, list[int]] = defaultdict(list)
    read_by: dict[int, set[int]] = defaultdict(set)
    for batch in drain(dealt(pieces, lanes, segment)):
        assert batch.input_ids.shape == batch.targets.shape == (lanes, segment)
        assert batch.starts.shape == (lanes,) and batch.input_ids.dtype == batch.targets.dtype == torch.int64
        for lane, draw in enumerate(batch.draws):
            real = batch.targets[lane] != IGNORE
            assert draw >= 0 or not real.any()  # an idle lane predicts nothing
            if draw < 0:
                continue
            # emptied exactly where a piece begins; a tail is masked at the end only
            assert bool(batch.starts[lane]) == (draw not in read_by)
            assert real.tolist() == sorted(real.tolist(), reverse=True)
            inputs[draw] += batch.input_ids[lane][real].tolist()
            targets[draw] += batch.targets[lane][real].tolist()
            read_by[draw].add(lane)
    assert sorted(read_by) == list(range(len(pieces)))
    assert all(len(found) == 1 for found in read_by.values())
    for n, piece in enumerate(pieces):
        assert inputs[n] == piece[:-1] and targets[n] == piece[1:]


@given(LENGTHS, st.integers(1, 3), st.integers(1, 8))
def test_a_lane_goes_on_at_once(lengths: list[int], lanes: int, segment: int) -> None:
    """No batch is spent on waiting: as many as in list scheduling, each piece to the lane free first."""
    free = [0] * lanes
    for length in lengths:
        lane = free.index(min(free))
        free[lane] += max(1, -(-(length - 1) // segment))
    assert len(drain(dealt(pieces_of(lengths), lanes, segment))) == max(free)


def test_tokens_are_those_that_are_predicted() -> None:
    batches = drain(dealt(pieces_of([7, 3]), 2, 4))
    assert [batch.tokens for batch in batches] == [4 + 2, 2]
    assert [batch.starts.tolist() for batch in batches] == [[True, True], [False, True]]
    assert [batch.draws for batch in batches] == [[0, 1], [0, -1]]


def test_no_pieces_no_batches() -> None:
    assert drain(dealt([], 3, 4)) == []


@given(LENGTHS, st.integers(1, 3), st.integers(1, 8), st.integers(0, 12))
def test_seek_goes_back_to_the_cursor(lengths: list[int], lanes: int, segment: int, steps: int) -> None:
    pieces = [np.array(piece, dtype=np.int32) for piece in pieces_of(lengths)]  # as data.load gives them
    source = dealt(pieces, lanes, segment)
    for _ in range(steps):
        source.next()
    again = dealt(pieces, lanes, segment)
    again.seek(source.cursor())
    for one, two in zip(drain(source), drain(again), strict=True):
        assert torch.equal(one.input_ids, two.input_ids) and torch.equal(one.targets, two.targets)
        assert torch.equal(one.starts, two.starts) and one.draws == two.draws


def test_a_cursor_is_not_changed_by_going_on() -> None:
    source = dealt(pieces_of([9, 9, 9]), 2, 4)
    source.next()
    cursor = source.cursor()
    kept = {name: list(value) if isinstance(value, list) else value for name, value in cursor.items()}
    drain(source)
    assert cursor == kept
