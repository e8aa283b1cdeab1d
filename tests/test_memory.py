"""The memory of an instrument: whatever was planned, cut off, taken back, it holds what sounded, no more.

The reference is a stream that is fed, token by token, what `events.Encoder` makes of the events in one go.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmr_export.errors import BundleError, DsmrError
from dsmr_export.runtime import Bundle, Sampling, Stream
from dsmr_export.runtime.events import Decoder, Encoder
from dsmr_export.runtime.memory import ANCHOR_TOKENS, MODEL, PLAN_TOKENS, PLAYER, Memory
from dsmr_export.runtime.performance import KeyEvent, canonical, to_notes
from dsmr_export.runtime.play import Performer
from tests.tiny_bundle import BOS, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("memory") / "tiny")


def offline(bundle: Bundle, events: Iterable[KeyEvent], until: int) -> Stream:
    """A stream fed BOS and the tokens of the events, up to the frame `until`."""
    stream, encoder = Stream(bundle), Encoder(bundle.event_table)
    tokens = [BOS]
    for event in events:
        tokens += encoder.push(event)
    for token in tokens + encoder.advance(until):
        stream.step(token)
    return stream


def assert_same_state(memory: Memory, stream: Stream) -> None:
    memory.forget_plan()
    assert memory.stream.position == stream.position
    assert np.array_equal(memory.stream.logits, stream.logits)
    ours, theirs = memory.stream.snapshot(), stream.snapshot()
    assert ours.count == theirs.count
    for name, array in ours.state.items():
        assert np.array_equal(array, theirs.state[name]), name


class Session:
    """Drives a memory as the live engine does: plans, plays what is due, is disturbed at random."""

    def __init__(self, bundle: Bundle, seed: int, undo_s: float = 0.0) -> None:
        self.memory = Memory(bundle, Sampling(), seed, undo_s=undo_s, undo_every_s=0.3)
        self.events: list[KeyEvent] = []
        self.memory.committed = self.events.append
        self.rng = np.random.default_rng(seed)
        self.queue: list[KeyEvent] = []
        self.frame = 0
        self.held: set[int] = set()
        self.model_sounds: set[int] = set()

    def tick(self, playing: bool, disturbance: float) -> None:
        """One frame: the player may do something, the model plays what is due."""
        self.frame += 1
        kept = self.memory.advance(self.frame)
        if not kept:
            self.queue.clear()
        while playing and self.queue and self.queue[0].frame <= self.frame:
            event = heapq.heappop(self.queue)
            assert event.frame == self.frame or event.frame == self.memory.frame
            assert (event.kind == "off") == (event.pitch in self.model_sounds), "an end without a beginning"
            (self.model_sounds.remove if event.kind == "off" else self.model_sounds.add)(event.pitch)
            if event.kind == "on":
                kept &= self.memory.note_on(event.frame, event.pitch, event.velocity, by=MODEL)
            else:
                kept &= self.memory.note_off(event.frame, event.pitch, by=MODEL)
        if self.rng.random() < disturbance:
            pitch = int(self.rng.integers(60, 72))
            if pitch in self.held:
                self.held.remove(pitch)
                kept &= self.memory.note_off(self.frame, pitch, by=PLAYER)
            else:
                self.held.add(pitch)
                self.model_sounds.discard(pitch)  # struck by the player: it is the player's note now
                kept &= self.memory.note_on(self.frame, pitch, int(self.rng.integers(1, 128)), by=PLAYER)
        if not kept:
            self.queue.clear()
        if not playing and self.queue:
            self.cut()
        if playing and self.memory.settled:
            if not self.memory.planned:
                self.queue.clear()
            if self.memory.plan_frame < self.frame + 40:
                for event in self.memory.plan(6, self.frame + 1):
                    assert event.frame > self.frame
                    heapq.heappush(self.queue, event)

    def cut(self) -> None:
        self.queue.clear()
        for pitch in self.model_sounds:
            self.memory.note_off(self.frame, pitch, by=MODEL)
        self.model_sounds.clear()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    disturbance=st.sampled_from([0.0, 0.02, 0.2, 0.7]),
    turns=st.lists(st.booleans(), min_size=1, max_size=6),
    undo=st.booleans(),
)
def test_the_state_is_what_sounded(
    bundle: Bundle, seed: int, disturbance: float, turns: list[bool], undo: bool
) -> None:
    session = Session(bundle, seed, undo_s=1.0 if undo else 0.0)
    for playing in turns:
        for _ in range(80):
            session.tick(playing, disturbance)
    session.cut()
    session.frame += 2
    session.memory.advance(session.frame)
    assert_same_state(session.memory, offline(bundle, session.events, session.frame))
    # What became certain is canonical: in order, and every end has its beginning.
    frames = [event.frame for event in session.events]
    assert frames == sorted(frames)
    last = KeyEvent(session.frame, "off", 0, 0)
    ends = [last._replace(pitch=pitch) for pitch in session.memory.sounding]
    notes = to_notes([*session.events, *ends])
    assert canonical(notes, (60, 71)) == notes


def test_an_undisturbed_plan_is_never_forgotten(bundle: Bundle) -> None:
    session = Session(bundle, 5)
    for _ in range(3000):
        session.tick(True, 0.0)
    assert session.memory.broken == 0
    assert len(session.events) > 300


def test_alone_it_plays_what_a_performer_plays(bundle: Bundle) -> None:
    """Token by token: planning ahead and committing changes nothing of what is sampled."""
    session = Session(bundle, 9)
    session.queue = session.memory.plan(6, 0)
    for _ in range(1000):
        session.tick(True, 0.0)
    performer = Performer(bundle, Sampling(), 9, ordered=True)
    performer.begin()
    decoder, events = Decoder(bundle.event_table), []
    for token in performer.play():
        events += decoder.push(token)
        if decoder.frame > 1200:
            break
    assert events[: len(session.events)] == session.events


def played(bundle: Bundle, seed: int = 1, frames: int = 400, **options: float) -> Session:
    session = Session(bundle, seed)
    if options:
        session.memory = Memory(bundle, Sampling(), seed, **options)
        session.memory.committed = session.events.append
    for _ in range(frames):
        session.tick(True, 0.05)
    return session


def test_the_plan_leaves_the_players_notes_alone(bundle: Bundle) -> None:
    memory = Memory(bundle, Sampling(), 3)
    for pitch in range(60, 71):
        memory.note_on(5, pitch, 60)
    memory.advance(6)
    events = memory.plan(PLAN_TOKENS, 7)
    assert {event.pitch for event in events} == {71}


def test_with_every_key_held_time_passes(bundle: Bundle) -> None:
    memory = Memory(bundle, Sampling(), 3)
    for pitch in range(60, 72):
        memory.note_on(5, pitch, 60)
    memory.advance(6)
    assert memory.plan(20, 7) == [] and memory.plan_frame > 20


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_opens_in_time(bundle: Bundle, seed: int) -> None:
    """After a rest the first thing is a note, not before `earliest` and not after `opening`."""
    memory = Memory(bundle, Sampling(), seed)
    memory.note_on(3, 64, 50)
    memory.note_off(9, 64)
    memory.advance(151)
    events = memory.plan(30, earliest=153, opening=160)
    assert events[0].kind == "on" and 153 <= events[0].frame <= 160


def test_undo_is_what_sounded_until_then(bundle: Bundle) -> None:
    session = played(bundle, undo_s=2.0, undo_every_s=0.5)
    memory = session.memory
    memory.forget_plan()
    now = memory.frame
    assert memory.undo(1.0) == pytest.approx(1.0)
    target = now - 100
    assert memory.sounding == {} and target <= memory.frame <= target + 2
    until = [event for event in session.events if event.frame <= target]
    session.events.clear()
    again = Memory(bundle, Sampling(), 0)
    heard: list[KeyEvent] = []
    again.committed = heard.append
    for event in until:
        if event.kind == "on":
            again.note_on(event.frame, event.pitch, event.velocity)
        else:
            again.note_off(event.frame, event.pitch)
    again.advance(target)
    again.release(target, PLAYER)
    again.advance(target + 2)
    assert_same_state(memory, offline(bundle, heard, target + 2))


def test_undo_reaches_as_far_as_asked_for_and_no_further(bundle: Bundle) -> None:
    memory = played(bundle, undo_s=2.0, undo_every_s=0.5, frames=1500).memory
    assert 2.0 <= memory.undo_reach_s <= 3.0
    assert memory.copies_bytes <= 12 * memory.stream.snapshot().nbytes
    with pytest.raises(DsmrError, match=r"undo 9: 2\.\d s can be taken back; begin with a larger --undo"):
        memory.undo(9.0)
    for _ in range(3):  # again and again, until nothing is left
        memory.undo(0.5)
    with pytest.raises(DsmrError, match="can be taken back"):
        played(bundle, frames=50).memory.undo(0.1)


def test_a_snapshot_is_the_moment_itself_and_changes_nothing(bundle: Bundle) -> None:
    """Taken while a plan is under way: what is restored goes on with the tokens that were planned."""
    session, other = played(bundle, seed=11, frames=300), Memory(bundle, Sampling(), 99)
    memory = session.memory
    session.cut()
    memory.advance(session.frame + 1)
    memory.release(session.frame + 1, PLAYER)
    memory.advance(session.frame + 3)
    first = memory.plan(40, memory.frame)
    moment, player = memory.snapshot()
    assert player == []
    other.restore(moment)
    assert other.plan(40, memory.frame) == first
    assert memory.plan(30, 0) == other.plan(30, 0)
    assert memory.broken == other.broken + session.memory.broken


def test_the_players_notes_end_where_a_moment_is_restored(bundle: Bundle) -> None:
    memory = Memory(bundle, Sampling(), 1)
    memory.note_on(3, 60, 50, by=PLAYER)
    memory.note_on(3, 64, 50, by=MODEL)
    memory.advance(5)
    moment, player = memory.snapshot()
    assert player == [60]
    other = Memory(bundle, Sampling(), 2)
    other.restore(moment, player)
    assert other.sounding == {64: MODEL}


def test_a_moment_of_another_graph_is_refused(bundle: Bundle) -> None:
    memory, other = Memory(bundle, graph="portable"), Memory(bundle, graph="fp32")
    with pytest.raises(BundleError, match="belongs to graph fp32"):
        memory.restore(other.snapshot()[0])


def test_a_flood_is_heard_in_segments(bundle: Bundle) -> None:
    """Within fp32's agreement of segments and steps, 1e-5 on logits of order 1."""
    memory, events = Memory(bundle, Sampling(), 1), []
    memory.committed = events.append
    rng = np.random.default_rng(0)
    batch = []
    for frame in range(1, 60):
        for pitch in rng.choice(np.arange(60, 72), 6, replace=False):
            batch += memory._recorder.note_on(frame, int(pitch), 60)
    batch += memory._recorder.advance(70)
    assert memory._commit(batch)
    assert len(batch) > 300
    stream = offline(bundle, events, 0)
    assert np.abs(memory.stream.logits - stream.logits).max() < 1e-4


def test_a_new_piece_forgets_everything_but_the_generator(bundle: Bundle) -> None:
    session = played(bundle)
    session.memory.begin()
    assert session.memory.position == 1 and session.memory.sounding == {} and session.memory.frame == 0
    assert np.array_equal(session.memory.stream.logits, offline(bundle, [], 0).logits)


def test_a_prompt_is_heard_as_a_performer_hears_it(bundle: Bundle) -> None:
    ids = [bundle.event_table.on_ids[60], bundle.event_table.velocities[50], bundle.event_table.shift_ids[6]]
    memory, performer = Memory(bundle, Sampling(), 4), Performer(bundle, Sampling(), 4)
    memory.hear(ids)
    performer.begin()
    performer.hear(ids)
    assert np.array_equal(memory.stream.logits, performer.stream.logits)
    assert memory.frame == 6 and memory.sounding == {60: MODEL}


def test_listening_keeps_no_copies(bundle: Bundle) -> None:
    memory = Memory(bundle, Sampling(), 4)
    memory.plan(ANCHOR_TOKENS * 3, 1)
    for frame in range(1, 3000, 5):
        memory.note_on(frame, 60 + frame % 12, 50)
        memory.note_off(frame + 2, 60 + frame % 12)
    assert memory.copies_bytes == 0


def test_a_seed_below_zero_is_refused(bundle: Bundle) -> None:
    with pytest.raises(DsmrError, match="seed is -1"):
        Memory(bundle, seed=-1)
