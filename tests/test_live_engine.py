"""How a live session behaves: when it answers, plays along or plays on, and what it remembers of it."""

from __future__ import annotations

import numpy as np
import pytest

from dsmr_export.runtime import Bundle
from dsmr_export.runtime.live import wire
from dsmr_export.runtime.memory import MODEL, PLAYER
from tests.live_session import (
    assert_remembered,
    ends_have_beginnings,
    model_ons,
    note,
    pedal,
    phrase,
    session,
    stalls,
)
from tests.simulation import START, Simulation, stuck
from tests.tiny_bundle import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("live") / "tiny")


def closed(simulation: Simulation) -> None:
    """What holds at the end of everything."""
    simulation.live.close()
    assert stuck(simulation.sent) == {} and ends_have_beginnings(simulation.sent)
    simulation.run(1)
    assert stuck(simulation.sent) == {}
    assert_remembered(simulation)


# continue


def test_it_answers_a_pause_and_not_before(bundle: Bundle) -> None:
    simulation = session(bundle, "continue", pause_s=1.0)
    simulation.run(6, phrase())
    last = 5 * 0.25 + 0.2
    first = model_ons(simulation)[0][0] - START
    # The pause, a look, the lead of two frames; and the first note comes within OPENING_S of it all.
    assert last + 1.0 <= first <= last + 1.0 + 0.3 + 0.05
    assert simulation.live.phase == "answering" and len(model_ons(simulation)) > 20
    spread = simulation.live.answers.spread()
    assert spread.count == 1 and spread.max == pytest.approx((first - last) * 1000, abs=0.1)
    assert simulation.live.replies.spread().max == pytest.approx((first - last - 1.0) * 1000, abs=0.1)
    closed(simulation)


def test_not_without_having_been_asked(bundle: Bundle) -> None:
    simulation = session(bundle, "continue")
    simulation.run(30)
    assert model_ons(simulation) == []
    simulation.run(8, phrase() + pedal(2.0, 127))  # asked once
    assert simulation.live.phase == "answering"
    simulation.live.act("pause")
    simulation.live.act("resume")
    played = len(model_ons(simulation))
    simulation.run(10)
    assert len(model_ons(simulation)) == played
    closed(simulation)


def test_not_while_a_key_is_held(bundle: Bundle) -> None:
    simulation = session(bundle, "continue")
    simulation.run(8, note(0.1, 60, 6.0))
    assert model_ons(simulation)[0][0] - START >= 6.1 + 1.0
    closed(simulation)


def test_what_the_pedal_holds_ends_in_memory_where_the_answer_begins(bundle: Bundle) -> None:
    simulation = session(bundle, "continue")
    simulation.run(1.3, pedal(0, 127) + note(0.1, 61) + note(0.1, 65))
    assert set(simulation.memory.sounding) == {61, 65}
    simulation.run(0.2)
    assert simulation.live.phase == "answering"
    assert PLAYER not in simulation.memory.sounding.values()
    ends = [event.frame for event in simulation.committed if event.kind == "off"]
    assert ends[:2] == [ends[0]] * 2 and 115 <= ends[0] <= 125  # 0.3 + 1.0 s, from the first note at 0.1
    closed(simulation)


def test_an_answer_ends_by_itself_where_that_is_asked_for(bundle: Bundle) -> None:
    simulation = session(bundle, "continue", answer_s=2.0)
    simulation.run(20, phrase())
    ons = model_ons(simulation)
    assert 1.5 < ons[-1][0] - ons[0][0] <= 2.0 and simulation.live.phase == "listening"
    assert stuck(simulation.sent) == {}
    closed(simulation)


@pytest.mark.parametrize("cost", [0.002, 0.2])
def test_the_first_key_silences_the_answer_at_once(bundle: Bundle, cost: float) -> None:
    """Within the same instant, whatever inference is doing; and what is remembered is what sounded."""
    simulation = session(bundle, "continue", cost=lambda: cost)
    simulation.run(8, phrase())
    assert simulation.live.playback.sounding
    before, at = len(simulation.sent), simulation.now + 0.0333
    simulation.run(1.0, note(0.0333, 66, 0.9))
    ends = [moment for moment, message in simulation.sent[before:] if moment >= at and message[0] == 0x80]
    assert ends and ends[:-1] == [pytest.approx(at)] * (len(ends) - 1)  # the last one is the player's own
    assert all(moment < at for moment, _ in model_ons(simulation))
    assert simulation.live.playback.queued == [] and simulation.live.stops.spread().max == 0
    simulation.run(0.5)
    sounded = [event.pitch for _, by, event in simulation.sounded if event.kind == "on"]
    assert sorted(e.pitch for e in simulation.committed if e.kind == "on") == sorted(sounded)
    closed(simulation)


def test_a_key_that_comes_and_goes_while_the_answer_begins_stops_it(bundle: Bundle) -> None:
    """The input thread strikes between two lines of the inference thread."""
    simulation = session(bundle, "continue")
    simulation.run(1.9, phrase(count=4))
    release = simulation.memory.release

    def interrupted(frame: int, by: int) -> bool:
        for _, message in note(0, 70):
            simulation.live.input.push(message, simulation.now)
        return release(frame, by)

    simulation.memory.release = interrupted  # type: ignore[method-assign]
    simulation.run(0.3)
    simulation.memory.release = release  # type: ignore[method-assign]
    assert simulation.live.phase == "listening" and model_ons(simulation) == []
    simulation.run(2.0)
    assert simulation.live.phase == "answering"  # after a pause of its own
    closed(simulation)


def test_time_begins_with_the_first_key(bundle: Bundle) -> None:
    simulation = session(bundle, "continue")
    simulation.run(7.0, pedal(5.0, 127) + pedal(5.5, 0))
    simulation.run(1.0, note(0.5, 64))
    assert simulation.committed[0].frame == 0
    closed(simulation)


def test_a_long_silence_is_remembered_shorter(bundle: Bundle) -> None:
    simulation = session(bundle, "continue", longest_rest_s=3.0)
    simulation.live.act("pause")
    simulation.run(3602, note(0, 60) + note(3600, 62) + note(3600.5, 64))
    frames = [event.frame for event in simulation.committed]
    assert frames == [0, 20, 320, 340, 370, 390]
    closed(simulation)


# duet


def test_a_duet_begins_with_the_first_key_and_rests_when_alone(bundle: Bundle) -> None:
    simulation = session(bundle, "duet", alone_s=4.0)
    simulation.run(5)
    assert model_ons(simulation) == [] and simulation.live.phase == "listening"
    simulation.run(3, phrase())
    assert simulation.live.phase == "playing" and model_ons(simulation)[0][0] - START < 5.5
    simulation.run(12)
    assert simulation.live.phase == "listening" and stuck(simulation.sent) == {}
    last = START + 5 + 5 * 0.25 + 0.2
    assert last + 3 < model_ons(simulation)[-1][0] <= last + 4.01
    simulation.run(2, note(0.1, 60))
    assert simulation.live.phase == "playing"
    closed(simulation)


def test_a_held_key_keeps_a_duet_going(bundle: Bundle) -> None:
    simulation = session(bundle, "duet", alone_s=1.0)
    simulation.run(6, note(0.1, 60, 5.5))
    assert simulation.live.phase == "playing"
    closed(simulation)


def test_the_players_pedal_holds_no_note_of_the_models(bundle: Bundle) -> None:
    """Else the model ends it again and again, and every plan breaks at that."""
    simulation = session(bundle, "duet")
    simulation.run(20, pedal(0, 127) + note(0.1, 60, 18.0))
    assert len(model_ons(simulation)) > 150 and simulation.memory.broken < 20
    closed(simulation)


def test_all_notes_off_on_the_models_channel_ends_its_notes_too(bundle: Bundle) -> None:
    """The synthesizer ends them: it is told by what goes through."""
    simulation = session(bundle, "loop")
    simulation.run(5)
    assert simulation.live.playback.sounding
    simulation.run(0.02, [(0.01, wire.control(0, 123, 0))])
    sounding = set(simulation.live.playback.sounding)
    assert sounding == {pitch for _, pitch in stuck(simulation.sent)}
    simulation.run(3)
    assert simulation.live.phase == "playing"
    closed(simulation)
    simulation = session(bundle, "loop", channel=3)
    simulation.run(5, [(4.0, wire.control(0, 123, 0))])
    assert simulation.memory.broken == 0
    closed(simulation)


# loop


def test_a_loop_begins_at_once(bundle: Bundle) -> None:
    simulation = session(bundle, "loop")
    simulation.run(1)
    assert simulation.live.phase == "playing" and model_ons(simulation)[0][0] - START < 0.3
    closed(simulation)


@pytest.mark.parametrize("seed", range(3))
def test_one_seed_one_piece_whatever_inference_costs(bundle: Bundle, seed: int) -> None:
    """No note may last too long, for that is measured in seconds, not in frames."""
    reference = session(bundle, "loop", seed, lambda: 0.0005, max_note_s=600)
    reference.run(40)
    for cost in (lambda: 0.02, lambda: 0.1, lambda: 0.9, stalls(seed, 0.1, 1.0, share=0.2)):
        simulation = session(bundle, "loop", seed, cost, max_note_s=600)
        simulation.run(40)
        assert len(simulation.committed) > 50 and simulation.memory.broken == 0
        same = min(len(simulation.committed), len(reference.committed))
        assert simulation.committed[:same] == reference.committed[:same]
        closed(simulation)


def test_a_key_in_a_loop_that_nobody_began_moves_nothing(bundle: Bundle) -> None:
    """The first key of all is where time begins, but not where it has begun already."""
    simulation = session(bundle, "loop")
    simulation.run(10, note(5.0, 60))
    at = [(moment, event.frame) for moment, by, event in simulation.sounded if by == MODEL]
    assert simulation.live.playback.shifts == 0
    assert all(moment - START == pytest.approx(0.05 + frame / 100, abs=0.006) for moment, frame in at)
    closed(simulation)


# Ports, exceptions, floods


@pytest.mark.parametrize("mode", ["continue", "duet", "loop"])
def test_a_lost_input_lets_go_and_a_lost_output_forgets_what_sounded(bundle: Bundle, mode: str) -> None:
    simulation = session(bundle, mode)
    simulation.run(4, [*phrase(), (2.0, wire.note_on(0, 60, 64)), *pedal(2.1, 127)])
    simulation.live.input.release(simulation.now)  # as the session does when the port is gone
    assert not [key for key in simulation.live.voices.sounding if key[0] == PLAYER]
    assert (0, 60) not in stuck(simulation.sent) or 60 in simulation.live.playback.sounding
    simulation.run(0.5)
    assert PLAYER not in simulation.memory.sounding.values()
    simulation.live.voices.lost()  # what sounded there ended with it
    simulation.run(2, phrase(0.5, 2))
    back = len(simulation.sent)
    simulation.live.voices.start()
    assert {(m[0], m[1]) for _, m in simulation.sent[back:]} >= {(0xB0, 64), (0xB0, 123), (0xB0, 120)}
    simulation.run(3)
    simulation.live.close()
    assert stuck(simulation.sent) == {}
    simulation.run(1)
    assert_remembered(simulation)


@pytest.mark.parametrize("mode", ["continue", "duet", "loop"])
def test_an_output_cabled_back_into_the_input_disturbs_nothing(bundle: Bundle, mode: str) -> None:
    """Everything comes back within 5 ms: it is heard once, and the answer is not broken into.

    The keys are none that the model plays: of a note-off for a key that is down nobody can say whose it is.
    """
    alone, looped = (session(bundle, mode) for _ in range(2))
    inputs = note(0.1, 74) + note(0.4, 76) + note(0.7, 72)
    returned = 0
    for step in range(1600):
        moves = [(at - step / 200, message) for at, message in inputs if step <= at * 200 < step + 1]
        alone.run(0.005, moves)
        coming, returned = looped.sent[returned:], len(looped.sent)
        looped.run(0.005, [*((0.0, message) for _, message in coming), *moves])
    assert looped.live.input.notes == 3 and looped.live.input.left_out["echo"] > 50
    assert [m for _, m in looped.sent] == [m for _, m in alone.sent]
    assert [e for _, e in model_ons(looped)] == [e for _, e in model_ons(alone)]
    assert len(model_ons(looped)) > 30 and looped.memory.broken == alone.memory.broken
    closed(looped)
    closed(alone)


@pytest.mark.parametrize("mode", ["continue", "duet", "loop"])
def test_a_note_is_no_longer_than_it_may_be(bundle: Bundle, mode: str) -> None:
    simulation = session(bundle, mode, max_note_s=0.3)
    simulation.run(10, phrase())
    assert simulation.live.playback.cut_short > 3
    began: dict[int, float] = {}
    for at, by, event in simulation.sounded:
        if by == MODEL and event.kind == "on":
            began[event.pitch] = at
        elif by == MODEL and event.pitch in began:
            assert at - began.pop(event.pitch) <= 0.3 + 1e-6
    closed(simulation)


def test_nothing_a_pianist_plays_in_a_stall_is_left_out(bundle: Bundle) -> None:
    simulation = session(bundle, "continue", pause_s=10)
    simulation.run(1, note(0.1, 60))
    simulation._sleeps_until, simulation._work_at = simulation.now, simulation.now + 4.0
    simulation.run(6, phrase(0.1, 12))
    assert not simulation.live.input.left_out
    assert len([event for event in simulation.committed if event.kind == "on"]) == 13
    closed(simulation)


@pytest.mark.parametrize("cost", [0.005, 1.0])
@pytest.mark.parametrize("mode", ["continue", "duet", "loop"])
def test_a_flood_is_survived(bundle: Bundle, mode: str, cost: float) -> None:
    """10,000 events a second for two seconds; afterwards it answers as before."""
    rng = np.random.default_rng(3)
    flooding = [True]
    simulation = session(bundle, mode, cost=lambda: cost if flooding[0] else 0.002)
    flood = []
    for index, (pitch, status) in enumerate(
        zip(rng.integers(0, 128, 20_000), rng.random(20_000), strict=True)
    ):
        kind = 0x90 if status < 0.5 else 0x80 if status < 0.95 else 0xB0
        data = [64, 127 * (index % 2)] if kind == 0xB0 else [int(pitch), 64]
        flood.append((index / 10_000, bytes([kind, *data])))
    simulation.run(2.01, flood)
    flooding[0] = False
    simulation.run(3, [(0.5 + pitch / 1000, wire.note_off(0, pitch)) for pitch in range(128)] + pedal(0.7, 0))
    left_out = simulation.live.input.left_out["flood"]
    assert (left_out > 0) == (cost > 0.5)
    played = len(model_ons(simulation))
    simulation.run(5, phrase())
    assert len(model_ons(simulation)) > played
    closed(simulation)
