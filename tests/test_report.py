"""The report's file: what is in it, what is said to be missing, what it may not hold, where it is written."""

from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("matplotlib", reason="reports are drawn with it: pip install 'dsmr-export[pictures]'")
pytest.importorskip("jinja2", reason="reports are made with it: pip install 'dsmr-export[pictures]'")

from dsmr_export import cli_report
from dsmr_export.report import measured, vector
from dsmr_export.report.blocks import Missing, Pictures, Table
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.bundle import SUMS, file_sha256
from dsmr_export.runtime.midi import write_midi
from dsmr_export.runtime.play import continue_prompt
from dsmr_export.terminal import Refusing
from tests import bench_result, report_bundle

SECTIONS = [
    "At a glance",
    "Listen",
    "Schedule and sizes",
    "Parity with PyTorch",
    "Quantization error",
    "Speed",
    "Beside other runtimes",
    "Limit and profile",
    "Growth",
    "Provenance",
]
VOID = {"meta", "input", "br", "link", "img"}


class Document(HTMLParser):
    """A page taken apart: elements with their attributes, table rows, and text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "h2":
            self.headings.append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> where {self.open[-3:]} are open"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data
            if "h2" in self.open:
                self.headings[-1] += data
            if "td" in self.open or "tbody" in self.open and "th" in self.open:
                self.rows[-1][-1] += data.strip()

    def row(self, *beginning: str) -> list[str]:
        """The only row that begins so."""
        found = [row for row in self.rows if row[: len(beginning)] == list(beginning)]
        assert len(found) == 1, f"{beginning}: {found}"
        return found[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return report_bundle.make(tmp_path_factory.mktemp("report") / "tiny")


@pytest.fixture(scope="module")
def html(bundle: Bundle) -> str:
    return report_bundle.page(bundle, bench_result.full(bundle)).html


@pytest.fixture(scope="module")
def document(html: str) -> Document:
    return Document(html)


# --- what is in it ------------------------------------------------------------------------------------------


def test_every_section_is_there_and_linked(document: Document) -> None:
    assert document.headings == SECTIONS
    assert not document.open, "every element is closed"
    anchors = [values["href"] for tag, values in document.elements if tag == "a"]
    ids = {values["id"] for _, values in document.elements if "id" in values}
    assert len(set(anchors)) == len(SECTIONS) and {anchor[1:] for anchor in anchors} <= ids


def test_what_the_tables_say(document: Document) -> None:
    """Against figures worked out by hand from tests/bench_result.py and tests/report_bundle.py."""
    assert document.row("fp32", "1.250", "1.375") == [
        "fp32",
        "1.250",
        "1.375",
        "1.625",
        "11.250",
        "800",
        "31",
        "4.3%",
    ]
    assert document.row("fp32", "120")[1:] == ["120", "61", "7.7", "161", "7.8%"]
    assert document.row("fp32", "4,000") == ["fp32", "4,000", "9,000", "12,345"]
    assert document.row("fp32", "1.250", "0.875")
    assert document.row("PyTorch eager, fp32") == [
        "PyTorch eager, fp32",
        "9.876",
        "7.90 (6.71–8.02)",
        "same network; its forward alone, no sampling",
    ]
    assert document.row("our own portable / fp32")[2] == "1.43"
    assert "openvino is absent: openvino not installed" in document.text
    assert document.row("portable", "11.5")[-1] == "22%"  # 0.377 of 1.75 ms
    assert document.row("matmul") == ["matmul", "0.625", "0.875"]
    assert document.row("sampling") == ["sampling", "0.050", "0.070"]
    assert document.row("portable", "16.5033")[1:] == [
        "16.5033",
        "16.5000",
        "+2.0e-04",
        "6.7e-05",
        "2.0e-04",
        "0.9912",
        "2.5e-01",
    ]
    assert document.row("portable", "4,096 – …")[2] == "4,096"
    assert "c0ffee" in document.text and "2026-01-02" in document.text


def test_quantization_errors_are_worst_first(document: Document) -> None:
    """40 dB are a noise of a hundredth."""
    rows = [row for row in document.rows if len(row) == 5 and row[3].endswith("dB")]
    assert rows[0] == ["layers.0.qkv", "int8", "100", "40.0 dB", "1.00 %"]
    assert [float(row[3].split()[0]) for row in rows] == [40.0 + n for n in range(13)]


def test_sizes_are_those_of_the_files(document: Document, bundle: Bundle) -> None:
    file = (bundle.path / "model.onnx").stat().st_size
    # Fused: horizon + 1 + 16 rows of 2 heads of 16 channels in float32, keys and values.
    rows = sum(horizon + 17 for horizon in report_bundle.HORIZONS)
    state = 2 * rows * 2 * bundle.manifest.model.head_dim * 4
    found = document.row("fp32", f"{file / 1e6:.2f} MB")
    assert found[2:4] == [f"{state / 1e6:.2f} MB", "float32"]


def test_growth(bundle: Bundle) -> None:
    result = {**bench_result.full(bundle), "growth": bench_result.growth(["fp32"])}
    section = list(measured.sections(result, "tiny"))[-1]
    pictures, *tables = section.blocks
    assert isinstance(pictures, Pictures) and len(pictures.pictures) == len(tables) == 5
    assert "horizon" in pictures.pictures[0].svg and "uniform" in pictures.pictures[-1].svg
    horizon, position = tables[0], tables[1]
    assert isinstance(horizon, Table) and isinstance(position, Table)
    found = [dict(zip(horizon.columns, row, strict=True)) for row in horizon.rows]
    assert [(row["graph"], row["horizon"], row["p50 ms"]) for row in found] == [
        ("fp32", "256", "2.5"),
        ("fp32", "16,384", "2.75"),
    ]
    assert dict(zip(position.columns, position.rows[1], strict=True))["position"] == "1,000,000"


def test_growth_of_another_version(bundle: Bundle) -> None:
    section = measured.growth({"growth": {"horizon": [{"length": 1}]}}, "tiny")
    assert [missing.what for missing in section.blocks if isinstance(missing, Missing)] == [
        "The growth in this result is not as this version measures it."
    ]


def test_the_music_is_the_models(html: str, bundle: Bundle, document: Document) -> None:
    """The notes to be played are those that a continuation with the same seed has, after the prompt's end."""
    music = json.loads(document.scripts[0])
    assert [clip["title"] for clip in music["clips"]] == ["Prompt", "fp32, seed 0", "fp32, seed 1"]
    prompt = report_bundle.PROMPT  # shorter than what is heard of one
    assert music["clips"][0]["notes"] == [[n.start, n.end - n.start, n.pitch, n.velocity] for n in prompt]
    made = continue_prompt(bundle, prompt, 3.0, seed=1, graph="fp32")
    tail = 400  # four seconds of 10 ms
    expected = [[n.start + tail, n.end - n.start, n.pitch, n.velocity] for n in made.performance]
    clip = music["clips"][2]
    assert [note for note in clip["notes"] if note[0] >= tail] == expected
    assert clip["frames"] == tail + 300
    rolls = re.findall(r'<svg viewBox="0 0 \d+ \d+".*?</svg>', html, re.DOTALL)
    assert [len(re.findall(r"M[^M]*v\.84h", roll)) for roll in rolls] == [
        len(each["notes"]) for each in music["clips"]
    ]


# --- what is missing ----------------------------------------------------------------------------------------


def test_what_is_left_out_is_named_with_its_command(bundle: Bundle, tmp_path: Path) -> None:
    from tests import tiny_bundle as tiny

    bare = tiny.make_bundle(tmp_path / "bare")
    made = report_bundle.page(bare, None, seconds=0.5)
    said = {missing.what: missing.command for missing in made.left_out}
    assert set(said.values()) == {
        "dsmr report tiny --data MIDI",
        "dsmr-export --quantize int8",
        "dsmr bench tiny --json > bench.json",
        "dsmr bench tiny --growth all --json > bench.json",
    }
    document = Document(made.html)
    for what, command in said.items():
        assert f"{what} To add it: {command}" in document.text


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("peers", None),  # our own graphs' ratios are still there
        ("bandwidth", "The memory's speed was not measured."),
        ("profile", "No profile is in this result."),
        ("machine", None),
        ("versions", None),
        ("ratios", None),
        ("steps", None),
    ],
)
def test_a_result_without_a_part(bundle: Bundle, part: str, said: str | None) -> None:
    """What is not there is left out, and what is looked for is said to be."""
    result = bench_result.full(bundle)
    del result[part]
    sections = list(measured.sections(result, "tiny"))
    assert [section.title for section in sections] == SECTIONS[5:9]
    missing = [block.what for section in sections for block in section.blocks if isinstance(block, Missing)]
    assert missing == [*([said] if said else []), "Growth was not measured."]


def test_a_result_with_nothing_but_steps(bundle: Bundle) -> None:
    made = report_bundle.page(bundle, {"graphs": {"fp32": {"step_ms": {"p50": 1.5}}}}, seconds=0.1)
    assert Document(made.html).row("fp32", "1.500") == ["fp32", "1.500", *["–"] * 6]
    assert len(made.left_out) == 5


# --- what it may not hold -----------------------------------------------------------------------------------


def test_text_of_a_bundle_is_escaped(tmp_path: Path) -> None:
    """Name, schedule, provenance and graphs of a bundle, machine and peers of a result."""
    nasty = report_bundle.NASTY
    made = report_bundle.make(tmp_path / "nasty")
    plain = Document(report_bundle.page(made, bench_result.full(made), seconds=0.1).html)
    bundle = report_bundle.changed(
        made,
        name=nasty,
        graphs={"fp32": made.manifest.graphs["fp32"], nasty: made.manifest.graphs["portable"]},
        schedule=dataclasses.replace(made.manifest.schedule, name=nasty),
        parity={nasty: report_bundle.parity(1e-4)},
        provenance={"data": nasty, nasty: nasty},
    )
    result = bench_result.full(bundle)
    result["machine"]["processor"] = nasty
    result["peers"] = {nasty: {"absent": nasty}}
    result["profile"][nasty]["kinds"] = {nasty: 1.0}
    document = Document(report_bundle.page(bundle, result, seconds=0.1).html)
    assert document.text.count(nasty) > 12
    tags = [tag for tag, _ in document.elements]
    assert set(tags) <= {tag for tag, _ in plain.elements}
    assert tags.count("script") == 2 and tags.count("b") == 3  # of the page; the titles of three rolls
    assert not [key for _, values in document.elements for key in values if key.startswith("on")]


def test_it_is_self_contained(document: Document, html: str) -> None:
    for tag, values in document.elements:
        assert not {"src", "srcset", "action", "data", "poster"} & set(values), tag
        assert values.get("href", "#").startswith("#"), values
    assert "http://" not in html and "https://" not in html
    assert "@import" not in html
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", html))
    assert len(html.encode()) < 2_000_000


def test_nothing_but_its_own_script_may_run(document: Document) -> None:
    policy = next(values["content"] for _, values in document.elements if "http-equiv" in values)
    digest = base64.b64encode(hashlib.sha256(document.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


def test_ids_are_unique_and_what_refers_to_them_finds_them(document: Document, html: str) -> None:
    """Clip paths of two pictures would otherwise be taken for each other."""
    ids = [values["id"] for _, values in document.elements if "id" in values]
    assert len(set(ids)) == len(ids)
    referred = set(re.findall(r"url\(#([^)]+)\)", html)) | {
        values["href"][1:] for _, values in document.elements if "href" in values
    }
    assert len(referred) > 20 and referred <= set(ids)


def test_pictures_have_the_pages_colours(html: str) -> None:
    """A colour that is not the page's would stay as it is in the dark theme."""
    pictures = re.findall(r'<svg viewBox="[^"]*" role="img".*?</svg>', html, re.DOTALL)
    assert len(pictures) == 6
    for picture in pictures:
        assert "var(--" in picture and not re.findall(r"#[0-9a-fA-F]{6}\b", picture)
        assert re.search(r'aria-label="[^"]{10,}"', picture) and "<text" in picture


def test_a_style_in_the_pages_colours() -> None:
    style = "font: 700 9px 'DejaVu Sans', sans-serif; text-anchor: middle; fill: #0072B2; stroke: #123456"
    assert vector.themed(style) == ("font-size: 9px; text-anchor: middle; fill: var(--blue); stroke: #123456")


def test_accessible_names(document: Document) -> None:
    tags = {tag: values for tag, values in document.elements}
    assert tags["html"]["lang"] == "en" and "title" in tags
    buttons = [values for tag, values in document.elements if tag == "button"]
    assert all(values.get("aria-label") or values.get("id") == "theme" for values in buttons)
    images = [values for tag, values in document.elements if values.get("role") == "img"]
    assert all(values["aria-label"] for values in images)
    headers = [values for tag, values in document.elements if tag == "th"]
    assert all(values["scope"] in ("col", "row") for values in headers)


# --- the command --------------------------------------------------------------------------------------------


@click.group(cls=Refusing)
def main() -> None:
    """The command as `dsmr` has it."""


main.add_command(cli_report.report)


def report(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments), "--seconds", "0.5"], prog_name="dsmr")


def refused(result: Result, *words: str, code: int = 1) -> None:
    """One line, no traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("Error: ") and "Traceback" not in result.stderr
    for word in words:
        assert word in lines[-1]


def opens_without_a_warning(folder: Path) -> Bundle:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Bundle.open(folder)


@pytest.fixture
def own(tmp_path: Path) -> Bundle:
    """A bundle to be changed at will."""
    return report_bundle.make(tmp_path / "own")


@pytest.fixture
def bench_file(own: Bundle, tmp_path: Path) -> Path:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench_result.full(own)))
    return path


def test_a_page_in_the_bundle_is_listed_in_its_sums(own: Bundle, bench_file: Path) -> None:
    before = (own.path / SUMS).read_text().splitlines()
    first = report(own.path, "--bench", bench_file)
    assert first.exit_code == 0, first.output
    page = own.path / "report" / "index.html"
    assert f"{page}: " in first.stdout and "left out: Growth was not measured." in first.stdout
    assert opens_without_a_warning(own.path).identity == own.identity
    after = (own.path / SUMS).read_text().splitlines()
    assert set(after) - set(before) == {f"{file_sha256(page)}  report/index.html"}
    assert set(before) < set(after) and after == sorted(after, key=lambda line: line[66:])
    # Again, with less in it: replaced, and listed anew.
    assert report(own.path, "--no-bench").exit_code == 0
    assert "Beside other runtimes" not in page.read_text()
    opens_without_a_warning(own.path)
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html"]


def test_a_card_that_was_edited_stays_known_as_edited(own: Bundle) -> None:
    """Only the page's line is new: writing all sums afresh would vouch for what somebody else changed."""
    (own.path / "README.md").write_text("mine\n")
    assert report(own.path, "--no-bench").exit_code == 0
    with pytest.warns(UserWarning, match=r"README\.md was changed"):
        notes = Bundle.open(own.path).warnings
    assert len(notes) == 1


def test_a_page_elsewhere_leaves_the_bundle_alone(own: Bundle, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in own.path.rglob("*") if path.is_file()}
    assert report(own.path, "--no-bench", "-o", tmp_path / "page.html").exit_code == 0
    assert {path: path.read_bytes() for path in own.path.rglob("*") if path.is_file()} == before
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_without_a_bundle_it_is_written_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsmr_export.runtime.bundle import default_path

    if not default_path().is_dir():
        pytest.skip("the package has no prebuilt bundle: make default-bundle")
    monkeypatch.chdir(tmp_path)
    result = report("--no-bench")
    assert result.exit_code == 0, result.output
    assert os.listdir() == ["dsmr-report.html"]
    assert "dsmr bench --json > bench.json" in result.stdout


def test_speed_is_measured_where_no_file_is_given(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsmr_export.bench import run as benchmark

    asked: list[int] = []

    def run(bundle: Bundle, checkpoint: Path | None, steps: int, **options: Any) -> dict[str, Any]:
        asked.append(steps)
        return bench_result.full(bundle)

    monkeypatch.setattr(benchmark, "run", run)
    assert report(own.path).exit_code == 0
    assert asked and asked[0] < benchmark.STEPS
    assert "Example CPU 9000" in (own.path / "report" / "index.html").read_text()


def test_all_that_bench_printed_is_a_bench_file_too(own: Bundle, bench_file: Path) -> None:
    bench_file.write_text("a table\n\n" + bench_file.read_text() + "\n")
    assert report(own.path, "--bench", bench_file).exit_code == 0


def test_fresh_parity(own: Bundle, tmp_path: Path) -> None:
    """Of pieces of one's own; the tiny bundle's checkpoint is nowhere, so perplexity alone."""
    write_midi(report_bundle.PROMPT[:20], tmp_path / "piece.mid")
    result = report(own.path, "--no-bench", "--data", tmp_path / "piece.mid")
    assert result.exit_code == 0, result.output
    assert "no reference, perplexity alone" in result.stderr
    document = Document((own.path / "report" / "index.html").read_text())
    assert "tokens of 1 pieces (piece.mid)" in document.text
    rows = [row for row in document.rows if row and row[0].endswith("token by token")]
    assert len(rows) == 2 and all(float(row[1]) > 1 and row[2] == "–" for row in rows)


def test_a_prompt_of_ones_own(own: Bundle, tmp_path: Path) -> None:
    write_midi(report_bundle.PROMPT[:7], tmp_path / "my prompt.mid")
    assert report(own.path, "--no-bench", "--prompt", tmp_path / "my prompt.mid").exit_code == 0
    document = Document((own.path / "report" / "index.html").read_text())
    clip = json.loads(document.scripts[0])["clips"][0]
    assert clip["title"] == "Prompt: my prompt" and len(clip["notes"]) == 7


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("cannot be read (No such file", "dsmr bench --json")),
        ("not json", ("is not JSON", "dsmr bench --json")),
        ("[]", ("is not a result of dsmr bench",)),
        ("{}", ("is not a result of dsmr bench",)),
        ('{"graphs": {}}', ("is not a result of dsmr bench",)),
        ('{"graphs": {"fp32": {"step_ms": {"p50": "fast"}}}}', ("is not a result of dsmr bench",)),
        (
            '{"graphs": {"int8": {"step_ms": {"p50": 1.0}}}}',
            ("is of another bundle (it has a graph int8", "dsmr bench ", "> bench.json"),
        ),
        (
            '{"graphs": {"fp32": {"step_ms": {"p50": 1.0}}}, "architecture": {"horizons": [1, 2]}}',
            ("is of another bundle (its horizons are others)",),
        ),
        (
            '{"graphs": {"fp32": {"step_ms": {"p50": 1.0}}}, "bundle": {"name": "other", "identity": "00"}}',
            ("is of another bundle (other)",),
        ),
    ],
)
def test_a_bench_file_that_will_not_do(
    own: Bundle, bench_file: Path, text: str | None, words: tuple[str]
) -> None:
    bench_file.unlink()
    if text is not None:
        bench_file.write_text(text)
    refused(report(own.path, "--bench", bench_file), str(bench_file), *words)
    assert not (own.path / "report" / "index.html").exists()


def test_a_bench_file_of_bytes(own: Bundle, bench_file: Path) -> None:
    bench_file.write_bytes(b"\xff\xfe\x00")
    refused(report(own.path, "--bench", bench_file), "cannot be read (not text)")


def test_a_folder_that_is_not_there(own: Bundle, tmp_path: Path) -> None:
    refused(report(own.path, "-o", tmp_path / "no" / "page.html"), "there is no such folder", "-o")


def test_a_place_that_cannot_be_written(own: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(report(own.path, "-o", tmp_path), "is not a file", "-o")
    (own.path / "report").write_text("")  # a file where the folder would be
    from dsmr_export.runtime.bundle import write_sums

    write_sums(own.path)
    refused(report(own.path), "cannot be made", "-o")
    access = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK and access(path, mode))
    refused(report(own.path, "-o", tmp_path / "page.html"), "nothing can be written there", "-o")


def test_a_full_disk_leaves_the_old_page(
    own: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    assert report(own.path, "--no-bench", "-o", page).exit_code == 0
    before = page.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    refused(report(own.path, "--no-bench", "-o", page), "No space left")
    assert page.read_bytes() == before and set(tmp_path.iterdir()) == {own.path, page}


def test_sums_that_cannot_be_replaced(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is there and not listed: that only warns."""
    replace = os.replace

    def sums_stay(source: str | Path, target: str | Path) -> None:
        if Path(target).name == SUMS:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        replace(source, target)

    monkeypatch.setattr(os, "replace", sums_stay)
    refused(report(own.path, "--no-bench"), SUMS, "cannot be written", "-o")
    with pytest.warns(UserWarning, match="report/index.html is not in"):
        Bundle.open(own.path)


def test_another_file_is_not_overwritten(own: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "thesis.html"
    other.write_text("<p>mine</p>")
    refused(report(own.path, "--no-bench", "-o", other), str(other), "--force")
    assert other.read_text() == "<p>mine</p>"
    assert report(own.path, "--no-bench", "-o", other, "--force").exit_code == 0
    assert "Quantization error" in other.read_text()


@pytest.mark.parametrize("file", ["model.onnx", "page.html"])
def test_files_of_the_bundle_are_safe(own: Bundle, file: str) -> None:
    refused(report(own.path, "--no-bench", "-o", own.path / file, "--force"), "inside the bundle")
    opens_without_a_warning(own.path)


def test_options_that_exclude_each_other(own: Bundle, bench_file: Path) -> None:
    refused(report(own.path, "--bench", bench_file, "--no-bench"), "--no-bench", code=2)
    refused(report(own.path, "--split", "test"), "--data", code=2)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_an_extra(own: Bundle, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    refused(report(own.path), f"needs {package}", "pip install 'dsmr-export[pictures]'")
