"""Perplexity over streamed pieces, against one pass of plain numpy over each and sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dsmr_export.model.config import ModelConfig
from dsmr_export.model.evaluate import Evaluation, evaluate, music, stream_nll
from dsmr_export.model.network import DSMR, RecurrentState
from dsmr_export.runtime.events import EventTable, decode, encode
from tests.reference import forward

SHAPE = ModelConfig(layers=2, heads=2, kv_heads=1, head_dim=16, d_model=24, d_ff=32, vocab_size=17)
HORIZONS = (4, 11)


@pytest.fixture
def network() -> DSMR:
    made = DSMR(SHAPE, HORIZONS, dropout=0.5).double()
    made.initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 2:
                weight.mul_(15)
    return made


@pytest.fixture
def pieces() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 17, length).tolist() for length in (31, 2, 50, 18, 7)]


def by_hand(network: DSMR, piece: list[int]) -> list[float]:
    """-log p of every token after the first, from the whole sequence at once."""
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    logits = forward(
        weights,
        piece[:-1],
        heads=2,
        kv_heads=1,
        head_dim=16,
        horizons=HORIZONS,
        rope_base=SHAPE.rope_base,
        norm_eps=SHAPE.norm_eps,
    )
    return [-(row[token] - math.log(np.exp(row).sum())) for row, token in zip(logits, piece[1:], strict=True)]


@pytest.mark.parametrize(("segment", "lanes"), [(7, 2), (512, 8), (1, 1), (3, 5)])
def test_streamed_is_one_pass(network: DSMR, pieces: list[list[int]], segment: int, lanes: int) -> None:
    """In segments, lanes side by side, is one forward over the whole piece is the plain-numpy reference."""
    result = evaluate(network, pieces, segment, lanes)
    network.eval()
    for found, piece in zip(result.nll, pieces, strict=True):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, by_hand(network, piece), atol=1e-9)
        with torch.no_grad():
            logits, _ = network(torch.tensor([piece[:-1]]), network.empty_state())
        log_p = logits[0].log_softmax(-1)[torch.arange(len(piece) - 1), piece[1:]]
        np.testing.assert_allclose(found, -log_p.numpy(), atol=1e-9)


def test_a_stretch_begins_empty_at_its_own_position(network: DSMR, pieces: list[list[int]]) -> None:
    """What a lane read before leaves no trace; and as rotary attention sees differences of positions only,
    the origin changes nothing but rounding."""
    stretches = [pieces[0][9:], pieces[2][20:41], pieces[3], pieces[2][20:41]]
    found = stream_nll(network, stretches, [9, 20, 0, 10**9], segment=4, lanes=2)
    for nll, stretch in zip(found, stretches, strict=True):
        np.testing.assert_allclose(nll, by_hand(network, stretch), atol=1e-6)


def test_lanes_count_positions_from_the_origin(network: DSMR, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    forward = network.forward

    def watched(ids: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        seen.append(state.position.tolist())
        return forward(ids, state)

    monkeypatch.setattr(network, "forward", watched)
    stream_nll(network, [[1] * 9, [2] * 5, [3] * 4], [100, 8192, 7], segment=4, lanes=2)
    # two lanes: 8 tokens from 100 on; 4 from 8192 on, then 3 from 7 on
    assert seen == [[100, 8192], [104, 7]]


def test_bins_by_position() -> None:
    long, short = np.arange(40000.0) / 40000, np.full(1025, 2.0)
    rows = Evaluation([long, short]).by_position()
    edges = [0, 1024, 4096, 8192, 16384, 24576, 32768]
    assert [(row["from"], row["to"]) for row in rows] == list(zip(edges, [*edges[1:], None], strict=True))
    assert [row["tokens"] for row in rows] == [2048, 3073, 4096, 8192, 8192, 8192, 40000 - 32768]
    assert [row["pieces"] for row in rows] == [2, 2, 1, 1, 1, 1, 1]
    assert rows[0]["nats_per_token"] == pytest.approx((2.0 + 1023 / 2 / 40000) / 2)
    assert rows[1]["nats_per_token"] == pytest.approx((2.0 + sum(range(1024, 4096)) / 40000) / 3073)
    assert rows[-1]["nats_per_token"] == pytest.approx((32768 + 39999) / 2 / 40000)
    assert all(row["perplexity"] == pytest.approx(math.exp(row["nats_per_token"])) for row in rows)
    # what has no tokens is left out, and nothing is lost
    assert [row["from"] for row in Evaluation([short]).by_position()] == [0, 1024]
    total = sum(row["tokens"] * row["nats_per_token"] for row in rows)
    assert total == pytest.approx(Evaluation([long, short]).nats)


TABLE = EventTable(
    10,
    ("special", "special", "special", "on", "on", "off", "off", "velocity", "shift", "shift", "shift"),
    ("pad", "bos", "eos", 60, 62, 60, 62, 64, 1, 2, 7),
)
NOTES = st.tuples(st.integers(0, 40), st.integers(1, 30), st.sampled_from((60, 62)))


@given(st.lists(NOTES, max_size=12))
def test_notes_and_seconds_are_those_of_the_decoded_piece(drawn: list[tuple[int, int, int]]) -> None:
    from dsmr_export.runtime.performance import Note, canonical

    performance = canonical([Note(start, start + length, pitch, 64) for start, length, pitch in drawn])
    ids = [1, *encode(performance, TABLE), 2]
    notes = decode(ids, TABLE)
    assert notes == performance
    assert music(ids, TABLE) == (len(notes), pytest.approx(max((n.end for n in notes), default=0) / 100))


def test_silence_after_the_last_note_is_not_music() -> None:
    assert music([1, 10, 3, 7, 9, 5, 10, 10, 2], TABLE) == (1, pytest.approx(0.09))
    assert music([1, 10, 2], TABLE) == (0, 0.0)


def test_perplexity_weighs_tokens_not_pieces() -> None:
    result = Evaluation([np.log([2.0, 4.0, 8.0]), np.log([32.0])])
    # (1 + 2 + 3 + 5) bits over 4 tokens; pieces: 4 and 32
    assert result.tokens == 4
    assert result.nats_per_token == pytest.approx(11 / 4 * math.log(2))
    assert result.perplexity == pytest.approx(2 ** (11 / 4))
    assert result.per_piece_mean == pytest.approx((4 + 32) / 2)


def test_progress_is_told_every_token_and_the_mode_is_kept(network: DSMR, pieces: list[list[int]]) -> None:
    told: list[int] = []
    network.train()
    result = evaluate(network, pieces, 8, 2, told.append)
    assert network.training
    assert len(told) > 2 and sum(told) == result.tokens == sum(len(piece) - 1 for piece in pieces)
    network.eval()
    again = evaluate(network, pieces, 8, 2)
    assert not network.training
    assert again.perplexity == result.perplexity  # dropout was off both times
