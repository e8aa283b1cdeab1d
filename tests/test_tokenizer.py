"""The tokenizer against miditok's own decoder, and what it tells the manifest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miditok import REMI, MIDILike, TokenizerConfig

from dsmr_export.errors import CheckpointError
from dsmr_export.model import tokenizer as tokens
from dsmr_export.runtime.events import EventTable
from dsmr_export.runtime.grammar import Grammar
from dsmr_export.runtime.performance import Note, canonical

TOKENIZER = tokens.default_tokenizer()
TABLE = tokens.event_table(TOKENIZER)

PERFORMANCES = st.lists(
    st.builds(
        lambda start, length, pitch, velocity: Note(start, start + length, pitch, velocity),
        st.integers(0, 500),
        st.integers(1, 350),
        st.integers(58, 64),
        st.integers(1, 127),
    ),
    min_size=1,
    max_size=20,
).map(canonical)


def test_the_vocabulary_is_the_one_of_the_design() -> None:
    names = tokens.vocabulary(TOKENIZER)
    assert len(names) == len(set(names)) == len(TOKENIZER) == 311
    kinds = Counter(entry["kind"] for entry in TABLE["tokens"])
    assert kinds == {"special": 3, "on": 88, "off": 88, "velocity": 32, "shift": 100}
    assert tokens.special_ids(TOKENIZER) == {"pad": 0, "bos": 1, "eos": 2}
    assert tokens.pitch_range(TOKENIZER) == (21, 108)
    assert TABLE["step_ms"] == tokens.step_ms(TOKENIZER) == 10


def test_the_event_table_speaks_midi() -> None:
    names = tokens.vocabulary(TOKENIZER)
    meaning = {name: entry["value"] for name, entry in zip(names, TABLE["tokens"], strict=True)}
    assert meaning["NoteOn_60"] == meaning["NoteOff_60"] == 60
    assert meaning["Velocity_127"] == 127
    assert meaning["TimeShift_0.1.50"] == 1  # 1/50 of a quarter note at 120 bpm = 10 ms
    assert meaning["TimeShift_1.49.50"] == 99 and meaning["TimeShift_2.0.50"] == 100
    assert meaning["EOS_None"] == "eos"
    json.dumps(TABLE)
    json.dumps(tokens.grammar_rules())
    Grammar(EventTable.from_json(TABLE), tokens.grammar_rules())


@given(PERFORMANCES)
def test_miditok_decodes_to_the_same_notes(notes: list[Note]) -> None:
    score = TOKENIZER.decode([tokens.encode(notes, TOKENIZER)])
    per_frame = score.ticks_per_quarter // 50
    found = sorted((n.time // per_frame, n.end // per_frame, n.pitch) for n in score.tracks[0].notes)
    assert found == sorted((n.start, n.end, n.pitch) for n in notes)


def test_an_array_encodes_as_the_notes_do() -> None:
    notes = [Note(3, 250, 60, 64), Note(120, 130, 108, 1)]
    assert tokens.encode(np.array(notes, dtype=np.int32), TOKENIZER) == tokens.encode(notes, TOKENIZER)
    assert tokens.encode([], TOKENIZER) == []


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokens.save(TOKENIZER, path)
    again = tokens.load(path)
    assert again.vocab == TOKENIZER.vocab
    assert tokens.to_json(again) == tokens.to_json(TOKENIZER) == path.read_text()
    assert tokens.event_table(again) == TABLE


def test_a_missing_or_damaged_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such tokenizer file"):
        tokens.load(path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is not a miditok MIDILike tokenizer"):
        tokens.load(path)


@pytest.mark.parametrize("other", [REMI(), MIDILike(TokenizerConfig(use_tempos=True))])
def test_another_encoding_is_refused(tmp_path: Path, other: MIDILike) -> None:
    with pytest.raises(
        CheckpointError, match="is not of MIDILike's note-on/off encoding|no whole milliseconds"
    ):
        tokens.event_table(other)
    other.save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError):
        tokens.load(tmp_path / "tokenizer.json")


def test_steps_of_no_whole_milliseconds_are_refused() -> None:
    odd = MIDILike(
        TokenizerConfig(beat_res={(0, 2): 48}, use_pitchdrum_tokens=False, use_time_signatures=False)
    )
    with pytest.raises(CheckpointError, match="96 steps per second are no whole milliseconds"):
        tokens.event_table(odd)
