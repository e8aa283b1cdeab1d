"""A stream: one endless sequence of tokens through one graph, with everything the model remembers of it.

Any cut of the tokens into segments gives the same logits. A stream has no maximum length: positions are
absolute and counted in Python, the graph sees a wrapped count (design, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import BundleError, DsmrError
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.generate import Mask, generate
from dsmr_export.runtime.runner import RUNNERS, Runner
from dsmr_export.runtime.sampling import Sampling

if TYPE_CHECKING:
    from numpy.random import Generator

MAX_POSITION = 2**53
"""Positions are exact in float64 below this; at 50 tokens a second it is reached after 5 million years."""


@dataclass(frozen=True)
class Snapshot:
    """Everything a stream remembers, copied: restoring it continues to the same logits.

    bundle: identity of the bundle; graph: name; position: absolute position of the next token; consumed:
    tokens since reset; count: tokens as the graph counts them; state: {input name: array as the manifest's
    shape and dtype}; logits: float32 [V] of the last token, zeros before the first.
    """

    bundle: str
    graph: str
    position: int
    consumed: int
    count: int
    state: Mapping[str, NDArray[np.generic]]
    logits: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.state.values()) + self.logits.nbytes


class Stream:
    """`feed` tokens, read logits, `generate` more; `snapshot` and `restore` at any point. Not for use by two
    threads at once.

    Streams on one bundle share the session (the weights) and have their own state.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: str | None = None,
        threads: int | None = None,
        position: int = 0,
        safe: bool | None = None,
    ) -> None:
        """Opens `graph` with `threads` threads; the first token is at `position`.

        graph: None = what this machine runs, found out by the golden vectors at first load
        (`Bundle.selected`). threads: None = the bundle's. safe: as in `Bundle.session`. Raises BundleError
        (no such graph, or none that passes), GraphError (it cannot run here), DsmrError (a bad position)."""
        self.bundle = bundle
        self.graph = graph or bundle.default_graph
        if safe is None:
            safe = graph is None and bundle.selected().safe
        entry, model = bundle.graph(self.graph), bundle.manifest.model
        self.vocab_size = model.vocab_size
        self.state_bytes = entry.state_bytes
        self._runner: Runner = RUNNERS[entry.ops](bundle.session(self.graph, threads, safe), entry, model)
        self._step = self._runner.step
        self.reset(position)

    def reset(self, position: int = 0) -> None:
        """Forgets everything; the next token is at `position`."""
        if not 0 <= position < MAX_POSITION:
            raise DsmrError(f"position {position} of a stream is not in 0 ... 2^53 - 1")
        self._runner.reset()
        self._runner.logits.fill(0.0)
        self.position = position
        self.consumed = 0

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits [V] after the last token (zeros before the first): a view that the next token overwrites."""
        return self._runner.logits

    def feed(self, ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Feeds ids [S], any S >= 1, and returns their logits, float32 [S, V], a copy.

        Longer inputs than the graph's segment are fed in several. Raises DsmrError, with nothing fed, when
        ids is empty, not a list of integers, or holds an id outside the vocabulary.
        """
        tokens = self._validated(ids)
        logits = np.empty((len(tokens), self.vocab_size), np.float32)
        for start in range(0, len(tokens), self._runner.max_segment):
            part = tokens[start : start + self._runner.max_segment]
            if len(part) == 1:
                logits[start] = self.step(int(part[0]))
                continue
            logits[start : start + len(part)] = self._runner.run(part, self.position)
            self.position += len(part)
            self.consumed += len(part)
        return logits

    def step(self, token: int) -> NDArray[np.float32]:
        """Feeds one token; its logits [V], a view. Raises DsmrError for an id outside the vocabulary."""
        if not 0 <= token < self.vocab_size:
            raise self._unknown(token)
        self._step(token, self.position)
        self.position += 1
        self.consumed += 1
        return self._runner.logits

    def generate(
        self,
        sampling: Sampling,
        rng: Generator,
        mask: Mask | None = None,
        limit: int | None = None,
        logit_bias: NDArray[np.float32] | None = None,
    ) -> Iterator[int]:
        """Continues the stream: an endless iterator of token ids (see runtime.generate.generate)."""
        eos = self.bundle.manifest.special.eos
        return generate(self, sampling, rng, mask, limit, eos, logit_bias)

    def snapshot(self) -> Snapshot:
        """A copy of everything the stream remembers; `state_bytes` and one row of logits."""
        state = {name: array.copy() for name, array in self._runner.state.items()}
        return Snapshot(
            bundle=self.bundle.identity,
            graph=self.graph,
            position=self.position,
            consumed=self.consumed,
            count=self._runner.count,
            state=state,
            logits=self._runner.logits.copy(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back (or across, to another stream of the same bundle and graph) to a snapshot.

        Raises BundleError, with nothing changed, when it is of another bundle or graph, or when an entry is
        missing, left over, or of another shape or dtype.
        """
        if snapshot.bundle != self.bundle.identity or snapshot.graph != self.graph:
            raise BundleError(
                f"this state belongs to graph {snapshot.graph} of bundle {snapshot.bundle[:12]}, this stream "
                f"to {self.graph} of {self.bundle.identity[:12]}: open what the state was made with"
            )
        own = self._runner.state
        expected = {name: (array.shape, array.dtype) for name, array in own.items()}
        found = {name: (array.shape, array.dtype) for name, array in snapshot.state.items()}
        if problems := sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)):
            raise BundleError(
                f"this state is not whole: {', '.join(problems)} missing, left over or of another shape"
            )
        if (
            snapshot.logits.shape != self.logits.shape
            or not 0 <= snapshot.position < MAX_POSITION
            or snapshot.count < 0
        ):
            raise BundleError("this state is not whole: its logits, position or count are not valid")
        for name, array in own.items():
            np.copyto(array, snapshot.state[name])
        self._runner.logits[:] = snapshot.logits
        self._runner.count = snapshot.count
        self.position = snapshot.position
        self.consumed = snapshot.consumed

    def _validated(self, ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        tokens = np.asarray(ids)
        if tokens.ndim != 1 or tokens.size == 0:
            raise DsmrError(
                f"a segment is a list of 1 or more token ids, this one has shape {list(tokens.shape)}"
            )
        if tokens.dtype.kind not in "iu":
            raise DsmrError(f"token ids are integers, these are {tokens.dtype}")
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise self._unknown(int(tokens[(tokens < 0) | (tokens >= self.vocab_size)][0]))
        return tokens.astype(np.int64, copy=False)

    def _unknown(self, token: int) -> DsmrError:
        return DsmrError(f"token id {token} is not in the vocabulary: ids are 0 ... {self.vocab_size - 1}")
