"""How well a network predicts whole pieces, streamed with its recurrent state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsmr_export.model.lanes import IGNORE, Ids, Lanes
from dsmr_export.model.network import DSMR, RecurrentState
from dsmr_export.runtime.events import EventTable
from dsmr_export.runtime.metrics import position_bins

Nll = NDArray[np.float64]
"""Nats of one piece's tokens, float64 [N]; place 0 is the first token after BOS."""


@dataclass(frozen=True)
class Evaluation:
    """nll: float64 [tokens] per piece, in nats, for everything after BOS."""

    nll: list[Nll]

    @property
    def tokens(self) -> int:
        return sum(len(piece) for piece in self.nll)

    @property
    def nats(self) -> float:
        """Of all tokens together."""
        return float(sum(piece.sum() for piece in self.nll))

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Token-weighted: exp of the mean over all tokens of all pieces."""
        return float(np.exp(self.nats_per_token))

    @property
    def per_piece_mean(self) -> float:
        """Mean over pieces of each piece's own perplexity."""
        return float(np.mean([np.exp(piece.mean()) for piece in self.nll]))

    def by_position(self) -> list[dict[str, Any]]:
        """Rows {from, to, pieces, tokens, nats_per_token, perplexity}, one for each bin of positions
        (`metrics.position_bins`).

        Positions count a piece's tokens from 0, the first after BOS; a bin holds from … to - 1, and the last
        one has no end (to is None). Bins without tokens are left out. pieces is how many reach into the bin:
        the later bins are of the longer pieces alone, so a row differs from another by its music, too.
        """
        rows = []
        for start, stop in position_bins():
            parts = [piece[start:stop] for piece in self.nll if len(piece) > start]
            if parts:
                tokens = np.concatenate(parts)
                mean = float(tokens.mean())
                counts = {"pieces": len(parts), "tokens": len(tokens)}
                row = {**counts, "nats_per_token": mean, "perplexity": float(np.exp(mean))}
                rows.append({"from": start, "to": stop, **row})
        return rows


def evaluate(
    network: DSMR,
    pieces: Sequence[Ids],
    segment: int = 512,
    lanes: int = 8,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Evaluation:
    """Streams pieces (token ids, BOS first, EOS last) through the network, `lanes` at a time, longest first.

    The result does not depend on segment and lanes (beyond rounding); speed and memory do. progress is told
    how many more tokens were read. The network's mode (train or eval) is kept as it was.
    """
    return Evaluation(stream_nll(network, pieces, [0] * len(pieces), segment, lanes, progress))


@torch.no_grad()
def stream_nll(
    network: DSMR,
    stretches: Sequence[Ids],
    origins: Sequence[int],
    segment: int = 512,
    lanes: int = 8,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[Nll]:
    """Nats of every token of every stretch but its first, each stretch read from an empty state.

    stretches: ids of whole pieces or of parts of them. origins: absolute position of each one's first id; 0
    is the BOS of a piece. As `evaluate` for the rest.
    """
    device = network.embedding.weight.device
    order = sorted(range(len(stretches)), key=lambda i: -len(stretches[i]))
    found: list[list[Nll]] = [[] for _ in stretches]
    width = min(lanes, len(stretches))
    source = Lanes(lambda n: stretches[order[n]] if n < len(order) else None, width, segment)
    state, alive = network.empty_state(width), list(range(width))
    was_training = network.training
    network.eval()
    while (batch := source.next()) is not None:
        # a lane that found no stretch stays idle: from here on it is left out
        working = [row for row, lane in enumerate(alive) if batch.draws[lane] >= 0]
        if len(working) < len(alive):
            alive, state = [alive[row] for row in working], _rows(state, torch.tensor(working, device=device))
        origin = torch.tensor([origins[order[batch.draws[lane]]] for lane in alive], device=device)
        starts = batch.starts[alive].to(device)
        state = state.reset(starts)
        state = replace(state, position=torch.where(starts, origin, state.position))
        logits, state = network(batch.input_ids[alive].to(device), state)
        targets = batch.targets[alive]
        nll = torch.nn.functional.cross_entropy(
            logits.double().transpose(1, 2), targets.to(device), ignore_index=IGNORE, reduction="none"
        )
        predicted = (targets != IGNORE).numpy()
        for lane, values, real in zip(alive, nll.cpu().numpy(), predicted, strict=True):
            found[order[batch.draws[lane]]].append(values[real])
        progress(batch.tokens)
    network.train(was_training)
    return [np.concatenate(parts) for parts in found]


def music(ids: Ids, table: EventTable) -> tuple[int, float]:
    """(notes, seconds of music) that a piece's ids say, by the tokenizer's event table alone.

    A note is a note-on token. Music lasts from the piece's beginning to the end of its last note: the time
    that all shifts before the last note-off add up to.
    """
    read = np.asarray(ids)
    kinds = np.array(table.kinds)[read]
    ends = np.flatnonzero(kinds == "off")
    if not len(ends):
        return int((kinds == "on").sum()), 0.0
    steps = np.array([v if k == "shift" else 0 for k, v in zip(table.kinds, table.values, strict=True)], int)
    return int((kinds == "on").sum()), float(steps[read[: ends[-1]]].sum()) * table.step_ms / 1000


def _rows(state: RecurrentState, rows: Tensor) -> RecurrentState:
    """The state of some lanes alone."""
    layers = [(keys[rows], values[rows]) for keys, values in state.layers]
    return RecurrentState(layers, state.position[rows], state.length[rows])
