"""scripts/note_density.py counts what it says: notes per second, of a prompt and of its continuation."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dsmr_export.corpus import Piece, pieces
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.midi import write_midi
from dsmr_export.runtime.performance import Note
from dsmr_export.runtime.play import continue_prompt
from tests import scripts
from tests.tiny_bundle import make_bundle

SCRIPT = Path(__file__).parents[1] / "scripts" / "note_density.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return scripts.load("note_density")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("density") / "tiny")


def test_the_beginning_ends_what_still_sounds(script: ModuleType) -> None:
    piece = [Note(5, 30, 60, 50), Note(10, 300, 64, 50), Note(99, 120, 67, 50), Note(100, 110, 60, 50)]
    assert script.beginning(piece, 100) == [
        Note(5, 30, 60, 50),
        Note(10, 100, 64, 50),
        Note(99, 100, 67, 50),
    ]
    assert script.beginning(piece[3:], 50) == [Note(100, 101, 60, 50)]  # a long silence first


def test_densities_are_notes_per_second(script: ModuleType, bundle: Bundle, tmp_path: Path) -> None:
    """10 notes in the 4 seconds from the first to where the prompt is cut; the continuation's are counted."""
    notes = [Note(100 + 40 * i, 110 + 40 * i, 60 + i % 5, 50) for i in range(9)]
    prompt = [*notes, Note(470, 500, 71, 50)]
    write_midi([*prompt, Note(520, 600, 60, 50)], tmp_path / "piece.mid")
    piece = Piece("piece.mid", "", tmp_path / "piece.mid")
    (found,) = script.densities(bundle, [piece], seconds=2.0, seed=3, prompt_seconds=5.0)
    played = continue_prompt(bundle, prompt, 2.0, seed=3).performance
    assert found.prompt == pytest.approx(10 / 4)
    assert found.continuation == len(played) / 2
    assert found.ratio == pytest.approx(len(played) / 2 / 2.5)
    assert script.Density("", 2.0, 1.0).plausible and script.Density("", 2.0, 4.0).plausible
    assert not script.Density("", 2.0, 0.9).plausible and not script.Density("", 2.0, 4.1).plausible


def test_it_runs(bundle: Bundle, tmp_path: Path) -> None:
    """With the tiny vocabulary's one octave of the real pieces."""
    command = [sys.executable, str(SCRIPT)]
    arguments = [str(bundle.path), "--pieces", "2", "--seconds", "0.5"]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert "000-Faure" in run.stdout and "of 2 within 0.5 – 2 times" in run.stdout
    missing = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert missing.returncode == 1 and missing.stderr.startswith("error: ")
    assert len(missing.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_default_bundle_keeps_the_density(script: ModuleType) -> None:
    """30 seconds after the first minute of 10 held-out pieces: each half to twice as dense as its prompt.

    The geometric mean of three seeds, because one continuation is chance, and another CPU rounds another one.
    """
    bundle, found = Bundle.open(), pieces(split="test", limit=10)
    seeds = [list(script.densities(bundle, found, seed=seed)) for seed in (1, 2, 3)]
    assert len(seeds[0]) == 10
    for tries in zip(*seeds, strict=True):
        low, high = script.PLAUSIBLE
        assert low <= math.prod(density.ratio for density in tries) ** (1 / 3) <= high, tries
