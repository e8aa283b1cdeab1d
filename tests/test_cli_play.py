"""`dsmr play` with files: the same music however it is asked for, and nothing lost that was there before."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import mido
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmr_export import cli, cli_play, corpus
from dsmr_export.runtime import Bundle, midi, selection
from dsmr_export.runtime.bundle import default_path
from dsmr_export.runtime.midi import read_midi, write_midi
from dsmr_export.runtime.performance import Note, Performance
from dsmr_export.runtime.performer import Performer
from dsmr_export.runtime.play import prompt_ids
from dsmr_export.runtime.saved_state import read
from tests.test_cli import one_json, refused
from tests.tiny_bundle import make_bundle

PROMPT: Performance = [Note(3, 40, 60, 70), Note(3, 21, 64, 50), Note(22, 60, 67, 30), Note(45, 58, 71, 10)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("cli-play") / "tiny")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a prompt."""
    monkeypatch.chdir(tmp_path)
    write_midi(PROMPT, tmp_path / "in.mid")
    return tmp_path


@pytest.fixture
def bundle(tiny: Bundle, here: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The tiny bundle for every command, opened once."""
    monkeypatch.setattr(cli_play, "open_bundle", lambda path: tiny)
    return tiny


def play(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.main, ["play", *map(str, arguments)], prog_name="dsmr", input=stdin)


def done(*arguments: object, stdin: bytes | None = None) -> Result:
    result = play(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result


def sounding(source: Path | bytes) -> list[tuple[int, int]]:
    """(channel, pitch) of notes that never end, by mido alone."""
    content = source.read_bytes() if isinstance(source, Path) else source
    open_notes = []
    for message in mido.MidiFile(file=io.BytesIO(content)):
        if message.type == "note_on" and message.velocity:
            open_notes.append((message.channel, message.note))
        elif message.type in ("note_on", "note_off"):
            open_notes.remove((message.channel, message.note))
    return open_notes


# --- a prompt goes on ---------------------------------------------------------------------------------------


def test_a_piece_goes_on_and_the_seed_decides(bundle: Bundle, here: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        found = one_json(
            play("--prompt", "in.mid", "--save", f"{name}.mid", "--seconds", 3, "--seed", seed, "--json")
        )
        path = here / f"{name}.mid"
        assert found["saved"] == path.name and found["notes"] > 0 and found["seed"] == seed
        assert found["notes"] == len(read_midi(path)) and found["prompt_notes"] == len(PROMPT)
        assert not sounding(path) and mido.MidiFile(path).length <= 3.001
    a, b, c = ((here / f"{name}.mid").read_bytes() for name in "abc")
    assert a == b != c
    assert done("--prompt", "in.mid", "--save", "d.mid", "--seconds", 3).exit_code == 0
    assert done("--prompt", "in.mid", "--save", "e.mid", "--seconds", 3, "--seed", 0).exit_code == 0
    assert (here / "d.mid").read_bytes() == (here / "e.mid").read_bytes()  # 0 is the default


def test_it_says_what_it_saved(bundle: Bundle) -> None:
    result = done("--save", "out.mid", "--seconds", 1)
    assert re.fullmatch(r"out\.mid: \d+ notes in 1 s of music, \d+ tokens, seed 0\n", result.stdout)


def test_with_the_prompt_its_notes_are_said_too(bundle: Bundle, here: Path) -> None:
    arguments = ("--prompt", "in.mid", "--save", "out.mid", "--seconds", 2, "--with-prompt")
    text = done(*arguments).stdout
    found = one_json(play(*arguments, "--json"))
    assert text.startswith(f"out.mid: the prompt's 4 notes, then {found['notes']} notes in 2 s of music, ")
    notes = read_midi(here / "out.mid")
    assert len(notes) == 4 + found["notes"] and notes[:4] == PROMPT


def test_the_prompt_from_stdin(bundle: Bundle, here: Path) -> None:
    content = (here / "in.mid").read_bytes()
    done("--prompt", "in.mid", "--save", "a.mid", "--seconds", 2)
    done("--prompt", "-", "--save", "b.mid", "--seconds", 2, stdin=content)
    assert (here / "a.mid").read_bytes() == (here / "b.mid").read_bytes()
    refused(play("--prompt", "-", "--save", "c.mid", stdin=b""), "standard input: is empty (0 bytes)")
    refused(play("--prompt", "-", "--save", "c.mid", stdin=content[:-3]), "standard input: is ")
    assert not (here / "c.mid").exists()


def test_notes_that_the_vocabulary_has_no_word_for(bundle: Bundle, here: Path) -> None:
    write_midi([Note(0, 10, 30, 64), *PROMPT], here / "low.mid")
    result = done("--prompt", "low.mid", "--save", "out.mid", "--seconds", 1)
    assert "low.mid: 1 notes outside the model's pitches are left out" in result.stderr


def test_silence_is_said(bundle: Bundle, here: Path) -> None:
    """A hundredth of a second has no room for a note but by chance."""
    results = [done("--save", "out.mid", "--seconds", 0.01, "--seed", seed) for seed in range(8)]
    silent = [result for result in results if ": 0 notes" in result.stdout]
    assert silent and all("warning: out.mid has no notes in 0.01 s; try" in r.stderr for r in silent)
    assert all("warning" not in result.stderr for result in results if result not in silent)


# --- what is refused ----------------------------------------------------------------------------------------


def no_notes() -> bytes:
    file, out = mido.MidiFile(), io.BytesIO()
    file.tracks.append(mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000)]))
    file.save(file=out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"RIFF and no MIDI", "bad.mid"), (b"", "empty"), (no_notes(), "no notes"), (None, "bad.mid")],
    ids=["not MIDI", "empty", "without notes", "missing"],
)
def test_a_prompt_that_is_no_music_is_refused_at_once(
    bundle: Bundle, here: Path, content: bytes | None, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the bundle's golden vectors run, and with the old output as it was."""
    monkeypatch.setattr(selection, "select", lambda *_: pytest.fail("the self-test ran first"))
    bundle._selection = None
    if content is not None:
        (here / "bad.mid").write_bytes(content)
    (here / "out.mid").write_bytes(b"MThd an older one")
    refused(play("--prompt", "bad.mid", "--save", "out.mid"), word)
    assert (here / "out.mid").read_bytes() == b"MThd an older one"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--seconds", "0"], "seconds"),
        (["--seconds", "nan"], "seconds"),
        (["--seed", "-1"], "seed"),
        (["--graph", "int3"], "int3"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "0"], "top_p"),
        (["--pace", "inf"], "pace"),
        (["--load-state", "nowhere.dsmr"], "nowhere.dsmr: cannot be read"),
        (["--load-state", "in.mid"], "in.mid: is not a saved state"),
        (["--picture", "a.gif"], ".png, .svg, .pdf"),
        (["--picture", "nowhere/a.png"], "there is no folder nowhere"),
        (["--save-state", "nowhere/a.dsmr"], "there is no folder nowhere"),
        (["--bank", "states", "--load-state", "x"], "states: has no state named 'x'; there are: none"),
        (["--bank", "states", "--save-state", " "], "a state needs a name"),
        (["--bank", "states", "--save-state", "a" * 300], "give a shorter one"),
        (["--save-state", "out.mid"], "out.mid is to be written twice"),
    ],
)
def test_what_cannot_be_is_refused_with_nothing_written(
    bundle: Bundle, here: Path, arguments: list[str], word: str
) -> None:
    refused(play("--save", "out.mid", "--prompt", "in.mid", *arguments), word)
    assert os.listdir(here) == ["in.mid"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--prompt", "in.mid"],
        ["--json"],
        ["--save", "a.mid", "--bank", "states"],
        ["--save", "a.mid", "--variations", "0"],
        ["--save", "a.mid", "--variations", "2", "--save-state", "s.dsmr"],
        ["--save", "a.mid", "--variations", "2", "--load-state", "s.dsmr"],
        ["--save", "a.mid", "--load-state", ""],
    ],
    ids=" ".join,
)
def test_what_is_no_sensible_command_is_usage(bundle: Bundle, arguments: list[str]) -> None:
    refused(play(*arguments), code=2)


def test_nothing_to_hear_of_says_what_to_give(bundle: Bundle) -> None:
    line = refused(play("--prompt", "in.mid"), code=2)
    assert line.endswith("give at least one of --save, --events, --picture, --save-state")


@pytest.mark.parametrize(
    ("option", "name", "what"),
    [
        ("--save", "notes.txt", "a MIDI file"),
        ("--picture", "photo.png", "a png picture"),
        ("--save-state", "notes.txt", "a saved state"),
    ],
)
def test_a_file_that_the_command_would_not_have_written_is_left_alone(
    bundle: Bundle, here: Path, option: str, name: str, what: str
) -> None:
    (here / name).write_bytes(b"years of work")
    result = play("--prompt", "in.mid", option, name, "--seconds", 1)
    refused(result, f"{option} {name} is there already and is not {what}: give another name")
    assert (here / name).read_bytes() == b"years of work"
    (here / name).write_bytes(b"")  # what mktemp makes
    done("--prompt", "in.mid", option, name, "--seconds", 1)
    done("--prompt", "in.mid", option, name, "--seconds", 1)  # its own is replaced


def test_what_is_no_file_is_left_alone(bundle: Bundle, here: Path) -> None:
    (here / "folder.mid").mkdir()
    refused(play("--save", "folder.mid"), "folder.mid: cannot be written (not a file)")
    refused(play("--save", "/dev/null"), "/dev/null: cannot be written (not a file)")


def test_the_prompt_is_never_replaced(bundle: Bundle, here: Path) -> None:
    before = (here / "in.mid").read_bytes()
    refused(play("--prompt", "in.mid", "--save", here / "in.mid"), "would replace the prompt")
    refused(play("--prompt", "in.mid", "--save-state", "in.mid"), "would replace the prompt")
    os.link("in.mid", "out-2.mid")
    refused(
        play("--prompt", "in.mid", "--save", "out.mid", "--variations", 3),
        "--save out-2.mid would replace the prompt",
    )
    assert (here / "in.mid").read_bytes() == before and sorted(os.listdir()) == ["in.mid", "out-2.mid"]


# --- saved states -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [(), ("--graph", "fp32"), ("--graph", "portable")], ids=str)
def test_a_loaded_state_goes_on_as_the_prompt_would_have(
    bundle: Bundle, here: Path, graph: tuple[str, ...]
) -> None:
    done("--prompt", "in.mid", "--save", "whole.mid", "--seconds", 3, "--seed", 5, *graph)
    found = one_json(play("--prompt", "in.mid", "--save-state", "s.dsmr", "--seed", 5, "--json", *graph))
    assert found["state"] == "s.dsmr" and found["position"] == 1 + len(prompt_ids(PROMPT, bundle.event_table))
    assert found["state_bytes"] == (here / "s.dsmr").stat().st_size and "notes" not in found
    # A state of `portable` brings its graph along, whatever this machine would choose.
    result = done("--load-state", "s.dsmr", "--save", "later.mid", "--seconds", 3)
    assert (here / "later.mid").read_bytes() == (here / "whole.mid").read_bytes()
    assert ("graph portable instead: s.dsmr was saved with it" in result.stderr) == ("portable" in graph)
    assert "the loaded state's generator" in result.stdout


def test_it_does_so_on_the_prebuilt_bundle(here: Path) -> None:
    """int8 and a real piece, each command with a bundle that it opened itself."""
    if not default_path().is_dir():
        pytest.skip("this source tree has no prebuilt bundle")
    piece = min((piece.read() for piece in corpus.pieces(None, "test")), key=len)
    (here / "piece.mid").write_bytes(piece)
    done("--prompt", "piece.mid", "--save", "whole.mid", "--seconds", 4, "--seed", 3)
    done("--prompt", "piece.mid", "--save-state", "s.dsmr", "--seed", 3)
    done("--load-state", "s.dsmr", "--save", "later.mid", "--seconds", 4)
    assert (here / "later.mid").read_bytes() == (here / "whole.mid").read_bytes()
    assert not sounding(here / "whole.mid")


def test_a_seed_replaces_the_states_generator(bundle: Bundle, here: Path) -> None:
    done("--prompt", "in.mid", "--save-state", "s.dsmr", "--seed", 5)
    done("--prompt", "in.mid", "--save", "nine.mid", "--seconds", 2, "--seed", 9)
    found = one_json(
        play("--load-state", "s.dsmr", "--save", "out.mid", "--seconds", 2, "--seed", 9, "--json")
    )
    assert (here / "out.mid").read_bytes() == (here / "nine.mid").read_bytes() and found["seed"] == 9
    assert one_json(play("--load-state", "s.dsmr", "--save", "out.mid", "--json"))["seed"] is None


def test_two_parts_are_one_performance(bundle: Bundle, here: Path) -> None:
    """Part one, its state, part two: the notes of one run, those that sound at the seam cut there."""
    for seed in range(4):
        done("--prompt", "in.mid", "--save", "whole.mid", "--seconds", 5, "--seed", seed)
        arguments = ("--save", "one.mid", "--seconds", 2, "--save-state", "s.dsmr", "--seed", seed)
        done("--prompt", "in.mid", *arguments)
        done("--load-state", "s.dsmr", "--save", "two.mid", "--seconds", 3, "--save-state", "s.dsmr")
        whole, one, two = (read_midi(here / f"{name}.mid") for name in ("whole", "one", "two"))
        assert one == [n._replace(end=min(n.end, 200)) for n in whole if n.start < 200]
        assert [n._replace(start=n.start + 200, end=n.end + 200) for n in two] == [
            n for n in whole if n.start >= 200
        ]


def test_a_part_shorter_than_the_shift_it_begins_in(bundle: Bundle, here: Path) -> None:
    """A hundredth of a second at a time: the seams take nothing away and add nothing."""
    done("--save", "whole.mid", "--seconds", 0.4, "--seed", 3)
    done("--save-state", "s.dsmr", "--seed", 3)
    starts = []
    for part in range(40):
        done("--load-state", "s.dsmr", "--save", "p.mid", "--seconds", 0.01, "--save-state", "s.dsmr")
        if b"\x90" in (here / "p.mid").read_bytes():
            starts += [(part, note.pitch) for note in read_midi(here / "p.mid")]
    assert starts == [(note.start, note.pitch) for note in read_midi(here / "whole.mid")]


def test_a_prompt_is_heard_after_the_state(bundle: Bundle, here: Path) -> None:
    second: Performance = [Note(0, 20, 62, 40), Note(30, 90, 65, 60)]
    write_midi(second, here / "second.mid")
    done("--prompt", "in.mid", "--save-state", "s.dsmr", "--seed", 2)
    done("--load-state", "s.dsmr", "--prompt", "second.mid", "--save-state", "t.dsmr")
    by_hand = Performer(bundle, seed=2)
    by_hand.begin(prompt_ids(PROMPT, bundle.event_table))
    by_hand.hear(prompt_ids(second, bundle.event_table))
    restored = Performer(bundle)
    restored.restore(read(here / "t.dsmr", bundle).moment)
    assert restored.stream.position == by_hand.stream.position
    assert list(islice(restored.play(), 50)) == list(islice(by_hand.play(), 50))


def test_what_sounds_in_a_state_is_let_go_before_a_prompt(bundle: Bundle, here: Path) -> None:
    """The file that was saved with the state ended those notes; the model hears it too."""
    for seed in range(20):
        done("--save", "out.mid", "--seconds", 1, "--save-state", "s.dsmr", "--seed", seed)
        mask = read(here / "s.dsmr", bundle).moment.mask
        if len(mask.onsets) > 1:
            break
    done("--load-state", "s.dsmr", "--prompt", "in.mid", "--save-state", "t.dsmr")
    offs = [bundle.event_table.off_ids[p] for _, p in sorted((at, p) for p, at in mask.onsets.items())]
    by_hand = Performer(bundle)
    by_hand.restore(read(here / "s.dsmr", bundle).moment)
    by_hand.hear([*offs, *prompt_ids(PROMPT, bundle.event_table)])
    restored = Performer(bundle)
    restored.restore(read(here / "t.dsmr", bundle).moment)
    assert list(islice(restored.play(), 50)) == list(islice(by_hand.play(), 50))


def test_a_graph_that_is_not_the_states_is_refused(bundle: Bundle) -> None:
    done("--prompt", "in.mid", "--save-state", "s.dsmr", "--graph", "portable")
    refused(
        play("--load-state", "s.dsmr", "--save", "out.mid", "--graph", "fp32"),
        "s.dsmr: was saved with graph portable",
        "leave out --graph fp32",
    )


def test_a_state_copied_keeps_all_that_is_in_it(bundle: Bundle, here: Path) -> None:
    done("--prompt", "in.mid", "--save-state", "s.dsmr", "--seed", 4)
    done("--load-state", "s.dsmr", "--bank", "states", "--save-state", "a copy")
    one, other = read("s.dsmr", bundle), read("states/a%20copy.dsmr", bundle)
    assert (other.name, one.extra, one.moment.rng) == ("a copy", other.extra, other.moment.rng)


def test_a_bank_by_name(bundle: Bundle, here: Path) -> None:
    bank = ("--bank", "states")
    result = done(*bank, "--prompt", "in.mid", "--save-state", "inside the slow movement", "--seed", 5)
    assert "states/inside%20the%20slow%20movement.dsmr: the state after" in result.stdout
    done("--prompt", "in.mid", "--save", "whole.mid", "--seconds", 2, "--seed", 5)
    done(*bank, "--load-state", "inside the slow movement", "--save", "out.mid", "--seconds", 2)
    assert (here / "out.mid").read_bytes() == (here / "whole.mid").read_bytes()
    refused(
        play(*bank, "--load-state", "inside the slow movment", "--save", "out.mid"),
        "did you mean inside the slow movement?",
    )
    done(*bank, "--load-state", "inside the slow movement", "--save-state", "./file.dsmr")
    done(*bank, "--load-state", "file.dsmr", "--save", "out.mid", "--seconds", 2)  # such a file is there
    assert (here / "out.mid").read_bytes() == (here / "whole.mid").read_bytes()
    assert os.listdir("states") == ["inside%20the%20slow%20movement.dsmr"]


# --- variations, events, a picture --------------------------------------------------------------------------


def test_variations_are_the_runs_of_their_seeds(
    bundle: Bundle, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    begin = Performer.begin
    monkeypatch.setattr(Performer, "begin", lambda *a, **k: (heard.append(1), begin(*a, **k))[1])
    arguments = ("--prompt", "in.mid", "--seconds", 2)
    found = one_json(play(*arguments, "--save", "out.mid", "--variations", 3, "--seed", 4, "--json"))
    assert len(heard) == 1  # the prompt is read once
    assert [row["saved"] for row in found["variations"]] == ["out-1.mid", "out-2.mid", "out-3.mid"]
    assert [row["seed"] for row in found["variations"]] == [4, 5, 6] and not (here / "out.mid").exists()
    for number, seed in ((1, 4), (2, 5), (3, 6)):
        done(*arguments, "--save", "single.mid", "--seed", seed)
        assert (here / f"out-{number}.mid").read_bytes() == (here / "single.mid").read_bytes()
    text = done(*arguments, "--save", "out.mid", "--variations", 2).stdout
    assert [line.split(":")[0] for line in text.splitlines()] == ["out-1.mid", "out-2.mid"]


def test_variations_of_a_loaded_state(bundle: Bundle, here: Path) -> None:
    done("--prompt", "in.mid", "--save-state", "s.dsmr")
    done("--load-state", "s.dsmr", "--save", "out.mid", "--seconds", 2, "--variations", 2, "--seed", 7)
    done("--prompt", "in.mid", "--save", "single.mid", "--seconds", 2, "--seed", 8)
    assert (here / "out-2.mid").read_bytes() == (here / "single.mid").read_bytes()


def notes_of(events: list[tuple[float, str, int, int]]) -> Performance:
    """Notes from printed events; each must end, and none come before the one above it."""
    notes, began = [], {}
    assert [event[0] for event in events] == sorted(event[0] for event in events)
    for seconds, kind, pitch, velocity in events:
        if kind == "on":
            began[pitch] = (round(seconds * 100), velocity)
        else:
            start, loudness = began.pop(pitch)
            notes.append(Note(start, round(seconds * 100), pitch, loudness))
            assert velocity == 0
    assert not began
    return sorted(notes, key=lambda note: (note.start, note.pitch))


def test_events_are_the_notes_that_are_saved(bundle: Bundle, here: Path) -> None:
    arguments = ("--prompt", "in.mid", "--events", "--seconds", 3, "--seed", 2)
    result = done(*arguments, "--save", "out.mid")
    lines = [line.split() for line in result.stdout.splitlines()]
    events = [(float(s), kind, int(pitch), int(velocity)) for s, kind, pitch, velocity in lines]
    assert notes_of(events) == read_midi(here / "out.mid")
    assert re.search(r"out\.mid: \d+ notes in 3 s of music", result.stderr)  # stdout is the events alone
    alone = done(*arguments, "--json")
    objects = [json.loads(line) for line in alone.stdout.splitlines()]
    assert [(o["seconds"], o["event"], o["pitch"], o["velocity"]) for o in objects] == events
    assert all(list(found) == ["seconds", "event", "pitch", "velocity"] for found in objects)


def test_events_come_while_it_plays(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is printed before the last token is sampled."""
    printed: list[str] = []
    tokens_at: list[int] = []
    real_play, real_echo, count = Performer.play, click.echo, 0

    def counted(self: Performer) -> Iterator[int]:
        nonlocal count
        for token in real_play(self):
            count += 1
            yield token

    def echo(message: Any = None, **options: Any) -> None:
        if not options.get("err"):
            printed.append(str(message))
            tokens_at.append(count)
        real_echo(message, **options)

    monkeypatch.setattr(Performer, "play", counted)
    monkeypatch.setattr(click, "echo", echo)
    done("--events", "--seconds", 3)
    assert len(printed) > 10 and tokens_at[0] < 10 < count and tokens_at == sorted(tokens_at)


def test_events_of_variations_say_of_which(bundle: Bundle) -> None:
    arguments = ("--events", "--seconds", 1, "--variations", 2, "--seed", 3)
    text = done(*arguments).stdout.splitlines()
    assert [line for line in text if line.startswith("#")] == [
        "# variation 1, seed 3",
        "# variation 2, seed 4",
    ]
    objects = [json.loads(line) for line in done(*arguments, "--json").stdout.splitlines()]
    assert [o["variation"] for o in objects] == sorted(o["variation"] for o in objects)
    assert {o["variation"] for o in objects} == {1, 2} and len(objects) == len(text) - 2


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "PNG"])
def test_a_picture(bundle: Bundle, here: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the pictures extra")
    arguments = ("--prompt", "in.mid", "--seconds", 2, "--variations", 2)
    assert f"a.{suffix}: the picture" in done(*arguments, "--picture", f"a.{suffix}").stdout
    done(*arguments, "--picture", f"b.{suffix}", "--save", "out.mid")
    assert (here / f"a.{suffix}").read_bytes() == (here / f"b.{suffix}").read_bytes()


def test_a_picture_without_matplotlib_names_the_extra(
    bundle: Bundle, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest)
    )
    refused(
        play("--save", "out.mid", "--picture", "a.png"), "matplotlib", "pip install 'dsmr-export[pictures]'"
    )
    assert os.listdir(here) == ["in.mid"]
    done("--save", "out.mid", "--seconds", 1)


# --- any file as a prompt -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces() -> list[bytes]:
    """Short ones from the bundled corpus."""
    return sorted((piece.read() for piece in corpus.pieces(None, "test")), key=len)[:4]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_as_a_prompt(bundle: Bundle, here: Path, pieces: list[bytes], data: st.DataObject) -> None:
    """Random bytes after a MIDI header, and real files cut, changed and spliced: music, or one line.

    The longest prompt is one of three minutes here: a damaged time may well mean hours of silence, which the
    tiny vocabulary says in steps of 60 ms.
    """
    header = b"MThd" + (6).to_bytes(4, "big")
    if data.draw(st.booleans()):
        form = data.draw(st.integers(0, 3)).to_bytes(2, "big")
        tracks = data.draw(st.integers(0, 3)).to_bytes(2, "big")
        division = data.draw(st.binary(min_size=2, max_size=2))
        body = data.draw(st.binary(max_size=120))
        content = header + form + tracks + division
        content += b"MTrk" + len(body).to_bytes(4, "big") + body if data.draw(st.booleans()) else body
    else:
        changed = bytearray(data.draw(st.sampled_from(pieces)))
        for _ in range(data.draw(st.integers(1, 8))):
            place = data.draw(st.integers(0, len(changed) - 1))
            changed[place] = data.draw(st.integers(0, 255))
        content = bytes(changed[: data.draw(st.integers(1, len(changed)))])
    (here / "any.mid").write_bytes(content)
    (here / "out.mid").unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(midi, "MAX_HOURS", 0.05)
        result = play("--prompt", "any.mid", "--save", "out.mid", "--seconds", 0.5, "--with-prompt")
    assert "Traceback" not in result.output
    if result.exit_code == 0:
        assert not sounding(here / "out.mid")
    else:
        refused(result, "any.mid: ")
        assert not (here / "out.mid").exists()
