"""The page as it is used: files dropped on it, keys alone, MIDI ports, no network; and a sentence for what
goes wrong, with nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dsmr_export.runtime import Bundle
from dsmr_export.runtime.bundle import default_path
from dsmr_export.web import site
from tests.chromium import Browser, Page
from tests.web_host import damage, rewritten, run, zipped
from tests.web_session import MODEL, SESSION, dismiss, do, hear, phase, prompt, said, view, wake
from tests.web_stand_in import serving

pytestmark = pytest.mark.slow  # two minutes


def memory(page: Page) -> list[Any]:
    """What must not change where something is refused."""
    return list(
        page.ask(f"(v => [v.position, v.notes.length, v.opened.identity, v.phase])({SESSION}.view())")
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of the default bundle, to damage."""
    return Path(shutil.copytree(default_path(), tmp_path / "own"))


def packed(folder: Path) -> Path:
    file = folder.with_suffix(".zip")
    file.write_bytes(zipped(folder))
    return file


# Files


def test_a_dropped_file_is_continued_with_a_key(ready: Page, tmp_path: Path) -> None:
    ready.drop("canvas", [prompt(tmp_path)])
    ready.wait(f"{SESSION}.view().position > 50 && {SESSION}.view().phase === 'listening'")
    assert {note["by"] for note in view(ready, "notes")} == {0}
    ready.press(" ", 32, " ")
    ready.wait(f"{SESSION}.view().notes.some(note => note.by === {MODEL})")
    assert "plays" in ready.ask("document.querySelector('#state').textContent")
    ready.press("Escape", 27)
    phase(ready, "listening", seconds=3)


@pytest.mark.parametrize("how", ["folder", "zip"])
def test_a_dropped_bundle_opens(ready: Page, own: Path, how: str) -> None:
    rewritten(own, name="mine")
    identity = Bundle.open(own).identity
    ready.drop("canvas", [own if how == "folder" else packed(own)])
    ready.wait(f"{SESSION}.view().opened.identity === '{identity}'")
    phase(ready, "listening")
    assert ready.ask("document.querySelector('#bundle-name').textContent") == "mine"


def test_what_is_refused_says_so_and_changes_nothing(ready: Page, own: Path, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    before = memory(ready)
    letter = tmp_path / "letter.mid"
    letter.write_text("Dear Sir or Madam")
    ready.drop("canvas", [letter])
    assert said(ready).startswith("letter.mid: is not a MIDI file (it does not begin with MThd)")
    dismiss(ready)
    assert memory(ready) == before

    damage(own / "model.int8.onnx")
    ready.drop("canvas", [packed(own)])
    assert said(ready) == (
        "model.int8.onnx of own.zip is not what was exported (its SHA-256 differs): copy the bundle again."
    )
    dismiss(ready)
    assert memory(ready) == before

    rewritten(own, format_version=2)
    ready.drop("canvas", [own])
    assert said(ready) == (
        "This bundle is of format 2, this page reads 1: get a newer page from a newer dsmr-export."
    )
    dismiss(ready)
    assert memory(ready) == before


def test_the_portable_graph_is_offered(ready: Page, tiny_export: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_export, tmp_path / "demanding"))
    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
    for name, graph in graphs.items():
        if name != "portable":
            graph["min_onnxruntime"] = "99.0.0"
    rewritten(folder, graphs=graphs)
    ready.drop("canvas", [folder])
    text = said(ready)
    assert text.startswith("No graph runs here. ") and "it needs onnxruntime 99.0.0" in text
    assert (
        ready.ask("document.querySelector('[role=alert] .row button').textContent")
        == "Use the portable graph"
    )
    ready.click("[role=alert] .row button")
    ready.wait(f"{SESSION}.view().opened.graph === 'portable'")
    phase(ready, "listening")
    do(ready, "answer()")
    phase(ready, "answering")
    do(ready, "stop()")


def test_a_state_of_another_bundle_is_refused(ready: Page, own: Path, tmp_path: Path) -> None:
    hear(ready, tmp_path)
    do(ready, "save('of the first')")
    text = run(ready, f"return packed(await {SESSION}.exportState('x'))")
    rewritten(own, name="mine")
    ready.drop("canvas", [own])
    ready.wait(f"{SESSION}.view().opened.name === 'mine'")
    phase(ready, "listening")
    entry = next(one for one in do(ready, "saved()")["value"] if one["name"] == "of the first")
    assert entry["fits"] is False
    before = memory(ready)
    found = do(ready, "importState('first.dsmr-state', bytes(given.text).buffer)", text=text)
    first, second = Bundle.open().identity[:12], Bundle.open(own).identity[:12]
    assert found["error"] == (
        f"first.dsmr-state is a state of bundle {first}, this is {second}: "
        "open the bundle that it was saved with."
    )
    assert memory(ready) == before
    do(ready, "remove(given.key)", key=entry["key"])


# Keys and ports


def test_computer_keys_are_a_piano(ready: Page) -> None:
    for code, key in (("KeyA", "a"), ("KeyD", "d")):
        ready.key_down(code, key)
    assert sorted(ready.ask(f"[...{SESSION}.view().sounding.keys()]")) == [60, 64]
    for code, key in (("KeyA", "a"), ("KeyD", "d")):
        ready.key_up(code, key)
    ready.wait(f"{SESSION}.view().sounding.size === 0")
    ready.wait(f"{SESSION}.view().position >= 7")  # BOS, two notes of on, velocity and off
    ready.press("Backspace", 8)
    ready.wait(f"{SESSION}.view().position === 1")
    assert view(ready, "notes") == []


def test_it_answers_by_itself_after_a_pause(ready: Page) -> None:
    run(ready, f"{SESSION}.set({{ answerAfterS: 0.5 }})")
    ready.key_down("KeyA", "a")
    ready.key_up("KeyA", "a")
    phase(ready, "thinking", "answering", seconds=5)
    ready.wait(f"{SESSION}.view().notes.some(note => note.by === {MODEL})")
    do(ready, "stop()")


DEVICE = """
(() => {
  const port = (id, name, type) => Object.assign(new EventTarget(), {
    id, name, type, state: 'connected', connection: 'open', manufacturer: '',
    open: async () => {}, close: async () => {},
  });
  const output = Object.assign(port('out', 'A synthesizer', 'output'), {
    sent: [], send(data) { this.sent.push([...data]) }, clear() {},
  });
  const input = Object.assign(port('in', 'A keyboard', 'input'), { onmidimessage: null });
  const [inputs, outputs] = [new Map([['in', input]]), new Map([['out', output]])];
  const access = { inputs, outputs, onstatechange: null };
  navigator.requestMIDIAccess = async () => access;
  globalThis.midi = {
    output,
    play(...data) {
      const event = Object.assign(new Event('midimessage'), { data: Uint8Array.from(data) });
      input.onmidimessage?.(event);
      input.dispatchEvent(event);
    },
    unplug() {
      inputs.delete('in');
      input.state = 'disconnected';
      access.onstatechange?.({ port: input });
    },
  };
})()
"""


def test_a_midi_keyboard_and_a_synthesizer(web_page: Page, web_url: str, tmp_path: Path) -> None:
    """A stand-in for the browser's MIDI: there are no devices in a test."""
    web_page.inject(DEVICE)
    web_page.open(web_url)
    wake(web_page)
    web_page.click("#connect-midi")
    web_page.wait(f"{SESSION}.view().inputs.length === 1")
    assert [port["name"] for port in view(web_page, "outputs")] == ["A synthesizer"]
    run(web_page, f"{SESSION}.chooseOutput('out')")
    web_page.ask("midi.play(0x90, 62, 70)")
    assert view(web_page, "sounding.get(62)") == 0
    web_page.ask("midi.play(0x80, 62, 0)")
    web_page.wait(f"{SESSION}.view().position >= 4")
    web_page.ask("midi.play(0x90, 65, 70)")
    web_page.ask("midi.unplug()")
    web_page.wait(f"{SESSION}.view().sounding.size === 0")
    assert "A keyboard" in said(web_page)
    dismiss(web_page)
    do(web_page, "answer()")
    web_page.wait(f"{SESSION}.view().notes.some(note => note.by === {MODEL})")
    do(web_page, "stop()")
    sent = [tuple(data) for data in web_page.ask("midi.output.sent")]
    struck = {data[1] for data in sent if data[0] == 0x90 and data[2]}
    ended = {data[1] for data in sent if data[0] == 0x80}
    model = {note["pitch"] for note in view(web_page, "notes") if note["by"] == MODEL}
    assert model and model <= struck <= ended
    assert (0xB0, 123, 0) in sent


def test_a_browser_without_midi_says_which_have_it(web_page: Page, web_url: str) -> None:
    web_page.inject("delete Navigator.prototype.requestMIDIAccess")
    web_page.open(web_url)
    phase(web_page, "listening")
    web_page.click("#connect-midi")
    text = said(web_page)
    assert text.startswith("This browser has no WebMIDI. Chrome, Edge and Opera have it")
    assert "Safari" in text


def test_a_browser_without_webassembly_says_so(web_page: Page) -> None:
    text = """delete globalThis.WebAssembly;
              const bundle = await host.openBundle(host.filesAt(new URL('bundle/', location).href));
              return refusal(() => host.openStream(bundle));"""
    assert run(web_page, text) == [
        "wasm",
        "This browser has no WebAssembly: use a current Chrome, Edge, Firefox or Safari.",
        None,
    ]


# Without a network


def test_it_works_offline_once_loaded(web_browser: Browser, web_build: Path) -> None:
    """The server ends, the page is loaded again, opens its bundle and plays."""
    with web_browser.page() as page:
        with serving(site.of(Bundle.open(), web_build)) as url:
            page.open(url)
            phase(page, "listening")
            page.wait("document.documentElement.dataset.offline === 'ready'")
        page.said.clear()
        page.call("Page.reload")
        page.wait("document.readyState === 'complete'")
        wake(page)
        do(page, "answer()")
        phase(page, "answering")
        do(page, "stop()")
        # The browser itself logs what its network says; the page must say nothing else.
        assert [text for text in page.said if "ERR_CONNECTION" not in text] == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 780), (345, 780)])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows(web_page: Page, width: int, height: int, dark: bool) -> None:
    phase(web_page, "listening")
    web_page.emulate(width, height, dark)
    web_page.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert web_page.ask("document.documentElement.scrollWidth") <= width
    lines = (
        "(r => { r.selectNodeContents(document.querySelector('#vary')); return r.getClientRects().length })"
    )
    assert web_page.ask(f"{lines}(document.createRange())") == 1  # no word is broken
    paper = web_page.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(paper[:3]) < 3 * 80) == dark
