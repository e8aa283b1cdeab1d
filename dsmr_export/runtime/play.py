"""Play on from a prompt: generation in music time, which knows frames and no clock.

    hear_prompt      what a ``Performer`` (runtime.performer) hears before it plays
    play_on          so many seconds of music from where it is, as notes
    continue_prompt  both, with a performer of its own

Time is what shift tokens say. The end of the prompt, its last event, is time 0 of the continuation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from dsmr_export.errors import DsmrError
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.events import Decoder, EventTable, encode
from dsmr_export.runtime.midi import Reading, read, write_midi
from dsmr_export.runtime.performance import KeyEvent, Note, Performance, frame_at, to_notes
from dsmr_export.runtime.performer import (
    MAX_FRAME_TOKENS,
    PACE_PIVOT_MS,
    PROMPT_SEGMENT,
    SAMPLING,
    Moment,
    Paced,
    Performer,
    own_pace,
    pace_bias,
)
from dsmr_export.runtime.sampling import Sampling

__all__ = [
    "MAX_FRAME_TOKENS",
    "PACE_PIVOT_MS",
    "PROMPT_SEGMENT",
    "SAMPLING",
    "Continuation",
    "Moment",
    "Paced",
    "Performer",
    "Progress",
    "continue_prompt",
    "encode_piece",
    "frames_of",
    "hear_prompt",
    "ids_to_let_go",
    "own_pace",
    "pace_bias",
    "play_on",
    "prompt_ids",
    "read_prompt",
]

Progress = Callable[[str, float, float], None]
"""Called with a stage ("hearing" the prompt, "playing"), seconds of music done, and seconds in all."""


def _silent(stage: str, done: float, total: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Continuation:
    """What was played after a prompt.

    ``performance`` begins at frame 0, the prompt's end, and lies within ``frames``. ``tokens`` are the ids
    played; the last one, a shift, may reach beyond ``frames``, by ``ahead`` frames.
    """

    performance: Performance
    tokens: list[int]
    prompt: Performance
    frames: int
    step_ms: int
    ahead: int = 0

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
    progress: Progress = _silent,
    pace: float | None = None,
) -> Continuation:
    """Hear a prompt (None: begin a piece) and play ``seconds`` of music; what then sounds ends there.

    Raises ``DsmrError`` for seconds that are not a step or more, a seed below 0, or a prompt beyond the
    vocabulary's pitches, and what ``Stream`` raises.
    """
    table = bundle.event_table
    frames_of(seconds, table.step_ms)
    prompt_ids(prompt or [], table)  # refused before the graph is loaded
    performer = Performer(bundle, sampling, seed, graph, threads, pace)
    hear_prompt(performer, prompt or [], progress)
    return play_on(performer, seconds, prompt or [], progress=progress)


def hear_prompt(
    performer: Performer, prompt: Performance, progress: Progress = _silent, anew: bool = True
) -> None:
    """Hear a prompt as the beginning of a piece; ``anew=False``: after all that the performer remembers,
    of which what still sounds is let go first, as whoever saved it to a file let it go.

    Raises ``DsmrError`` for a prompt beyond the vocabulary's pitches.
    """
    table = performer.bundle.event_table
    ids, length = prompt_ids(prompt, table), _end(prompt) * table.step_ms / 1000
    if anew:
        fed_in_all = len(ids) + 1  # with BOS
        performer.begin(ids, lambda fed: progress("hearing", length * fed / fed_in_all, length))
        return
    ids = ids_to_let_go(performer.snapshot(), table) + ids
    performer.hear(ids, lambda fed: progress("hearing", length * fed / len(ids), length))


def play_on(
    performer: Performer,
    seconds: float,
    prompt: Performance | None = None,
    ahead: int = 0,
    progress: Progress = _silent,
    event: Callable[[KeyEvent], None] = lambda event: None,
) -> Continuation:
    """Play ``seconds`` of music from where the performer is; what then sounds ends there.

    ``prompt`` is what the continuation names as its prompt; ``ahead``: frames that the performer is ahead of
    time 0 (``Continuation.ahead`` of the one before, so that both together are one without a seam); ``event``
    gets each event when it is made. Raises ``DsmrError`` for seconds that are not a step or more.
    """
    table = performer.bundle.event_table
    frames = frames_of(seconds, table.step_ms)
    decoder, events, tokens = Decoder(table, ahead), [], []
    reached = ahead
    playing = performer.play()
    while reached < frames:
        token = next(playing)
        tokens.append(token)
        if table.kinds[token] == "shift":
            reached = decoder.frame + int(table.values[token])
            if reached >= frames:
                break
            progress("playing", decoder.frame * table.step_ms / 1000, seconds)
        for made in decoder.push(token):
            events.append(made)
            event(made)
    for made in decoder.close(frames):
        events.append(made)
        event(made)
    progress("playing", seconds, seconds)
    return Continuation(to_notes(events), tokens, prompt or [], frames, table.step_ms, reached - frames)


def frames_of(seconds: float, step_ms: int) -> int:
    """A length of music in frames. Raises ``DsmrError`` where it is not a step or more."""
    frames = frame_at(seconds, step_ms) if math.isfinite(seconds) else 0
    if frames < 1:
        raise DsmrError(f"seconds is {seconds}: give a length of music of {step_ms / 1000} seconds or more")
    return frames


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


def ids_to_let_go(moment: Moment, table: EventTable) -> list[int]:
    """Ids that end, there and then, what sounds in a moment."""
    onsets = sorted((onset, pitch) for pitch, onset in moment.mask.onsets.items())
    return [table.off_ids[pitch] for _, pitch in onsets]


def encode_piece(bundle: Bundle, performance: Performance) -> list[int]:
    """A whole piece as the model was trained on it: BOS, its ids, EOS."""
    special = bundle.manifest.special
    return [special.bos, *prompt_ids(performance, bundle.event_table), special.eos]


def _end(performance: Performance) -> int:
    """The frame of a performance's last event."""
    return max((note.end for note in performance), default=0)
