"""The page in a real browser: it listens, continues, stops, takes back, varies, saves and comes back, and
says in a sentence what is wrong."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from dsmr_export.runtime import Bundle
from dsmr_export.runtime.midi import read_midi
from dsmr_export.runtime.performance import Note
from tests.chromium import Page
from tests.web_host import run
from tests.web_session import MODEL, SESSION, do, hear, phase, prompt

STOP_S = 0.05
"""The issue's own bound."""

SLOW = pytest.mark.slow
"""All but two: a minute and a half, because the model plays in real time."""


def generated(page: Page) -> list[Note]:
    """The model's notes, those to come included."""
    found = page.ask(
        f"(() => {{ const {{ notes, coming }} = {SESSION}.view();"
        f"return [...notes, ...coming].filter(note => note.by === {MODEL})"
        ".map(note => [note.start, note.end ?? -1, note.pitch, note.velocity]) })()"
    )
    return sorted({(note[0], note[2]): Note(*note) for note in found}.values())


def test_the_default_bundle_opens_and_its_golden_vectors_pass(web_page: Page) -> None:
    phase(web_page, "listening")
    opened = web_page.ask(f"{SESSION}.view().opened")
    bundle = Bundle.open()
    assert opened["identity"] == bundle.identity
    assert opened["graph"] == "int8"
    assert opened["reason"].startswith("int8: golden vectors pass")
    assert opened["horizons"] == list(bundle.manifest.schedule.horizons)
    assert opened["runtime"]["threads"] == 1 and opened["runtime"]["simd"]


def test_a_file_is_continued(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    position = ready.ask(f"{SESSION}.view().position")
    assert position > 50
    do(ready, "answer()")
    phase(ready, "answering")
    ready.wait(f"{SESSION}.view().notes.some(note => note.by === {MODEL})")
    ready.wait(f"{SESSION}.view().position > {position + 20}")
    do(ready, "stop()")
    notes = generated(ready)
    end = max(note.end for note in read_midi(prompt(tmp_path)))
    assert min(note.start for note in notes) >= end - 1
    assert all(21 <= note.pitch <= 108 for note in notes)


@SLOW
def test_same_seed_same_notes(ready: Page, tmp_path: Path) -> None:
    """Twice from the file, and once more as variation A after another one was heard."""
    takes = []
    for _ in range(2):
        hear(ready, tmp_path)
        do(ready, "answer()")
        ready.wait(f"{SESSION}.view().notes.filter(note => note.by === {MODEL}).length >= 12")
        takes.append(generated(ready))
        do(ready, "stop()")
    do(ready, "answer()")  # somewhere else in between
    phase(ready, "answering")
    do(ready, "stop()")
    do(ready, "undo()")
    count = min(len(take) for take in takes)
    starts = [[(n.start, n.pitch, n.velocity) for n in take][: count - 2] for take in takes]
    assert starts[0] == starts[1] and len(starts[0]) >= 8


@SLOW
def test_variations_differ_and_come_back(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    do(ready, "answer()")
    enough = f"{SESSION}.view().notes.filter(note => note.by === {MODEL}).length >= 10"
    ready.wait(enough)
    first = generated(ready)
    do(ready, "vary()")
    ready.wait(f"{SESSION}.view().variations.length === 2 && ({enough})")
    second = generated(ready)
    do(ready, "vary('A')")
    ready.wait(f"{SESSION}.view().variations[0].current && ({enough})")
    again = generated(ready)
    do(ready, "stop()")
    said = [[(n.start, n.pitch, n.velocity) for n in take][:8] for take in (first, second, again)]
    assert said[0] == said[2]
    assert said[0] != said[1]
    assert ready.ask(f"{SESSION}.view().variations.map(one => one.name)") == ["A", "B"]


@SLOW
def test_stop_silences_everything(ready: Page, tmp_path: Path) -> None:
    """Heard, not promised: the level of the sound 50 ms after the wish, release of the strings included."""
    hear(ready, tmp_path)
    do(ready, "answer()")
    ready.wait(f"{SESSION}.level() > 0.01 && {SESSION}.view().sounding.size > 0")
    loud, quiet, took = run(
        ready,
        f"""const session = {SESSION};
            const loud = session.level();
            const began = performance.now();
            void session.stop();
            await new Promise(done => setTimeout(done, given.wait));
            const took = performance.now() - began;
            return [loud, session.level(), took / 1000];""",
        wait=1000 * STOP_S,
    )
    assert loud > 0.01
    assert quiet < 0.001 or took > 2 * STOP_S, (quiet, took)
    assert ready.ask(f"{SESSION}.view().sounding.size") == 0
    phase(ready, "listening")
    before = len(generated(ready))
    ready.ask("new Promise(done => setTimeout(done, 500))")
    assert len(generated(ready)) == before
    assert ready.ask(f"{SESSION}.level()") < 0.001


@SLOW
def test_undo_takes_back_what_was_heard_last(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    position = ready.ask(f"{SESSION}.view().position")
    peeked = run(ready, f"return Array.from((await {SESSION}.peek(5)).ids)")
    do(ready, "answer()")
    ready.wait(f"{SESSION}.view().position > {position + 20}")
    do(ready, "undo()")
    assert ready.ask(f"{SESSION}.view().position") == position
    assert generated(ready) == []
    assert run(ready, f"return Array.from((await {SESSION}.peek(5)).ids)") == peeked


@SLOW
def test_a_saved_state_gives_the_same_next_token(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    do(ready, "answer()")
    ready.wait(f"{SESSION}.view().notes.filter(note => note.by === {MODEL}).length >= 4")
    do(ready, "stop()")
    notes = ready.ask(f"{SESSION}.view().notes.length")
    expected = run(ready, f"const {{ ids, logits }} = await {SESSION}.peek(20); return [ids, packed(logits)]")
    do(ready, "save('a state')")
    ready.call("Page.reload")
    ready.wait("globalThis.dsmr && document.readyState === 'complete'")
    phase(ready, "listening")
    saved = do(ready, "saved()")["value"]
    entry = next(one for one in saved if one["name"] == "a state")
    assert entry["fits"] and entry["bytes"] > 2e6
    do(ready, "load(given.key)", key=entry["key"])
    assert ready.ask(f"{SESSION}.view().notes.length") == notes
    assert (
        run(ready, f"const {{ ids, logits }} = await {SESSION}.peek(20); return [ids, packed(logits)]")
        == expected
    )
    do(ready, "remove(given.key)", key=entry["key"])
    assert all(one["name"] != "a state" for one in do(ready, "saved()")["value"])


@SLOW
def test_what_is_played_is_heard_and_saved_as_midi(ready: Page, tmp_path: Path) -> None:
    do(ready, "begin()")
    run(
        ready,
        f"""const session = {SESSION};
            const wait = ms => new Promise(done => setTimeout(done, ms));
            for (const pitch of [60, 64, 67]) {{
              session.noteOn(pitch, 80);
              await wait(120);
              session.noteOff(pitch);
              await wait(60);
            }}
            await wait(200);""",
    )
    ready.wait(f"{SESSION}.view().position >= 1 + 3 * 3")
    data = run(ready, f"return packed({SESSION}.midi())")
    performance = read_midi(base64.b64decode(data), name="saved")
    assert [note.pitch for note in performance] == [60, 64, 67]
    assert {note.velocity for note in performance} == {80}
    assert all(0.05 < (note.end - note.start) / 100 < 0.4 for note in performance)


@SLOW
def test_a_key_ends_an_answer(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    do(ready, "answer()")
    phase(ready, "answering")
    run(ready, f"{SESSION}.noteOn(60, 80)")
    phase(ready, "listening", seconds=2)
    run(ready, f"{SESSION}.noteOff(60)")
    ready.wait(f"{SESSION}.view().sounding.size === 0", 5)


# Nothing is lost


@SLOW
def test_a_file_that_is_no_midi_loses_nothing(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    before = ready.ask(f"[{SESSION}.view().position, {SESSION}.view().notes.length]")
    found = do(ready, "file('letter.mid', new TextEncoder().encode('Dear').buffer)")
    assert found["error"].startswith("letter.mid: is not a MIDI file")
    assert ready.ask(f"[{SESSION}.view().position, {SESSION}.view().notes.length]") == before


@SLOW
def test_a_damaged_bundle_leaves_the_open_one(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    before = ready.ask(f"[{SESSION}.view().position, {SESSION}.view().opened.identity]")
    found = do(ready, "open({ kind: 'zip', name: 'no.zip', data: new Blob(['no']) })")
    assert found["error"].startswith("no.zip is not a zip file, or a damaged one (")
    phase(ready, "listening")
    assert ready.ask(f"[{SESSION}.view().position, {SESSION}.view().opened.identity]") == before
    do(ready, "answer()")
    phase(ready, "answering")
    do(ready, "stop()")
