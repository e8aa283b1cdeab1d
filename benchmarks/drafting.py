"""Would drafting pay? How many tokens of a draft the model would accept, and what a call of several costs.

    python -m benchmarks.drafting [BUNDLE] [--pieces N] [--tokens N]

A draft of k tokens is checked by one call of k + 1 (Leviathan et al., arXiv 2211.17192); a draft made without
a distribution is accepted with the probability that the model gives it, under the grammar and the sampling of
`dsmr play`. Drafts are looked up: what followed the last time the same n tokens came (longest n from 4 to 1),
which costs next to nothing. The music is the model's own continuation of bundled test pieces.

Printed: the mean probability of a drafted token, tokens that a call yields, what that call costs in
calls of one token (interleaved, pairwise), and the speed-up that follows. Also how often the grammar leaves
a single token, which could be fed along for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from dsmr_export import corpus
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.performer import SAMPLING, Performer
from dsmr_export.runtime.play import encode_piece, read_prompt
from dsmr_export.runtime.sampling import probabilities
from dsmr_export.runtime.stream import Stream

ORDERS = (4, 3, 2, 1)
LENGTHS = (1, 2, 3, 7)
PROMPT = 1024
"""Tokens of a piece that are heard before the model plays on."""
ROUNDS, SIZE = 20, 20


class Lookup:
    """What followed the last time the same tokens came."""

    def __init__(self) -> None:
        self._followed: dict[tuple[int, ...], int] = {}
        self._heard: list[int] = []

    def hear(self, token: int) -> None:
        for order in ORDERS:
            if len(self._heard) >= order:
                self._followed[tuple(self._heard[-order:])] = token
        self._heard.append(token)

    def draft(self, length: int) -> list[int]:
        """Up to so many tokens: each from the longest context that was there before."""
        recent = self._heard[-max(ORDERS) :]
        drafted: list[int] = []
        while len(drafted) < length:
            known = (self._followed.get(tuple(recent[-order:])) for order in ORDERS if len(recent) >= order)
            token = next((token for token in known if token is not None), None)
            if token is None:
                break
            drafted.append(token)
            recent = [*recent, token]
        return drafted


def continuation(
    bundle: Bundle, ids: Sequence[int], count: int
) -> tuple[list[NDArray[np.float64]], list[int], float]:
    """The distributions that were sampled from, what was drawn, and the share of forced tokens."""
    performer = Performer(bundle, SAMPLING, seed=1)
    performer.begin(ids[1 : PROMPT + 1])
    playing = performer.play()
    found, forced = [], 0
    tokens = []
    for _ in range(count):
        allowed = performer._mask.allowed
        forced += int(allowed.sum()) == 1
        found.append(probabilities(performer.stream.logits + performer._bias, SAMPLING, allowed))
        tokens.append(next(playing))
    return found, tokens, forced / count


def accepted(
    lookup: Lookup, distributions: Sequence[NDArray[np.float64]], tokens: Sequence[int], longest: int
) -> tuple[NDArray[np.float64], list[float]]:
    """For every place along what was played, the probability that the first 1 ... longest drafted tokens are
    all accepted (summed over places), and the probability of the first one.

    Beyond the first the model's answer to a draft is only known where the draft is what was played; elsewhere
    it was not accepted there, so the product is that of a run along the music.
    """
    runs, first = np.zeros(longest), []
    for place, token in enumerate(tokens):
        drafted = lookup.draft(longest)
        if drafted:
            first.append(float(distributions[place][drafted[0]]))
        for length, guess in enumerate(drafted):
            if place + length >= len(tokens) or guess != tokens[place + length]:
                break
            runs[length] += 1
        lookup.hear(token)
    return runs, first


def cost_of_calls(bundle: Bundle, ids: NDArray[np.int64]) -> dict[int, float]:
    """What a call of k + 1 tokens takes, in calls of one: the median over rounds."""
    stream = Stream(bundle)
    stream.feed(np.resize(ids, 4096))
    ratios: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for _ in range(ROUNDS):
        one = _seconds(stream, ids[:1])
        for length in LENGTHS:
            ratios[length].append(_seconds(stream, ids[: length + 1]) / one)
    return {length: float(np.median(found)) for length, found in ratios.items()}


def _seconds(stream: Stream, ids: NDArray[np.int64]) -> float:
    stream.feed(ids)
    taken = []
    for _ in range(SIZE):
        began = time.perf_counter()
        stream.feed(ids)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


@click.command(help=__doc__)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--pieces", default=8, show_default=True)
@click.option("--tokens", default=1000, show_default=True, help="To play after each.")
def main(folder: Path | None, pieces: int, tokens: int) -> None:
    bundle = Bundle.open(folder)
    longest = max(LENGTHS)
    runs, first, forced, ids = np.zeros(longest), [], [], np.zeros(0, np.int64)
    for _, content in islice(corpus.read_all(corpus.pieces(None, "test", None)), pieces):
        ids = np.array(encode_piece(bundle, read_prompt(bundle, content).performance))
        lookup = Lookup()
        for token in ids[: PROMPT + 1].tolist():
            lookup.hear(token)
        distributions, played, share = continuation(bundle, ids.tolist(), tokens)
        forced.append(share)
        counted, probability = accepted(lookup, distributions, played, longest)
        runs, first = runs + counted, first + probability
    share = f"{np.mean(forced):.2%} of the tokens are forced"
    click.echo(f"{len(forced)} pieces, {tokens} tokens after each: {share}")
    click.echo(f"a drafted token has probability {np.mean(first):.3f}")
    costs = cost_of_calls(bundle, ids)
    for length in LENGTHS:
        yielded = 1 + runs[:length].sum() / (len(forced) * tokens)
        click.echo(
            f"draft of {length}: {yielded:.2f} tokens a call, which takes {costs[length]:.2f} calls of one: "
            f"{yielded / costs[length]:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
