"""A performer: a stream that listens and plays, its mask and its random generator, and any moment of them.

Time is what shift tokens say: nothing here knows a clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import DsmrError
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.events import EventTable
from dsmr_export.runtime.grammar import Grammar
from dsmr_export.runtime.sampling import Sampling
from dsmr_export.runtime.stream import Snapshot, Stream

SAMPLING = Sampling(temperature=1.0, top_p=0.98)
"""What play and bench sample with unless told otherwise.

Nearly the model's own distribution, on purpose: the probability of a pause is spread over a hundred shifts,
so a lower temperature or top-p, or a min-p, cuts pauses first and makes music denser than the model means it.
"""

PACE_PIVOT_MS = 60
"""The length of a shift that a pace leaves as likely as it was: below are the shifts within a chord."""

MAX_FRAME_TOKENS = 128
"""So many tokens within one frame, then only a shift may follow.

Twice what music needs: the busiest frame of the bundled corpus has 56 tokens (a pedal is lifted). The grammar
alone would allow three for each of 88 pitches, and a manifest with other rules any number. With a note-on
that still waits for its velocity a frame takes at most 129 tokens and its shift, so a second of 10 ms frames
at most 13,000: music time passes whatever the model prefers.
"""

PROMPT_SEGMENT = 128
"""Tokens of one call while a prompt is heard: longer ones are hardly faster, and where attention keeps whole
score matrices (ARM, without the flash kernel) four times as many tokens take four times the memory. """


class Paced:
    """A grammar under which time must pass: after ``MAX_FRAME_TOKENS`` without a shift, one is due."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._is_shift = tuple(kind == "shift" for kind in grammar.table.kinds)
        self._here = 0  # tokens since the last shift

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Boolean [V], at least one True, valid until ``advance``."""
        allowed = self._grammar.allowed
        if self._here < MAX_FRAME_TOKENS:
            return allowed
        only = allowed & np.array(self._is_shift)
        return only if only.any() else allowed  # a note-on still waits for its velocity

    @property
    def onsets(self) -> dict[int, int]:
        """The pitches that sound, each with the frame of its onset since BOS."""
        return self._grammar.onsets

    @property
    def frame(self) -> int:
        """Frames that the shifts since BOS come to."""
        return self._grammar.frame

    def advance(self, token: int) -> None:
        """Take note that ``token`` came."""
        self._grammar.advance(token)
        self._here = 0 if self._is_shift[token] else self._here + 1

    def reset(self) -> None:
        """As before the first id."""
        self._grammar.reset()
        self._here = 0

    def copy(self) -> Paced:
        """Another one at the same point."""
        twin = Paced(self._grammar)
        twin.become(self)
        return twin

    def become(self, other: Paced) -> None:
        """Go to the point of another one, which is left as it is; whether order matters stays one's own."""
        ordered = self._grammar.ordered
        self._grammar, self._here = other._grammar.copy(), other._here
        self._is_shift = other._is_shift
        self._grammar.ordered = ordered

    def state(self) -> dict[str, Any]:
        """Where it is, as plain JSON: what a saved state keeps."""
        return {**self._grammar.state(), "here": self._here}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go to where another one was. Raises ``BundleError`` for what is no such state."""
        self._grammar.resume(state)
        self._here = int(state.get("here", 0))


@dataclass(frozen=True)
class Moment:
    """A performer's whole memory: the stream, the grammar and the random generator."""

    stream: Snapshot
    mask: Paced
    rng: Mapping[str, Any]

    def with_seed(self, seed: int) -> Moment:
        """The same memory with another random generator. Raises ``DsmrError`` for a seed below 0."""
        return replace(self, rng=seeded(seed).bit_generator.state)


class Performer:
    """One stream that listens and plays, without waiting: the caller says when a token is wanted.

    EOS is never played, so a performance lasts as long as it is asked for. Same bundle, ids heard, sampling,
    seed and machine: same tokens. Raises ``DsmrError`` for a seed below 0, and what ``Stream`` raises.
    """

    def __init__(
        self,
        bundle: Bundle,
        sampling: Sampling = SAMPLING,
        seed: int = 0,
        graph: str | None = None,
        threads: int | None = None,
        pace: float | None = None,
        ordered: bool = False,
    ) -> None:
        self._rng = seeded(seed)
        self._bias = pace_bias(bundle.event_table, own_pace(bundle) if pace is None else pace)
        self.bundle = bundle
        self.sampling = sampling
        self.stream = Stream(bundle, graph, threads)
        self._mask = Paced(bundle.grammar(ordered=ordered))
        self._segment = min(PROMPT_SEGMENT, bundle.graph(graph).stream.max_segment)

    def begin(self, ids: Sequence[int] = (), progress: Callable[[int], None] | None = None) -> None:
        """A new piece: forget everything but the random generator, then hear BOS and ``ids``, as ``hear``."""
        self.stream.reset()
        self._mask.reset()
        self.hear([self.bundle.manifest.special.bos, *ids], progress)

    def hear(self, ids: Sequence[int], progress: Callable[[int], None] | None = None) -> None:
        """Feed ids [S], S >= 0, that somebody else played; ``progress`` gets how many were fed so far."""
        for start in range(0, len(ids), self._segment):
            segment = ids[start : start + self._segment]
            self.stream.feed(segment)
            for token in segment:
                self._mask.advance(token)
            if progress is not None:
                progress(start + len(segment))

    def play(self) -> Iterator[int]:
        """Ids without end, each heard before it is yielded; in between, hear or restore at will."""
        return self.stream.generate(self.sampling, self._rng, self._mask, logit_bias=self._bias)

    def snapshot(self) -> Moment:
        """Everything remembered now, copied: ``state_bytes`` of the stream, and a little more."""
        return Moment(self.stream.snapshot(), self._mask.copy(), self._rng.bit_generator.state)

    def restore(self, moment: Moment) -> None:
        """Go back to a moment, of this performer or of another on the same bundle and graph.

        Raises ``BundleError``, with nothing changed, for a moment of something else.
        """
        self.stream.restore(moment.stream)
        self._mask.become(moment.mask)
        self._rng.bit_generator.state = moment.rng


def own_pace(bundle: Bundle) -> float:
    """The pace that the bundle asks for; 0 where it asks for none."""
    generation = bundle.manifest.generation
    return 0.0 if generation is None else generation.pace


def pace_bias(table: EventTable, pace: float) -> NDArray[np.float32]:
    """What a pace adds to the logits, [V]: pace * ln(length / 60 ms) on each shift, so that long ones gain.

    A small model plays on more densely than what it heard: under-rated pauses make it busy, and having been
    busy keeps it so. 0 changes nothing, above 0 is calmer, below 0 busier. Raises ``DsmrError`` for a pace
    that is not finite.
    """
    if not math.isfinite(pace):
        raise DsmrError(f"pace is {pace}: give a number, 0 for the model's own")
    bias = np.zeros(len(table), np.float32)
    for token, (kind, value) in enumerate(zip(table.kinds, table.values, strict=True)):
        if kind == "shift":
            bias[token] = pace * math.log(int(value) * table.step_ms / PACE_PIVOT_MS)
    return bias


def seeded(seed: int) -> np.random.Generator:
    """The random generator of a seed. Raises ``DsmrError`` for one below 0."""
    if seed < 0:
        raise DsmrError(f"seed is {seed}: give a whole number, 0 or more")
    return np.random.default_rng(seed)
