"""What a live session can be told while it runs, and states of it that are gone on from."""

from __future__ import annotations

import pytest

from dsmr_export.errors import BundleError, DsmrError
from dsmr_export.runtime import Bundle, Sampling
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.memory import MODEL, PLAYER, Memory
from tests.live_session import (
    assert_remembered,
    ends_have_beginnings,
    model_ons,
    note,
    phrase,
    session,
)
from tests.simulation import Simulation, stuck
from tests.tiny_bundle import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("live") / "tiny")


@pytest.fixture
def loop(bundle: Bundle) -> Simulation:
    simulation = session(bundle, "loop", undo_s=20)
    simulation.run(8)
    return simulation


def silent(simulation: Simulation) -> bool:
    return stuck(simulation.sent) == {} and ends_have_beginnings(simulation.sent)


def closed(simulation: Simulation) -> None:
    simulation.live.close()
    assert silent(simulation)


COMMANDS = "pause, resume, panic, undo, undo-bar, reset, set, save, load, bank, delete, quit"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", f"nothing: there is no such command; {COMMANDS}"),
        ("   ", f"nothing: there is no such command; {COMMANDS}"),
        ("pose", f"pose: there is no such command (did you mean pause?); {COMMANDS}"),
        ("set", "set: give a control and a value, as in `set temperature 0.9`"),
        ("set temperature", "set: give a control and a value, as in `set temperature 0.9`"),
        ("set temperature hot", "set temperature hot: 'hot' is not a number"),
        (
            "set temprature 1",
            "set temprature: there is no such control (did you mean temperature?); "
            "temperature, top-p, density",
        ),
        ("set temperature -1", "temperature is -1.0: give 0 (most likely token) or more"),
        ("set temperature nan", "temperature is nan: give 0 (most likely token) or more"),
        ("set top-p 2", "top_p is 2.0: give a probability above 0 and up to 1 (1 = all)"),
        ("set density 6", "density is 6: give -5 to 5, 0 as the bundle has it"),
        ("set density nan", "density is nan: give -5 to 5, 0 as the bundle has it"),
        ("undo -1", "undo -1: give seconds, or bars, above 0"),
        ("undo 0", "undo 0: give seconds, or bars, above 0"),
        ("undo nan", "undo nan: give seconds, or bars, above 0"),
        ("undo inf", "undo inf: give seconds, or bars, above 0"),
        ("undo-bar 0", "undo-bar 0: give seconds, or bars, above 0"),
        ("undo much", "undo much: 'much' is not a number"),
    ],
)
def test_what_is_not_understood_changes_nothing(loop: Simulation, line: str, message: str) -> None:
    sounding, values = loop.live.playback.sounding, loop.live.controls.values()
    with pytest.raises(DsmrError) as caught:
        loop.live.act(line)
    assert str(caught.value) == message
    assert loop.live.phase == "playing" and loop.live.playback.sounding == sounding
    assert loop.live.controls.values() == values


def test_pause_and_resume(loop: Simulation) -> None:
    assert loop.live.act("pause") == "paused" and loop.live.phase == "paused" and silent(loop)
    played = len(model_ons(loop))
    loop.run(5)
    assert len(model_ons(loop)) == played and loop.memory.settled
    assert loop.live.act("resume") == "playing"
    loop.run(3)
    assert len(model_ons(loop)) > played and loop.live.act("resume") == "playing"
    closed(loop)


def test_panic_ends_the_players_notes_too(loop: Simulation) -> None:
    loop.run(1, [(0.5, b"\x92\x40\x40")])
    assert (2, 64) in stuck(loop.sent)
    assert loop.live.act("panic") == "all notes off" and loop.live.phase == "paused"
    assert silent(loop) and loop.live.voices.sounding == {}
    loop.run(1)
    assert loop.memory.sounding == {}
    closed(loop)


def test_panic_during_an_answer(bundle: Bundle) -> None:
    simulation = session(bundle, "continue")
    simulation.run(6, phrase())
    simulation.live.act("panic")
    assert simulation.live.phase == "listening" and silent(simulation)
    simulation.run(5)
    assert simulation.live.phase == "listening"  # nobody asked again
    closed(simulation)


@pytest.mark.parametrize(
    ("line", "seconds"), [("undo", 8), ("undo 3", 3), ("undo-bar", 2), ("undo-bar 2", 4)]
)
def test_undo_takes_back_what_sounded(loop: Simulation, line: str, seconds: float) -> None:
    """After it the memory is, bit for bit, that of the events until then and of those since."""
    loop.run(2)
    frame = loop.memory.frame
    assert loop.live.act(line) == f"{seconds:.1f} s taken back"
    assert silent(loop) and loop.live.phase == "playing"
    # What sounded meanwhile is read first (a frame or two), and two frames pass until what sounds has ended.
    target = loop.memory.frame - 2
    assert 0 <= target - (frame - seconds * 100) <= 4
    played = len(model_ons(loop))
    loop.run(3)
    assert len(model_ons(loop)) > played and loop.live.playback.shifts == 0
    closed(loop)
    loop.run(1)
    frames = [event.frame for event in loop.committed]
    back = next(place for place in range(1, len(frames)) if frames[place] < frames[place - 1])
    kept = [event for event in loop.committed[:back] if event.frame <= target]
    loop.committed[:] = kept + loop.committed[back:]
    assert_remembered(loop)


def test_a_bar_is_the_midi_clocks_where_one_runs(loop: Simulation) -> None:
    loop.run(2.5, [(index * 0.025, b"\xf8") for index in range(100)])
    assert loop.live.act("undo-bar") == "2.4 s taken back"
    closed(loop)


def test_no_further_than_is_kept(bundle: Bundle) -> None:
    simulation = session(bundle, "loop", undo_s=2)
    simulation.run(10)
    with pytest.raises(DsmrError, match=r"undo 9: [23]\.\d s can be taken back; begin with a larger --undo"):
        simulation.live.act("undo 9")
    played = len(model_ons(simulation))
    simulation.run(2)
    assert len(model_ons(simulation)) > played
    closed(simulation)
    with pytest.raises(DsmrError, match=r"undo 1: 0\.0 s can be taken back"):
        session(bundle, "loop").live.act("undo 1")


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_undo_by_a_pedal_while_the_model_plays_on(bundle: Bundle, stall: float) -> None:
    """What sounded between the pedal and the moment that inference sees it belongs to what is taken back."""
    simulation = session(bundle, "loop", undo_s=20, cc={"undo": 20})
    simulation.run(12)
    frame = simulation.memory.frame
    if stall:
        simulation._sleeps_until, simulation._work_at = simulation.now, simulation.now + 0.1 + stall
    simulation.run(1, [(0.1, b"\xb0\x14\x7f")])
    assert frame - 800 < simulation.memory.frame < frame - 650
    assert abs(simulation.live.clock.frame(simulation.now) - simulation.memory.frame) < 100
    played = len(model_ons(simulation))
    simulation.run(3)
    assert len(model_ons(simulation)) > played
    closed(simulation)


def test_undo_in_an_answer_listens_again(bundle: Bundle) -> None:
    simulation = session(bundle, "continue", undo_s=20)
    simulation.run(6, phrase())
    simulation.live.act("undo 2")
    assert simulation.live.phase == "listening" and silent(simulation)
    simulation.run(6, phrase(0.5))
    assert simulation.live.phase == "answering"
    closed(simulation)


@pytest.mark.parametrize("mode", ["continue", "duet", "loop"])
def test_reset_begins_a_new_piece(bundle: Bundle, mode: str) -> None:
    simulation = session(bundle, mode)
    simulation.run(6, phrase())
    assert simulation.live.act("reset") == "forgotten: a new piece begins"
    assert silent(simulation) and simulation.memory.position == 1
    simulation.committed.clear()
    simulation.run(6, phrase(1.0))
    assert len(model_ons(simulation)) > 0
    closed(simulation)
    simulation.run(1)
    assert_remembered(simulation)
    if mode == "continue":
        assert simulation.committed[0].frame == 0


def test_set_is_heard_in_what_comes(loop: Simulation) -> None:
    assert loop.live.act("set temperature 0.5") == "temperature 0.5"
    assert loop.live.act("set density 2") == "density 2"
    assert loop.live.act("set top-p 0.9") == "top-p 0.9"
    assert loop.live.controls.values() == {"temperature": 0.5, "top-p": 0.9, "density": 2.0}
    assert loop.memory.sampling.temperature == 0.5 and loop.memory.pace == -2
    queued = loop.live.playback.queued
    loop.run(0.2)
    assert loop.live.playback.queued[: len(queued)] != queued
    closed(loop)


def test_save_is_somebody_elses(loop: Simulation) -> None:
    asked: list[str] = []
    loop.live.on_action = asked.append
    assert loop.live.act("save night") == "saving" and asked == ["save night"]
    loop.live.close()


@pytest.mark.parametrize(
    ("position", "temperature", "top_p", "density"),
    [(0, 0.5, 0.5, -1.5), (64, 1.0, 0.752, 0.0), (127, 2.0, 1.0, 1.5)],
)
def test_what_a_controller_turns(
    bundle: Bundle, position: int, temperature: float, top_p: float, density: float
) -> None:
    simulation = session(bundle, "loop", cc={"temperature": 1, "top-p": 2, "density": 3})
    simulation.run(1, [(0.5, bytes([0xB0, number, position])) for number in (1, 2, 3)])
    expected = {"temperature": temperature, "top-p": top_p, "density": density}
    assert simulation.live.controls.values() == pytest.approx(expected, abs=0.001)
    simulation.live.close()


# States


@pytest.mark.parametrize("at", [0.2, 3.0, 7.77])
def test_a_state_goes_on_with_what_was_planned(bundle: Bundle, at: float) -> None:
    first, second = (session(bundle, "loop", seed, max_note_s=600) for seed in (1, 99))
    first.live.act("set temperature 1.2")
    second.run(2)
    first.run(at)
    moment, extra = first.live.state()
    assert extra["player"] == [] and extra["controls"]["temperature"] == 1.2
    before = len(first.committed)
    first.run(10)
    second.live.go_to(moment, extra)
    assert silent(second) and second.live.controls.values() == first.live.controls.values()
    known = len(second.committed)
    second.run(4)
    saved = len(second.committed)
    third = session(bundle, "loop", 5, max_note_s=600)  # and from there on, once more
    third.live.go_to(*second.live.state())
    second.run(4)
    third.run(4)
    later, again = second.committed[known:], third.committed
    expected = first.committed[before:]
    assert later[: len(expected)] == expected[: len(later)] and len(later) > 50
    assert again == second.committed[saved:][: len(again)] and len(again) > 40
    for simulation in (first, second, third):
        closed(simulation)


@pytest.mark.parametrize("mode", ["continue", "duet", "loop"])
def test_saving_changes_nothing(bundle: Bundle, mode: str) -> None:
    saved, other = (session(bundle, mode, undo_s=5) for _ in range(2))
    for tenth in range(120):
        for simulation in (saved, other):
            simulation.run(0.1, note(0.03, 60 + tenth % 12, 0.06) if tenth % 40 < 10 else ())
        saved.live.state()
    assert saved.sent == other.sent
    assert saved.committed == other.committed and saved.memory.broken == other.memory.broken
    closed(saved)
    closed(other)


def test_keys_that_were_held_end_where_a_state_is_gone_to(bundle: Bundle) -> None:
    first = session(bundle, "duet")
    first.run(3, [*phrase(count=3), (2.0, b"\x90\x47\x40")])
    moment, extra = first.live.state()
    assert 71 in extra["player"] and first.memory.sounding[71] == PLAYER
    second = session(bundle, "duet", 7)
    second.run(1)
    second.live.go_to(moment, extra)
    second.run(1)
    assert 71 not in second.memory.sounding
    assert set(second.memory.sounding.values()) <= {MODEL}
    second.run(5, note(0.5, 60))
    assert second.live.phase == "playing"
    closed(first)
    closed(second)


def test_a_state_of_another_graph_changes_nothing_but_the_plan(bundle: Bundle, loop: Simulation) -> None:
    other = Simulation(Memory(bundle, Sampling(), 1, graph="portable"), LiveSettings(mode="loop"))
    other.run(2)
    position = loop.memory.position
    with pytest.raises(BundleError, match="belongs to graph portable"):
        loop.live.go_to(*other.live.state())
    assert loop.memory.position >= position
    played = len(model_ons(loop))
    loop.run(2)
    assert len(model_ons(loop)) > played
    closed(loop)
