"""Batches for a recurrent model: one piece per lane, each read once from left to right, by segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORE = -100
"""Target of a masked position: `cross_entropy`'s own default."""

Ids = Sequence[int] | NDArray[np.integer[Any]]

Draw = Callable[[int], Ids | None]
"""Token ids of the n-th piece drawn (BOS first, EOS last), or None when there are no more."""


@dataclass
class Batch:
    """One segment of every lane.

    input_ids, targets: int64 [B, S], targets IGNORE where nothing is predicted.
    starts: bool [B], lanes whose state must be emptied first.
    draws: which piece each lane reads, -1 for an idle lane.
    """

    input_ids: Tensor
    targets: Tensor
    starts: Tensor
    draws: list[int]

    @property
    def tokens(self) -> int:
        return int((self.targets != IGNORE).sum())


class Lanes:
    """Reads pieces in lanes.

    A piece that ends inside a segment leaves a masked tail; its lane goes on with another piece afterwards:
    the one that `deal` names for it, or else the next one that no lane has read.
    """

    def __init__(
        self, draw: Draw, lanes: int, segment: int, deal: Callable[[int], int] | None = None
    ) -> None:
        self.draw, self.segment, self.deal = draw, segment, deal
        self.next_draw = 0
        self.draws = [-1] * lanes
        self.offsets = [0] * lanes
        self.pieces: list[Ids] = [()] * lanes

    def next(self) -> Batch | None:
        """The next segment of every lane, or None once all pieces are read."""
        lanes = len(self.draws)
        ids = np.zeros((lanes, self.segment), dtype=np.int64)
        targets = np.full((lanes, self.segment), IGNORE, dtype=np.int64)
        for lane in range(lanes):
            if self.offsets[lane] + 1 >= len(self.pieces[lane]):
                self._deal(lane)
            offset, piece = self.offsets[lane], self.pieces[lane]
            count = max(0, min(self.segment, len(piece) - 1 - offset))
            ids[lane, :count] = piece[offset : offset + count]
            targets[lane, :count] = piece[offset + 1 : offset + 1 + count]
        starts = torch.tensor([offset == 0 for offset in self.offsets])
        if all(draw < 0 for draw in self.draws):
            return None
        self.offsets = [offset + self.segment for offset in self.offsets]
        return Batch(torch.from_numpy(ids), torch.from_numpy(targets), starts, list(self.draws))

    def cursor(self) -> dict[str, Any]:
        """Where every lane stands; `seek` goes back there."""
        return {"next_draw": self.next_draw, "draws": list(self.draws), "offsets": list(self.offsets)}

    def seek(self, cursor: dict[str, Any]) -> None:
        self.next_draw = cursor["next_draw"]
        self.draws, self.offsets = list(cursor["draws"]), list(cursor["offsets"])
        self.pieces = [() if n < 0 else self._read(n) for n in self.draws]

    def _read(self, draw: int) -> Ids:
        piece = self.draw(draw)
        return () if piece is None else piece

    def _deal(self, lane: int) -> None:
        draw = self.next_draw if self.deal is None else self.deal(lane)
        piece = self.draw(draw)
        self.draws[lane], self.offsets[lane], self.pieces[lane] = -1, 0, ()
        if piece is not None:
            self.draws[lane], self.pieces[lane] = draw, piece
            self.next_draw = max(self.next_draw, draw + 1)
