"""The grammar admits every real piece, and nothing that it admits is invalid."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export.errors import BundleError
from dsmr_export.model import data
from dsmr_export.model import tokenizer as tokens
from dsmr_export.runtime.events import Decoder, EventTable, decode, encode
from dsmr_export.runtime.grammar import Grammar
from dsmr_export.runtime.performance import Note, canonical

TOKENIZER = tokens.default_tokenizer()
TABLE = EventTable.from_json(tokens.event_table(TOKENIZER))
RULES = tokens.grammar_rules()
PAD, BOS, EOS = 0, 1, 2


def grammar(allow_eos: bool = False) -> Grammar:
    return Grammar(TABLE, RULES, allow_eos, ordered=True)


def walk(rules: Grammar, seed: int, count: int) -> list[int]:
    """Random ids under the mask; kinds evenly, so that offs, few as they are, come as often as ons."""
    rng, ids = np.random.default_rng(seed), []
    kinds = np.array(TABLE.kinds)
    for _ in range(count):
        allowed = np.flatnonzero(rules.allowed)
        kind = rng.choice(np.unique(kinds[allowed]))
        ids.append(int(rng.choice(allowed[kinds[allowed] == kind])))
        rules.advance(ids[-1])
        if ids[-1] == EOS:
            break
    return ids


def test_every_bundled_piece_is_allowed() -> None:
    for piece in data.load(None, None, TOKENIZER, progress=False).pieces:
        rules = grammar(allow_eos=True)
        for place, token in enumerate(piece.ids.tolist()[1:]):
            assert rules.allowed[token], (piece.name, place)
            rules.advance(token)


PERFORMANCES = st.lists(
    st.builds(
        lambda start, length, pitch, velocity: Note(start, start + length, pitch, velocity),
        st.integers(0, 300),
        st.integers(1, 200),
        st.integers(59, 62),
        st.integers(1, 127),
    ),
    min_size=1,
    max_size=25,
).map(canonical)


@given(PERFORMANCES)
def test_every_canonical_performance_is_allowed(notes: list[Note]) -> None:
    rules = grammar(allow_eos=True)
    for token in [*encode(notes, TABLE), EOS]:
        assert rules.allowed[token]
        rules.advance(token)


@given(st.integers(0, 2**32), st.booleans())
def test_what_is_allowed_is_a_canonical_performance(seed: int, allow_eos: bool) -> None:
    ids = walk(grammar(allow_eos), seed, 200)
    assert not {PAD, BOS} & set(ids)
    kinds = [TABLE.kinds[token] for token in ids]
    for before, after in zip(kinds, kinds[1:], strict=False):
        assert (before == "on") == (after == "velocity")
    if ids[-1] == EOS:
        assert allow_eos
        ids.pop()
    notes = decode(ids, TABLE)
    assert canonical(notes) == notes
    # Nothing was passed over: each id did something. A note-on that is the last id has no velocity yet.
    assert len(notes) == kinds.count("on") - (kinds[-1] == "on")


@given(st.integers(0, 2**32))
def test_what_is_allowed_is_what_the_encoder_would_write(seed: int) -> None:
    """The rule ``ordered``: no two id sequences for one performance, so music that is sampled needs no other
    ids once it is heard."""
    ids = walk(grammar(), seed, 200)
    if TABLE.kinds[ids[-1]] == "on":
        ids.pop()
    while ids and TABLE.kinds[ids[-1]] == "shift":
        ids.pop()
    notes = decode([*ids, TABLE.shift_ids[TABLE.longest_shift]], TABLE)  # what still sounds ends later
    assert encode(notes, TABLE)[: len(ids)] == ids


@given(st.integers(0, 2**32), st.integers(0, 100))
def test_a_state_goes_on_as_its_grammar_does(seed: int, count: int) -> None:
    rules, other = grammar(), grammar()
    walk(rules, seed, count)
    other.resume(json.loads(json.dumps(rules.state())))
    assert np.array_equal(rules.allowed, other.allowed) and rules.sounding == other.sounding
    for token in walk(rules.copy(), seed + 1, 50):
        assert np.array_equal(rules.allowed, other.allowed)
        rules.advance(token)
        other.advance(token)


@pytest.mark.parametrize(
    "change", [{"last": "chord"}, {"onsets": [[5, 0]]}, {"allowed": "00"}, {"allowed": "x"}, {"pending": 5}]
)
def test_a_damaged_state_is_refused(change: dict[str, Any]) -> None:
    rules = grammar()
    walk(rules, 1, 40)
    before = rules.state()
    with pytest.raises(BundleError, match="this state is not whole: its grammar"):
        rules.resume(before | change)
    assert rules.state() == before


def test_eos_comes_only_in_silence_and_only_if_wanted() -> None:
    rules = grammar(allow_eos=True)
    on, off = TABLE.on_ids, TABLE.off_ids
    for token in (on[60], 190, on[64], 190, TABLE.shift_ids[10], off[60]):
        assert not rules.allowed[EOS]
        rules.advance(token)
    assert not rules.allowed[EOS]
    rules.advance(off[64])
    assert rules.allowed[EOS]
    without = grammar()
    for token in (on[60], 190, TABLE.shift_ids[10], off[60]):
        without.advance(token)
    assert not without.allowed[EOS]


@given(
    st.lists(
        st.integers(-2, len(TABLE) + 2) | st.sampled_from([0, 1, 2, 42, 43, 130, 131, 190, 211]), max_size=60
    )
)
def test_after_any_ids_it_agrees_with_the_decoder_and_allows_something(ids: list[int]) -> None:
    rules, decoder = grammar(), Decoder(TABLE)
    for token in ids:
        rules.advance(token)
        decoder.push(token)
        assert rules.sounding == decoder.sounding
        assert rules.allowed.any()
        allowed = np.flatnonzero(rules.allowed).tolist()
        offs = {TABLE.values[i] for i in allowed if TABLE.kinds[i] == "off"}
        ons = {TABLE.values[i] for i in allowed if TABLE.kinds[i] == "on"}
        assert offs <= rules.sounding and not ons & rules.sounding


def test_bos_begins_anew() -> None:
    rules, fresh = grammar(), grammar()
    for token in (TABLE.on_ids[60], 190, BOS):
        rules.advance(token)
    assert np.array_equal(rules.allowed, fresh.allowed)


def test_the_mask_is_one_buffer_and_a_copy_has_its_own() -> None:
    rules = grammar()
    mask = rules.allowed
    rules.advance(TABLE.on_ids[60])
    assert rules.allowed is mask
    twin = rules.copy()
    kept = twin.allowed.copy()
    for token in (190, TABLE.shift_ids[1], TABLE.off_ids[60]):
        rules.advance(token)
    assert np.array_equal(twin.allowed, kept) and twin.sounding == set()
    for token in (190, TABLE.shift_ids[1], TABLE.off_ids[60]):
        twin.advance(token)
    assert np.array_equal(twin.allowed, rules.allowed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"may_follow": None}, "has no may_follow"),
        ({"start": None}, "what may follow start is None"),
        ({"may_follow": RULES["may_follow"] | {"shift": ["pedal"]}}, "what may follow shift is .*'pedal'"),
        (
            {"may_follow": RULES["may_follow"] | {"off": ["off", "on"]}},
            "after off there may be no token left",
        ),
    ],
)
def test_rules_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Grammar(TABLE, RULES | change)
