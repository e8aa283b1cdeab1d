"""The canonical performance, rule by rule, from bytes built by hand; any bytes; live against file."""

from __future__ import annotations

import errno
import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export import corpus
from dsmr_export.errors import MidiError, OutputError
from dsmr_export.runtime.midi import read, read_midi, write_midi
from dsmr_export.runtime.performance import Note, Recorder, canonical, frame_at, to_events, to_notes

MS = 500  # ticks per quarter: at 120 bpm one tick is one millisecond
END = b"\x00\xff\x2f\x00"


def vlq(value: int) -> bytes:
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


def track(*events: tuple[int, bytes], end: int = 0) -> bytes:
    """A track chunk from (absolute tick, message bytes) in order, then its end, ``end`` ticks later."""
    data, now = b"", 0
    for tick, message in events:
        data += vlq(tick - now) + message
        now = tick
    data += vlq(end) + END[1:]
    return b"MTrk" + struct.pack(">L", len(data)) + data


def smf(*tracks: bytes, division: int = MS, kind: int = 1) -> bytes:
    return b"MThd" + struct.pack(">LHHH", 6, kind, len(tracks), division & 0xFFFF) + b"".join(tracks)


def on(pitch: int, velocity: int = 64, channel: int = 0) -> bytes:
    return bytes([0x90 | channel, pitch, velocity])


def off(pitch: int, channel: int = 0) -> bytes:
    return bytes([0x80 | channel, pitch, 64])


def control(number: int, value: int, channel: int = 0) -> bytes:
    return bytes([0xB0 | channel, number, value])


def pedal(value: int, channel: int = 0) -> bytes:
    return control(64, value, channel)


def tempo(microseconds: int) -> bytes:
    return b"\xff\x51\x03" + microseconds.to_bytes(3, "big")


def one(*events: tuple[int, bytes], end: int = 0) -> list[Note]:
    return read_midi(smf(track(*events, end=end)))


# Time


def test_a_frame_is_ten_milliseconds_and_halves_go_up() -> None:
    assert one((14, on(60)), (25, off(60))) == [Note(1, 3, 60, 64)]
    assert [frame_at(s) for s in (0.0, 0.004, 0.006, 0.125, 1.0)] == [0, 0, 1, 13, 100]


def test_seconds_follow_the_tempo_map_of_any_track() -> None:
    notes = track((1000, on(60)), (2000, off(60)))
    tempos = track((500, tempo(1_000_000)), (1500, tempo(250_000)))
    # 0.5 s to tick 500, 1 s more to tick 1000; 1 s to tick 1500, 0.25 s to tick 2000
    assert read_midi(smf(tempos, notes)) == [Note(150, 275, 60, 64)]
    assert read_midi(smf(notes, tempos)) == [Note(150, 275, 60, 64)]


def test_many_tempo_changes_do_not_drift() -> None:
    """A hundred thousand steps of a third of a millisecond: a running sum of floats would be off."""
    events = [(tick, tempo(333_333 if tick % 2 else 333_334)) for tick in range(0, 60_000, 3)]
    [note] = read_midi(smf(track(*events, (60_000, on(60)), (60_003, off(60))), division=1000))
    elapsed = sum(3 * (333_333 if tick % 2 else 333_334) for tick in range(0, 60_000, 3))
    assert note.start == round(elapsed / 1e6 / 1000 * 100)


def test_smpte_division_counts_film_frames_and_ignores_tempo() -> None:
    events = [(0, tempo(1)), (1000, on(60)), (2000, off(60))]
    assert read_midi(smf(track(*events), division=(-25 << 8) | 40)) == [Note(100, 200, 60, 64)]
    drop = read_midi(smf(track(*events), division=(-29 << 8) | 100))  # 29.97 frames a second
    assert drop == [Note(33, 67, 60, 64)]  # 1000 and 2000 of 2997 ticks a second


def test_type_2_plays_its_tracks_one_after_the_other() -> None:
    first, second = track((0, on(60)), (100, off(60)), end=100), track((0, on(62)), (100, off(62)))
    assert read_midi(smf(first, second, kind=2)) == [Note(0, 10, 60, 64), Note(20, 30, 62, 64)]


# Notes


def test_tracks_are_merged_and_sorted() -> None:
    right, left = track((0, on(72)), (500, off(72))), track((0, on(48)), (250, off(48)))
    assert read_midi(smf(right, left)) == [Note(0, 25, 48, 64), Note(0, 50, 72, 64)]


def test_running_status_sysex_and_velocity_zero() -> None:
    running = (0, on(60)), (10, bytes([62, 64])), (20, bytes([60, 0])), (30, bytes([62, 0]))
    sysex = (30, b"\xf0\x05\x7e\x7f\x09\x01\xf7"), (40, on(64)), (50, off(64))
    assert one(*running, *sysex) == [Note(0, 2, 60, 64), Note(1, 3, 62, 64), Note(4, 5, 64, 64)]


def test_text_in_any_encoding_is_no_obstacle() -> None:
    text = b"\xff\x01\x04\xff\xfe\x80\x00", b"\xff\x03\x02\xc3\x28"
    assert one((0, text[0]), (0, text[1]), (0, on(60)), (10, off(60))) == [Note(0, 1, 60, 64)]


def test_a_note_struck_again_ends_there() -> None:
    assert one((0, on(60, 50)), (100, on(60, 70)), (200, off(60))) == [
        Note(0, 10, 60, 50),
        Note(10, 20, 60, 70),
    ]


def test_a_note_lasts_at_least_a_frame() -> None:
    assert one((0, on(60)), (1, off(60)), (500, on(62)), (500, off(62))) == [
        Note(0, 1, 60, 64),
        Note(50, 51, 62, 64),
    ]


def test_one_note_for_each_frame_and_pitch_the_loudest() -> None:
    twice = (0, on(60, 90)), (1, off(60)), (3, on(60, 40)), (200, off(60))
    assert one(*twice) == [Note(0, 20, 60, 90)]
    hands = smf(track((0, on(60, 40)), (100, off(60))), track((0, on(60, 90)), (200, off(60))))
    assert read_midi(hands) == [Note(0, 20, 60, 90)]


def test_a_hand_ends_only_the_notes_it_struck() -> None:
    left, right = track((0, on(60)), (150, off(60))), track((100, on(60, 80)), (300, off(60)))
    assert read_midi(smf(left, right)) == [Note(0, 10, 60, 64), Note(10, 30, 60, 80)]
    assert read_midi(smf(right, left)) == [Note(0, 10, 60, 64), Note(10, 30, 60, 80)]


def test_notes_without_note_off_end_with_the_file() -> None:
    assert one((0, on(60)), (100, on(62)), (300, off(62))) == [Note(0, 30, 60, 64), Note(10, 30, 62, 64)]
    assert one((0, on(60)), end=500) == [Note(0, 50, 60, 64)]
    assert one((10, on(60))) == [Note(1, 2, 60, 64)]


def test_pitches_outside_the_range_are_dropped_and_counted() -> None:
    data = smf(
        track(
            (0, on(20)), (0, on(21)), (0, on(108)), (0, on(109)), (10, off(20)), (10, off(21)), (10, off(108))
        )
    )
    reading = read(data)
    assert [note.pitch for note in reading.performance] == [21, 108]
    assert reading.dropped == 2
    assert [note.pitch for note in read_midi(data, pitch_range=(0, 127))] == [20, 21, 108, 109]


# Pedal


def test_the_pedal_holds_until_it_is_lifted() -> None:
    events = (0, pedal(64)), (0, on(60)), (100, off(60)), (300, pedal(63)), (400, on(62)), (500, off(62))
    assert one(*events) == [Note(0, 30, 60, 64), Note(40, 50, 62, 64)]


def test_a_key_still_down_outlasts_the_pedal() -> None:
    assert one((0, pedal(127)), (0, on(60)), (100, pedal(0)), (200, off(60))) == [Note(0, 20, 60, 64)]


def test_a_held_note_struck_again_ends_there() -> None:
    events = (0, pedal(127)), (0, on(60)), (50, off(60)), (100, on(60)), (150, off(60)), (200, pedal(0))
    assert one(*events) == [Note(0, 10, 60, 64), Note(10, 20, 60, 64)]


def test_the_pedal_belongs_to_its_channel() -> None:
    events = (
        (0, pedal(127, 1)),
        (0, on(60)),
        (0, on(62, 64, 1)),
        (100, off(60)),
        (100, off(62, 1)),
        (300, pedal(0, 1)),
    )
    assert one(*events) == [Note(0, 10, 60, 64), Note(0, 30, 62, 64)]


def test_a_pedal_never_lifted_ends_with_the_file() -> None:
    assert (
        one((0, pedal(127)), (0, on(60)), (10, off(60)), (500, on(62)), (510, off(62)), end=90)[0].end == 60
    )


@pytest.mark.parametrize("number", [120, 123])
def test_all_notes_off_ends_what_sounds(number: int) -> None:
    events = (
        (0, pedal(127)),
        (0, on(60)),
        (50, off(60)),
        (60, on(62)),
        (100, control(number, 0)),
        (900, pedal(0)),
    )
    assert one(*events) == [Note(0, 10, 60, 64), Note(6, 10, 62, 64)]


def test_reset_all_controllers_lifts_the_pedal() -> None:
    assert one((0, pedal(127)), (0, on(60)), (50, off(60)), (100, control(121, 0)), end=500) == [
        Note(0, 10, 60, 64)
    ]


# Live input


def test_live_events_come_in_order_as_soon_as_they_are_certain() -> None:
    recorder = Recorder()
    assert recorder.note_on(5, 64, 80) == []
    assert recorder.note_on(5, 60, 70) == []
    assert [(e.frame, e.kind, e.pitch) for e in recorder.note_off(9, 64)] == [(5, "on", 60), (5, "on", 64)]
    assert recorder.note_off(9, 60) == []
    assert [(e.frame, e.kind, e.pitch) for e in recorder.advance(10)] == [(9, "off", 60), (9, "off", 64)]
    assert recorder.finish() == []


def test_a_clock_that_runs_back_counts_as_now() -> None:
    recorder = Recorder()
    events = (
        recorder.note_on(10, 60, 64)
        + recorder.note_on(3, 62, 64)
        + recorder.note_off(20, 60)
        + recorder.finish(30)
    )
    assert to_notes(events) == [Note(10, 20, 60, 64), Note(10, 30, 62, 64)]


RAW = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from(["on", "on", "off", "off", "pedal", "all off"]),
        st.integers(59, 62),
        st.integers(0, 127),
        st.integers(0, 1),
    ),
    max_size=40,
)


@given(RAW)
def test_file_and_live_give_the_same(raw: list[tuple[int, str, int, int, int]]) -> None:
    recorder, live, messages, now = Recorder(), [], [], 0
    for delta, kind, pitch, value, channel in raw:
        now += delta
        now += now % 10 == 5  # half a frame: as a float of seconds it may lie just below
        frame = frame_at(now / 1000)
        if kind == "on":
            live += recorder.note_on(frame, pitch, value, channel)
            messages.append((now, on(pitch, value, channel)))
        elif kind == "off":
            live += recorder.note_off(frame, pitch, channel)
            messages.append((now, off(pitch, channel)))
        elif kind == "pedal":
            live += recorder.pedal(frame, value, channel)
            messages.append((now, pedal(value, channel)))
        else:
            live += recorder.all_off(frame, channel)
            messages.append((now, control(123, 0, channel)))
    notes = to_notes(live + recorder.finish())
    assert_canonical(notes)
    if notes:
        assert one(*messages) == notes
    else:
        with pytest.raises(MidiError, match="no notes"):
            one(*messages)


def assert_canonical(notes: list[Note]) -> None:
    """The definition's conditions, checked by looking at the notes of each pitch."""
    assert notes == sorted(notes, key=lambda note: (note.start, note.pitch))
    for pitch in {note.pitch for note in notes}:
        own = [note for note in notes if note.pitch == pitch]
        assert all(note.end >= note.start + 1 and 1 <= note.velocity <= 127 for note in own)
        assert all(later.start >= earlier.end for earlier, later in zip(own, own[1:], strict=False))


NOTES = st.lists(
    st.builds(
        lambda start, length, pitch, velocity: Note(start, start + length, pitch, velocity),
        st.integers(0, 300),
        st.integers(-2, 300),
        st.integers(57, 63),
        st.integers(1, 127),
    ),
    max_size=30,
)


@given(NOTES)
def test_any_notes_become_canonical_and_then_stay(notes: list[Note]) -> None:
    found = canonical(notes)
    assert_canonical(found)
    assert {(note.start, note.pitch) for note in found} == {(note.start, note.pitch) for note in notes}
    assert canonical(found) == found
    assert to_notes(to_events(found)) == found


# Whole files


@pytest.mark.parametrize("place", [0, 5, 8, 40, 90])
def test_onsets_are_those_that_symusic_reads(place: int) -> None:
    symusic = pytest.importorskip("symusic")
    data = corpus.pieces()[place].read()
    score = symusic.Score.from_midi(data).to("second")
    # symusic gives seconds in float32: leave out the onsets that fall within 0.1 ms of a half frame.
    expected, unsure = set(), set()
    for part in score.tracks:
        for note in part.notes:
            position = note.time * 100 + 0.5
            near = abs(position - round(position)) < 0.01
            (unsure if near else expected).add((int(position), note.pitch))
    found = {(note.start, note.pitch) for note in read_midi(data)}
    assert expected <= found
    assert len(found) <= len(expected | unsure) and len(unsure) < 0.1 * len(expected)


@given(NOTES.map(canonical).filter(bool))
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, notes: list[Note]) -> None:
    path = tmp_path_factory.mktemp("midi") / "out.mid"
    write_midi(notes, path)
    assert read_midi(path) == notes
    assert [file.name for file in path.parent.iterdir()] == ["out.mid"]


def test_writing_is_deterministic_and_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.mid"
    write_midi([Note(0, 10, 60, 64)], path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"out\.mid: cannot be written \(No space left on device\)"):
        write_midi([Note(0, 99, 72, 64)], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_midi([Note(0, 10, 60, 64)], path)
    assert path.read_bytes() == before


def test_writing_into_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_midi([Note(0, 1, 60, 64)], tmp_path / "missing" / "out.mid")


# Bad input

GOOD = smf(track((0, b"\xff\x03\x02ab"), (0, pedal(100)), (0, on(60)), (40, off(60)), (90, pedal(0))))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"song\.mid: is empty \(0 bytes\)"),
        (b"RIFFxxxxWAVEfmt ", r"song\.mid: is not a MIDI file"),
        (GOOD[:-9], r"song\.mid: is cut short"),
        (b"MThd\x00\x00", r"song\.mid: is cut short"),
        (smf(b"XXXX" + track()[4:]), r"song\.mid: is a damaged MIDI file"),
        (smf(track((0, b"\xf4")), kind=0), r"song\.mid: is a damaged MIDI file"),
        (smf(track((0, on(60))), division=0), r"song\.mid: is a damaged MIDI file .*time division"),
        (smf(track((0, on(60))), division=(-25 << 8)), r"song\.mid: is a damaged MIDI file .*time division"),
        (smf(track()), r"song\.mid: holds no notes"),
        (smf(), r"song\.mid: holds no notes"),
        (smf(track((0, on(5)), (1, off(5)))), r"song\.mid: all 1 notes lie outside the pitches 21-108"),
        (smf(track((0x0FFFFFFF, on(60)))), r"song\.mid: lasts more than 24 hours"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "song.mid"
    path.write_bytes(data)
    with pytest.raises(MidiError, match=message) as error:
        read_midi(path)
    assert "\n" not in str(error.value)
    with path.open("rb") as file, pytest.raises(MidiError, match=message):
        read_midi(file)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(MidiError, match=r"none\.mid: cannot be read \(No such file"):
        read_midi(tmp_path / "none.mid")


@given(
    st.binary(max_size=200).map(lambda tail: smf(b"MTrk" + struct.pack(">L", len(tail)) + tail)) | st.binary()
)
def test_any_bytes_give_notes_or_a_midi_error(data: bytes) -> None:
    try:
        assert_canonical(read_midi(data))
    except MidiError as error:
        assert "\n" not in str(error)


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_a_damaged_file_gives_notes_or_a_midi_error(seed: int, count: int) -> None:
    rng, data = random.Random(seed), bytearray(GOOD)
    for _ in range(count):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        assert_canonical(read_midi(bytes(data)))
    except MidiError as error:
        assert "\n" not in str(error)
