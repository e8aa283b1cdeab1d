"""The page's engine where time and trouble matter: long notes, rests, odd keys, settings, a lost worker."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from dsmr_export.runtime.midi import read_midi
from tests.chromium import Page
from tests.web_host import run
from tests.web_session import MODEL, SESSION, dismiss, do, hear, phase, said, view

pytestmark = pytest.mark.slow  # half a minute


@pytest.mark.parametrize("tick_s", [0.025, 0.037, 0.07])
def test_a_long_note_of_the_model_ends_after_ten_seconds_whatever_the_ticks(
    ready: Page, tick_s: float
) -> None:
    """At the very frame: what is remembered, and so what follows, must not depend on the page's timers."""
    found = run(
        ready,
        f"""const {{ playback, clock }} = {SESSION}.stage;
            const time = new clock.constructor(10);
            time.align(0, 0);
            const [told, released] = [[], []];
            const outlet = {{
              begin: (pitch) => ({{ release: at => released.push([pitch, at]), cut() {{}} }}),
              wire() {{}},
            }};
            const reports = {{ played: (event, at) => told.push([event.kind, event.pitch, event.frame, at]),
                               late() {{}} }};
            const one = new playback.constructor(time, outlet, reports);
            const event = (kind, pitch, frame) => ({{ kind, pitch, frame, velocity: 70 }});
            one.put([event('on', 60, 5), event('on', 64, 5), event('off', 64, 400), event('on', 62, 1004),
                     event('off', 62, 1010), event('off', 60, 1100)]);
            for (let now = 0; now < 12; now += given.tick) one.run(now);
            return [told, released];""",
        tick=tick_s,
    )
    told, released = found
    assert [entry[:3] for entry in told] == [
        ["on", 60, 5],
        ["on", 64, 5],
        ["off", 64, 400],
        ["on", 62, 1004],
        ["off", 60, 1005],
        ["off", 62, 1010],
        ["off", 60, 1100],  # the plan's own end, which the memory takes for nothing
    ]
    assert all(at == pytest.approx(frame / 100) for _, _, frame, at in told)
    assert [pitch for pitch, _ in released] == [64, 60, 62]


def test_keys_that_the_model_has_no_word_for_sound_and_mean_nothing(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    do(ready, "answer()")
    phase(ready, "answering")
    marks = ready.ask(f"{SESSION}.piece.history.marks.length")
    voices = "return [session.noteOn(9, 90), session.voices()][1] - before"
    text = f"const session = {SESSION}; const before = session.voices(); {voices}"
    assert run(ready, text) == 1
    assert view(ready, "phase") == "answering"
    run(ready, f"{SESSION}.noteOff(9)")
    assert ready.ask(f"{SESSION}.piece.history.marks.length") == marks
    run(ready, f"{SESSION}.noteOn(60, 90)")
    assert view(ready, "phase") == "listening"
    do(ready, "stop()")


def test_undo_comes_back_to_the_rest_that_was_kept(ready: Page) -> None:
    run(
        ready,
        f"{SESSION}.noteOn(60, 90); {SESSION}.noteOff(60); await new Promise(go => setTimeout(go, 700))",
    )
    do(ready, "answer()")
    frame = ready.ask(f"{SESSION}.piece.history.answer.frame")
    assert frame >= 60  # a note at 0 and at least 0.6 s of rest
    do(ready, "stop()")
    assert do(ready, "undo()") == {"value": None}
    assert view(ready, "now") == frame


def test_settings_of_a_state_that_make_no_sense_are_not_taken(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    good = view(ready, "settings.sampling")
    found = run(
        ready,
        f"""const session = {SESSION};
            session.set({{ sampling: {{ ...given.good, minP: 7 }}, seed: 5 }});
            const data = await session.exportState('odd');
            session.set({{ sampling: given.good, seed: 1 }});
            await session.importState('odd.dsmr-state', data.buffer);
            return session.view().settings;""",
        good=good,
    )
    assert found["sampling"] == good and found["seed"] == 5


def test_the_notes_outlive_the_worker(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    before = view(ready, "notes")
    assert before
    run(ready, f"{SESSION}.client.worker.onerror(new ErrorEvent('error', {{ message: 'out of memory' }}))")
    assert said(ready) == "The model's worker has ended (out of memory): open the bundle again."
    dismiss(ready)
    assert view(ready, "phase") == "empty" and view(ready, "notes") == before
    assert ready.ask("document.querySelector('#save-midi').disabled") is False
    (tmp_path / "kept.mid").write_bytes(base64.b64decode(run(ready, f"return packed({SESSION}.midi())")))
    kept = read_midi(tmp_path / "kept.mid")
    assert [note.pitch for note in kept] == [note["pitch"] for note in before]
    assert "no bundle yet" in do(ready, "answer()")["error"]
    run(ready, f"{SESSION}.noteOn(60, 90); {SESSION}.noteOff(60)")  # sounds, and breaks nothing
    ready.ask("document.querySelector('#address').value = new URL('bundle/', location).href")
    ready.ask("document.querySelector('#address-form').requestSubmit()")
    phase(ready, "listening")
    assert said(ready) == "The piece from before has ended."
    assert view(ready, "notes") == []


def test_the_page_falls_silent_when_it_is_left(ready: Page, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    do(ready, "answer()")
    ready.wait(f"{SESSION}.view().notes.some(note => note.by === {MODEL})")
    ready.ask("window.dispatchEvent(new PageTransitionEvent('pagehide'))")
    assert view(ready, "phase") == "listening" and ready.ask(f"{SESSION}.view().sounding.size") == 0
