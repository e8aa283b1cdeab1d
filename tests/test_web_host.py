"""The host library in a real browser: the logits of the Python runtime, its tokens, its saved states, and a
sentence for whatever is wrong with a bundle."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from dsmr_export import corpus
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.bundle import default_path
from dsmr_export.runtime.events import encode
from dsmr_export.runtime.midi import read_midi
from dsmr_export.runtime.performance import Note
from dsmr_export.runtime.performer import Performer
from dsmr_export.runtime.sampling import Sampling
from dsmr_export.runtime.saved_state import SavedState, read, to_bytes
from dsmr_export.runtime.stream import Stream
from tests.chromium import Page
from tests.web_host import contents, damage, rewritten, rows, run, zipped

pytestmark = pytest.mark.slow  # two minutes of models in a browser

FP32 = 1e-3
"""Largest difference of a logit between two builds of onnxruntime (the golden vectors' own bound)."""
TOP1 = 0.99
"""int8: activations round differently where the products before them do, so a near tie may turn."""

FEED = """
const served = new URL('bundle/', location).href;
const files = given.files ? host.filesInFolder(blobs(given.files), 'given') : host.filesAt(served);
const bundle = await host.openBundle(files);
const { stream } = await host.openStream(bundle, given.graph);
const found = [];
let start = 0;
for (const size of given.segments) {
  if (size === 1) { stream.step(given.ids[start]); found.push(Array.from(stream.logits)) }
  else found.push(Array.from(stream.feed(given.ids.slice(start, start + size))));
  start += size;
}
stream.free();
return packed(Float32Array.from(found.flat()));
"""


def held_out_ids(tokens: int) -> list[int]:
    """The beginning of a bundled test piece, with BOS."""
    bundle = Bundle.open()
    piece = corpus.pieces(None, "test")[0]
    ids = encode(read_midi(piece.read(), name=piece.name), bundle.event_table)
    return [bundle.manifest.special.bos, *ids][:tokens]


def cuts(count: int, seed: int, largest: int = 200) -> list[int]:
    """Sizes of random segments, single tokens among them."""
    rng, sizes = np.random.default_rng(seed), []
    while sum(sizes) < count:
        size = 1 if rng.random() < 0.7 else int(rng.integers(2, largest))
        sizes.append(min(size, count - sum(sizes)))
    return sizes


def python_logits(bundle: Bundle, graph: str, ids: list[int], segments: list[int]) -> Any:
    stream, parts = Stream(bundle, graph, threads=1), np.split(np.array(ids), np.cumsum(segments)[:-1])
    return np.concatenate([stream.feed(part) for part in parts])


@pytest.mark.parametrize("graph", ["fp32", "portable"])
def test_float_graphs_give_the_same_logits(web_page: Page, tiny_export: Path, graph: str) -> None:
    """Random weights, where every part counts; three times the longest window, so that the count wraps."""
    bundle = Bundle.open(tiny_export)
    ids = np.random.default_rng(1).integers(3, bundle.manifest.model.vocab_size, 400).tolist()
    segments = cuts(len(ids), 2)
    text = run(web_page, FEED, files=contents(tiny_export), graph=graph, ids=ids, segments=segments)
    found, expected = (
        rows(text, bundle.manifest.model.vocab_size),
        python_logits(bundle, graph, ids, segments),
    )
    assert np.abs(found - expected).max() <= FP32
    assert expected.std() > 1  # else anything agrees


def test_the_default_bundle_agrees_on_a_held_out_piece(web_page: Page) -> None:
    """int8, teacher-forced over twice as many tokens as any layer remembers: a whole piece."""
    bundle, ids = Bundle.open(), held_out_ids(4_000)
    segments = cuts(len(ids), 3)
    found = rows(run(web_page, FEED, graph="int8", ids=ids, segments=segments), len(bundle.event_table))
    expected = python_logits(bundle, "int8", ids, segments)
    top1 = (found.argmax(-1) == expected.argmax(-1)).mean()
    print(f"\nint8 in the browser against Python: {len(ids)} tokens, top-1 {top1:.4f}, ", end="")
    print(f"largest difference of a logit {np.abs(found - expected).max():.3f}")
    assert top1 >= TOP1


def test_the_bundled_checkpoint_in_fp32(web_page: Page, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from dsmr_export.cli import main

    made = CliRunner().invoke(main, ["export", "--no-gate", "--output", str(tmp_path / "bundle")])
    assert made.exit_code == 0, made.output
    bundle, ids = Bundle.open(tmp_path / "bundle"), held_out_ids(2_200)
    segments = cuts(len(ids), 4)
    values = {"files": contents(bundle.path), "graph": "fp32", "ids": ids, "segments": segments}
    found = rows(run(web_page, FEED, **values), len(bundle.event_table))
    difference = np.abs(found - python_logits(bundle, "fp32", ids, segments)).max()
    print(
        f"\nfp32 in the browser against Python: {len(ids)} tokens, "
        f"largest difference of a logit {difference:.1e}"
    )
    assert difference <= FP32


def test_how_long_a_token_takes(web_page: Page) -> None:
    """Prints; judges nothing: shared cores. Both in one process each, in turns, memory full."""
    bundle, ids = Bundle.open(), held_out_ids(2_000)
    stream = Stream(bundle, "int8", threads=1)
    stream.feed(ids)
    run(
        web_page,
        """const bundle = await host.openBundle(host.filesAt(new URL('bundle/', location).href));
           globalThis.timed = (await host.openStream(bundle)).stream;
           globalThis.timed.feed(given.ids);""",
        ids=ids,
    )
    here: list[float] = []
    browser: list[float] = []
    for _ in range(6):
        for token in ids[:100]:
            began = perf_counter()
            stream.step(token)
            here.append(1000 * (perf_counter() - began))
        browser += run(
            web_page,
            """return given.ids.map(token => {
                 const began = performance.now();
                 globalThis.timed.step(token);
                 return performance.now() - began;
               });""",
            ids=ids[:100],
        )
    facts = run(
        web_page,
        """globalThis.timed.free();
           return { version: host.ORT_VERSION, cores: navigator.hardwareConcurrency };""",
    )
    share = f"onnxruntime-web {facts['version']}: WASM, 1 thread of {facts['cores']} cores, SIMD"
    print()
    for name, values in ((f"browser ({share})", browser), ("Python, 1 thread", here)):
        print(f"{np.median(values):6.2f} ms a token, p99 {np.quantile(values, 0.99):6.2f}: {name}")
    print(f"{np.median(browser) / np.median(here):6.2f} times as long in the browser")
    assert len(browser) == len(here) == 600


def test_same_seed_same_tokens_as_python(web_page: Page, tiny_export: Path) -> None:
    """fp32, where the two differ by less than a draw can tell."""
    bundle = Bundle.open(tiny_export)
    prompt = [bundle.event_table.on_ids[60], bundle.event_table.velocity_ids[80]]
    sampling = Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.001)
    performer = Performer(bundle, sampling, seed=7, graph="fp32")
    performer.begin(prompt)
    play = performer.play()
    expected = [next(play) for _ in range(400)]
    found = run(
        web_page,
        """const bundle = await host.openBundle(host.filesInFolder(blobs(given.files), 'given'));
           const { stream } = await host.openStream(bundle, 'fp32');
           const sampling = { temperature: 0.9, topK: 40, topP: 0.95, minP: 0.001 };
           const performer = new host.Performer(bundle, stream, 7, sampling);
           performer.begin(given.prompt);
           const ids = Array.from({ length: 400 }, () => performer.next());
           stream.free();
           return ids;""",
        files=contents(tiny_export),
        prompt=prompt,
    )
    assert found == expected


STATE = """
const bundle = await host.openBundle(host.filesInFolder(blobs(given.files), 'given'));
const { stream } = await host.openStream(bundle, 'fp32');
const memory = new host.Memory(bundle, stream);
"""


def test_a_state_of_the_browser_goes_on_in_python(web_page: Page, tiny_export: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_export)
    text, name_of_next, row = run(
        web_page,
        STATE
        + """memory.reseed(11);
           memory.noteOn(10, 60, 80, 0, host.PLAYER);
           memory.noteOff(30, 60, 0, host.PLAYER);
           memory.noteOn(50, 64, 90, 0, host.PLAYER);
           memory.advance(260);
           const { ids, logits } = memory.peek(30);
           const row = packed(logits);
           memory.plan(20, 260, null, 1e9);
           const state = { moment: memory.moment(), name: 'a "name": 1234567890123456789', extra: {web: 1} };
           const saved = await host.writeState(bundle, state);
           stream.free();
           return [packed(saved), ids, row];""",
        files=contents(tiny_export),
    )
    file = tmp_path / "browser.state"
    file.write_bytes(base64.b64decode(text))
    state = read(file, bundle)
    assert state.name == 'a "name": 1234567890123456789'
    assert state.extra["web"] == 1 and state.extra["player"] == [64]
    performer = Performer(bundle, graph="fp32", ordered=True)
    performer.restore(state.moment)
    assert np.abs(performer.stream.logits - rows(row, len(bundle.event_table))[0]).max() == 0
    play = performer.play()
    assert [next(play) for _ in range(30)] == name_of_next


def test_a_state_of_python_goes_on_in_the_browser(web_page: Page, tiny_export: Path) -> None:
    bundle = Bundle.open(tiny_export)
    performer = Performer(bundle, seed=2**40 + 3, graph="fp32", ordered=True)
    performer.begin([bundle.event_table.on_ids[60], bundle.event_table.velocity_ids[80]])
    play = performer.play()
    for _ in range(100):
        next(play)
    controls = {"controls": {"temperature": 1.0158730158730158, "density": 1e-17}}
    saved = to_bytes(SavedState(performer.snapshot(), "from Python", controls))
    found, again, name = run(
        web_page,
        STATE
        + """const data = bytes(given.saved);
           const state = await host.readState(bundle, data, 'python.state');
           memory.restore(state.moment);
           const { ids } = memory.peek(30);
           // Written again it is the same state: nothing of it was lost on the way.
           const again = await host.readState(bundle, await host.writeState(bundle, state), 'again');
           const said = value => JSON.stringify(value, (_, one) => typeof one === 'bigint' ? `${one}` : one);
           const same = packed(again.moment.stream.state) === packed(state.moment.stream.state)
             && said(again.moment.rng) === said(state.moment.rng);
           stream.free();
           return [ids, same, state.name];""",
        files=contents(tiny_export),
        saved=base64.b64encode(saved).decode(),
    )
    assert found == [next(play) for _ in range(30)]
    assert again is True and name == "from Python"


def test_the_memory_holds_what_sounded_and_nothing_else(web_page: Page, tiny_export: Path) -> None:
    """A player, an answer of which a part sounds, and a key that cuts it off: the same state as that of a
    stream that was fed the notes' canonical tokens."""
    bundle = Bundle.open(tiny_export)
    notes, position, planned, row = run(
        web_page,
        STATE
        + """memory.reseed(5);
           const notes = [];
           const play = (start, end, pitch, velocity) => {
             memory.noteOn(start, pitch, velocity, 0, host.PLAYER);
             memory.noteOff(end, pitch, 0, host.PLAYER);
             notes.push([start, end, pitch, velocity]);
           };
           play(0, 20, 60, 80);
           play(25, 40, 62, 90);
           memory.advance(300);
           memory.settle();
           const events = [];
           for (let i = 0; i < 10; i++) events.push(...memory.plan(8, memory.frame, null, 1e9));
           // What sounds of the plan: its first half, each note with its end.
           const began = new Map();
           const sounded = events.slice(0, events.length >> 1);
           for (const { frame, kind, pitch, velocity } of sounded) {
             if (kind === 'on') {
               memory.noteOn(frame, pitch, velocity, 0, host.MODEL);
               began.set(pitch, [frame, velocity]);
             } else {
               memory.noteOff(frame, pitch, 0, host.MODEL);
               notes.push([began.get(pitch)[0], frame, pitch, began.get(pitch)[1]]);
               began.delete(pitch);
             }
           }
           const planned = memory.planLength;
           const cut = sounded.at(-1).frame + 3;
           memory.release(cut, host.MODEL);
           for (const [pitch, [frame, velocity]] of began) notes.push([frame, cut, pitch, velocity]);
           play(cut + 2, cut + 9, 70, 100);
           memory.advance(cut + 400);
           const { logits } = memory.peek(1);
           const row = packed(logits);
           stream.free();
           return [notes, memory.position, planned, row];""",
        files=contents(tiny_export),
    )
    assert planned > 10  # the plan was longer than what sounded of it
    table = bundle.event_table
    performance = sorted((Note(*note) for note in notes), key=lambda note: (note.start, note.pitch))
    end = max(note.end for note in performance)
    cut = max(note.start for note in performance) - 2
    ids = [bundle.manifest.special.bos, *encode(performance, table)]
    ids += [table.shift_ids[table.longest_shift]] * ((cut + 400 - end) // table.longest_shift)
    stream = Stream(bundle, "fp32", threads=1)
    for token in ids:
        stream.step(token)
    assert position == len(ids)
    assert np.abs(rows(row, len(table))[0] - stream.logits).max() <= FP32


def test_states_that_are_not_right_are_refused(web_page: Page, tiny_export: Path) -> None:
    bundle = Bundle.open(tiny_export)
    performer = Performer(bundle, graph="fp32")
    performer.begin()
    good = to_bytes(SavedState(performer.snapshot(), "good"))
    other = Performer(Bundle.open(), seed=1)
    other.begin()
    header, payload = good.index(b"\n") + 200, len(good) - 100
    wrong = {
        "empty": b"",
        "no state": b"MThd something else",
        "newer": good.replace(b"dsmr-state 1", b"dsmr-state 2", 1),
        "header": good[:header] + b"\x01" + good[header + 1 :],
        "payload": good[:payload] + bytes([good[payload] ^ 1]) + good[payload + 1 :],
        "short": good[:-5],
        "other": to_bytes(SavedState(other.snapshot(), "of another bundle")),
    }
    again = "; save it again, or take another copy of it."
    ids = Bundle.open().identity[:12], bundle.identity[:12]
    expected = {
        "empty": f"file is empty (0 bytes){again}",
        "no state": "file is not a saved state; give a file that this page or dsmr play --save-state wrote.",
        "newer": "file is of format 2, this page reads 1: get a newer page.",
        "header": f"file is damaged (its header does not fit its checksum){again}",
        "payload": f"file is damaged (its content does not fit its checksum){again}",
        "short": f"file is damaged (it is cut short or longer than it should be){again}",
        "other": f"file is a state of bundle {ids[0]}, this is {ids[1]}: "
        "open the bundle that it was saved with.",
    }
    found = run(
        web_page,
        """const bundle = await host.openBundle(host.filesInFolder(blobs(given.files), 'given'));
           const out = {};
           for (const [name, data] of Object.entries(given.wrong)) {
             out[name] = await refusal(() => host.readState(bundle, bytes(data), 'file'));
           }
           return out;""",
        files=contents(tiny_export),
        wrong={name: base64.b64encode(data).decode() for name, data in wrong.items()},
    )
    assert found == {name: ["state", text, None] for name, text in expected.items()}


# Bundles that are not right


@pytest.fixture
def own(tiny_export: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, to damage."""
    return Path(shutil.copytree(tiny_export, tmp_path / "own"))


def refusal(page: Page, folder: Path, graph: str | None = None) -> list[Any]:
    """Kind, message and graphs of the error that opening a dropped folder gives."""
    found = run(
        page,
        """return refusal(async () => {
             const bundle = await host.openBundle(host.filesInFolder(blobs(given.files), 'own'));
             (await host.openStream(bundle, given.graph ?? undefined)).stream.free();
           });""",
        files=contents(folder),
        graph=graph,
    )
    assert found is not None, "it was opened"
    return list(found)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "golden.npz", "tokenizer.json"])
def test_one_changed_byte_is_noticed(web_page: Page, own: Path, name: str) -> None:
    damage(own / name)
    assert refusal(web_page, own, "fp32")[:2] == [
        "bundle",
        f"{name} of own is not what was exported (its SHA-256 differs): copy the bundle again.",
    ]


def test_a_newer_format_is_refused(web_page: Page, own: Path) -> None:
    rewritten(own, format_version=2)
    kind, message, _ = refusal(web_page, own)
    assert kind == "newer"
    assert (
        message == "This bundle is of format 2, this page reads 1: get a newer page from a newer dsmr-export."
    )


def test_a_bundle_that_is_not_whole_is_refused(web_page: Page, own: Path) -> None:
    (own / "tokenizer.json").unlink()
    assert (
        refusal(web_page, own)[1]
        == "own has no tokenizer.json, so it is not complete: export the bundle again."
    )
    (own / "SHA256SUMS").write_text("nonsense\n")
    assert refusal(web_page, own)[1] == "SHA256SUMS is damaged: export the bundle again."
    rewritten(own, graphs={})
    assert refusal(web_page, own)[1].startswith("manifest.json has no graph ")
    rewritten(own, format="something")
    assert refusal(web_page, own)[1] == (
        'manifest.json is not of a bundle (its format is "something"): export the bundle again.'
    )
    (own / "manifest.json").unlink()
    assert refusal(web_page, own)[1] == (
        "own has no manifest.json, so it is no bundle: give what dsmr-export wrote."
    )


def test_an_unsupported_graph_offers_the_portable_one(web_page: Page, own: Path) -> None:
    """A graph with an operator that no onnxruntime has; it comes after those that ask for a newer one."""
    import onnx

    model = onnx.load(own / "model.onnx")
    model.graph.node[-1].op_type = "OfTheFuture"
    onnx.save(model, own / "model.onnx")
    manifest = json.loads((own / "manifest.json").read_text())
    for name, graph in manifest["graphs"].items():
        if name not in ("fp32", "portable"):
            graph["min_onnxruntime"] = "99.0.0"
    rewritten(own, graphs=manifest["graphs"])
    kind, message, graphs = refusal(web_page, own)
    assert kind == "graph" and graphs[0] == "portable"
    assert message.startswith("No graph runs here. ")
    assert "fp32: " in message and "OfTheFuture" in message
    assert "it needs onnxruntime 99.0.0, this page has 1.30.0." in message
    assert message.endswith("The bundle also has portable: use that.")
    del manifest["graphs"]["portable"]
    rewritten(own, graphs=manifest["graphs"], preference=[n for n in manifest["graphs"] if n != "portable"])
    kind, message, graphs = refusal(web_page, own)
    assert graphs == []
    assert message.endswith("Export it again with --ops fused,portable, and use the portable graph.")


def test_golden_vectors_that_fail_stop_a_graph(web_page: Page, own: Path) -> None:
    golden = dict(np.load(own / "golden.npz"))
    golden["logits.fp32"] = golden["logits.fp32"] + np.float32(0.01)
    np.savez(own / "golden.npz", **golden)
    rewritten(own)
    kind, message, graphs = refusal(web_page, own, "fp32")
    assert kind == "graph" and graphs[0] == "portable"
    assert "golden vectors do not pass (" in message and "logits 1.0e-2 apart" in message


@pytest.mark.parametrize("within", ["", "a folder/of it/"])
def test_a_bundle_in_a_zip(web_page: Page, tiny_export: Path, within: str) -> None:
    reason = run(
        web_page,
        """const files = await host.filesInZip(new Blob([bytes(given.data)]), 'bundle.zip');
           const bundle = await host.openBundle(files);
           const { stream, reason } = await host.openStream(bundle, 'fp32');
           stream.free();
           return reason;""",
        data=base64.b64encode(zipped(tiny_export, within)).decode(),
    )
    assert reason.startswith("fp32: golden vectors pass (")


def test_what_is_no_zip_is_refused(web_page: Page) -> None:
    found = run(web_page, "return refusal(() => host.filesInZip(new Blob(['no zip']), 'some.zip'))")
    assert found[0] == "bundle"
    assert found[1].startswith("some.zip is not a zip file, or a damaged one (")


def test_an_address_without_a_bundle(web_page: Page) -> None:
    text = "return refusal(() => host.openBundle(host.filesAt(new URL('nowhere/', location).href)))"
    assert run(web_page, text) == [
        "bundle",
        "SHA256SUMS cannot be fetched (404): check the address.",
        None,
    ]
    web_page.said.clear()  # the browser itself logs a 404


def test_addresses_that_are_odd_or_none(web_page: Page) -> None:
    text = "return refusal(() => host.openBundle(host.filesAt(given.url)))"
    assert run(web_page, text, url="my bundle/")[1] == (
        "SHA256SUMS cannot be fetched (no address): give one that begins with https://"
    )
    stray = run(
        web_page,
        """const files = host.filesAt(new URL('100%/', location).href);
           return [files.name, await refusal(() => host.openBundle(files))];""",
    )
    assert stray[0] == "100%" and stray[1][0] == "bundle"
    web_page.said.clear()  # the browser itself logs what is not there


def test_a_download_that_is_cut_off(web_page: Page) -> None:
    """By a server that promises more than it sends."""

    class Cut(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(b"half")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Cut) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/bundle/"
        kind, message, _ = run(
            web_page, "return refusal(() => host.openBundle(host.filesAt(given.url)))", url=url
        )
        server.shutdown()
    assert kind == "bundle"
    assert message.startswith("SHA256SUMS cannot be fetched (")
    assert message.endswith("): is the server there, and does it allow this page?")
    web_page.said.clear()


def test_ids_outside_the_vocabulary_are_refused(web_page: Page) -> None:
    text = """const bundle = await host.openBundle(host.filesAt(new URL('bundle/', location).href));
              const { stream } = await host.openStream(bundle);
              const out = [await refusal(() => stream.feed([3, 311])), stream.position];
              stream.free();
              return out;"""
    assert run(web_page, text) == [
        ["input", "Token id 311 is not in the vocabulary: ids are 0 to 310.", None],
        0,
    ]


def test_the_prebuilt_bundle_is_what_the_page_serves(web_page: Page) -> None:
    """Else the figures above would be those of another one."""
    text = "return (await host.openBundle(host.filesAt(new URL('bundle/', location).href))).identity"
    assert run(web_page, text) == Bundle.open(default_path()).identity
