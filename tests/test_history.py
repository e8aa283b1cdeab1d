"""What history is worth, against the plain-numpy reference and against what windows make certain."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsmr_export.errors import CheckpointError, DataError
from dsmr_export.model import checkpoint
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.config import ModelConfig
from dsmr_export.model.evaluate import evaluate, stream_nll
from dsmr_export.model.history import judge, krcu, truncation
from dsmr_export.model.network import DSMR
from dsmr_export.runtime import metrics
from tests.reference import forward

VOCABULARY = 17
EXACT = 1e-9
"""Nats: the networks here compute in float64."""


def random_network(horizons: tuple[int, ...], seed: int = 1) -> DSMR:
    """Float64, with weights so large that every token of a window counts."""
    shape = ModelConfig(len(horizons), 2, 1, 16, 24, 32, VOCABULARY)
    made = DSMR(shape, horizons, dropout=0.5).double()
    made.initialize(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 2:
                weight.mul_(15)
    return made


def random_pieces(*lengths: int) -> list[list[int]]:
    """`lengths` tokens after BOS each."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCABULARY, length + 1).tolist() for length in lengths]


def by_hand(network: DSMR, ids: list[int], start: int = 0) -> NDArray[np.float64]:
    """-log p of every token after the first, by one pass of plain numpy; ids[0] stands at `start`."""
    config = network.config
    logits = forward(
        {name: tensor.numpy() for name, tensor in network.state_dict().items()},
        ids[:-1],
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        horizons=network.horizons,
        rope_base=config.rope_base,
        norm_eps=config.norm_eps,
        start=start,
    )
    return metrics.nll(logits, ids[1:])


# --- truncated histories ------------------------------------------------------------------------------------


def test_truncation_is_what_a_shorter_piece_gives() -> None:
    network, pieces = random_network((9, 14)), random_pieces(61, 30, 24, 23)
    rows = truncation(
        network, pieces, evaluate(network, pieces), retain=(5, 16, 99), window=8, segment=7, lanes=2
    )
    assert [(row["retain"], row["pieces"], row["tokens"]) for row in rows] == [
        (5, 4, 32),
        (16, 2, 16),
        (99, 0, 0),
    ]
    for row in rows[:2]:
        # longer than R + window: 24 tokens are all the history that 16 + 8 asks for, nothing is truncated
        chosen = [ids for ids in pieces if len(ids) - 1 > row["retain"] + 8]
        cut = [
            by_hand(network, ids[-(row["retain"] + 9) :], len(ids) - row["retain"] - 9)[-8:] for ids in chosen
        ]
        full = [by_hand(network, ids)[-8:] for ids in chosen]
        assert row["nats_per_token"] == pytest.approx(np.mean(cut), abs=EXACT)
        assert row["full_nats_per_token"] == pytest.approx(np.mean(full), abs=EXACT)
        assert row["increase"] == pytest.approx(np.mean(cut) - np.mean(full), abs=EXACT)
        assert abs(row["increase"]) > 1e-3 and row["window"] == 8
    assert [rows[2][key] for key in ("nats_per_token", "full_nats_per_token", "increase")] == [None] * 3


@settings(max_examples=15)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(1, 20), st.integers(1, 9))
def test_truncation_costs_nothing_once_it_keeps_all_that_is_read(
    horizons: list[int], beyond: int, window: int
) -> None:
    reach = sum(horizons)
    network, pieces = random_network(tuple(horizons)), random_pieces(70, 41)
    evaluation = evaluate(network, pieces)
    (enough, more) = truncation(network, pieces, evaluation, retain=(reach, reach + beyond), window=window)
    for row in (enough, more):
        assert row["pieces"] == 0 or abs(row["increase"]) < EXACT
    # and of a history longer than that, all of it gives what its last part gives
    fed = reach + beyond
    if more["pieces"]:
        chosen = [ids for ids in pieces if len(ids) - 1 > fed + window]
        origins = [len(ids) - 1 - window - fed for ids in chosen]
        whole = stream_nll(network, [i[o:] for i, o in zip(chosen, origins, strict=True)], origins)
        kept = np.mean([nll[-window:] for nll in whole])
        assert more["nats_per_token"] == pytest.approx(kept, abs=EXACT)


# --- KRCU ---------------------------------------------------------------------------------------------------


def test_krcu_is_the_difference_of_two_passes() -> None:
    network, pieces = random_network((9, 14)), random_pieces(61, 47, 40, 33, 24, 20)
    found = krcu(network, pieces, evaluate(network, pieces), reset_at=24, width=8, bins=3, segment=5, lanes=2)
    long_enough = pieces[:4]  # more than 24 tokens
    increase = [by_hand(network, ids[24:], 24) - by_hand(network, ids)[24:] for ids in long_enough]
    bins = [np.concatenate([part[start : start + 8] for part in increase]) for start in (0, 8, 16)]
    assert found["reset_at"] == 24 and found["pieces"] == 4
    assert [(row["from"], row["to"]) for row in found["bins"]] == [(24, 32), (32, 40), (40, 48)]
    # 61, 47, 40 and 33 tokens reach 8, 7, 0 and 0 tokens into the last bin
    assert [row["tokens"] for row in found["bins"]] == [32, 8 + 8 + 8 + 1, 8 + 7]
    for row, values in zip(found["bins"], bins, strict=True):
        assert row["increase"] == pytest.approx(values.mean(), abs=EXACT)
    assert found["auc"] == pytest.approx(np.mean([values.mean() for values in bins]), abs=EXACT)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 20))
def test_influence_ends_where_the_horizons_end(horizons: list[int], lanes: int, segment: int) -> None:
    """By construction: Σ horizons tokens after the reset nothing is missing, and before that something is."""
    reach = sum(horizons)
    network, pieces = random_network(tuple(horizons)), random_pieces(100, 80, 64)
    evaluation = evaluate(network, pieces)
    one_by_one = krcu(network, pieces, evaluation, 30, width=1, bins=40, segment=segment, lanes=lanes)["bins"]
    increases = np.abs([row["increase"] for row in one_by_one])
    assert increases[reach:].max(initial=0) < EXACT
    assert increases[:reach].max() > 1e-4
    # in bins no narrower than that only the first is not zero
    first, *rest = krcu(network, pieces, evaluation, 30, width=reach, bins=3)["bins"]
    assert all(abs(row["increase"]) < EXACT for row in rest) and len(rest) == 2


def test_horizons_within_a_bin_at_full_scale() -> None:
    """The issue's own words: reset at 8k, Σ h_l <= 1k, every bin from the second on is zero. In float32."""
    network = random_network((512, 300, 212)).float()
    pieces = random_pieces(8192 + 2500, 8192)
    found = krcu(network, pieces, evaluate(network, pieces))
    assert found["pieces"] == 1 and [row["tokens"] for row in found["bins"]] == [1024, 1024, 452]
    first, *later = (row["increase"] for row in found["bins"])
    assert abs(first) > 1e-3
    # the same sums in another order: float32 rounding of single logits is some 1e-6
    assert max(abs(increase) for increase in later) < 1e-5


def test_no_piece_is_long_enough() -> None:
    network, pieces = random_network((3, 4)), random_pieces(20, 12)
    found = krcu(network, pieces, evaluate(network, pieces), reset_at=20)
    assert found == {"reset_at": 20, "pieces": 0, "auc": None, "bins": []}


def test_both_tell_how_far_they_are() -> None:
    network, pieces = random_network((3, 4)), random_pieces(40, 30)
    evaluation = evaluate(network, pieces)
    told: list[tuple[float, float]] = []
    krcu(network, pieces, evaluation, 10, 4, 2, segment=3, progress=lambda *now: told.append(now))
    assert told[-1] == (16, 16) and [done for done, _ in told] == sorted(done for done, _ in told)
    told.clear()
    truncation(network, pieces, evaluation, (2, 4), 6, segment=3, progress=lambda *now: told.append(now))
    assert told[-1] == (2 * (2 + 6) + 2 * (4 + 6), 36)


# --- the whole judgement ------------------------------------------------------------------------------------


def piece(ids: list[int] | NDArray[Any], name: str = "a piece") -> Any:
    return SimpleNamespace(name=name, ids=np.array(ids, dtype=np.uint16))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    from tests.exported import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("judge") / "tiny")


def test_judge_counts_what_the_music_says(source: checkpoint.Checkpoint) -> None:
    """Two notes of 0.5 s and a chord after a rest, by hand; nats shared out over notes and seconds."""
    vocabulary = source.tokenizer().vocab
    words = [
        "BOS_None",
        *("TimeShift_0.25.50", "NoteOn_60", "Velocity_63", "TimeShift_1.0.50", "NoteOff_60"),
        *("TimeShift_2.0.50", "NoteOn_64", "Velocity_63", "NoteOn_67", "Velocity_63"),
        *("TimeShift_1.0.50", "NoteOff_64", "NoteOff_67", "EOS_None"),
    ]
    music = piece([vocabulary[word] for word in words])
    found = judge(source, [music, music])
    assert (found["pieces"], found["notes"], found["tokens"]) == (2, 6, 2 * (len(words) - 1))
    assert found["seconds"] == pytest.approx(2 * (0.25 + 0.5 + 1.0 + 0.5))
    nats = found["nats_per_token"] * found["tokens"]
    assert found["nats_per_note"] == pytest.approx(nats / 6)
    assert found["nats_per_second"] == pytest.approx(nats / found["seconds"])
    assert found["perplexity"] == pytest.approx(math.exp(found["nats_per_token"]))
    assert found["schedule"] == {
        "name": "explicit",
        "text": "70,5,1",
        "horizons": [70, 5, 1],
        "budget_tokens": 76,
    }
    assert found["state_bytes"] == 76 * source.config.kv_bytes_per_token
    # a network and its tokenizer give the same, but for the schedule's name
    assert judge(source.network(), [music, music], source.tokenizer()) == found


def test_judge_without_notes_has_no_figure_per_note(source: checkpoint.Checkpoint) -> None:
    special = tokens.special_ids(source.tokenizer())
    found = judge(source, [piece([special["bos"], special["eos"]])])
    assert found["tokens"] == 1 and found["nats_per_note"] is None and found["nats_per_second"] is None
    assert found["krcu"]["auc"] is None and found["krcu"]["bins"] == []


def test_judge_refuses_what_it_cannot_read(source: checkpoint.Checkpoint) -> None:
    special = tokens.special_ids(source.tokenizer())
    bos, eos = special["bos"], special["eos"]
    with pytest.raises(DataError, match="no piece to evaluate"):
        judge(source, [])
    for ids in ([bos, 311, eos], [5, 6, eos], [bos, 6], [bos], []):
        with pytest.raises(
            DataError, match=r"of another kind: its ids do not go from BOS \(1\) to EOS \(2\)"
        ):
            judge(source, [piece([bos, eos]), piece(ids, "of another kind")])
    with pytest.raises(CheckpointError, match="tokenizer has 311 tokens, the network's vocab_size is 17"):
        judge(random_network((2, 3)), [piece([bos, eos])])
