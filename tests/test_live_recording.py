"""What a session sounded like, as a MIDI file."""

from __future__ import annotations

from pathlib import Path

import mido
import pytest

from dsmr_export.errors import OutputError
from dsmr_export.runtime.live import wire
from dsmr_export.runtime.live.recording import Recording
from dsmr_export.runtime.memory import MODEL, PLAYER
from dsmr_export.runtime.performance import KeyEvent, Note
from tests.live_session import model_ons, note, phrase, session
from tests.tiny_bundle import make_bundle

RANGE = (21, 108)


def recorded(*events: tuple[float, int, str, int, int]) -> list[Note]:
    recording = Recording()
    for moment, by, kind, pitch, velocity in events:
        recording.add(moment, by, KeyEvent(0, kind, pitch, velocity))  # type: ignore[arg-type]
    return recording.performance(RANGE, 10)


def test_notes_from_the_first_on() -> None:
    assert recorded() == []
    assert recorded((7.0, PLAYER, "on", 60, 50), (7.5, PLAYER, "off", 60, 0)) == [Note(0, 50, 60, 50)]


def test_what_still_sounds_ends_with_the_last_event() -> None:
    events = [(7.0, MODEL, "on", 60, 50), (7.2, PLAYER, "on", 62, 51), (8.0, PLAYER, "off", 62, 0)]
    assert recorded(*events) == [Note(0, 100, 60, 50), Note(20, 100, 62, 51)]


def test_neither_ends_the_others_note_and_order_is_that_of_time() -> None:
    assert recorded(
        (7.2, PLAYER, "on", 60, 80),
        (7.0, MODEL, "on", 60, 50),
        (7.3, MODEL, "off", 60, 0),
        (7.6, PLAYER, "off", 60, 0),
    ) == [Note(0, 20, 60, 50), Note(20, 60, 60, 80)]


@pytest.mark.parametrize("how", ["lost", "all notes off"])
def test_a_key_that_was_never_seen_to_come_up_ends_where_its_port_was_lost(tmp_path: Path, how: str) -> None:
    simulation = session(make_bundle(tmp_path / "tiny"), "continue")
    simulation.run(2, [(0.0, wire.note_on(0, 65, 70))])
    if how == "lost":
        simulation.live.input.release(simulation.now)
    else:
        simulation.live.input.push(wire.control(0, 123, 0), simulation.now)
    simulation.run(8, phrase(4.0) + note(6, 60))
    recording = Recording()
    for moment, by, event in simulation.sounded:
        recording.add(moment, by, event)
    file = tmp_path / "session.mid"
    count = recording.save(file, RANGE, 10)
    assert recording.performance(RANGE, 10)[0] == Note(0, 200, 65, 70)
    ons = [event for _, _, event in simulation.sounded if event.kind == "on"]
    assert count == len(ons) and len(model_ons(simulation)) > 10
    written = [message for message in mido.MidiFile(file) if message.type == "note_on" and message.velocity]
    assert sorted(m.note for m in written) == sorted(event.pitch for event in ons)
    with pytest.raises(OutputError):
        recording.save(tmp_path / "no" / "such" / "folder.mid", RANGE, 10)


def test_the_pedal_holds_the_players_notes_and_no_others() -> None:
    recording = Recording()
    for moment, by, kind, pitch in (
        (7.1, PLAYER, "on", 60),
        (7.2, PLAYER, "off", 60),
        (7.3, MODEL, "on", 64),
        (7.4, MODEL, "off", 64),
    ):
        recording.add(moment, by, KeyEvent(0, kind, pitch, 50))  # type: ignore[arg-type]
    recording.pedal(7.0, 127)
    recording.pedal(8.0, 0)
    assert recording.performance(RANGE, 10) == [Note(10, 100, 60, 50), Note(30, 40, 64, 50)]


def test_a_session_records_its_pedal(tmp_path: Path) -> None:
    made = session(make_bundle(tmp_path / "tiny"), "continue")
    recording = Recording()
    made.live.heard, made.live.heard_pedal = recording.add, recording.pedal
    made.run(
        2,
        [
            (0.0, wire.control(0, 64, 127)),
            (0.1, wire.note_on(0, 60, 50)),
            (0.2, wire.note_off(0, 60)),
            (0.7, wire.control(0, 64, 0)),
        ],
    )
    assert recording.performance((60, 71), 10)[0] == Note(10, 70, 60, 50)
