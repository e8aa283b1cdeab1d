"""What every test runs under: no telemetry, its own cache folder, property tests without a clock; and what
many share because it takes long to make."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from tests import chromium

# Read when onnxruntime is imported, and some tests import it directly.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# A deadline measures the machine, not the code: shared cores stall for longer than any sensible one.
settings.register_profile("dsmr", deadline=None, print_blob=True)
settings.load_profile("dsmr")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokenized corpora are cached for one run of the tests, never read from or left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """Under nohup, or in the background of a script, signals that tests send would be ignored, here and by
    every process that is started from here."""
    defaults = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {kind: signal.getsignal(kind) for kind in defaults}
    for kind, handler in defaults.items():
        if before[kind] is signal.SIG_IGN:
            signal.signal(kind, handler)
    yield
    for kind, known in before.items():
        signal.signal(kind, known)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with random weights (tests/exported.py)."""
    pytest.importorskip("torch", reason="exports start from PyTorch")
    from tests.exported import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny").path


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
    """A bundle exported from it, with every graph: read it, never write into it."""
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    from tests.exported import pack_tiny, small_gate

    with small_gate():
        return pack_tiny(tiny_checkpoint, tmp_path_factory.mktemp("export") / "bundle").path


def skip_aloud(reason: str) -> NoReturn:
    """With a line of its own at the end of a run, which -q shows too."""
    warnings.warn(reason, stacklevel=2)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def web_build(own_cache: None) -> Path:
    """The page of `dsmr web`, built once for a run of the tests: read it, never write into it."""
    from dsmr_export.web import build, node

    try:
        return build.built(print)
    except (node.NodeError, build.UnreachableError) as error:
        skip_aloud(str(error))


@pytest.fixture(scope="session")
def web_site(web_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static site that `dsmr web --out` writes of the prebuilt bundle: read it, never write into it."""
    from dsmr_export.runtime import Bundle
    from dsmr_export.web import site

    folder = tmp_path_factory.mktemp("web") / "site"
    site.write(Bundle.open(), web_build, folder, force=False)
    return folder


@pytest.fixture(scope="session")
def web_url(web_build: Path) -> Iterator[str]:
    """Where `dsmr web` serves the prebuilt bundle."""
    from dsmr_export.runtime import Bundle
    from dsmr_export.web import site
    from tests.web_stand_in import serving

    with serving(site.of(Bundle.open(), web_build)) as url:
        yield url


@pytest.fixture(scope="session")
def web_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    program = chromium.found()
    if program is None:
        skip_aloud(f"no Chromium on the PATH, so no browser opens the page: {chromium.SETUP} installs one")
    with chromium.browsing(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def web_page(web_url: str, web_browser: chromium.Browser) -> Iterator[chromium.Page]:
    """The page, opened in a profile of its own; whatever is done with it, it says nothing on the console."""
    with web_browser.page() as page:
        page.open(web_url)
        yield page
        assert page.said == []


@pytest.fixture
def ready(web_page: chromium.Page) -> chromium.Page:
    """The page, its bundle open and its sound on."""
    from tests.web_session import wake

    wake(web_page)
    return web_page
