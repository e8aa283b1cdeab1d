"""The report in a real browser: it says nothing, fetches nothing, fits a phone, and plays."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("matplotlib", reason="reports are drawn with it: pip install 'dsmr-export[pictures]'")
pytest.importorskip("jinja2", reason="reports are made with it: pip install 'dsmr-export[pictures]'")

from dsmr_export.report import vector
from tests import bench_result, chromium, report_bundle

PROGRAM = chromium.found()
REASON = f"no Chromium on the PATH, so the report is not seen by a browser: {chromium.SETUP} installs one"
if PROGRAM is None:
    warnings.warn(REASON, stacklevel=1)  # a line of its own at the end of a run, which -q shows too
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason=REASON)]

PLAYING = "document.querySelectorAll('.roll[data-state=playing]').length"
AUDIO = "document.documentElement.dataset.audio"
RATE = 44100


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything, of a bundle that is called as badly as one can be."""
    folder = tmp_path_factory.mktemp("browser")
    made = report_bundle.make(folder / "tiny")
    bundle = report_bundle.changed(made, name=report_bundle.NASTY)
    path = folder / "a page.html"
    path.write_text(report_bundle.page(bundle, bench_result.full(bundle)).html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    assert PROGRAM is not None
    with chromium.running(PROGRAM, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: chromium.Page, file: Path) -> Iterator[chromium.Page]:
    """The page, opened anew; whatever was done with it, it has nothing to say and asks for nothing."""
    browser.open(file)
    yield browser
    assert browser.said == []
    assert browser.requests == [file.absolute().as_uri()]


def test_the_browser_tells_what_a_page_says_and_asks_for(browser: chromium.Page, tmp_path: Path) -> None:
    """The checks above would fail: an exception, a warning, an image from elsewhere."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><title>bad</title><img src='http://localhost:9/x.png'>"
        "<div style='width: 3000px'>wide</div>"
        "<script>console.warn('careful'); nothing.here</script>"
    )
    browser.open(path)
    said = " ".join(browser.said)
    assert "careful" in said and "ReferenceError" in said
    assert browser.requests[1:] == ["http://localhost:9/x.png"]
    assert overflow(browser) > 0


def overflow(page: chromium.Page) -> int:
    """Pixels that the page is wider than the window."""
    return int(page.ask("document.scrollingElement.scrollWidth - innerWidth"))


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("folded", [True, False])
def test_it_never_scrolls_sideways(page: chromium.Page, file: Path, width: int, folded: bool) -> None:
    page.emulate(width, 800, dark=False)
    if not folded:
        page.ask("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert overflow(page) <= 0
    wide = page.ask(
        "[...document.querySelectorAll('main *')].filter(each => !each.closest('.scroll, svg')"
        f" && each.getBoundingClientRect().right > {width} + .5).map(each => each.outerHTML.slice(0, 80))"
    )
    assert wide == []


def test_wide_tables_scroll_inside_their_own_box(page: chromium.Page) -> None:
    page.emulate(360, 800, dark=False)
    boxes = page.ask(
        "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)"
        ".map(box => [getComputedStyle(box).overflowX, box.tabIndex])"
    )
    assert boxes and all(box == ["auto", 0] for box in boxes)


def test_a_name_with_markup_is_a_name(page: chromium.Page) -> None:
    assert page.ask("document.querySelector('h1').textContent") == report_bundle.NASTY
    assert page.ask("document.title") == f"{report_bundle.NASTY}: report"


def test_no_script_but_its_own_runs(browser: chromium.Page, file: Path, tmp_path: Path) -> None:
    """If something did get into the page, the policy in its head would stop it."""
    path = tmp_path / "injected.html"
    path.write_text(file.read_text().replace("</main>", "<script>document.title = 'taken'</script></main>"))
    browser.open(path)
    assert browser.ask("document.title") != "taken"
    assert "Content Security Policy" in " ".join(browser.said)


# --- themes -------------------------------------------------------------------------------------------------


def colour(page: chromium.Page, selector: str, what: str = "color") -> tuple[float, ...]:
    """Red, green and blue of an element, 0 … 1."""
    text = page.ask(f"getComputedStyle(document.querySelector({json.dumps(selector)})).{what}")
    return tuple(int(part) / 255 for part in re.findall(r"\d+", text)[:3])


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance (WCAG 2.2, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_themes_apply_and_can_be_read(page: chromium.Page, dark: bool) -> None:
    """By the system's setting; 4.5 is WCAG's least contrast of text, 3 that of lines in pictures."""
    page.emulate(1280, 900, dark)
    paper = colour(page, "body", "backgroundColor")
    assert (luminance(paper) < 0.05) == dark
    for selector in ("body", ".lead", ".summary", "nav a", "dt", "thead th", "button.play", ".missing code"):
        assert contrast(colour(page, selector), paper) >= 4.5, selector
    for name in {"ink", *vector.NAMED.values()} - {"paper", "line"}:
        page.ask(f"document.querySelector('h1').style.color = 'var(--{name})'")
        assert contrast(colour(page, "h1"), paper) >= 3, name


def test_the_theme_can_be_chosen(page: chromium.Page) -> None:
    before = colour(page, "body", "backgroundColor")
    assert page.ask("document.querySelector('#theme').textContent") == "Dark"
    page.click("#theme")
    assert luminance(colour(page, "body", "backgroundColor")) < 0.05 < luminance(before)
    page.click("#theme")
    assert colour(page, "body", "backgroundColor") == before


# --- music --------------------------------------------------------------------------------------------------


def seconds(page: chromium.Page, roll: int = 0) -> float:
    """Where a roll's slider stands."""
    return float(page.ask(f"document.querySelectorAll('.roll input')[{roll}].value"))


def test_play_and_stop(page: chromium.Page) -> None:
    button = "[data-clip='0'] button.play"
    assert page.ask(PLAYING) == 0 and page.ask(AUDIO) is None
    page.click(button)
    page.wait(f"{AUDIO} === 'running'")
    assert page.ask(f'document.querySelector("{button}").textContent') == "Stop"
    page.wait("Number(document.querySelector('.roll input').value) > 0.3")
    assert page.ask("document.querySelector('.roll .cursor').style.left") != "0%"
    page.click(button)
    assert page.ask(PLAYING) == 0
    assert page.ask(f'document.querySelector("{button}").textContent') == "Play"
    page.wait(f"{AUDIO} === 'suspended'")
    stopped = seconds(page)
    assert stopped > 0.3
    page.click(button)  # goes on where it was
    page.wait(f"Number(document.querySelector('.roll input').value) > {stopped}")
    page.click(button)


def test_one_plays_at_a_time(page: chromium.Page) -> None:
    page.click("[data-clip='0'] button.play")
    page.wait(f"{AUDIO} === 'running'")
    page.click("[data-clip='1'] button.play")
    assert page.ask(PLAYING) == 1
    assert page.ask("document.querySelector('.roll[data-state=playing]').dataset.clip") == "1"
    page.wait("Number(document.querySelectorAll('.roll input')[1].value) > 0.2")
    page.click("[data-clip='1'] button.play")


def test_it_ends_by_itself(page: chromium.Page) -> None:
    page.ask(
        "(() => { const slider = document.querySelectorAll('.roll input')[1];"
        "slider.value = slider.max - 0.3; slider.dispatchEvent(new Event('input')) })()"
    )
    page.click("[data-clip='1'] button.play")
    page.wait(f"{PLAYING} === 1")
    page.wait(f"{PLAYING} === 0")
    assert seconds(page, 1) == 0


def test_a_click_on_the_roll_plays_from_there(page: chromium.Page) -> None:
    page.click("[data-clip='1'] .stage")  # its middle
    page.wait(f"{PLAYING} === 1 && {AUDIO} === 'running'")
    length = float(page.ask("document.querySelectorAll('.roll input')[1].max"))
    page.wait("Number(document.querySelectorAll('.roll input')[1].value) > 0")
    assert length / 2 - 0.1 <= seconds(page, 1)
    page.click("[data-clip='1'] button.play")


def test_it_plays_by_the_keyboard(page: chromium.Page) -> None:
    page.ask("document.querySelector('button.play').focus()")
    page.press("Enter", 13, "\r")
    page.wait(f"{PLAYING} === 1 && {AUDIO} === 'running'")
    page.press("Enter", 13, "\r")
    page.wait(f"{PLAYING} === 0")
    page.press("Tab", 9)
    assert page.ask("document.activeElement.type") == "range"
    before = seconds(page)
    page.press("ArrowRight", 39)
    assert seconds(page) > before


def test_reduced_motion(page: chromium.Page) -> None:
    """The cursor goes in steps, and goes."""
    page.emulate(1280, 900, dark=False, reduced_motion=True)
    page.click("[data-clip='0'] button.play")
    page.wait("Number(document.querySelector('.roll input').value) > 0.3")
    page.click("[data-clip='0'] button.play")


def rendered(page: chromium.Page, notes: list[tuple[int, int, float, float]], length: float) -> NDArray[Any]:
    """Samples [channels, N] of notes (pitch, velocity, start, end in seconds), as the page makes them."""
    samples = page.ask(
        "(async () => {"
        f"const context = new OfflineAudioContext(2, {round(length * RATE)}, {RATE});"
        "const piano = Piano.instrument(context);"
        f"for (const note of {json.dumps(notes)}) Piano.strike(piano, piano.input, ...note);"
        "const made = await context.startRendering();"
        "return [0, 1].map(n => [...made.getChannelData(n)].map(x => Math.round(x * 1e5))) })()"
    )
    return np.array(samples) / 1e5


@pytest.mark.parametrize("pitch", [33, 57, 69, 88])
def test_the_sound_has_the_notes_pitch(page: chromium.Page, pitch: int) -> None:
    """The strongest frequency of its middle is that of equal temperament, A4 = 440 Hz, within 10 cents (the
    two strings of a note are 2.4 cents apart)."""
    sound = rendered(page, [(pitch, 80, 0.1, 1.6)], 1.7)[0]
    part = sound[round(0.2 * RATE) : round(1.2 * RATE)] * np.hanning(RATE)
    strength = np.abs(np.fft.rfft(part, 8 * RATE))
    found = strength.argmax() / 8
    assert abs(1200 * np.log2(found / (440 * 2 ** ((pitch - 69) / 12)))) < 10


def test_a_note_begins_softly_rings_and_ends(page: chromium.Page) -> None:
    sound = np.abs(rendered(page, [(60, 90, 0.5, 1.5)], 5.0)).max(axis=0)

    def loudest(start: float, end: float) -> float:
        return float(sound[round(start * RATE) : round(end * RATE)].max())

    assert loudest(0, 0.499) == 0.0
    assert loudest(0.5, 0.7) > 0.02, "it is heard"
    assert loudest(0.5, 0.5005) < 0.5 * loudest(0.5, 0.7), "no click"
    assert loudest(0.5, 0.7) > loudest(1.2, 1.5) > 0, "it dies away"
    assert loudest(4.5, 5.0) < 0.01 * loudest(0.5, 0.7), "and ends with the room"


def test_a_louder_note_is_louder(page: chromium.Page) -> None:
    soft, loud = (np.abs(rendered(page, [(60, v, 0.1, 0.6)], 0.7)).max() for v in (30, 110))
    assert loud > 2 * soft > 0


def test_a_crowd_of_notes_does_not_clip(page: chromium.Page) -> None:
    """Twenty keys struck at once as hard as can be: a sample beyond 1 would be cut off."""
    sound = rendered(page, [(40 + 2 * n, 127, 0.05 * (n % 3), 1.5) for n in range(20)], 2.0)
    assert np.isfinite(sound).all() and np.abs(sound).max() <= 1.0
