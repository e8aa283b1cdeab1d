"""The piano roll shows every note where it sounds, and is the same file every time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsmr_export.errors import OutputError
from dsmr_export.runtime.performance import Note, Performance
from dsmr_export.runtime.play import Continuation

pytest.importorskip("matplotlib", reason="pictures need the pictures extra")
import matplotlib
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb

from dsmr_export import piano_roll

PROMPT: Performance = [Note(0, 200, 60, 127), Note(100, 300, 64, 20)]
PLAYED: Performance = [Note(0, 50, 67, 127), Note(20, 400, 43, 1)]


def continuation(
    played: Performance = PLAYED, prompt: Performance = PROMPT, frames: int = 400
) -> Continuation:
    return Continuation(played, [], prompt, frames, 10)


def boxes(axes: object) -> list[list[tuple[float, float, float]]]:
    """(start, end, pitch) of the notes of each collection, from the vertices that are drawn."""
    found = []
    for collection in axes.collections:  # type: ignore[attr-defined]
        if isinstance(collection, PolyCollection):
            corners = [path.vertices for path in collection.get_paths()]
            found.append(
                [
                    (float(c[:, 0].min()), float(c[:, 0].max()), float((c[:, 1].min() + c[:, 1].max()) / 2))
                    for c in corners
                ]
            )
    return found


def test_every_note_is_where_it_sounds() -> None:
    """Time 0 is the prompt's end, frame 300."""
    axes = piano_roll.draw([continuation()], ["seed 1"]).axes[0]
    prompt, played = boxes(axes)
    assert np.allclose(prompt, [(-3, -1, 60), (-2, 0, 64)])
    assert np.allclose(played, [(0, 0.5, 67), (0.2, 4, 43)])
    assert axes.get_xlim() == (-3, 4)
    low, high = axes.get_ylim()
    assert low < 43 and high > 67
    assert axes.get_title(loc="left") == "seed 1"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["prompt", "continuation"]


def test_a_louder_note_has_more_of_its_colour() -> None:
    axes = piano_roll.draw([continuation()], [""]).axes[0]
    colours = [c.get_facecolor() for c in axes.collections if isinstance(c, PolyCollection)]
    for (loud, soft), full in zip(colours, (piano_roll.PROMPT, piano_roll.CONTINUATION), strict=True):
        assert np.allclose(loud[:3], to_rgb(full))
        assert np.all(soft[:3] >= loud[:3]) and np.any(soft[:3] > loud[:3] + 0.2)


def test_octaves_have_their_names() -> None:
    axes = piano_roll.draw([continuation()], [""]).axes[0]
    names = dict(zip(axes.get_yticks(), (t.get_text() for t in axes.get_yticklabels()), strict=True))
    assert names == {48: "C3", 60: "C4"} or names == {48: "C3", 60: "C4", 72: "C5"}
    assert [piano_roll.name_of(pitch) for pitch in (21, 60, 61, 108)] == ["A0", "C4", "C♯4", "C8"]


def test_a_panel_for_each_variation_on_the_same_axes() -> None:
    other = continuation([Note(10, 30, 100, 64)])
    figure = piano_roll.draw([continuation(), other, continuation([])], ["a", "b", "c"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b", "c"]
    assert (
        len({axes.get_ylim() for axes in figure.axes}) == len({axes.get_xlim() for axes in figure.axes}) == 1
    )
    assert figure.axes[0].get_ylim()[1] > 100
    assert [len(boxes(axes)[1]) for axes in figure.axes] == [2, 1, 0]
    assert [axes.get_legend() is None for axes in figure.axes] == [False, True, True]


def test_of_a_long_prompt_the_end_is_drawn_and_said_so() -> None:
    prompt = [Note(100 * n, 100 * n + 90, 60 + n % 12, 64) for n in range(600)]
    axes = piano_roll.draw([continuation(prompt=prompt)], [""]).axes[0]
    assert axes.get_xlim() == (-20, 4)
    assert len(boxes(axes)[0]) == 20
    assert axes.get_legend().get_texts()[0].get_text() == "prompt (its last 20 of 600 seconds)"


def test_without_a_prompt() -> None:
    axes = piano_roll.draw([continuation(prompt=[])], [""]).axes[0]
    assert axes.get_xlim() == (0, 4) and axes.get_xlabel() == "seconds"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["continuation"]


def test_silence_can_be_drawn(tmp_path: Path) -> None:
    piano_roll.save(piano_roll.draw([continuation([], [])], [""]), tmp_path / "a.png")


@pytest.mark.parametrize("suffix", piano_roll.FORMATS)
def test_the_same_bytes_every_time(suffix: str, tmp_path: Path) -> None:
    """In another process too, whose hashes have another seed; and no date is in them."""
    before = dict(matplotlib.rcParams)
    path = tmp_path / f"a{suffix}"
    piano_roll.save(piano_roll.draw([continuation()], ["seed 1"]), path)
    content = path.read_bytes()
    assert content.startswith(piano_roll.FORMATS[suffix])
    assert not re.search(rb"CreationDate|<dc:date>|tIME", content)
    code = (
        "import sys; from pathlib import Path; from tests.test_piano_roll import continuation, piano_roll\n"
        "piano_roll.save(piano_roll.draw([continuation()], ['seed 1']), Path(sys.argv[1]))"
    )
    again = tmp_path / f"again{suffix}"
    subprocess.run([sys.executable, "-c", code, str(again)], check=True, cwd=Path(__file__).parents[1])
    assert again.read_bytes() == content
    assert dict(matplotlib.rcParams) == before


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    figure = piano_roll.draw([continuation()], [""])
    with pytest.raises(OutputError, match=r"a\.gif: is no picture's name; let it end in \.png, \.svg, \.pdf"):
        piano_roll.save(figure, tmp_path / "a.gif")
    with pytest.raises(OutputError, match="cannot be written"):
        piano_roll.save(figure, tmp_path / "nowhere" / "a.png")


def test_drawing_needs_matplotlib_but_importing_does_not() -> None:
    code = "import sys, dsmr_export.piano_roll; print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
