"""What a live session is told, every message of a refusal, and how long things took."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_export.errors import DsmrError
from dsmr_export.runtime.live.clock import MusicClock
from dsmr_export.runtime.live.settings import ACTIONS, CONTROLS, LiveSettings, velocity_table
from dsmr_export.runtime.live.timings import BIN_MS, BINS, Timings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "contniue"}, "mode is 'contniue': give continue, duet, loop"),
        ({"pause_s": 0.01}, "pause is 0.01: give 0.05 to 60"),
        ({"pause_s": 61}, "pause is 61: give 0.05 to 60"),
        ({"pause_s": float("nan")}, "pause is nan: give 0.05 to 60"),
        ({"answer_s": -1}, "answer is -1: give 0 to 86400"),
        ({"answer_s": float("inf")}, "answer is inf: give 0 to 86400"),
        ({"alone_s": 0}, "alone is 0: give 0.1 to 86400"),
        ({"look_ahead_s": 11}, "look-ahead is 11: give 0.05 to 10"),
        ({"max_note_s": 0}, "max-note is 0: give 0.05 to 600"),
        ({"longest_rest_s": 0.1}, "longest-rest is 0.1: give 0.5 to 86400"),
        ({"undo_s": -1}, "undo is -1: give 0 to 600"),
        ({"bar_s": 0}, "bar is 0: give 0.1 to 60"),
        ({"channel": 16}, "channel is 16: give 0 to 15"),
        ({"in_channel": -1}, "in-channel is -1: give 0 to 15"),
        ({"program": 128}, "program is 128: give 0 to 127"),
        ({"transpose": 49}, "transpose is 49: give -48 to 48"),
        (
            {"velocity": "loud"},
            "velocity-curve loud: give soft, linear, hard, fixed:N, or an exponent, 0.1 to 10",
        ),
        (
            {"velocity": "nan"},
            "velocity-curve nan: give soft, linear, hard, fixed:N, or an exponent, 0.1 to 10",
        ),
        (
            {"velocity": "11"},
            "velocity-curve 11: give soft, linear, hard, fixed:N, or an exponent, 0.1 to 10",
        ),
        ({"velocity": "fixed:0"}, "velocity-curve fixed:0: give fixed:N with N from 1 to 127"),
        ({"velocity": "fixed:٣"}, "velocity-curve fixed:٣: give fixed:N with N from 1 to 127"),
        (
            {"cc": {"temprature": 1}},
            "--cc temprature: there is no such control (did you mean temperature?); "
            "temperature, top-p, density, pause, resume, panic, undo, undo-bar, reset, save",
        ),
        ({"cc": {"pause": 120}}, "--cc pause=120: give a controller number, 0 to 119"),
        ({"cc": {"pause": -1}}, "--cc pause=-1: give a controller number, 0 to 119"),
        (
            {"cc": {"pause": 7, "panic": 8, "undo": 7}},
            "--cc: controller 7 is given twice; one controller does one thing",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DsmrError) as caught:
        LiveSettings(**options)
    assert str(caught.value) == message


def test_every_edge_that_a_message_names_is_taken() -> None:
    for options in (
        {"pause_s": 0.05, "answer_s": 0, "look_ahead_s": 0.05, "transpose": -48, "channel": 0, "bar_s": 0.1},
        {"pause_s": 60, "answer_s": 86_400, "look_ahead_s": 10, "transpose": 48, "channel": 15, "bar_s": 60},
        {"cc": {name: number for number, name in enumerate((*CONTROLS, *ACTIONS), 110)}},
    ):
        LiveSettings(**options)  # type: ignore[arg-type]


def test_a_duet_looks_less_far_ahead() -> None:
    assert LiveSettings().ahead_s == 1.0 and LiveSettings(mode="duet").ahead_s == 0.3
    assert LiveSettings(mode="duet", look_ahead_s=2).ahead_s == 2


@given(st.one_of(st.sampled_from(["soft", "linear", "hard"]), st.floats(0.1, 10).map(str)))
def test_a_velocity_curve_is_the_power_that_it_says(curve: str) -> None:
    table = np.frombuffer(velocity_table(curve), np.uint8).astype(int)
    exponent = {"soft": 0.6, "linear": 1.0, "hard": 1.6}.get(curve) or float(curve)
    expected = 127 * (np.arange(128) / 127) ** exponent
    assert table[0] == 0 and table[127] == 127 and (np.diff(table) >= 0).all() and (table[1:] >= 1).all()
    assert (np.abs(table - expected)[1:] <= 1).all()  # rounding 0.5, and what would be silent is 1


def test_a_fixed_velocity() -> None:
    assert velocity_table("fixed:90") == bytes([0] + [90] * 127)
    assert velocity_table("linear") == bytes(range(128))


@given(
    st.lists(st.one_of(st.floats(0, 0.3), st.floats(0, 1e-4), st.floats(1.5, 9)), min_size=1, max_size=200)
)
def test_quantiles_are_numpys_within_a_bin(seconds: list[float]) -> None:
    """The least time that so many are not above (numpy: inverted_cdf), rounded up to its bin's edge."""
    timings = Timings()
    for value in seconds:
        timings.add(value)
    spread, ms = timings.spread(), np.array(seconds) * 1000
    assert spread.count == len(seconds)
    assert spread.max == pytest.approx(ms.max())
    for found, q in ((spread.p50, 0.50), (spread.p99, 0.99)):
        expected = float(np.quantile(ms, q, method="inverted_cdf"))
        assert found is not None and spread.max is not None
        # One millionth of a bin for a time that lies on an edge, and is counted below it.
        assert found >= min(expected, spread.max) - BIN_MS * 1e-6
        if expected < (BINS - 1) * BIN_MS:
            assert found <= expected + BIN_MS * (1 + 1e-6)
        else:
            assert found == spread.max  # beyond the bins: rather too bad than too good


def test_nothing_happened_yet_and_nothing_is_below_zero() -> None:
    timings = Timings()
    assert timings.spread().count == 0 and timings.spread().p99 is None and timings.spread().max is None
    timings.add(-0.5)
    assert timings.spread().max == 0 == timings.spread().p99


@given(
    st.floats(0, 1e6),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.sampled_from([10, 8, 20]),
    st.floats(0, 30),
)
def test_a_clock_finds_its_frames_again(
    moment: float, origin: int, frame: int, step_ms: int, delay: float
) -> None:
    clock = MusicClock(step_ms)
    clock.align(moment, origin)
    assert clock.frame(moment) == origin and clock.frame(clock.seconds(frame)) == frame
    before = clock.seconds(frame)
    clock.delay(delay)
    assert clock.seconds(frame) == pytest.approx(before + delay, abs=1e-6)  # floats at 1e6 s
