"""A continuation is music that lasts as asked: every note ends, none past the end; same seed, same bytes."""

from __future__ import annotations

import dataclasses
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmr_export.errors import BundleError, DsmrError, MidiError, OutputError
from dsmr_export.manifest import Generation
from dsmr_export.runtime import Bundle, Sampling, Stream
from dsmr_export.runtime.events import decode
from dsmr_export.runtime.grammar import Grammar
from dsmr_export.runtime.midi import read_midi, write_midi
from dsmr_export.runtime.performance import Note, Performance, canonical
from dsmr_export.runtime.play import (
    MAX_FRAME_TOKENS,
    PACE_PIVOT_MS,
    Continuation,
    Paced,
    Performer,
    continue_prompt,
    encode_piece,
    pace_bias,
    prompt_ids,
    read_prompt,
)
from tests.tiny_bundle import BOS, EOS, MAX_SEGMENT, make_bundle

PITCHES = (60, 71)  # of the tiny vocabulary
PROMPT: Performance = [Note(3, 40, 60, 70), Note(3, 21, 64, 50), Note(22, 60, 67, 30), Note(45, 58, 71, 10)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("play") / "tiny")


def long_prompt(notes: int) -> Performance:
    """Random notes, quite unlike what the model would play."""
    rng = np.random.default_rng(4)
    starts = np.cumsum(rng.integers(0, 12, notes))
    lengths, pitches = rng.integers(1, 40, notes), rng.integers(60, 72, notes)
    velocities = 10 * rng.integers(1, 8, notes)
    rows = np.stack([starts, starts + lengths, pitches, velocities], axis=1).tolist()
    return canonical([Note(*row) for row in rows], PITCHES)


def assert_is_music(continuation: Continuation) -> None:
    """Canonical (each note ends, none overlaps another of its pitch) and within 0 ... frames."""
    notes = continuation.performance
    assert notes == sorted(notes, key=lambda note: (note.start, note.pitch))
    sounding_until: dict[int, int] = {}
    for note in notes:
        assert sounding_until.get(note.pitch, 0) <= note.start < note.end <= continuation.frames
        sounding_until[note.pitch] = note.end


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seconds=st.floats(0.01, 6),
    seed=st.integers(0, 2**32),
    temperature=st.floats(0, 3),
    top_p=st.floats(0.1, 1),
    prompted=st.booleans(),
)
def test_any_continuation_is_music(
    bundle: Bundle, seconds: float, seed: int, temperature: float, top_p: float, prompted: bool
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p)
    continuation = continue_prompt(bundle, PROMPT if prompted else None, seconds, sampling, seed)
    assert continuation.frames == math.floor(seconds * 100 + 0.5)
    assert_is_music(continuation)
    assert EOS not in continuation.tokens


def test_it_is_what_its_tokens_say_cut_at_the_end(bundle: Bundle) -> None:
    """Against `decode` of the same ids, notes beyond the end left out and long ones cut there."""
    continuation = continue_prompt(bundle, PROMPT, 4.0, Sampling(), 1)
    cut = [
        Note(note.start, min(note.end, 400), note.pitch, note.velocity)
        for note in decode(continuation.tokens, bundle.event_table)
        if note.start < 400
    ]
    assert continuation.performance == cut
    assert len(cut) > 20


def test_it_lasts_as_long_as_asked(bundle: Bundle) -> None:
    """The shift that reaches the end is the last token, and no earlier one does."""
    continuation = continue_prompt(bundle, PROMPT, 3.0, Sampling(), 5)
    table = bundle.event_table
    times = np.cumsum([table.values[t] if table.kinds[t] == "shift" else 0 for t in continuation.tokens])
    assert times[-1] >= 300 > times[-2]


def test_it_continues_the_prompt(bundle: Bundle) -> None:
    """The tokens are those of a stream that was fed BOS and the prompt by hand, with the same seed."""
    continuation = continue_prompt(bundle, PROMPT, 3.0, Sampling(), 9, pace=0)
    stream, grammar = Stream(bundle), bundle.grammar()
    for token in [BOS, *prompt_ids(PROMPT, bundle.event_table)]:
        stream.step(token)
        grammar.advance(token)
    tokens = stream.generate(Sampling(), np.random.default_rng(9), grammar, len(continuation.tokens))
    assert list(tokens) == continuation.tokens


def test_a_prompt_longer_than_a_segment(bundle: Bundle) -> None:
    prompt = long_prompt(200)
    ids = prompt_ids(prompt, bundle.event_table)
    assert len(ids) > 4 * MAX_SEGMENT
    performer = Performer(bundle, Sampling(), 3)
    performer.begin()
    for token in ids:
        performer.hear([token])
    continuation = continue_prompt(bundle, prompt, 2.0, Sampling(), 3)
    assert list(islice(performer.play(), len(continuation.tokens))) == continuation.tokens
    assert_is_music(continuation)


def test_no_prompt_begins_a_piece(bundle: Bundle) -> None:
    continuation = continue_prompt(bundle, None, 2.0, Sampling(), 1)
    assert continuation.performance and continuation.prompt == []
    assert continuation.with_prompt() == continuation.performance
    assert continue_prompt(bundle, [], 2.0, Sampling(), 1) == continuation


@pytest.mark.parametrize("graph", ["fp32", "portable"])
def test_same_seed_same_bytes(bundle: Bundle, graph: str, tmp_path: Path) -> None:
    def bytes_of(seed: int, with_prompt: bool = False) -> bytes:
        path = tmp_path / "out.mid"
        continue_prompt(bundle, PROMPT, 3.0, seed=seed, graph=graph).save(path, with_prompt)
        return path.read_bytes()

    assert bytes_of(1) == bytes_of(1) != bytes_of(2)
    assert bytes_of(1, with_prompt=True) == bytes_of(1, with_prompt=True) != bytes_of(1)


def test_the_saved_file_holds_the_continuation_from_its_start(bundle: Bundle, tmp_path: Path) -> None:
    continuation = continue_prompt(bundle, PROMPT, 3.0, Sampling(), 1)
    continuation.save(tmp_path / "out.mid")
    assert read_midi(tmp_path / "out.mid") == continuation.performance


def test_with_prompt_the_prompt_comes_first_unchanged(bundle: Bundle, tmp_path: Path) -> None:
    continuation = continue_prompt(bundle, PROMPT, 3.0, Sampling(), 1)
    continuation.save(tmp_path / "out.mid", with_prompt=True)
    notes = read_midi(tmp_path / "out.mid")
    assert notes[: len(PROMPT)] == PROMPT
    end = 60  # of PROMPT
    after = [Note(n.start - end, n.end - end, n.pitch, n.velocity) for n in notes[len(PROMPT) :]]
    assert after == continuation.performance


def test_progress_is_in_seconds_of_music_and_reaches_the_end(bundle: Bundle) -> None:
    calls: list[tuple[str, float, float]] = []
    continue_prompt(bundle, long_prompt(100), 2.0, progress=lambda *call: calls.append(call))
    end = max(note.end for note in long_prompt(100)) / 100
    for stage, total in (("hearing", end), ("playing", 2.0)):
        done = [call[1] for call in calls if call[0] == stage]
        assert len(done) > 3 and done == sorted(done) and done[-1] == pytest.approx(total)
        assert all(call[2] == pytest.approx(total) for call in calls if call[0] == stage)
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)  # hearing, then playing


def test_snapshot_and_restore_in_the_middle(bundle: Bundle) -> None:
    performer = Performer(bundle, Sampling(), 7)
    performer.begin(prompt_ids(PROMPT, bundle.event_table))
    playing = performer.play()
    list(islice(playing, 50))
    moment = performer.snapshot()
    after = list(islice(playing, 80))
    performer.restore(moment)
    assert list(islice(playing, 80)) == after  # an iterator under way goes on from the restored moment
    other = Performer(bundle, Sampling(), 8)
    other.restore(moment)  # across, with the random generator
    assert list(islice(other.play(), 80)) == after
    performer.restore(moment)  # the moment itself was not used up
    assert list(islice(performer.play(), 80)) == after


def test_a_moment_of_another_graph_is_refused(bundle: Bundle) -> None:
    performer, other = Performer(bundle, seed=1), Performer(bundle, graph="portable")
    performer.begin()
    other.begin(prompt_ids(PROMPT, bundle.event_table))
    before = performer.snapshot()
    with pytest.raises(BundleError, match="belongs to graph portable"):
        performer.restore(other.snapshot())
    tokens = list(islice(performer.play(), 30))
    performer.restore(before)
    assert list(islice(performer.play(), 30)) == tokens


def test_a_new_piece_forgets_the_last(bundle: Bundle) -> None:
    performer, fresh = Performer(bundle, Sampling(0)), Performer(bundle, Sampling(0))
    performer.begin(prompt_ids(long_prompt(50), bundle.event_table))
    list(islice(performer.play(), 100))
    performer.begin()
    fresh.begin()
    assert list(islice(performer.play(), 60)) == list(islice(fresh.play(), 60))


@pytest.mark.parametrize("on_needs_silent", [True, False])
def test_a_model_that_never_shifts_is_made_to(bundle: Bundle, on_needs_silent: bool) -> None:
    """It strikes notes wherever it may; where a bundle's rules let it do so for ever, the mask does not."""
    table = bundle.event_table
    mask = Paced(
        Grammar(table, {**bundle.manifest.grammar, "on_needs_silent": on_needs_silent, "ordered": False})
    )
    here, longest = 0, 0
    for _ in range(5000):
        allowed = np.flatnonzero(mask.allowed)
        token = min(allowed, key=lambda t: ("on", "velocity", "off", "shift").index(table.kinds[t]))
        mask.advance(int(token))
        here = 0 if table.kinds[token] == "shift" else here + 1
        longest = max(longest, here)
    # The grammar allows 12 pitches, each with its velocity; without its rule the mask's limit holds.
    assert longest == (24 if on_needs_silent else MAX_FRAME_TOKENS)


def test_the_limit_waits_for_a_velocity(bundle: Bundle) -> None:
    table = bundle.event_table
    mask = Paced(Grammar(table, {**bundle.manifest.grammar, "on_needs_silent": False, "ordered": False}))
    first = table.on_ids[60]
    for _ in range(MAX_FRAME_TOKENS // 2 - 1):
        mask.advance(first)
        mask.advance(table.velocities[10])
    mask.advance(EOS)  # nobody plays it; one token that makes the count odd
    mask.advance(first)
    assert {table.kinds[t] for t in np.flatnonzero(mask.allowed)} == {"velocity"}
    mask.advance(table.velocities[10])
    assert {table.kinds[t] for t in np.flatnonzero(mask.allowed)} == {"shift"}
    mask.advance(table.shift_ids[1])
    assert {table.kinds[t] for t in np.flatnonzero(mask.allowed)} == {"on", "off", "shift"}


def test_real_prompts_from_files(bundle: Bundle, tmp_path: Path) -> None:
    """Notes outside the vocabulary are left out and counted by the reader; made by hand they are refused."""
    path = tmp_path / "prompt.mid"
    write_midi(sorted([*PROMPT, Note(0, 10, 30, 64)]), path)
    reading = read_prompt(bundle, path)
    assert reading.performance == PROMPT and reading.dropped == 1
    with pytest.raises(DsmrError, match="pitch 30, the vocabulary 60-71"):
        continue_prompt(bundle, [Note(0, 10, 30, 64)], 1.0)
    path.write_bytes(b"no music")
    with pytest.raises(MidiError, match="not a MIDI file"):
        read_prompt(bundle, path)


def test_a_whole_piece(bundle: Bundle) -> None:
    ids = encode_piece(bundle, PROMPT)
    assert ids[0] == BOS and ids[-1] == EOS
    assert decode(ids[1:-1], bundle.event_table) == PROMPT


@pytest.mark.parametrize("seconds", [0, -1, 0.004, math.nan, math.inf])
def test_a_length_that_is_none_is_refused(bundle: Bundle, seconds: float) -> None:
    with pytest.raises(DsmrError, match=f"seconds is {seconds}: give a length of music of 0.01 seconds"):
        continue_prompt(bundle, None, seconds)


def test_a_seed_below_zero_is_refused(bundle: Bundle) -> None:
    with pytest.raises(DsmrError, match="seed is -1"):
        continue_prompt(bundle, None, 1.0, seed=-1)


def test_an_unknown_graph_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no graph 'int4'"):
        continue_prompt(bundle, None, 1.0, graph="int4")


def test_a_file_that_cannot_be_written_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        continue_prompt(bundle, None, 0.1).save(tmp_path / "missing" / "out.mid")


def test_pace_makes_longer_shifts_likelier_and_leaves_the_rest(bundle: Bundle) -> None:
    """By the definition, token by token; 0 is the model's own distribution."""
    table = bundle.event_table
    bias = pace_bias(table, 0.5)
    for token, kind in enumerate(table.kinds):
        if kind == "shift":
            milliseconds = int(table.values[token]) * table.step_ms
            assert np.exp(bias[token]) == pytest.approx(np.sqrt(milliseconds / PACE_PIVOT_MS), rel=1e-6)
        else:
            assert bias[token] == 0
    assert not pace_bias(table, 0).any()
    with pytest.raises(DsmrError, match="pace is nan: give a number"):
        pace_bias(table, float("nan"))


def test_a_bundle_may_ask_for_a_pace(tmp_path: Path) -> None:
    """The bundle's own pace is what is played unless another is asked for; none is none."""
    bundle = make_bundle(tmp_path / "paced")
    plain = continue_prompt(bundle, None, 3.0, seed=4)
    assert plain == continue_prompt(bundle, None, 3.0, seed=4, pace=0)
    bundle.manifest = dataclasses.replace(bundle.manifest, generation=Generation(pace=1.5))
    paced = continue_prompt(bundle, None, 3.0, seed=4)
    assert paced == continue_prompt(bundle, None, 3.0, seed=4, pace=1.5) != plain
    assert continue_prompt(bundle, None, 3.0, seed=4, pace=0) == plain


def test_a_higher_pace_plays_longer_shifts(bundle: Bundle) -> None:
    """Over several seeds: one continuation is chance."""
    table = bundle.event_table

    def mean_shift(pace: float) -> float:
        made = [continue_prompt(bundle, None, 3.0, seed=seed, pace=pace) for seed in range(5)]
        tokens = [token for continuation in made for token in continuation.tokens]
        return float(np.mean([int(table.values[t]) for t in tokens if table.kinds[t] == "shift"]))

    assert mean_shift(1.0) > mean_shift(-1.0) * 1.2
