"""Generation: sample under a mask, feed what was sampled, yield it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import DsmrError
from dsmr_export.runtime.sampling import Sampling, sample

if TYPE_CHECKING:
    from numpy.random import Generator

    from dsmr_export.runtime.stream import Stream


class Mask(Protocol):
    """What generation needs of a grammar (runtime.grammar.Grammar)."""

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Boolean [V], at least one True: which tokens may come next."""

    def advance(self, token: int) -> None:
        """Takes note that `token` came."""


def generate(
    stream: Stream,
    sampling: Sampling,
    rng: Generator,
    mask: Mask | None = None,
    limit: int | None = None,
    stop: int | None = None,
    logit_bias: NDArray[np.float32] | None = None,
) -> Iterator[int]:
    """Yields token ids that continue `stream`, at most `limit` of them; ends after the id `stop`.

    logit_bias [V] is added to the logits before anything else.

    The stream must have been fed at least one token, and `mask` advanced over what was fed. When an id is
    yielded the stream and the mask have already heard it: a snapshot taken between two ids continues with
    the second. Raises DsmrError on a stream that was fed nothing.
    """
    if not stream.consumed:
        raise DsmrError(
            "this stream was fed nothing, so there is nothing to continue: feed it BOS or a prompt first"
        )
    return _generate(stream, sampling, rng, mask, limit, stop, logit_bias)


def _generate(
    stream: Stream,
    sampling: Sampling,
    rng: Generator,
    mask: Mask | None,
    limit: int | None,
    stop: int | None,
    logit_bias: NDArray[np.float32] | None,
) -> Iterator[int]:
    made = 0
    while limit is None or made < limit:
        logits = stream.logits if logit_bias is None else stream.logits + logit_bias
        token = sample(logits, sampling, rng, None if mask is None else mask.allowed)
        stream.step(token)
        if mask is not None:
            mask.advance(token)
        made += 1
        yield token
        if token == stop:
            return
