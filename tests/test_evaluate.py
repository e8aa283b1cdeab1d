"""Perplexity over streamed pieces, against one pass of plain numpy over each and sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dsmr_export.model.config import ModelConfig
from dsmr_export.model.evaluate import Evaluation, evaluate
from dsmr_export.model.network import DSMR
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


@pytest.mark.parametrize(("segment", "lanes"), [(7, 2), (512, 8), (1, 1)])
def test_streamed_is_one_pass(network: DSMR, pieces: list[list[int]], segment: int, lanes: int) -> None:
    result = evaluate(network, pieces, segment, lanes)
    for found, piece in zip(result.nll, pieces, strict=True):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, by_hand(network, piece), atol=1e-9)


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
