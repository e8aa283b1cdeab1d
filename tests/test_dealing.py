"""Which piece a lane reads next: from the seed alone, every piece once an epoch, lanes level."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export.model import data
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.dealing import Dealer, PieceSource
from tests.training_runs import tiny, write_scales

TOKENIZER = tokens.default_tokenizer()
LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[data.TokenizedPiece]:
    folder = write_scales(tmp_path_factory.mktemp("corpus"))
    return data.load(folder, "train", TOKENIZER, progress=False).pieces


def test_draws_follow_from_the_seed_alone(pieces: list[data.TokenizedPiece]) -> None:
    one, two = (PieceSource(pieces, TOKENIZER, tiny(seed=3)) for _ in range(2))
    first = [one.draw(n).tolist() for n in range(8)]
    assert first == [two.draw(n).tolist() for n in reversed(range(8))][::-1]  # whatever was drawn before
    other = PieceSource(pieces, TOKENIZER, tiny(seed=4))
    assert first != [other.draw(n).tolist() for n in range(8)]
    assert first[:4] != first[4:]  # another epoch: another order, other keys


def test_every_piece_once_an_epoch(pieces: list[data.TokenizedPiece]) -> None:
    source = PieceSource(pieces, TOKENIZER, tiny(transpose=0, tempo=0.0, velocity=0))
    plain = sorted(piece.ids.tolist() for piece in pieces)
    for epoch in range(3):
        assert sorted(source.draw(4 * epoch + n).tolist() for n in range(4)) == plain
        assert [source.epoch(4 * epoch + n) for n in range(4)] == [epoch] * 4


def test_augmentation_stays_in_its_bounds_and_uses_them(pieces: list[data.TokenizedPiece]) -> None:
    """Against the plain piece: how far the first note moved, and how much longer the whole became."""
    source = PieceSource(pieces[:1], TOKENIZER, tiny(transpose=2, tempo=0.25))
    plain = pieces[0].performance
    table = tokens.event_table(TOKENIZER)["tokens"]
    moves, factors = set(), []
    for n in range(60):
        drawn = [table[token] for token in source.draw(n).tolist()]
        first = next(entry["value"] for entry in drawn if entry["kind"] == "on")
        moves.add(first - int(plain[0, 2]))
        factors.append(sum(e["value"] for e in drawn if e["kind"] == "shift") / int(plain[:, 1].max()))
    assert moves == {-2, -1, 0, 1, 2}
    assert 1 / 1.25 - 0.01 < min(factors) < 0.85 and 1.18 < max(factors) < 1.25 + 0.01


# Dealing


class Lengths(PieceSource):
    """A source of which only the lengths matter."""

    def __init__(self, lengths: list[int], seed: int) -> None:
        self.pieces, self.config, self.lengths = lengths, tiny(seed=seed), np.array(lengths)


@given(LENGTHS, st.integers(1, 5), st.integers(0, 3))
def test_lanes_share_every_epoch_out(lengths: list[int], lanes: int, seed: int) -> None:
    """Read as fast as they are, lanes stay level, and all draws of an epoch are read once and in time.

    Each lane is dealt at most its share of an epoch and one piece more (list scheduling).
    """
    source = Lengths(lengths, seed)
    dealer = Dealer(source, lanes)
    read, taken = [0] * lanes, Counter()
    while min(read) < sum(lengths) / lanes + max(lengths):
        lane = read.index(min(read))
        draw = dealer.take(lane)
        taken[draw] += 1
        read[lane] += lengths[source.order(draw // len(lengths))[draw % len(lengths)]]
        assert max(read) - min(read) <= 2 * max(lengths)
    assert set(taken.values()) == {1}
    assert set(range(len(lengths))) <= set(taken)


@given(LENGTHS, st.integers(1, 5), st.integers(0, 30))
def test_a_lane_goes_on_where_it_was(lengths: list[int], lanes: int, takes: int) -> None:
    one, two = (Dealer(Lengths(lengths, 1), lanes) for _ in range(2))
    last = [-1] * lanes
    for n in range(takes):
        last[n % lanes] = one.take(n % lanes)
    for lane, draw in enumerate(last):
        two.seek(lane, draw)
    assert [one.take(lane) for lane in range(lanes)] == [two.take(lane) for lane in range(lanes)]


def test_a_lane_reads_the_same_whoever_owns_the_others() -> None:
    """A worker that asks for its own lanes only gets what a single process would give them."""
    alone, shared = (Dealer(Lengths([5, 9, 2, 7, 7, 1], 0), 4) for _ in range(2))
    expected = [[alone.take(lane) for lane in range(4)] for _ in range(20)]
    assert [[shared.take(lane) for lane in (2, 3)] for _ in range(20)] == [row[2:] for row in expected]
