"""MIDI files in a real browser: the host library reads and writes what the runtime in Python does."""

from __future__ import annotations

import base64
import io
import re
from functools import partial
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest

from dsmr_export import corpus
from dsmr_export.runtime.events import EventTable, encode
from dsmr_export.runtime.midi import read, read_midi, write_midi
from dsmr_export.runtime.performance import Note, canonical, frame_at
from tests.chromium import Page
from tests.web_host import run
from tests.web_music import EVENTS, TABLE, b64, both_tables, flat, refusal

pytestmark = pytest.mark.slow  # a minute: every bundled piece in a browser

READ = """
const table = host.EventTable.fromManifest(given.events);
return given.files.map(data => {
  try {
    const { notes, dropped, end } = host.readMidi(bytes(data), 'a.mid', table.pitchRange, table.stepMs);
    const flat = notes.map(({ start, end, pitch, velocity }) => [start, end, pitch, velocity]);
    return { notes: flat, dropped, end, ids: host.encode(notes, table) };
  } catch (error) { return { kind: error.kind ?? error.name, message: error.message } }
});
"""


def read_there(page: Page, files: list[bytes], events: dict[str, Any] = EVENTS) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run(page, READ, events=events, files=[b64(data) for data in files])
    return found


def read_here(data: bytes, table: EventTable = TABLE) -> dict[str, Any]:
    reading = read(data, table.pitch_range, table.step_ms)
    notes = reading.performance
    return {"notes": flat(notes), "dropped": reading.dropped, "ids": encode(notes, table)}


def agree(found: dict[str, Any], data: bytes, table: EventTable = TABLE) -> None:
    assert "message" not in found, found
    assert {name: value for name, value in found.items() if name != "end"} == read_here(data, table)
    # A note that is struck in the last frame ends in the next.
    assert found["end"] + 1 >= max(end for _, end, _, _ in found["notes"])


@pytest.mark.parametrize("split", corpus.SPLITS)
def test_every_bundled_piece_is_read_the_same(web_page: Page, split: str) -> None:
    files = [piece.read() for piece in corpus.pieces(None, split)]
    assert files
    for found, data in zip(read_there(web_page, files), files, strict=True):
        agree(found, data)


def track(*events: Any, end: bool = True) -> bytes:
    """A track of (delta time, bytes) pairs."""
    data = b"".join(_length(delta) + bytes(content) for delta, content in events)
    data += b"\0\xff\x2f\0" if end else b""
    return b"MTrk" + len(data).to_bytes(4, "big") + data


def _length(value: int) -> bytes:
    found = [value & 0x7F]
    while value := value >> 7:
        found.insert(0, 0x80 | value & 0x7F)
    return bytes(found)


def smf(*tracks: bytes, format: int = 0, division: int = 480, header: bytes = b"") -> bytes:
    size = (6 + len(header)).to_bytes(4, "big")
    numbers = b"".join(number.to_bytes(2, "big") for number in (format, len(tracks), division & 0xFFFF))
    return b"MThd" + size + numbers + header + b"".join(tracks)


def smpte(rate: int, ticks: int) -> int:
    return (256 - rate) << 8 | ticks


ON, OFF, AGAIN = [0x90, 60, 80], [0x80, 60, 64], [60, 0]  # AGAIN: running status, velocity 0
FILES: dict[str, bytes] = {
    "running status": smf(track((0, ON), (10, [64, 70]), (300, AGAIN), (5, [64, 0]), (0, ON), (9, OFF))),
    "no end of track": smf(track((0, ON), (480, OFF), end=False)),
    "a note that nobody ends": smf(track((0, ON), (480, [0x90, 62, 90]), (77, [0xFF, 1, 0]))),
    "bytes above 127": smf(
        track((0, [0x90, 60, 200]), (480, [0x80, 60, 255]), (0, [0xB0, 192, 0]), (9, ON), (9, OFF))
    ),
    "after the last track": smf(track((0, ON), (480, OFF))) + b"junk",
    "a longer header": smf(track((0, ON), (480, OFF)), header=b"\0\1\2"),
    "system exclusive": smf(track((0, ON), (4, [0xF0, 3, 1, 2, 0xF7]), (5, [0xF7, 1, 9]), (480, OFF))),
    "texts": smf(track((3, [0xFF, 3, 4, *b"name"]), (0, ON), (7, [0xFF, 5, 2, 0xE9, 0x80]), (480, OFF))),
    "other events": smf(
        track((0, ON), (3, [0xA0, 60, 5]), (3, [0xC0, 1]), (3, [0xD0, 9]), (3, [0xE0, 0, 64]), (99, OFF))
    ),
    "film, 25 by 40": smf(track((0, ON), (123, OFF), (77, ON), (5, OFF)), division=smpte(25, 40)),
    "film, 24 by 4": smf(track((0, ON), (123, OFF), (77, ON), (1, OFF)), division=smpte(24, 4)),
    "film, drop-frame": smf(track((0, ON), (30_000, OFF), (77, ON), (5, OFF)), division=smpte(29, 10)),
    "film, 30 by 80": smf(track((0, ON), (80 * 3600, OFF)), division=smpte(30, 80)),
    "a tempo in film is none": smf(
        track((0, [0xFF, 0x51, 3, 1, 0, 0]), (0, ON), (123, OFF)), division=smpte(25, 40)
    ),
    "tempi": smf(
        track(
            (0, [0xFF, 0x51, 3, 0x0A, 0, 0]),
            (480, [0xFF, 0x51, 3, 0x03, 0, 1]),
            (777, [0xFF, 0x51, 3, 0, 0, 0]),
        ),
        track((100, ON), (700, OFF), (444, ON), (1, OFF), (5000, ON), (5, OFF)),
        format=1,
    ),
    "hands in two tracks": smf(
        track((0, ON), (300, ON), (200, OFF)), track((100, ON), (10, OFF), (300, OFF)), format=1
    ),
    "one after the other": smf(
        track((0, ON), (300, OFF), (70, [0xFF, 1, 0])),
        track((0, ON), (200, OFF)),
        track((5, ON), (9, OFF)),
        format=2,
    ),
    "pedals and panic": smf(
        track(
            (0, [0xB0, 64, 64]),
            (0, ON),
            (10, OFF),
            (500, [0xB0, 64, 63]),
            (0, [0xB0, 64, 127]),
            (9, ON),
            (9, OFF),
            (99, [0xB0, 121, 0]),
            (9, ON),
            (99, [0xB0, 123, 0]),
            (0, [0xB1, 64, 99]),
            (9, [0x91, 60, 9]),
            (9, [0x81, 60, 9]),
            (999, [0xB1, 120, 0]),
            (50, [0xB0, 7, 0]),
        )
    ),
    "some out of range": smf(track((0, [0x90, 5, 9]), (0, ON), (9, [0x80, 5, 9]), (9, OFF))),
    "halves of a frame": smf(
        track(*[(5, [0x90, 60 + i % 3, 80 * (i % 2)]) for i in range(60)], (5, ON)), division=500
    ),
    "almost 24 hours": smf(track((0, ON), (0xFFFFFFF, OFF)), division=0x7FFF),
}


def test_files_of_every_sort_are_read_the_same(web_page: Page) -> None:
    """And end where mido says, which adds up fractions of seconds: to a frame. It knows no film."""
    for (name, data), found in zip(FILES.items(), read_there(web_page, list(FILES.values())), strict=True):
        assert "message" not in found, (name, found)
        agree(found, data)
        midi = mido.MidiFile(file=io.BytesIO(data), clip=True)
        if midi.type != 2 and midi.ticks_per_beat > 0:
            assert abs(found["end"] - frame_at(midi.length, TABLE.step_ms)) <= 1


def any_message(rng: np.random.Generator, time: int) -> Any:
    number = partial(rng.integers, 128)
    note, channel = int(rng.integers(60, 63)), int(rng.integers(2))
    kind = rng.choice(["note_on", "note_off", "control_change", "set_tempo"], p=[0.5, 0.3, 0.15, 0.05])
    if kind == "set_tempo":
        return mido.MetaMessage("set_tempo", tempo=int(rng.integers(2**24)), time=time)
    if kind == "control_change":
        control = int(rng.choice([7, 64, 64, 64, 120, 121, 123]))
        return mido.Message(kind, control=control, value=int(number()), channel=channel, time=time)
    return mido.Message(str(kind), note=note, velocity=int(number()), channel=channel, time=time)


def any_file(rng: np.random.Generator, format: int) -> bytes:
    midi = mido.MidiFile(type=format, ticks_per_beat=int(rng.choice([1, 96, 480, 997, 32767])))
    for _ in range(1 if format == 0 else 3):
        part = midi.add_track()
        for _ in range(int(rng.integers(5, 120))):
            part.append(any_message(rng, int(midi.ticks_per_beat * rng.choice([0, 0.01, 0.1, 1, 3]))))
        part.append(mido.Message("note_on", note=60, time=1))
    data = io.BytesIO()
    midi.save(file=data)
    return data.getvalue()


@both_tables
def test_any_events_in_several_tracks_are_read_the_same(web_page: Page, events: dict[str, Any]) -> None:
    table, rng = EventTable.from_json(events), np.random.default_rng(21)
    files = [any_file(rng, number % 3) for number in range(60)]
    for data, found in zip(files, read_there(web_page, files, events), strict=True):
        agree(found, data, table)


GOOD = FILES["no end of track"]
BAD_FILES: dict[str, bytes] = {
    "empty": b"",
    "another sort of file": b"%PDF-1.7 no music at all",
    "three letters": b"MTh",
    "a header alone": b"MThd",
    "half a header": GOOD[:11],
    "a small header": b"MThd\0\0\0\4\0\0\0\1" + GOOD[14:],
    "no track": GOOD[:14],
    "half a track's name": GOOD[:17],
    "half a track": GOOD[:-3],
    "a track too few": GOOD[:11] + b"\2" + GOOD[12:],
    "a track that is longer than it says": smf(track((0, ON), (9, [0x80, 60]), end=False)),
    "half a time": smf(track((0, ON), (9, OFF), (9, [0x81]), end=False)),
    "a strange chunk": smf(b"XFIH\0\0\0\0"),
    "no status": smf(track((0, [60, 80]), (9, OFF))),
    "no division": smf(track((0, ON), (9, OFF)), division=0),
    "no division of a film's frame": smf(track((0, ON), (9, OFF)), division=smpte(25, 0)),
    "no tracks": smf(),
    "no notes": smf(track((0, [0xC0, 5]))),
    "out of range": smf(track((0, [0x90, 5, 9]), (9, [0x90, 120, 9]), (9, [0x80, 5, 9]))),
    "more than a day": smf(track((0, ON), (0xFFFFFFF, OFF)), division=96),
    "a day and a slow tempo": smf(
        track((0, [0xFF, 0x51, 3, 255, 255, 255]), *[(0xFFFFFFF, ON)] * 9), division=0x7FFF
    ),
}
BESIDE_THE_POINT = re.compile(r"(damaged MIDI file) \(.*\)(; get)")


def test_a_file_that_cannot_be_used_is_refused_in_the_same_words(web_page: Page) -> None:
    """But for what stands in brackets, where each parser has its own."""
    for (name, data), found in zip(
        BAD_FILES.items(), read_there(web_page, list(BAD_FILES.values())), strict=True
    ):
        expected = refusal(read_midi, data, name="a.mid")
        assert found.get("kind") == "midi", (name, found)
        same = [BESIDE_THE_POINT.sub(r"\1\2", text) for text in (found["message"], f"{expected}.")]
        assert same[0] == same[1], name


def test_the_parsers_differ_where_midi_ts_says_so(web_page: Page) -> None:
    """Each has its reason: what the format forbids, or what mido loses."""
    unknown_meta = smf(track((0, ON), (480, [0xFF, 0x08, 1, 65]), (0, OFF)))
    forbidden = smf(track((0, ON), (9, [0xF8]), (9, OFF)))
    after_sysex = smf(track((0, ON), (4, [0xF0, 1, 0xF7]), (480, AGAIN)))
    short_text = smf(track((0, ON), (480, OFF), (0, [0xFF, 1, 9, 65]), end=False))
    long_time = smf(track((0, ON), (9, OFF), (2**35 - 1, ON)))
    found = read_there(web_page, [unknown_meta, forbidden, after_sysex, short_text, long_time])
    assert found[0]["notes"] == [[0, 50, 60, 80]] and read_here(unknown_meta)["notes"] == [[0, 1, 60, 80]]
    assert "Unrecognised" in found[1]["message"] and read_here(forbidden)["notes"]
    assert found[2]["notes"] == [[0, 50, 60, 80]]
    assert found[3]["notes"] == [[0, 50, 60, 80]] and "cut short" in refusal(read_midi, short_text)
    assert "more than four bytes" in found[4]["message"] and "24 hours" in refusal(read_midi, long_time)


def test_no_damage_is_worse_than_a_sentence(web_page: Page, tmp_path: Path) -> None:
    """300 times a few changed bytes, every other time a cut, too."""
    write_midi(read_midi(corpus.pieces(None, "test")[0].read())[:300], tmp_path / "whole.mid")
    rng, whole = np.random.default_rng(2), (tmp_path / "whole.mid").read_bytes()
    files = []
    for place in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        changes = int(rng.integers(1, 6))
        data[rng.integers(8, len(data), changes)] = rng.integers(256, size=changes)
        files.append(data.tobytes()[: int(rng.integers(len(data))) if place % 2 else None])
    found = read_there(web_page, files)
    refused = [one for one in found if "message" in one]
    assert 150 <= len(refused) < 300 and {one["kind"] for one in refused} == {"midi"}
    assert all(re.fullmatch(r"a\.mid: [^\n]+; [^\n]+\.", one["message"]) for one in refused)


def test_what_is_written_is_what_python_writes(web_page: Page, tmp_path: Path) -> None:
    """Byte for byte; and reading it gives the notes back, which must be canonical for that."""
    rng = np.random.default_rng(4)
    performances = [read_midi(piece.read()) for piece in corpus.pieces(None, "test")[:2]]
    for spread in (3, 50, 3_000):
        raw = rng.integers([0, 1, 21, 1], [100 * spread, spread, 109, 128], (200, 4)).tolist()
        performances.append(canonical(Note(start, start + length, p, v) for start, length, p, v in raw))
    performances.append([])
    for step_ms in (10, 7):
        found = run(
            web_page,
            """const note = ([start, end, pitch, velocity]) => ({ start, end, pitch, velocity });
               return given.all.map(notes => packed(host.writeMidi(notes.map(note), given.stepMs)));""",
            all=[flat(notes) for notes in performances],
            stepMs=step_ms,
        )
        for notes, text in zip(performances, found, strict=True):
            data = base64.b64decode(text)
            write_midi(notes, tmp_path / "python.mid", step_ms=step_ms)
            assert data == (tmp_path / "python.mid").read_bytes()
            assert not notes or read_midi(data, step_ms=step_ms) == notes
