"""A step in several segments, and a step in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dsmr_export.model import data, run_folder
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.lanes import IGNORE
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.model.trainer import Trainer
from tests.training_runs import tiny, write_walks

TOKENIZER = tokens.default_tokenizer()


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[data.TokenizedPiece]:
    return data.load(write_walks(tmp_path_factory.mktemp("walks")), "train", TOKENIZER, progress=False).pieces


def trainer(config: TrainConfig, out: Path, pieces: list[data.TokenizedPiece]) -> Trainer:
    return Trainer(config, out, pieces, TOKENIZER, about={"data": "made up"})


def test_two_segments_a_step_are_one_loss_over_both(
    pieces: list[data.TokenizedPiece], tmp_path: Path
) -> None:
    """Weights after the step, against one backward pass over both segments written out here.

    Gradients stop where a segment begins, in both; what is equal is the sum, the clipping and the update.
    """
    accumulated, by_hand = (trainer(tiny(accumulate=2, dropout=0.0), tmp_path, pieces) for _ in range(2))
    row = accumulated.step()

    state, nll, count = by_hand.state, torch.zeros(()), 0
    for _ in range(2):
        batch = by_hand.lanes.next()
        assert batch is not None
        logits, state = by_hand.network(batch.input_ids, state.reset(batch.starts))
        targets = batch.targets.flatten()
        nll = nll + F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORE, reduction="sum")
        count += int((targets != IGNORE).sum())
    loss = nll / count
    loss.backward()
    torch.nn.utils.clip_grad_norm_(by_hand.network.parameters(), by_hand.config.clip_norm)
    for group in by_hand.optimizer.param_groups:
        group["lr"] = by_hand.learning_rate()
    by_hand.optimizer.step()

    assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert row["tokens"] == count == accumulated.meter.tokens
    for one, other in zip(accumulated.network.parameters(), by_hand.network.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)  # sums of float32 in another order


def test_two_segments_a_step_see_what_one_of_twice_the_length_sees(
    pieces: list[data.TokenizedPiece], tmp_path: Path
) -> None:
    """The first loss is the same: no cut changes a prediction. (Gradients do reach further back in one.)"""
    two = trainer(tiny(accumulate=2, segment=16, dropout=0.0), tmp_path, pieces).step()
    one = trainer(tiny(accumulate=1, segment=32, dropout=0.0), tmp_path, pieces).step()
    assert min(len(piece.ids) for piece in pieces) > 33  # neither reaches a piece's end
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert two["tokens"] == one["tokens"]


def test_a_bf16_run_keeps_half_the_state_and_goes_on_exactly(
    pieces: list[data.TokenizedPiece], tmp_path: Path
) -> None:
    whole = trainer(tiny(precision="bf16"), tmp_path, pieces)
    exact = trainer(tiny(precision="fp32"), tmp_path, pieces)
    assert whole.step()["loss"] == pytest.approx(exact.step()["loss"], rel=0.01)  # 8 bits
    assert 2 * whole.state.nbytes == exact.state.nbytes
    assert all(p.dtype == torch.float32 for p in whole.network.parameters())
    whole.save()
    resumed = trainer(tiny(precision="bf16"), tmp_path, pieces)
    resumed.load(*run_folder.read_saved(tmp_path))
    assert {t.dtype for pair in resumed.state.layers for t in pair} == {torch.bfloat16}
    assert [resumed.step()["loss"] for _ in range(3)] == [whole.step()["loss"] for _ in range(3)]


def test_a_state_between_segments_is_no_larger_than_it_says(
    pieces: list[data.TokenizedPiece], tmp_path: Path
) -> None:
    """Not a view of the tensor that holds the segment's rows too."""
    made = trainer(tiny(), tmp_path, pieces)
    made.step()
    held = sum(t.untyped_storage().nbytes() for pair in made.state.layers for t in pair)
    assert held == made.state.nbytes
