"""The instrument of a host's own: what it feeds is what a file of the same messages would have been."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmr_export.errors import BundleError, DsmrError, StateError
from dsmr_export.runtime import Bundle, Instrument
from dsmr_export.runtime.instrument import Event
from dsmr_export.runtime.midi import read_midi, write_midi
from dsmr_export.runtime.performance import KeyEvent, Note, to_notes
from tests.test_memory import assert_same_state, offline
from tests.tiny_bundle import make_bundle

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SONG = [Note(0, 40, 60, 70), Note(10, 21, 64, 50), Note(22, 60, 67, 30), Note(45, 58, 71, 10)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("instrument") / "tiny")


def opened(bundle: Bundle, seed: int = 1, **options: float) -> tuple[Instrument, list[KeyEvent]]:
    instrument, events = Instrument.open(bundle, seed=seed, **options), []
    instrument.memory.committed = events.append
    return instrument, events


def feed_song(instrument: Instrument, start: float = 0.0) -> None:
    moves = [(n.start, 1, n) for n in SONG] + [(n.end, 0, n) for n in SONG]
    for frame, is_on, note in sorted(moves):
        status, velocity = (0x90, note.velocity) if is_on else (0x80, 64)
        instrument.feed(bytes([status, note.pitch, velocity]), start + frame / 100)


def sounding_after(events: Sequence[Event]) -> set[int]:
    """Pitches that sound; every end must have its beginning."""
    sounding: set[int] = set()
    for event in events:
        assert (event.kind == "off") == (event.pitch in sounding)
        (sounding.remove if event.kind == "off" else sounding.add)(event.pitch)
    return sounding


@pytest.mark.parametrize("start", [0.0, 12_345.67])
def test_a_file_fed_message_by_message_is_the_file(bundle: Bundle, tmp_path: Path, start: float) -> None:
    """Through mido's own timing and messages; against the reader of files."""
    write_midi(SONG, tmp_path / "song.mid")
    instrument, events = opened(bundle)
    seconds = start
    for message in mido.MidiFile(tmp_path / "song.mid"):
        seconds += message.time
        if not message.is_meta:
            instrument.feed(message, seconds)
    instrument.memory.advance(100)
    assert to_notes(events) == read_midi(tmp_path / "song.mid", (60, 71)) == SONG


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), seconds=st.floats(0.01, 5))
def test_what_it_generates_is_music_and_is_remembered(bundle: Bundle, seed: int, seconds: float) -> None:
    instrument, events = opened(bundle, seed)
    feed_song(instrument)
    start = instrument.seconds
    made = list(instrument.generate(seconds))
    assert sounding_after(made) == set()
    times = [event.seconds for event in made]
    assert times == sorted(times)
    assert all(start <= time <= start + seconds + 0.02 for time in times)
    heard = [(event.kind, event.pitch) for event in events if event.frame > 60]
    assert sorted(heard) == sorted((event.kind, event.pitch) for event in made)
    assert_same_state(instrument.memory, offline(bundle, events, instrument.memory.frame))


def test_the_host_may_feed_while_it_generates(bundle: Bundle) -> None:
    instrument, events = opened(bundle, 3)
    made: list[Event] = []
    for number, event in enumerate(islice(instrument.generate(), 200)):
        made.append(event)
        if number % 5 == 0:
            pitch = 60 + number % 12
            instrument.feed(bytes([0x90, pitch, 60]), event.seconds)
            instrument.feed(bytes([0x80, pitch, 60]), event.seconds + 0.05)
    made += instrument.silence()
    assert not instrument.silence()
    times = [event.seconds for event in made]
    assert times == sorted(times)
    assert_same_state(instrument.memory, offline(bundle, events, instrument.memory.frame))


def test_same_seed_same_events(bundle: Bundle) -> None:
    def answer(seed: int) -> list[Event]:
        instrument, _ = opened(bundle, seed)
        feed_song(instrument)
        return list(instrument.generate(3.0))

    assert answer(1) == answer(1) != answer(2)


def test_restore_goes_back_and_load_goes_across(bundle: Bundle, tmp_path: Path) -> None:
    instrument, _ = opened(bundle, 5)
    feed_song(instrument)
    instrument.save(tmp_path / "state.dsmr")
    here = instrument.snapshot()
    first = [event[1:] for event in instrument.generate(2.0)]
    instrument.restore(here)
    assert [event[1:] for event in instrument.generate(2.0)] == first
    other, _ = opened(bundle, 6)
    other.load(tmp_path / "state.dsmr")
    assert [event[1:] for event in other.generate(2.0)] == first
    with pytest.raises(StateError, match="cannot be read"):
        other.load(tmp_path / "missing")
    another = Instrument.open(bundle, graph="portable")
    with pytest.raises(BundleError, match="belongs to graph fp32"):
        another.restore(here)


def test_a_long_rest_is_cut_and_time_goes_on(bundle: Bundle) -> None:
    instrument, events = opened(bundle, longest_rest_s=1.0)
    instrument.feed(bytes([0x90, 60, 50, 60, 0]), 5.0)  # running status: on, off
    instrument.feed(bytes([0x90, 62, 50, 62, 0]), 3600.0)
    made = list(instrument.generate(1.0))
    assert [event.frame for event in events[:4]] == [0, 1, 101, 102]
    assert all(3600.0 <= event.seconds <= 3601.1 for event in made)


def test_what_follows_a_long_rest_lasts_as_long_as_it_did(bundle: Bundle) -> None:
    instrument, events = opened(bundle, longest_rest_s=1.0)
    for start in (0.0, 60.0):
        instrument.feed(bytes([0x90, 60, 50]), start)
        instrument.feed(bytes([0x80, 60, 0]), start + 0.5)
    instrument.memory.advance(1000)
    assert to_notes(events) == [Note(0, 50, 60, 50), Note(150, 200, 60, 50)]


def test_what_is_passed_over_does_not_begin_the_piece(bundle: Bundle) -> None:
    instrument, events = opened(bundle)
    instrument.feed(bytes([0xC0, 5, 0xB0, 7, 100, 0xF8]), 0.0)
    instrument.feed(bytes([0x90, 60, 50, 60, 0]), 5.0)
    instrument.memory.advance(1000)
    assert events[0].frame == 0


def test_a_silence_longer_than_any_plan(bundle: Bundle) -> None:
    """A model that wants nothing but the longest shift, 60 ms here: 512 tokens, a plan, are 31 s of it."""
    instrument, _ = opened(bundle)
    table = bundle.event_table
    instrument.memory._bias = np.zeros(len(table), np.float32)
    instrument.memory._bias[table.shift_ids[table.longest_shift]] = 1e6
    assert list(instrument.generate(60.0)) == []
    assert instrument.memory.position == 1 + 6001 // table.longest_shift


def test_undo_and_reset(bundle: Bundle) -> None:
    instrument, events = opened(bundle, undo_s=10.0)
    feed_song(instrument)
    fed = instrument.memory.position
    list(instrument.generate(2.0))
    assert instrument.undo(2.0) == pytest.approx(2.0, abs=0.02)
    assert abs(instrument.memory.position - fed) <= 4
    instrument.reset()
    assert instrument.memory.position == 1
    assert instrument.undo(5.0) == 0.0  # the beginning
    instrument.reset()
    instrument.feed(bytes([0x90, 60, 50, 60, 0]), 100.0)  # begins the new piece: no silence before it
    instrument.memory.advance(1000)
    assert [event.frame for event in events[-2:]] == [0, 1]
    with pytest.raises(DsmrError, match="undo 5: 0.0 s can be taken back"):
        opened(bundle)[0].undo(5.0)


def test_pedal_and_all_notes_off(bundle: Bundle) -> None:
    instrument, events = opened(bundle)
    for second, message in (
        (0.0, [0xB0, 64, 127]),
        (0.1, [0x90, 60, 50]),
        (0.2, [0x80, 60, 0]),
        (0.5, [0xB0, 64, 0]),
        (0.6, [0x90, 62, 50]),
        (0.8, [0xB0, 123, 0]),
        (0.9, [0xE0, 0, 64]),
        (0.95, [0xB0, 121, 0]),
    ):
        instrument.feed(bytes(message), second)
    instrument.memory.advance(200)
    assert to_notes(events) == [Note(10, 50, 60, 50), Note(60, 80, 62, 50)]


def test_a_closed_one_refuses(bundle: Bundle) -> None:
    with Instrument.open(bundle) as instrument:
        running = instrument.generate()
        next(running)
        for seconds in (0, -1, float("nan"), float("inf")):
            with pytest.raises(DsmrError, match=r"seconds is .*: give a length of music of 0\.01 seconds"):
                instrument.generate(seconds)
    assert list(running) == []
    for use in (
        lambda: instrument.feed(b"", 0.0),
        instrument.generate,
        instrument.silence,
        instrument.snapshot,
        instrument.reset,
    ):
        with pytest.raises(DsmrError, match="this instrument is closed: open another one"):
            use()


@pytest.mark.parametrize("name", ["instrument_loop.py", "instrument_mido.py"])
def test_the_examples_run(name: str, tmp_path: Path) -> None:
    write_midi(SONG, tmp_path / "in.mid")
    arguments = ["in.mid", "out.mid", "3"] if name == "instrument_mido.py" else []
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    if arguments:
        assert read_midi(tmp_path / "out.mid")
    else:
        rows = [line.split() for line in run.stdout.splitlines() if line[0] == " "]
        assert len(rows) > 10 and {row[1] for row in rows} == {"on", "off"}
        assert np.all(np.array([float(row[0]) for row in rows]) >= 1.9)
