"""A prompt and what the model's graphs make of it: notes to look at and to listen to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from dsmr_export.errors import GraphError
from dsmr_export.piano_roll import BLACK_KEYS, name_of
from dsmr_export.report.blocks import Block, Note, Roll, Section
from dsmr_export.runtime import play
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.performance import Note as Struck
from dsmr_export.runtime.performance import Performance

HEARD_S = 20.0
"""Seconds of the prompt that are heard."""
TAIL_S = 4.0
"""Seconds of it that are shown and played again before each continuation."""
SEEDS = 2
GRAPHS = ("fp32", "int8", "int4")
"""What is set side by side, where a bundle has them."""
LOUDNESS = 4
"""Shades of a note's colour."""

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Clip:
    """Music of one roll. frames: its length. split: the frame at which the prompt ends."""

    title: str
    lead: str
    notes: Performance
    frames: int
    split: int


@dataclass(frozen=True)
class Music:
    clips: Sequence[Clip]
    step_ms: int
    left_out: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """What the player reads: [start, length, pitch, velocity] of each note, in frames of step_ms."""
        clips = [
            {
                "title": clip.title,
                "frames": clip.frames,
                "notes": [[n.start, n.end - n.start, n.pitch, n.velocity] for n in clip.notes],
            }
            for clip in self.clips
        ]
        return {"step_ms": self.step_ms, "clips": clips}


def continuations(
    bundle: Bundle, prompt: Performance, name: str, seconds: float, seed: int, progress: Progress
) -> Music:
    """Two seeds, from ``seed`` on, of every graph in GRAPHS that the bundle has (else its default).

    prompt: of it the first HEARD_S are heard. name: of the piece. A graph that cannot run here is left out
    and named. Raises DsmrError for a length that is not a step or more.
    """
    step_ms = bundle.event_table.step_ms
    heard = beginning(prompt, play.frames_of(HEARD_S, step_ms))
    end = max((note.end for note in heard), default=0)
    clips = [Clip(name, "The prompt: all that the model is given.", heard, end, end)] if heard else []
    graphs = [name for name in GRAPHS if name in bundle.manifest.graphs] or [bundle.default_graph]
    left_out: dict[str, str] = {}
    for number in range(seed, seed + SEEDS):
        first: list[int] | None = None
        for graph in graphs:
            title = f"{graph}, seed {number}"
            if graph in left_out:
                continue
            try:
                made = play.continue_prompt(
                    bundle, heard, seconds, seed=number, graph=graph, progress=_named(progress, title)
                )
            except GraphError as error:
                left_out[graph] = f"{graph}: {error}"
                continue
            clips.append(_clip(title, _lead(made.tokens, first, graphs[0]), heard, made))
            first = made.tokens if graph == graphs[0] else first
    return Music(clips, step_ms, list(left_out.values()))


def _named(progress: Progress, title: str) -> Progress:
    """A bar for each clip, whatever its stage."""
    return lambda stage, done, total: progress(title, done, total)


def beginning(performance: Performance, frames: int) -> Performance:
    """What is struck in the first frames; what still sounds ends there."""
    return [Struck(n.start, min(n.end, frames), n.pitch, n.velocity) for n in performance if n.start < frames]


def section(music: Music | None) -> Section:
    blocks: list[Block] = []
    if music is None or not music.clips:
        blocks.append(Note("No music was made for this page."))
        return Section("listen", "Listen", blocks)
    blocks.append(
        Note(
            "A piano roll each: time from left to right, a line every five seconds; pitch upwards, a line "
            "below every C; the louder a note, the stronger its colour. The prompt is blue, what the model "
            "played orange. The sound is made by the page itself."
        )
    )
    for index, clip in enumerate(music.clips):
        seconds = clip.frames * music.step_ms / 1000
        svg, octaves = roll(clip, music.step_ms)
        blocks.append(Roll(index, clip.title, clip.lead, svg, seconds, octaves))
    blocks += [Note(f"Left out: {reason}") for reason in music.left_out]
    return Section("listen", "Listen", blocks)


def roll(clip: Clip, step_ms: int) -> tuple[str, list[tuple[str, float]]]:
    """The roll as SVG, a unit a frame and a pitch, stretched by the page to its width; and where each C is,
    in percent from the top."""
    pitches = [note.pitch for note in clip.notes] or [60]
    low, high = max(0, min(pitches) - 2), min(127, max(pitches) + 2)
    rows = high - low + 1
    black = "".join(
        f"M0 {high - pitch}h{clip.frames}v1H0z" for pitch in range(low, high + 1) if pitch % 12 in BLACK_KEYS
    )
    fives = "".join(
        f"M{frame} 0v{rows}" for frame in range(5000 // step_ms, clip.frames, max(1, 5000 // step_ms))
    )
    octaves = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
    lines = "".join(f"M0 {high - pitch + 1}h{clip.frames}" for pitch in octaves)
    parts = [f'<path class="keys" d="{black}"/>', f'<path class="grid" d="{fives}{lines}"/>']
    for part, shade, path in _paths(clip, high):
        parts.append(f'<path class="{part} n{shade}" d="{path}"/>')
    # A line where a note is struck: else one that is struck again and again would look like a long one.
    strikes = "".join(f"M{note.start} {high - note.pitch + 0.08:.2f}v.84" for note in clip.notes)
    parts.append(f'<path class="strikes" d="{strikes}"/>')
    if 0 < clip.split < clip.frames:
        parts.append(f'<path class="split" d="M{clip.split} 0v{rows}"/>')
    notes = len(clip.notes)
    label = f"Piano roll of {clip.title}: {notes} notes in {clip.frames * step_ms / 1000:.0f} seconds"
    size = f'viewBox="0 0 {clip.frames} {rows}" preserveAspectRatio="none"'
    svg = f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    places = [(name_of(pitch), 100 * (high - pitch + 0.5) / rows) for pitch in octaves]
    return svg, places


def _paths(clip: Clip, high: int) -> Iterable[tuple[str, int, str]]:
    """(prompt or played, shade, path of all such notes)."""
    found: dict[tuple[str, int], str] = {}
    for note in clip.notes:
        part = "prompt" if note.start < clip.split else "played"
        shade = min(LOUDNESS - 1, note.velocity * LOUDNESS // 128)
        width = note.end - note.start
        box = f"M{note.start} {high - note.pitch + 0.08:.2f}h{width}v.84h-{width}z"
        found[part, shade] = found.get((part, shade), "") + box
    return [(part, shade, path) for (part, shade), path in sorted(found.items())]


def _clip(title: str, lead: str, heard: Performance, made: play.Continuation) -> Clip:
    """The last seconds of the prompt, then the continuation."""
    end = max((note.end for note in heard), default=0)
    tail = min(end, round(TAIL_S * 1000 / made.step_ms))
    before = [
        Struck(max(0, n.start - end + tail), n.end - end + tail, n.pitch, n.velocity)
        for n in heard
        if n.end > end - tail
    ]
    after = [Struck(n.start + tail, n.end + tail, n.pitch, n.velocity) for n in made.performance]
    return Clip(title, lead, before + after, tail + made.frames, tail)


def _lead(tokens: Sequence[int], reference: Sequence[int] | None, other: str) -> str:
    if reference is None:
        return f"{len(tokens)} tokens."
    if list(tokens) == list(reference):
        return f"{len(tokens)} tokens, the same as {other}'s with this seed."
    pairs = zip(tokens, reference, strict=False)
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(reference)))
    return f"{len(tokens)} tokens; {other} with this seed plays others from token {same + 1} on."
