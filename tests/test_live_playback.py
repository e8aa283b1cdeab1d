"""When what was planned sounds: on time, or all of it later by as much; never bunched, lost or stuck."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dsmr_export.runtime import Bundle
from dsmr_export.runtime.live.clock import MusicClock
from dsmr_export.runtime.live.playback import LATE_S, Playback
from dsmr_export.runtime.live.voices import Voices
from dsmr_export.runtime.memory import MODEL, PLAYER
from dsmr_export.runtime.performance import KeyEvent
from tests.live_session import ends_have_beginnings, model_ons, phrase, session, stalls
from tests.simulation import rhythm_kept, stuck
from tests.tiny_bundle import make_bundle

STEP_S = 0.01
EXACT = 1e-9  # seconds: floats at 1,000 s


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("live") / "tiny")


class Stage:
    """A playback by itself, and a clock that is told how late it is."""

    def __init__(self, max_note_s: float = 10.0) -> None:
        self.now = 50.0
        self.sent: list[tuple[float, bytes]] = []
        self.played: list[tuple[float, KeyEvent]] = []
        self.clock = MusicClock(10)
        self.clock.align(self.now, 0)
        voices = Voices(lambda message: self.sent.append((self.now, message)), lambda: self.now)
        self.voices = voices
        self.playback = Playback(
            self.clock, voices, lambda at, event: self.played.append((at, event)), 0, max_note_s
        )

    def put(self, *events: KeyEvent) -> None:
        assert self.playback.put(events, self.playback.take)

    def wake(self, late: float = 0.0) -> float | None:
        """Sleeps until the next thing is due, and so much longer."""
        due = self.playback.run_due(self.now)
        if due is not None:
            self.now = max(due, self.now) + late
            return self.playback.run_due(self.now)
        return None


def on(frame: int, pitch: int) -> KeyEvent:
    return KeyEvent(frame, "on", pitch, 64)


def off(frame: int, pitch: int) -> KeyEvent:
    return KeyEvent(frame, "off", pitch, 0)


lateness = st.one_of(st.just(0.0), st.floats(0, LATE_S), st.floats(LATE_S, 3))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(60, 71), lateness), min_size=1, max_size=40))
def test_late_moves_all_that_follows_and_jitter_moves_nothing(steps: list[tuple[int, int, float]]) -> None:
    """Against the policy as `playback` states it, done here on a list."""
    stage, frame, waiting = Stage(), 0, []
    for wait, pitch, _ in steps:
        frame += wait
        waiting.append(on(frame, pitch))
    stage.put(*waiting)
    moved, expected = 0.0, []
    for *_, late in steps:
        if not waiting:
            break
        stage.now = max(stage.now, 50.0 + waiting[0].frame * STEP_S + moved + EXACT) + late
        stage.playback.run_due(stage.now)
        while waiting and (behind := stage.now - (50.0 + waiting[0].frame * STEP_S + moved)) >= 0:
            assume(abs(behind - LATE_S) > EXACT)
            moved += behind if behind > LATE_S else 0.0
            expected.append((pytest.approx(stage.now, abs=EXACT), waiting.pop(0)))
    assert [(at, event) for at, event in stage.played if event.kind == "on"] == expected
    assert stage.playback.notes == len(steps) and stage.playback.queued == []
    assert stage.playback.shifted_s == pytest.approx(moved, abs=1e-6)
    ons = [(at, MODEL, played) for at, played in stage.played if played.kind == "on"]
    assert rhythm_kept(ons, STEP_S, LATE_S + EXACT)
    stage.playback.cut(stage.now)
    assert stuck(stage.sent) == {} and ends_have_beginnings(stage.sent)


def test_a_chord_that_is_late_stays_one() -> None:
    stage = Stage()
    stage.put(on(10, 60), on(10, 64), on(12, 67))
    stage.wake(late=0.5)
    assert [at for at, _ in stage.played] == [pytest.approx(50.6)] * 2
    stage.wake()
    assert stage.played[-1][0] == pytest.approx(50.62) and stage.playback.shifts == 1


@pytest.mark.parametrize("jump", [5.0, 3600.0])
def test_a_jump_of_the_clock_is_a_pause(jump: float) -> None:
    stage = Stage()
    stage.put(on(10, 60), off(20, 60), on(30, 62))
    stage.wake()
    stage.now += jump
    stage.wake()
    moments = [at - 50.0 for at, _ in stage.played]
    assert moments == pytest.approx([0.1, 0.1 + jump, 0.2 + jump])
    assert stage.playback.shifts == 1 and stage.playback.cut_short == 0


def test_a_note_that_is_too_long_ends() -> None:
    stage = Stage(max_note_s=2.0)
    stage.put(on(0, 60))
    assert stage.playback.run_due(50.0) == pytest.approx(52.0)
    stage.wake()
    assert stuck(stage.sent) == {} and stage.playback.cut_short == 1
    assert stage.played[-1] == (52.0, off(200, 60)) and stage.playback.run_due(53.0) is None


def test_an_end_without_a_note_is_reported_and_not_sent() -> None:
    """The memory may still think that it sounds: it ends for it too."""
    stage = Stage()
    stage.put(off(0, 60))
    stage.playback.run_due(50.0)
    assert stage.sent == [] and stage.played == [(50.0, off(0, 60))]


def test_a_key_of_the_players_takes_the_note_over() -> None:
    stage = Stage()
    stage.put(on(0, 60), on(0, 64), off(50, 60))
    stage.playback.run_due(50.0)
    stage.now = 50.2
    stage.playback.give_up(60, 50.2)
    stage.voices.note_on(PLAYER, 0, 60, 90)
    assert stage.playback.sounding == [64] and stage.played[-1] == (50.2, off(20, 60))
    stage.wake()
    assert stuck(stage.sent) == {(0, 60): 1, (0, 64): 1}  # the planned end is none of the player's


def test_what_was_planned_before_a_cut_is_not_taken() -> None:
    stage = Stage()
    take = stage.playback.take
    stage.put(on(10, 60))
    assert stage.playback.cut(50.0) == 0
    assert not stage.playback.put([on(11, 60)], take) and stage.playback.queued == []


def test_a_note_struck_twice_ends_in_between() -> None:
    stage = Stage()
    stage.put(on(0, 60), on(10, 60))
    stage.wake()
    assert [message[0] for _, message in stage.sent] == [0x90, 0x80, 0x90]


# With inference behind it


@pytest.mark.parametrize("mode", ["loop", "duet", "continue"])
@pytest.mark.parametrize("seed", range(3))
def test_stalls_of_inference_are_pauses_of_the_music(bundle: Bundle, mode: str, seed: int) -> None:
    simulation = session(bundle, mode, seed, stalls(seed, 0.3, 3.0))
    simulation.run(40, phrase(1.0) + phrase(20.0))
    assert len(model_ons(simulation)) > 40
    assert rhythm_kept(simulation.sounded, STEP_S, LATE_S + EXACT)
    assert ends_have_beginnings(simulation.sent)
    simulation.live.close()
    assert stuck(simulation.sent) == {}


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=4))
def test_a_clock_that_jumps_forward(bundle: Bundle, jumps: list[float]) -> None:
    """The machine slept: playback and inference find themselves so much later."""
    simulation = session(bundle, "loop")
    for jump in jumps:
        simulation.run(2)
        simulation.now += jump
    simulation.run(3)
    assert rhythm_kept(simulation.sounded, STEP_S, LATE_S + EXACT)
    undisturbed = session(bundle, "loop", max_note_s=600)
    undisturbed.run(1)
    first = undisturbed.committed[:20]
    assert simulation.committed[: len(first)] == first
    simulation.live.close()
    assert stuck(simulation.sent) == {}


@pytest.mark.parametrize(
    ("mode", "look_ahead_s"), [("loop", None), ("loop", 0.05), ("loop", 10), ("duet", None)]
)
def test_the_plan_runs_ahead_by_no_more_than_a_token(
    bundle: Bundle, mode: str, look_ahead_s: float | None
) -> None:
    simulation = session(bundle, mode, look_ahead_s=look_ahead_s)
    plan, most = simulation.memory.plan, 0.0

    def measured(*args, **kwargs):
        nonlocal most
        events = plan(*args, **kwargs)
        clock = simulation.live.clock
        most = max(most, clock.seconds(simulation.memory.plan_frame) - simulation.now)
        return events

    simulation.memory.plan = measured  # type: ignore[method-assign]
    simulation.run(12, phrase())
    ahead = simulation.live.settings.ahead_s
    token_s = bundle.event_table.longest_shift * STEP_S
    assert most <= ahead + token_s + STEP_S  # a frame: where the clock rounds
    assert most > min(ahead, 5.0)  # ten seconds are more than 512 tokens, the longest plan


def test_playback_asks_nothing_of_inference(bundle: Bundle) -> None:
    """Inference hangs for ever: what is in the queue is played on time."""
    simulation = session(bundle, "loop")
    simulation.run(3)
    queued = simulation.live.playback.queued
    seconds = [(simulation.live.clock.seconds(event.frame), event) for event in queued]
    simulation._work_at = 1e9
    simulation.sent.clear()
    simulation.run(5)
    ons = [(at, message[1]) for at, message in simulation.sent if message[0] & 0xF0 == 0x90]
    expected = [(at, event.pitch) for at, event in seconds if event.kind == "on"]
    assert [pitch for _, pitch in ons] == [pitch for _, pitch in expected] and len(ons) > 5
    assert [at for at, _ in ons] == pytest.approx([at for at, _ in expected])
    assert simulation.live.playback.shifts == 0


def test_a_plan_that_is_full_waits(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not looking again and again for room: that would burn a core."""
    monkeypatch.setattr("dsmr_export.runtime.memory.PLAN_TOKENS", 16)
    monkeypatch.setattr("dsmr_export.runtime.live.engine.PLAN_TOKENS", 16)
    simulation = session(bundle, "loop")
    looks, work = 0, simulation.live.work

    def counted(now: float) -> float:
        nonlocal looks
        looks += 1
        return work(now)

    simulation.live.work = counted  # type: ignore[method-assign]
    simulation.run(10)
    assert looks < 800 and len(model_ons(simulation)) > 50
