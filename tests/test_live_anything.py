"""Whatever is played, whatever stalls: nothing sticks, and what is remembered is what sounded, to the bit."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dsmr_export.errors import DsmrError
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.live.playback import LATE_S
from dsmr_export.runtime.performance import Recorder, frame_at
from tests.live_session import (
    Inputs,
    assert_remembered,
    ends_have_beginnings,
    note,
    pedal,
    session,
    stalls,
)
from tests.simulation import Simulation, rhythm_kept, stuck
from tests.tiny_bundle import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("live") / "tiny")


MODES = st.sampled_from(["continue", "duet", "loop"])
moments = st.integers(0, 600).map(lambda value: value / 100)  # no half frames: floats go either way there
keys = st.builds(
    note,
    moments,
    st.integers(58, 73),
    st.sampled_from([0.001, 0.01, 0.2, 1.5]),
    st.integers(1, 127),
    st.sampled_from([0, 0, 0, 5]),
)
pedals = st.builds(pedal, moments, st.sampled_from([0, 63, 64, 127]))
controllers = st.builds(
    lambda at, controller, value: [(at, bytes([0xB0, controller, value]))],
    moments,
    st.sampled_from([1, 2, 120, 121, 123]),
    st.integers(0, 127),
)
others = st.builds(
    lambda at, message: [(at, message)],
    moments,
    st.sampled_from([b"\xf8", b"\xe0\x01\x40", b"\xc0\x05", b"\x90"]),
)
plays = st.lists(st.one_of(keys, keys, keys, pedals, controllers, others), max_size=40).map(
    lambda moves: sorted(move for some in moves for move in some)
)
costs = st.sampled_from([(0.0, 0.0), (0.05, 0.3), (0.3, 3.0)])
words = st.sampled_from(["pause", "resume", "panic", "set density 1", "set temperature 0", "lost", "output"])


def tell(simulation: Simulation, word: str) -> None:
    if word == "lost":
        simulation.live.input.release(simulation.now)
    elif word == "output":
        simulation.live.voices.lost()
        simulation.live.voices.start()
    else:
        simulation.live.act(word)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    MODES, st.integers(0, 99), costs, st.lists(st.tuples(plays, words), min_size=1, max_size=3), st.booleans()
)
def test_the_memory_is_what_sounded(
    bundle: Bundle,
    mode: str,
    seed: int,
    cost: tuple[float, float],
    script: list[tuple[Inputs, str]],
    thru: bool,
) -> None:
    simulation = session(
        bundle, mode, seed, stalls(seed, *cost, share=0.1), pause_s=0.5, thru=thru, cc={"density": 2}
    )
    lost = False
    for inputs, word in script:
        simulation.run(7, inputs)
        tell(simulation, word)
        lost = lost or word == "output"
        if word == "panic":
            assert stuck(simulation.sent) == {}
    simulation.run(2)
    simulation.live.close()
    assert stuck(simulation.sent) == {}
    assert lost or ends_have_beginnings(simulation.sent)
    simulation.run(7)  # longer than the longest stall and a look
    assert stuck(simulation.sent) == {} and simulation.live.playback.sounding == []
    assert_remembered(simulation)
    assert rhythm_kept(simulation.sounded, 0.01, LATE_S + 1e-9)
    frames = [event.frame for event in simulation.committed]
    assert frames == sorted(frames)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MODES, st.lists(st.tuples(st.floats(0, 5), st.binary(min_size=1, max_size=12)), max_size=60), costs)
def test_any_bytes(
    bundle: Bundle, mode: str, pieces: list[tuple[float, bytes]], cost: tuple[float, float]
) -> None:
    simulation = session(
        bundle,
        mode,
        1,
        stalls(1, *cost, share=0.1),
        undo_s=5,
        pause_s=0.3,
        cc={"undo": 5, "reset": 6, "pause": 7, "resume": 8, "panic": 9, "undo-bar": 10, "temperature": 11},
    )
    simulation.run(6, sorted(pieces))
    simulation.live.close()
    assert stuck(simulation.sent) == {} and ends_have_beginnings(simulation.sent)
    simulation.run(1)
    assert stuck(simulation.sent) == {}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plays, st.integers(0, 99), costs, st.booleans())
def test_a_player_alone_is_heard_as_a_file_of_the_same_events(
    bundle: Bundle, inputs: Inputs, seed: int, cost: tuple[float, float], thru: bool
) -> None:
    """Frame by frame what a `Recorder` makes of them that no clock, thread or stall stands before."""
    simulation = session(bundle, "continue", seed, stalls(seed, *cost, share=0.1), pause_s=60, thru=thru)
    simulation.run(9, inputs)
    simulation.run(1)
    recorder, expected = Recorder(bundle.event_table.pitch_range), []
    held: set[tuple[int, int]] = set()
    whole = [(at, message) for at, message in inputs if len(message) == 3]
    begin = next((at for at, message in whole if message[0] & 0xF0 == 0x90), 0.0)
    for at, message in whole:
        frame = frame_at(max(at - begin, 0.0))
        kind, channel = message[0] & 0xF0, message[0] & 0x0F
        key = channel, message[1]
        if kind == 0x90:
            if key in held:
                expected += recorder.note_off(frame, key[1], channel)
            held.add(key)
            expected += recorder.note_on(frame, key[1], message[2], channel)
        elif kind == 0x80 and key in held:
            held.remove(key)
            expected += recorder.note_off(frame, key[1], channel)
        elif kind == 0xB0 and message[1] in (64, 121):
            expected += recorder.pedal(frame, message[2] if message[1] == 64 else 0, channel)
        elif kind == 0xB0 and message[1] in (120, 123):
            for channel_, pitch in [pair for pair in held if pair[0] == channel]:
                held.remove((channel_, pitch))
                expected += recorder.note_off(frame, pitch, channel)
            expected += recorder.all_off(frame, channel)
    expected += recorder.advance(10_000)
    assume(not simulation.live.input.left_out["echo"])  # struck twice within 30 ms, at the same velocity
    assert simulation.committed == expected
    simulation.live.close()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    MODES,
    st.lists(
        st.tuples(plays, st.sampled_from(["undo 1", "undo 3", "reset", "go", "pause", "resume"])), max_size=4
    ),
)
def test_going_back_leaves_nothing_sounding(
    bundle: Bundle, mode: str, script: list[tuple[Inputs, str]]
) -> None:
    simulation = session(bundle, mode, undo_s=10, pause_s=0.3, thru=False)
    state = simulation.live.state()
    for inputs, word in script:
        simulation.run(4, inputs)
        try:
            if word == "go":
                simulation.live.go_to(*state)
                state = simulation.live.state()
            else:
                simulation.live.act(word)
        except DsmrError as error:
            assert "can be taken back" in str(error)
        assert word == "resume" or stuck(simulation.sent) == {}
        ahead = simulation.live.clock.frame(simulation.now) - simulation.memory.frame
        assert simulation.memory.position == 1 or abs(ahead) < 100  # 1: time has not begun
    simulation.run(3)
    simulation.live.close()
    assert stuck(simulation.sent) == {} and ends_have_beginnings(simulation.sent)
