"""Perplexity of whole pieces, streamed through the network with its recurrent state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dsmr_export.model.lanes import IGNORE, Ids, Lanes
from dsmr_export.model.network import DSMR


@dataclass(frozen=True)
class Evaluation:
    """nll: float64 [tokens] per piece, in nats, for everything after BOS."""

    nll: list[NDArray[np.float64]]

    @property
    def tokens(self) -> int:
        return sum(len(piece) for piece in self.nll)

    @property
    def nats_per_token(self) -> float:
        return float(sum(piece.sum() for piece in self.nll) / self.tokens)

    @property
    def perplexity(self) -> float:
        """Token-weighted: exp of the mean over all tokens of all pieces."""
        return float(np.exp(self.nats_per_token))

    @property
    def per_piece_mean(self) -> float:
        """Mean over pieces of each piece's own perplexity."""
        return float(np.mean([np.exp(piece.mean()) for piece in self.nll]))


@torch.no_grad()
def evaluate(
    network: DSMR,
    pieces: Sequence[Ids],
    segment: int = 512,
    lanes: int = 8,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Evaluation:
    """Streams pieces (token ids, BOS first, EOS last) through the network, `lanes` at a time, longest first.

    progress is told how many more tokens were read. The network's mode (train or eval) is kept as it was.
    """
    device = network.embedding.weight.device
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))
    found: list[list[NDArray[np.float64]]] = [[] for _ in pieces]
    source = Lanes(lambda n: pieces[order[n]] if n < len(order) else None, min(lanes, len(pieces)), segment)
    state = network.empty_state(min(lanes, len(pieces)))
    was_training = network.training
    network.eval()
    while (batch := source.next()) is not None:
        state = state.reset(batch.starts.to(device))
        logits, state = network(batch.input_ids.to(device), state)
        nll = torch.nn.functional.cross_entropy(
            logits.double().transpose(1, 2), batch.targets.to(device), ignore_index=IGNORE, reduction="none"
        )
        for lane, draw in enumerate(batch.draws):
            if draw >= 0:
                found[order[draw]].append(nll[lane][(batch.targets[lane] != IGNORE).to(device)].cpu().numpy())
        progress(batch.tokens)
    network.train(was_training)
    return Evaluation([np.concatenate(parts) for parts in found])
