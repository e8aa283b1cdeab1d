"""The runtime's encoding against miditok's on every bundled piece; back again; live; and any ids at all."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export.errors import BundleError
from dsmr_export.manifest import EventEntry, EventToken
from dsmr_export.model import data
from dsmr_export.model import tokenizer as tokens
from dsmr_export.runtime.events import Decoder, Encoder, EventTable, decode, encode
from dsmr_export.runtime.performance import KeyEvent, Note, Recorder, canonical, to_notes

TOKENIZER = tokens.default_tokenizer()
TABLE = EventTable.from_json(tokens.event_table(TOKENIZER))
BINS = [int(velocity) for velocity in sorted(TABLE.velocities)]

PERFORMANCES = st.lists(
    st.builds(
        lambda start, length, pitch, velocity: Note(start, start + length, pitch, velocity),
        st.integers(0, 700),
        st.integers(1, 400),
        st.integers(58, 62) | st.integers(21, 108),
        st.integers(1, 127),
    ),
    max_size=25,
).map(canonical)
IDS = st.lists(
    st.integers(-3, len(TABLE) + 3) | st.sampled_from([0, 1, 2, 42, 43, 130, 131, 190, 211, 212]), max_size=60
)


def binned(notes: list[Note]) -> list[Note]:
    """Velocities replaced by the nearest that has a token, ties to the louder."""
    return [note._replace(velocity=min(BINS, key=lambda v: (abs(v - note.velocity), -v))) for note in notes]


def test_ids_are_miditoks_on_every_bundled_piece() -> None:
    pieces = data.load(None, None, TOKENIZER, progress=False).pieces  # ids by miditok
    assert len(pieces) == 113
    for piece in pieces:
        notes = [Note(*row) for row in piece.performance.tolist()]
        ids = encode(notes, TABLE)
        assert ids == piece.ids[1:-1].tolist(), piece.name
        assert decode(ids, TABLE) == binned(notes), piece.name


@given(PERFORMANCES)
def test_ids_are_miditoks_on_any_performance(notes: list[Note]) -> None:
    assert encode(notes, TABLE) == tokens.encode(notes, TOKENIZER)


@given(PERFORMANCES)
def test_decoded_again_only_velocities_are_rounded(notes: list[Note]) -> None:
    assert decode(encode(notes, TABLE), TABLE) == binned(notes)


@pytest.mark.parametrize("velocity", range(1, 128))
def test_every_velocity_has_miditoks_bin(velocity: int) -> None:
    notes = [Note(0, 1, 60, velocity)]
    assert encode(notes, TABLE) == tokens.encode(notes, TOKENIZER)


@given(PERFORMANCES, st.sets(st.integers(0, 1200), max_size=20))
def test_live_and_whole_give_the_same_ids(notes: list[Note], ticks: set[int]) -> None:
    """Keys go down and up one by one, and a clock that looks at the time now and then changes nothing."""
    recorder, encoder, ids = Recorder(TABLE.pitch_range), Encoder(TABLE), []
    keys = [(n.end, 0, n.pitch, 0) for n in notes] + [(n.start, 1, n.pitch, n.velocity) for n in notes]
    for frame, kind, pitch, velocity in sorted(keys + [(frame, 2, 0, 0) for frame in ticks]):
        if kind == 2:
            final = recorder.advance(frame)
        else:
            final = (recorder.note_on if velocity else recorder.note_off)(
                frame, pitch, *([velocity] if velocity else [])
            )
        for event in final:
            ids += encoder.push(event)
        if kind == 2 and frame <= max((n.end for n in notes), default=0):
            ids += encoder.advance(frame)
    for event in recorder.finish():
        ids += encoder.push(event)
    assert ids == tokens.encode(notes, TOKENIZER)


def test_long_silence_is_chained_from_the_longest_shift() -> None:
    encoder = Encoder(TABLE)
    second, rest = TABLE.shift_ids[100], TABLE.shift_ids[50]
    assert encoder.advance(99) == []
    assert encoder.advance(250) == [second, second]
    assert encoder.wait(250) == [rest]
    assert encoder.wait(250) == []
    assert encoder.push(KeyEvent(250, "off", 60, 0)) == [TABLE.off_ids[60]]


def test_gaps_without_a_token_of_their_own_are_put_together() -> None:
    few = dataclasses.replace(
        TABLE,
        values=tuple(
            v if k != "shift" or v in (1, 5, 20) else 20
            for k, v in zip(TABLE.kinds, TABLE.values, strict=True)
        ),
    )
    notes = [Note(48, 49, 60, 63)]
    assert decode(encode(notes, few), few) == notes


# Any ids


@given(IDS)
def test_any_ids_decode_to_a_canonical_performance(ids: list[int]) -> None:
    notes = decode(ids, TABLE)
    assert canonical(notes) == notes


@given(IDS)
def test_events_run_forward_and_every_note_that_begins_ends(ids: list[int]) -> None:
    decoder, sounding, now = Decoder(TABLE), set(), 0
    events = [event for token in ids for event in decoder.push(token)]
    for event in events + decoder.close():
        assert event.frame >= now
        now = event.frame
        if event.kind == "on":
            assert event.pitch not in sounding
            sounding.add(event.pitch)
        else:
            sounding.remove(event.pitch)
    assert sounding == set() == decoder.sounding


@given(IDS, IDS)
def test_a_copy_goes_its_own_way(before: list[int], after: list[int]) -> None:
    decoder = Decoder(TABLE)
    for token in before:
        decoder.push(token)
    twin = decoder.copy()
    first = [decoder.push(token) for token in after], decoder.close()
    assert ([twin.push(token) for token in after], twin.close()) == first


def ids_of(*words: str) -> list[int]:
    vocabulary = tokens.vocabulary(TOKENIZER)
    return [vocabulary.index(word) for word in words]


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        (["NoteOff_60", "Velocity_63", "TimeShift_2.0.50"], []),
        (["NoteOn_60", "TimeShift_2.0.50", "Velocity_63"], []),
        (["NoteOn_60", "NoteOn_62", "Velocity_63"], [Note(0, 1, 62, 63)]),
        (["NoteOn_60", "Velocity_63", "TimeShift_2.0.50"], [Note(0, 100, 60, 63)]),
        (["NoteOn_60", "Velocity_63", "NoteOff_60", "TimeShift_2.0.50"], [Note(0, 1, 60, 63)]),
        (
            [
                "NoteOn_60",
                "Velocity_63",
                "TimeShift_0.9.50",
                "NoteOn_60",
                "Velocity_127",
                "TimeShift_0.1.50",
                "NoteOff_60",
            ],
            [Note(0, 9, 60, 63), Note(9, 10, 60, 127)],
        ),
        (
            ["NoteOn_60", "Velocity_63", "TimeShift_0.9.50", "BOS_None", "TimeShift_0.9.50"],
            [Note(0, 9, 60, 63)],
        ),
    ],
)
def test_what_makes_no_sense_is_passed_over(words: list[str], notes: list[Note]) -> None:
    assert decode(ids_of(*words), TABLE) == notes


def test_closing_later_holds_the_notes_until_then() -> None:
    decoder = Decoder(TABLE)
    events = [event for token in ids_of("NoteOn_60", "Velocity_63") for event in decoder.push(token)]
    assert to_notes(events + decoder.close(300)) == [Note(0, 300, 60, 63)]


# The table


def test_the_manifests_entry_gives_the_same_table() -> None:
    pairs = zip(TABLE.kinds, TABLE.values, strict=True)
    entry = EventEntry(10.0, tuple(EventToken(kind, value) for kind, value in pairs))
    assert EventTable.from_entry(entry) == TABLE
    assert TABLE.pitch_range == (21, 108)
    assert [TABLE.special_id(name) for name in ("pad", "bos", "eos", "sep")] == [0, 1, 2, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_ms": 7.5}, "step_ms is 7.5, not a whole number"),
        (
            {"kinds": tuple("off" if kind == "on" else kind for kind in TABLE.kinds)},
            "pitches of on and off differ",
        ),
        (
            {"kinds": tuple("shift" if kind == "velocity" else kind for kind in TABLE.kinds)},
            "there is no velocity",
        ),
        ({"values": tuple(2 if value == 1 else value for value in TABLE.values)}, "or no shift of one step"),
    ],
)
def test_a_table_that_cannot_say_everything_is_refused(
    change: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        dataclasses.replace(TABLE, **change)
