"""Play on from a prompt: generation in music time, which knows frames and no clock.

    Performer        a stream, its grammar and random generator: hears ids, plays ids, goes back to any moment
    continue_prompt  a Performer that hears a prompt and then plays for so many seconds of music, as notes

Time is what shift tokens say. The end of the prompt, its last event, is time 0 of the continuation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import DsmrError
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.events import Decoder, EventTable, encode
from dsmr_export.runtime.grammar import Grammar
from dsmr_export.runtime.midi import Reading, read, write_midi
from dsmr_export.runtime.performance import Note, Performance, frame_at, to_notes
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

Progress = Callable[[str, float, float], None]
"""Called with a stage ("hearing" the prompt, "playing"), seconds of music done, and seconds in all."""


class Paced:
    """A grammar under which time must pass: after ``MAX_FRAME_TOKENS`` without a shift, one is due."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._shifts = np.array([kind == "shift" for kind in grammar.table.kinds], dtype=np.bool_)
        self._here = 0  # tokens since the last shift

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Boolean [V], at least one True, valid until ``advance``."""
        allowed = self._grammar.allowed
        if self._here < MAX_FRAME_TOKENS:
            return allowed
        only = allowed & self._shifts
        return only if only.any() else allowed  # a note-on still waits for its velocity

    def advance(self, token: int) -> None:
        """Take note that ``token`` came."""
        self._grammar.advance(token)
        self._here = 0 if self._shifts[token] else self._here + 1

    def reset(self) -> None:
        """As before the first id."""
        self._grammar.reset()
        self._here = 0

    def copy(self) -> Paced:
        """Another one at the same point."""
        twin = Paced.__new__(Paced)
        twin.become(self)
        return twin

    def become(self, other: Paced) -> None:
        """Go to the point of another one, which is left as it is."""
        self._grammar, self._shifts, self._here = other._grammar.copy(), other._shifts, other._here


@dataclass(frozen=True)
class Moment:
    """A performer's whole memory: the stream, the grammar and the random generator."""

    stream: Snapshot
    mask: Paced
    rng: Mapping[str, Any]


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
    ) -> None:
        if seed < 0:
            raise DsmrError(f"seed is {seed}: give a whole number, 0 or more")
        self._bias = pace_bias(bundle.event_table, own_pace(bundle) if pace is None else pace)
        self.bundle = bundle
        self.sampling = sampling
        self.stream = Stream(bundle, graph, threads)
        self._mask = Paced(bundle.grammar(allow_eos=False))
        self._rng = np.random.default_rng(seed)
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


@dataclass(frozen=True)
class Continuation:
    """What was played after a prompt.

    ``performance`` begins at frame 0, the prompt's end, and lies within ``frames``. ``tokens`` are the ids
    played; the last one, a shift, may reach beyond ``frames``.
    """

    performance: Performance
    tokens: list[int]
    prompt: Performance
    frames: int
    step_ms: int

    def with_prompt(self) -> Performance:
        """The prompt, unchanged, and then the continuation."""
        end = _end(self.prompt)
        return self.prompt + [
            Note(note.start + end, note.end + end, note.pitch, note.velocity) for note in self.performance
        ]

    def save(self, path: str | os.PathLike[str], with_prompt: bool = False) -> None:
        """Write a MIDI file; same notes, same bytes. Raises ``OutputError`` if it cannot be written."""
        write_midi(self.with_prompt() if with_prompt else self.performance, path, step_ms=self.step_ms)


def continue_prompt(
    bundle: Bundle,
    prompt: Performance | None,
    seconds: float,
    sampling: Sampling = SAMPLING,
    seed: int = 0,
    graph: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda stage, done, total: None,
    pace: float | None = None,
) -> Continuation:
    """Hear a prompt (None: begin a piece) and play ``seconds`` of music; what then sounds ends there.

    Raises ``DsmrError`` for seconds that are not a step or more, a seed below 0, or a prompt beyond the
    vocabulary's pitches, and what ``Stream`` raises.
    """
    table = bundle.event_table
    frames = _frames(seconds, table.step_ms)
    heard = prompt or []
    ids = prompt_ids(heard, table)
    performer = Performer(bundle, sampling, seed, graph, threads, pace)
    length, fed_in_all = _end(heard) * table.step_ms / 1000, len(ids) + 1  # with BOS
    performer.begin(ids, lambda fed: progress("hearing", length * fed / fed_in_all, length))

    decoder, events, tokens = Decoder(table), [], []
    for token in performer.play():
        tokens.append(token)
        if table.kinds[token] == "shift":
            if decoder.frame + int(table.values[token]) >= frames:
                break
            progress("playing", decoder.frame * table.step_ms / 1000, seconds)
        events += decoder.push(token)
    progress("playing", seconds, seconds)
    return Continuation(to_notes(events + decoder.close(frames)), tokens, heard, frames, table.step_ms)


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


def read_prompt(
    bundle: Bundle, source: str | os.PathLike[str] | bytes | IO[bytes], name: str | None = None
) -> Reading:
    """A MIDI file in the frames and pitches of the bundle's vocabulary; ``name`` is what messages call it.

    Raises ``MidiError``.
    """
    table = bundle.event_table
    return read(source, table.pitch_range, table.step_ms, name)


def prompt_ids(performance: Performance, table: EventTable) -> list[int]:
    """Ids of a performance without BOS and EOS. Raises ``DsmrError`` for a pitch that has no token."""
    low, high = table.pitch_range
    if outside := sorted({note.pitch for note in performance if not low <= note.pitch <= high}):
        raise DsmrError(
            f"the prompt has the pitch {outside[0]}, the vocabulary {low}-{high}: transpose it, or read it "
            "with read_prompt, which leaves such notes out"
        )
    return encode(performance, table)


def encode_piece(bundle: Bundle, performance: Performance) -> list[int]:
    """A whole piece as the model was trained on it: BOS, its ids, EOS."""
    special = bundle.manifest.special
    return [special.bos, *prompt_ids(performance, bundle.event_table), special.eos]


def _end(performance: Performance) -> int:
    """The frame of a performance's last event."""
    return max((note.end for note in performance), default=0)


def _frames(seconds: float, step_ms: int) -> int:
    frames = frame_at(seconds, step_ms) if math.isfinite(seconds) else 0
    if frames < 1:
        raise DsmrError(f"seconds is {seconds}: give a length of music of {step_ms / 1000} seconds or more")
    return frames
