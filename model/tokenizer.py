"""The tokenizer: miditok's MIDI-Like performance encoding, and what a runtime needs to know of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmr_export.errors import CheckpointError
from dsmr_export.runtime.performance import Performance

if TYPE_CHECKING:
    from miditok import MIDILike

QUARTERS_PER_SECOND = 2  # 120 bpm: miditok counts time in quarter notes
_KINDS = {"NoteOn": "on", "NoteOff": "off", "Velocity": "velocity", "TimeShift": "shift"}


def default_tokenizer() -> MIDILike:
    """The encoding that published MAESTRO results use.

    311 ids: 3 special, 88 note-ons, 88 note-offs, 32 velocities, 100 shifts of 10 ms to 1 s.
    """
    from miditok import MIDILike, TokenizerConfig

    config = TokenizerConfig(
        pitch_range=(21, 108),
        beat_res={(0, 2): 50},  # shifts of 1-100 ticks of 10 ms
        num_velocities=32,
        special_tokens=["PAD", "BOS", "EOS"],
        use_pitchdrum_tokens=False,
        use_time_signatures=False,
        use_programs=False,
    )
    return MIDILike(config)


def load(path: str | os.PathLike[str]) -> MIDILike:
    """Read a ``tokenizer.json``. Raises ``CheckpointError`` if it is missing, damaged or not MIDI-Like."""
    from miditok import MIDILike

    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such tokenizer file; a checkpoint folder holds tokenizer.json")
    try:
        tokenizer = MIDILike(params=Path(path))
        event_table(tokenizer)
    except CheckpointError:
        raise
    except Exception as error:  # miditok raises whatever its parsing hits
        raise CheckpointError(
            f"{path}: is not a miditok MIDILike tokenizer ({error}); save it again"
        ) from error
    return tokenizer


def save(tokenizer: MIDILike, path: str | os.PathLike[str]) -> None:
    """Write the tokenizer's JSON, which ``load`` and miditok read."""
    tokenizer.save(Path(path))


def to_json(tokenizer: MIDILike) -> str:
    """The text that ``save`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        save(tokenizer, Path(folder) / "tokenizer.json")
        return (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")


def encode(performance: Performance | np.ndarray, tokenizer: MIDILike) -> list[int]:
    """Ids of a canonical performance (a list of notes or int [N, 4]) by miditok itself, without BOS and EOS.

    The score handed over is the canonical one: one tick per step, 120 bpm, notes by (start, pitch).
    """
    from symusic import Note as ScoreNote
    from symusic import Score, Tempo, Track

    notes = np.asarray(performance, dtype=np.int32).reshape(-1, 4)
    if not len(notes):
        return []
    start, end, pitch, velocity = notes.T
    score: Any = Score(tokenizer.config.max_num_pos_per_beat)
    score.tempos.append(Tempo(0, 60.0 * QUARTERS_PER_SECOND))
    track: Any = Track("piano", 0, False)
    track.notes = ScoreNote.from_numpy(
        time=start,
        duration=end - start,
        pitch=pitch.astype(np.int8),
        velocity=velocity.astype(np.int8),
    )
    score.tracks.append(track)
    sequence = tokenizer.encode(score)
    ids = sequence[0].ids if isinstance(sequence, list) else sequence.ids
    return [int(token) for token in ids]


def vocabulary(tokenizer: MIDILike) -> list[str]:
    """Token strings; the index is the id."""
    return [token for token, _ in sorted(tokenizer.vocab.items(), key=lambda item: item[1])]


def special_ids(tokenizer: MIDILike) -> dict[str, int]:
    """``{"pad": …, "bos": …, "eos": …}``, as in the manifest's ``special``."""
    return {name: tokenizer.vocab[f"{name.upper()}_None"] for name in ("pad", "bos", "eos")}


def pitch_range(tokenizer: MIDILike) -> tuple[int, int]:
    """Lowest and highest pitch with a token (both inclusive)."""
    pitches = [int(token.split("_")[1]) for token in tokenizer.vocab if token.startswith("NoteOn_")]
    return min(pitches), max(pitches)


def step_ms(tokenizer: MIDILike) -> int:
    """Milliseconds of one step. Raises ``CheckpointError`` if that is not a whole number."""
    per_second = tokenizer.config.max_num_pos_per_beat * QUARTERS_PER_SECOND
    if 1000 % per_second:
        raise CheckpointError(
            f"tokenizer: {per_second} steps per second are no whole milliseconds; change beat_res"
        )
    return 1000 // per_second


def event_table(tokenizer: MIDILike) -> dict[str, Any]:
    """The manifest's ``events``: what each id means, in MIDI's own terms.

    ``value`` is a pitch (on, off), a MIDI velocity, a number of steps (shift) or a name (special). Raises
    ``CheckpointError`` for a vocabulary with tokens that a live performance cannot produce.
    """
    resolution = tokenizer.config.max_num_pos_per_beat
    tokens: list[dict[str, Any]] = []
    for token in vocabulary(tokenizer):
        kind, value = token.rsplit("_", 1)
        if kind in ("NoteOn", "NoteOff", "Velocity"):
            tokens.append({"kind": _KINDS[kind], "value": int(value)})
        elif kind == "TimeShift":
            beats, position, of = (int(part) for part in value.split("."))
            tokens.append({"kind": "shift", "value": beats * resolution + position * resolution // of})
        elif f"{kind}_{value}" in tokenizer.special_tokens:
            tokens.append({"kind": "special", "value": kind.lower()})
        else:
            raise CheckpointError(
                f"tokenizer: token {token} is not of MIDILike's note-on/off encoding; switch its option off"
            )
    return {"step_ms": step_ms(tokenizer), "tokens": tokens}


def grammar_rules() -> dict[str, Any]:
    """The manifest's ``grammar``, in the form that ``runtime.grammar`` explains.

    Within a frame note-offs precede note-ons, so no ``off`` follows a ``velocity``: time must pass first. EOS
    (the one ``special``) follows the last note-off, as in every piece that was trained on.
    """
    return {
        "start": ["on", "shift"],
        "may_follow": {
            "on": ["velocity"],
            "velocity": ["on", "shift"],
            "off": ["off", "on", "shift", "special"],
            "shift": ["off", "on", "shift"],
        },
        "off_needs_sounding": True,
        "on_needs_silent": True,
        "eos_needs_silence": True,
        "ordered": True,
    }
