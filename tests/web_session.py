"""What the tests of the page share: its session, its phase, and music to drop on it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from dsmr_export import corpus
from dsmr_export.runtime.midi import read_midi, write_midi
from tests.chromium import Page
from tests.web_host import run

SESSION = "globalThis.dsmr.session"
MODEL = 1
ALERT = "[...document.querySelectorAll('[role=alert] p')].map(one => one.textContent)"


def phase(page: Page, *names: str, seconds: float = 60) -> None:
    page.wait(f"globalThis.dsmr && {json.dumps(names)}.includes({SESSION}.view().phase)", seconds)


def view(page: Page, what: str) -> Any:
    """Part of what the page shows: an expression after `view().`."""
    return page.ask(f"{SESSION}.view().{what}")


def do(page: Page, call: str, **values: Any) -> Any:
    """Awaits a call of the session; the message of the error where it rejects."""
    return run(
        page,
        f"try {{ return {{ value: (await {SESSION}.{call}) ?? null }} }}"
        "catch (error) { return { error: error.message } }",
        **values,
    )


def prompt(folder: Path, seconds: float = 20) -> Path:
    """The beginning of a bundled piece, as a MIDI file."""
    piece = corpus.pieces(None, "test")[0]
    notes = [note for note in read_midi(piece.read(), name=piece.name) if note.end < seconds * 100]
    write_midi(notes, folder / "prompt.mid")
    return folder / "prompt.mid"


def hear(page: Page, folder: Path, seconds: float = 20) -> None:
    data = base64.b64encode(prompt(folder, seconds).read_bytes()).decode()
    assert do(page, "file('prompt.mid', bytes(given.data).buffer)", data=data) == {"value": None}


def wake(page: Page) -> None:
    """Ready to play: the bundle is open, and a real click let the browser sound."""
    phase(page, "listening")
    page.click("canvas")
    page.wait(f"{SESSION}.view().soundOn")


def said(page: Page) -> str:
    """The sentence of the one notice, once it is there."""
    page.wait(f"{ALERT}.length > 0")
    (text,) = page.ask(ALERT)
    return str(text)


def dismiss(page: Page) -> None:
    page.click("[role=alert] .dismiss")
    assert page.ask(f"{ALERT}.length") == 0
