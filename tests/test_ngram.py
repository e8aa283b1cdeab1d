"""The Kneser-Ney baseline: a distribution, and the formula counted independently with dictionaries."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsmr_export.model import ngram
from dsmr_export.model.ngram import FALLBACK, KneserNey, discounts, nats_per_token

V = 7
BOS = 1
corpora = st.lists(st.lists(st.integers(2, V - 1), min_size=1, max_size=40), min_size=1, max_size=5)


def piece(tokens: list[int]) -> NDArray[np.int32]:
    return np.array([BOS, *tokens], dtype=np.int32)


def brute_force(corpus: list[list[int]], order: int, history: list[int], token: int) -> float:
    """p(token | history) from dictionaries of tuples, by recursion, as the formula reads; no code shared."""
    raw: Counter[tuple[int, ...]] = Counter()
    for tokens in corpus:
        padded = [BOS] * (order - 1) + tokens
        for end in range(order, len(padded) + 1):
            raw[tuple(padded[end - order : end])] += 1
    counts = {order: dict(raw)}
    for n in range(order - 1, 0, -1):
        before: dict[tuple[int, ...], set[int]] = {}
        for gram in counts[n + 1]:
            before.setdefault(gram[1:], set()).add(gram[0])
        counts[n] = {gram: len(tokens_before) for gram, tokens_before in before.items()}

    def discount(n: int, count: int) -> float:
        n1, n2, n3, n4 = (sum(c == k for c in counts[n].values()) for k in (1, 2, 3, 4))
        three = FALLBACK
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            if all(0 <= d <= k for k, d in zip((1, 2, 3), found, strict=True)):
                three = found
        return three[min(count, 3) - 1]

    def p(n: int, past: tuple[int, ...]) -> float:
        if n == 0:
            return 1 / V
        lower = p(n - 1, past[1:])
        followers = {gram: count for gram, count in counts[n].items() if gram[:-1] == past}
        if not followers:
            return lower
        total = sum(followers.values())
        count = followers.get((*past, token), 0)
        own = count - discount(n, count) if count else 0.0
        return own / total + sum(discount(n, c) for c in followers.values()) / total * lower

    return p(order, tuple(history[len(history) - order + 1 :]) if order > 1 else ())


@given(corpus=corpora, order=st.integers(1, 6), draw=st.data())
def test_equals_the_formula_counted_by_hand(corpus: list[list[int]], order: int, draw: st.DataObject) -> None:
    model = KneserNey([piece(tokens) for tokens in corpus], V, order)
    history = draw.draw(st.lists(st.integers(1, V - 1), min_size=order - 1, max_size=order + 2))
    found = model.distribution(np.array(history, dtype=np.int32))
    assert found == pytest.approx([brute_force(corpus, order, history, w) for w in range(V)], rel=1e-12)


@given(corpus=corpora, order=st.integers(1, 6), draw=st.data())
def test_probabilities_sum_to_one_and_none_is_zero(
    corpus: list[list[int]], order: int, draw: st.DataObject
) -> None:
    model = KneserNey([piece(tokens) for tokens in corpus], V, order)
    history = draw.draw(st.lists(st.integers(0, V - 1), min_size=order - 1, max_size=order - 1))
    found = model.distribution(np.array(history, dtype=np.int32))
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert found.min() > 0


def test_sums_to_one_with_estimated_discounts_and_a_real_vocabulary_size() -> None:
    """Zipf-like tokens, enough for counts of 1 to 4: the discounts are estimated, not the fallback."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 310)
    pieces = [
        np.concatenate([[BOS], 2 + rng.choice(309, size=4000, p=weights / weights.sum())]).astype(np.int32)
        for _ in range(5)
    ]
    model = KneserNey(pieces, 311, 6)
    histories = [rng.integers(2, 311, 5) for _ in range(10)] + [pieces[0][i : i + 5] for i in range(10)]
    assert [model.distribution(h).sum() for h in histories] == pytest.approx([1] * 20, abs=1e-12)


def test_probabilities_of_a_piece_are_those_of_its_histories() -> None:
    corpus = [[2, 3, 4, 2, 3, 5], [2, 3, 4, 4]]
    model = KneserNey([piece(tokens) for tokens in corpus], V, 3)
    ids = [2, 3, 6, 4]
    padded = [BOS, BOS, *ids]
    expected = [brute_force(corpus, 3, padded[: i + 2], ids[i]) for i in range(4)]
    assert model.probabilities(piece(ids)) == pytest.approx(expected, rel=1e-12)
    expected_nats = -sum(math.log(p) for p in expected) / 4
    assert nats_per_token(model, [piece(ids[:1]), piece(ids)]) == pytest.approx(
        (4 * expected_nats - math.log(expected[0])) / 5
    )


def test_discounts_by_hand() -> None:
    # n1 = 4, n2 = 2, n3 = 1, n4 = 1: Y = 1/2; D1 = 1 - 1/2, D2 = 2 - 3/4, D3 = 3 - 2.
    assert discounts(np.array([1, 1, 1, 1, 2, 2, 3, 4, 9])) == (0.5, 1.25, 1.0)
    assert discounts(np.array([1, 1, 5])) == FALLBACK


def test_n_grams_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="fit 63 bits"):
        KneserNey([piece([2])], 311, 8)
    with pytest.raises(ValueError, match="history of 2 tokens"):
        KneserNey([piece([2])], V, 3).distribution(np.array([2]))


def test_command_on_a_few_bundled_pieces() -> None:
    run = CliRunner().invoke(ngram.main, ["--order", "3", "--limit", "2", "--json"])
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert report["train"]["pieces"] == report["test"]["pieces"] == 2
    # Better than knowing only how many tokens there are, and no better than a network could be.
    assert 1 < report["validation"]["perplexity"] < 311
    assert report["test"]["perplexity"] == pytest.approx(math.exp(report["test"]["nats_per_token"]))
    text = CliRunner().invoke(ngram.main, ["--order", "3", "--limit", "2"])
    assert f"{report['test']['perplexity']:.4f}" in text.stdout


def test_command_says_what_is_wrong_in_one_line(tmp_path: object) -> None:
    run = CliRunner().invoke(ngram.main, ["--data", f"{tmp_path}/nowhere"])
    assert run.exit_code == 1
    assert run.stderr.startswith("Error: ")
    assert "Traceback" not in run.output
