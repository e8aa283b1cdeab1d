"""Sampling draws from the distribution its settings describe; the metrics are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsmr_export.errors import DsmrError
from dsmr_export.runtime.metrics import kl_divergence, log_softmax, nll, top1_agreement
from dsmr_export.runtime.sampling import Sampling, probabilities, sample

LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))


def support(sampling: Sampling, allowed: NDArray[np.bool_] | None = None) -> list[int]:
    return np.flatnonzero(probabilities(LOGITS, sampling, allowed)).tolist()


def test_filters_keep_what_they_say() -> None:
    assert support(Sampling()) == [0, 1, 2, 3, 4]
    assert support(Sampling(top_k=2)) == [0, 1]
    assert support(Sampling(top_k=99)) == [0, 1, 2, 3, 4]
    assert support(Sampling(top_p=0.69)) == [0, 1]  # 0.4 is short of it, 0.4 + 0.3 reaches it
    assert support(Sampling(top_p=0.71)) == [0, 1, 2]
    assert support(Sampling(top_p=1e-9)) == [0]
    assert support(Sampling(min_p=0.3)) == [0, 1, 2]  # 0.3 * 0.4 = 0.12
    assert support(Sampling(min_p=1.0)) == [0]
    assert support(Sampling(temperature=0)) == [0]


def test_filters_follow_one_another() -> None:
    """top_p sees what top_k left, renormalised: of 0.4 and 0.3 the first alone has 57 %."""
    assert support(Sampling(top_k=2, top_p=0.5)) == [0]
    assert support(Sampling(top_p=0.5)) == [0, 1]


def test_temperature_is_a_power_of_the_probabilities() -> None:
    p = np.exp(LOGITS.astype(np.float64))
    for temperature in (0.5, 1.0, 2.0):
        expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
        assert probabilities(LOGITS, Sampling(temperature)) == pytest.approx(expected, abs=1e-7)


def test_a_mask_is_never_left() -> None:
    allowed = np.array([False, False, True, False, True])
    assert support(Sampling(), allowed) == [2, 4]
    assert support(Sampling(top_p=0.5), allowed) == [2]
    assert support(Sampling(temperature=0), allowed) == [2]
    assert sample(LOGITS, Sampling(temperature=0), np.random.default_rng(0), allowed) == 2


@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0, 5),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.001, 1),
    min_p=st.floats(0, 1),
)
def test_any_settings_draw_an_allowed_token(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Also with logits far apart and a temperature so small that most probabilities vanish."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=40) * rng.choice([0.0, 1.0, 100.0])).astype(np.float32)
    allowed = rng.random(40) < 0.2
    allowed[rng.integers(40)] = True
    settings = Sampling(temperature, top_k, top_p, min_p)
    token = sample(logits, settings, rng, allowed)
    assert allowed[token]
    p = probabilities(logits, settings, allowed)
    assert p[token] > 0 and p.sum() == pytest.approx(1.0) and not p[~allowed].any()


def test_draws_follow_the_distribution() -> None:
    rng, settings, draws = np.random.default_rng(5), Sampling(temperature=0.8, top_p=0.9), 20_000
    counts = np.bincount([sample(LOGITS, settings, rng) for _ in range(draws)], minlength=5)
    p = probabilities(LOGITS, settings)
    # Five standard deviations of a binomial count: one run in a million fails for chance, and the seed is
    # fixed.
    assert np.all(np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p)) + 1e-9)


def test_same_seed_same_tokens() -> None:
    runs = [
        [sample(LOGITS, Sampling(), rng) for _ in range(50)] for rng in map(np.random.default_rng, (1, 1, 2))
    ]
    assert runs[0] == runs[1] != runs[2]


def test_the_edge_of_the_draw() -> None:
    """A draw of exactly 0 chooses no token of probability zero, one just below 1 stays inside."""

    class Fixed:
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    allowed = np.array([False, True, True, True, False])
    assert sample(LOGITS, Sampling(), Fixed(0.0), allowed) == 1  # type: ignore[arg-type]
    assert sample(LOGITS, Sampling(), Fixed(math.nextafter(1, 0)), allowed) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [Sampling(), Sampling(top_p=0.9), Sampling(min_p=0.1)])
def test_logits_that_are_no_numbers_are_refused(bad: float, settings: Sampling) -> None:
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(DsmrError, match="logits are not numbers"), np.errstate(invalid="ignore"):
        sample(logits, settings, np.random.default_rng(0))


def test_logits_are_not_changed() -> None:
    logits = LOGITS.copy()
    sample(logits, Sampling(0.7, 3, 0.9, 0.1), np.random.default_rng(0), np.ones(5, bool))
    assert np.array_equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(DsmrError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]


def test_metrics_against_sums_written_out() -> None:
    p, q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    logits_p, logits_q = np.log(p) + 3.0, np.log(q) - 2.0
    assert log_softmax(logits_p) == pytest.approx(np.log(p))
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert kl_divergence(logits_p[None], logits_q[None]) == pytest.approx([expected])
    assert kl_divergence(logits_p, logits_p) == 0.0
    assert nll(np.stack([logits_p, logits_q]), [0, 2]) == pytest.approx([math.log(2), math.log(2)])
    assert top1_agreement([[1, 2, 0], [5, 1, 1]], [[0, 9, 1], [0, 1, 0]]) == 0.5


def test_metrics_do_not_overflow() -> None:
    logits = np.array([1e4, -1e4, 0.0], np.float32)
    assert log_softmax(logits) == pytest.approx([0.0, -2e4, -1e4])
    assert nll(logits, 1) == pytest.approx(2e4)
    assert kl_divergence(logits, logits) == 0.0
