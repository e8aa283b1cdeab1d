"""Which piece each lane reads next, and how it is varied: everything follows from the seed.

So a run that was killed, or that goes on with another number of workers, deals the same pieces.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.model import data
from dsmr_export.model.encoding import Codec
from dsmr_export.model.train_config import TrainConfig


class PieceSource:
    """The n-th training piece of a run: draw n is place n % N of epoch n // N, for N pieces.

    Pieces are shuffled within each epoch; each is transposed, stretched, and played louder or softer at
    random. The draws of one seed are the same whatever was drawn before.
    """

    def __init__(self, pieces: Sequence[data.TokenizedPiece], tokenizer: Any, config: TrainConfig) -> None:
        self.pieces, self.config, self.codec = pieces, config, Codec.of(tokenizer)
        self.lengths = np.array([len(piece.ids) - 1 for piece in pieces])
        """Tokens that are predicted in each piece as it is, int64 [N]."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the pieces' names and tokens."""
        return data.Corpus(list(self.pieces), []).fingerprint

    def epoch(self, draw: int) -> int:
        return draw // len(self.pieces)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Indexes of the pieces in the order of an epoch, int64 [N]."""
        return np.random.default_rng([self.config.seed, epoch]).permutation(len(self.pieces))

    def draw(self, draw: int) -> NDArray[Any]:
        """Token ids of a draw, BOS first and EOS last."""
        epoch, place = divmod(draw, len(self.pieces))
        index = int(self.order(epoch)[place])
        config, rng = self.config, np.random.default_rng([self.config.seed, epoch, index])
        semitones = int(rng.integers(-config.transpose, config.transpose, endpoint=True))
        tempo = float(np.exp(rng.uniform(-1, 1) * np.log1p(config.tempo)))
        velocity = int(rng.integers(-config.velocity, config.velocity, endpoint=True))
        varied = data.augment(self.pieces[index].performance, semitones, tempo, velocity)
        return self.codec.piece(varied)


class Dealer:
    """Deals the draws of every epoch, in order, each to the lane that was dealt the fewest tokens so far.

    It goes by the pieces' lengths before they are varied, so that any worker knows what every other one reads
    without reading it, and by those lengths lanes differ by about one piece, however long the run.
    """

    def __init__(self, source: PieceSource, lanes: int) -> None:
        self._source = source
        self._epochs = 0
        self._load = [(0, lane) for lane in range(lanes)]  # a heap of (tokens dealt so far, lane)
        self._dealt: list[list[int]] = [[] for _ in range(lanes)]
        self._taken = [0] * lanes

    def take(self, lane: int) -> int:
        """The next draw of a lane."""
        while self._taken[lane] >= len(self._dealt[lane]):
            self._deal_epoch()
        self._taken[lane] += 1
        return self._dealt[lane][self._taken[lane] - 1]

    def seek(self, lane: int, draw: int) -> None:
        """Goes to where `take` last gave a lane this draw; -1 is the beginning."""
        while draw >= self._epochs * len(self._source.pieces):
            self._deal_epoch()
        self._taken[lane] = 0 if draw < 0 else self._dealt[lane].index(draw) + 1

    def _deal_epoch(self) -> None:
        first = self._epochs * len(self._source.pieces)
        for place, index in enumerate(self._source.order(self._epochs)):
            tokens_dealt, lane = self._load[0]
            heapq.heapreplace(self._load, (tokens_dealt + int(self._source.lengths[index]), lane))
            self._dealt[lane].append(first + place)
        self._epochs += 1
