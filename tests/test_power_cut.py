"""The power is cut, again and again: a session that saves itself goes on where it was, to the same notes.

The reference is one performer that plays without a break: what the killed sessions played, one after the
other, are its tokens.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from dsmr_export.runtime import Bundle, Sampling, saved_state
from dsmr_export.runtime.memory import Memory
from dsmr_export.runtime.performer import Performer
from tests.tiny_bundle import make_bundle

ROOT = Path(__file__).resolve().parents[1]
EVERY_S = 0.05


def cut(bundle: Bundle, autosave: Path, after_s: float) -> list[tuple[float, int]]:
    """Lets a session play for a while and kills it: (moment, position) of every line that it printed."""
    command = [sys.executable, "-m", "tests.playing", str(bundle.path), str(autosave), str(EVERY_S), "5"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = [(time.monotonic(), int(process.stdout.readline() or -1))]
        assert lines[0][1] >= 0, process.stderr.read()
        while time.monotonic() < lines[0][0] + after_s:
            lines.append((time.monotonic(), int(process.stdout.readline())))
        process.kill()
        process.wait()
    return lines


def goes_on(bundle: Bundle, autosave: Path, reference: list[int]) -> int:
    """The state's position; its next tokens are the reference's."""
    state = saved_state.read(autosave, bundle)  # never a damaged one
    memory = Memory(bundle, Sampling(), 77, "fp32")
    memory.restore(state.moment, state.extra["player"])
    position = memory.position
    memory.plan(20, 0)
    planned = [entry.token for entry in memory._plan]
    assert planned == reference[position - 1 : position + 19]
    return position


def run(bundle: Bundle, folder: Path, cuts: int) -> None:
    performer, rng = Performer(bundle, Sampling(), 5, "fp32", ordered=True), random.Random(3)
    performer.begin()
    reference = list(islice(performer.play(), 20_000))
    autosave, before = folder / "autosave.dsmr", 1
    for _ in range(cuts):
        lines = cut(bundle, autosave, rng.uniform(0.1, 1.2))
        if not autosave.exists():
            assert lines[-1][0] - lines[0][0] < EVERY_S + 1.0
            continue
        position = goes_on(bundle, autosave, reference)
        # What was reached one interval and a second for the disk ago is saved.
        reached = [place for moment, place in lines if moment < lines[-1][0] - EVERY_S - 1.0]
        assert position >= max([*reached[-1:], before])
        before = position
        assert not list(folder.glob("*.unread"))
    assert before > 5 * cuts
    assert len(list(folder.iterdir())) <= 2, "what a kill leaves behind is cleared by the next start"


def test_a_few_cuts(tmp_path: Path) -> None:
    (tmp_path / "states").mkdir()
    run(make_bundle(tmp_path / "tiny"), tmp_path / "states", 4)


@pytest.mark.slow
def test_fifty_cuts(tmp_path: Path) -> None:
    (tmp_path / "states").mkdir()
    run(make_bundle(tmp_path / "tiny"), tmp_path / "states", 50)
