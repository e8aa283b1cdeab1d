"""The baseline: an interpolated Kneser-Ney n-gram over token ids, measured like the network. No torch.

    python -m dsmr_export.model.ngram [--data FILE|DIR|ZIP] [--order 6] [--json]

trains on the split `train` and prints the perplexity of `validation` and `test`: every token after BOS
counted, each piece on its own, as in the network's figures.

Source: S. F. Chen and J. Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling",
Computer Speech and Language 13 (1999). *Modified* Kneser-Ney: three discounts per order (for counts of 1, 2,
and more), estimated from counts of counts, in

    p(w | h) = max(c(h w) - D(c(h w)), 0) / c(h .) + lambda(h) p(w | h without its oldest token)
    lambda(h) = (D1 N1(h .) + D2 N2(h .) + D3 N3+(h .)) / c(h .)

where c is the number of occurrences at the highest order and, below it, the number of distinct tokens seen
before the n-gram. The unigram is interpolated with the uniform distribution over the vocabulary, so that
nothing has probability 0. A piece starts with order - 1 copies of BOS: every token has a full history.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import DsmrError
from dsmr_export.model import data, tokenizer

Ids = NDArray[np.integer[Any]]
Keys = NDArray[np.int64]
Probabilities = NDArray[np.float64]

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where counts of counts give none (tiny corpora, unigrams): KenLM's --discount_fallback."""


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length. A key is the n-gram as a number in base V, so keys sort by history first."""

    grams: Keys
    discounted: Probabilities  # c - D(c), by n-gram
    histories: Keys
    totals: Probabilities  # c(h .), by history
    backoff: Probabilities  # lambda(h), by history

    @classmethod
    def of(cls, grams: Keys, counts: NDArray[np.int64], vocab_size: int) -> _Order:
        """From sorted distinct n-grams and their (adjusted) counts."""
        steps = np.array([0.0, *discounts(counts)])[np.minimum(counts, 3)]
        histories, starts = np.unique(grams // vocab_size, return_index=True)
        totals = np.add.reduceat(counts, starts).astype(np.float64)
        return cls(grams, counts - steps, histories, totals, np.add.reduceat(steps, starts) / totals)

    def interpolate(self, grams: Keys, vocab_size: int, lower: Probabilities) -> Probabilities:
        """p of each n-gram's last token [N], from this order's counts and the shorter history's p."""
        history, known = _find(self.histories, grams // vocab_size)
        gram, seen = _find(self.grams, grams)
        own = np.where(seen, self.discounted[gram], 0.0) / self.totals[history]
        return np.where(known, own + self.backoff[history] * lower, lower)


def discounts(counts: NDArray[np.int64]) -> tuple[float, float, float]:
    """D1, D2, D3+ of modified Kneser-Ney (Chen and Goodman 1999) from the counts of one order."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == c)) for c in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    usable = all(0 <= discount <= count for count, discount in enumerate(found, start=1))
    return found if usable else FALLBACK


class KneserNey:
    """An interpolated n-gram with modified Kneser-Ney discounts."""

    def __init__(self, pieces: Iterable[Ids], vocab_size: int, order: int = 6) -> None:
        """Counts `pieces`, each int [T] with BOS first. ValueError if such n-grams exceed 63 bits."""
        if order < 1 or vocab_size**order >= 2**63:
            raise ValueError(f"order {order} with {vocab_size} tokens: n-grams must fit 63 bits")
        self.vocab_size = vocab_size
        self.order = order
        keys = np.concatenate([self._keys(self._windows(ids), order) for ids in pieces])
        grams, counts = np.unique(keys, return_counts=True)
        self._orders: list[_Order] = []
        for length in range(order, 0, -1):
            self._orders.insert(0, _Order.of(grams, counts, vocab_size))
            # One shorter: each distinct n-gram counts once for what is left without its oldest token.
            grams, counts = np.unique(grams % vocab_size ** (length - 1), return_counts=True)

    def probabilities(self, ids: Ids) -> Probabilities:
        """p of every token after the first of one piece: int [T] with BOS first -> float64 [T - 1]."""
        return self._score(self._windows(ids))

    def distribution(self, history: Ids) -> Probabilities:
        """p of every token after `history`, whose last order - 1 tokens count: float64 [V]."""
        length = self.order - 1
        if len(history) < length:
            raise ValueError(f"a history of {length} tokens is needed, got {len(history)}")
        repeated = np.tile(np.asarray(history)[len(history) - length :], (self.vocab_size, 1))
        return self._score(np.column_stack([repeated, np.arange(self.vocab_size)]))

    def _windows(self, ids: Ids) -> Ids:
        """Every predicted token with its history: [T - 1, order]."""
        padded = np.concatenate([np.repeat(ids[:1], self.order - 1), ids[1:]])
        return np.lib.stride_tricks.sliding_window_view(padded, self.order)

    def _keys(self, windows: Ids, length: int) -> Keys:
        """The last `length` columns of [N, order] as numbers in base V: int64 [N]."""
        powers = self.vocab_size ** np.arange(length - 1, -1, -1, dtype=np.int64)
        return windows[:, self.order - length :].astype(np.int64) @ powers

    def _score(self, windows: Ids) -> Probabilities:
        p = np.full(len(windows), 1 / self.vocab_size)
        for length, counted in enumerate(self._orders, start=1):
            p = counted.interpolate(self._keys(windows, length), self.vocab_size, p)
        return p


def _find(sorted_keys: Keys, wanted: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each wanted key is (a valid index in any case), and whether it is there."""
    index = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return index, sorted_keys[index] == wanted


def nats_per_token(model: KneserNey, pieces: Sequence[Ids]) -> float:
    """Mean negative log-likelihood of every token after BOS of every piece; its exponential is perplexity."""
    return -float(np.concatenate([np.log(model.probabilities(ids)) for ids in pieces]).mean())


@click.command()
@click.option(
    "--data", "source", metavar="FILE|DIR|ZIP", help="Corpus with a split; default: the bundled one."
)
@click.option("--order", type=click.IntRange(1, 7), default=6, show_default=True, help="Tokens in an n-gram.")
@click.option("--limit", type=click.IntRange(1), help="Pieces of each split to use.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on one line.")
def main(source: str | None, order: int, limit: int | None, as_json: bool) -> None:
    """Perplexity of a Kneser-Ney n-gram: the figure that a trained network has to beat.

    Example: python -m dsmr_export.model.ngram --order 6
    """
    try:
        report = measure(source, order, limit)
    except DsmrError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(report))
        return
    train = report["train"]
    click.echo(
        f"interpolated modified Kneser-Ney, order {order}, "
        f"trained on {train['pieces']} pieces, {train['tokens']:,} tokens"
    )
    click.echo(f"{'split':<12}{'pieces':>8}{'tokens':>12}{'nats/token':>12}{'perplexity':>12}")
    for split in ("validation", "test"):
        row = report[split]
        click.echo(
            f"{split:<12}{row['pieces']:>8}{row['tokens']:>12,}"
            f"{row['nats_per_token']:>12.4f}{row['perplexity']:>12.4f}"
        )


def measure(source: str | None, order: int, limit: int | None = None) -> dict[str, Any]:
    """Trains on the source's split `train`; figures of `validation` and `test` by split. Raises DataError."""
    tokens = tokenizer.default_tokenizer()
    train = data.load(source, "train", tokens, limit)
    model = KneserNey([piece.ids for piece in train.pieces], len(tokenizer.vocabulary(tokens)), order)
    report: dict[str, Any] = {"order": order, "train": {"pieces": len(train.pieces), "tokens": train.tokens}}
    for split in ("validation", "test"):
        held_out = data.load(source, split, tokens, limit)
        nats = nats_per_token(model, [piece.ids for piece in held_out.pieces])
        report[split] = {
            "pieces": len(held_out.pieces),
            "tokens": held_out.tokens,
            "nats_per_token": nats,
            "perplexity": float(np.exp(nats)),
        }
    return report


if __name__ == "__main__":
    main()
