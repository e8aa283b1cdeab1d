"""`dsmr web`: a site in a folder of its own, or one that is served until the command is ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from dsmr_export import cli
from dsmr_export.errors import BundleError, OutputError, OutputExistsError
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.bundle import SUMS, bundle_files, write_sums
from dsmr_export.web import build, node, site
from tests import chromium, tiny_bundle, web_stand_in
from tests.web_stand_in import ask, content, until


def dsmr(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["web", *arguments])


def refusal(result: Result) -> str:
    """The one line that a refused command says last."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    return line


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return web_stand_in.page(tmp_path / "page")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle.make_bundle(tmp_path / "tiny")


# --- a site -------------------------------------------------------------------------------------------------


def test_a_site_is_page_and_bundle(page: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "new" / "site"
    site.write(bundle, page, out, force=False)
    files = content(out)
    about = json.loads(files.pop("site.json"))
    assert files == content(page) | {f"bundle/{name}": data for name, data in content(bundle.path).items()}
    assert about["bundle"] == "bundle/"
    assert sorted(about["files"]) == sorted([*files, "site.json"])
    assert "bundle/SHA256SUMS" in about["files"]
    assert out.stat().st_mode & 0o777 == 0o755
    assert os.listdir(out.parent) == ["site"]


def test_the_version_is_that_of_page_and_bundle(page: Path, bundle: Bundle) -> None:
    def version() -> str:
        return str(json.loads(site.of(Bundle.open(bundle.path), page).about)["version"])

    first = version()
    assert version() == first and re.fullmatch("[0-9a-f]{64}", first)
    (page / "assets" / "page.js").write_text("another")
    second = version()
    (bundle.path / "README.md").write_text("another")
    write_sums(bundle.path)
    assert len({first, second, version()}) == 3


def test_what_lies_in_a_bundle_unlisted_stays_there(page: Path, bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "report").mkdir(exist_ok=True)
    (bundle.path / "report" / "secret.txt").write_text("not of the bundle")
    with pytest.warns(UserWarning, match="secret.txt is not in SHA256SUMS"):
        opened = Bundle.open(bundle.path)
    site.write(opened, page, tmp_path / "site", force=False)
    assert not (tmp_path / "site" / "bundle" / "report").exists()


def test_a_link_out_of_the_bundle_is_refused(page: Path, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes((bundle.path / "README.md").read_bytes())
    (bundle.path / "README.md").unlink()
    (bundle.path / "README.md").symlink_to(tmp_path / "outside")
    with pytest.raises(
        BundleError, match="README.md is a link out of its folder: copy the bundle without links"
    ):
        site.write(Bundle.open(bundle.path), page, tmp_path / "site", force=False)
    assert not (tmp_path / "site").exists()


def test_a_site_is_replaced_only_with_force(page: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "site"
    out.mkdir()  # empty: nothing is lost
    site.write(bundle, page, out, force=False)
    before = content(out)
    (page / "assets" / "page.js").rename(page / "assets" / "newer.js")
    with pytest.raises(
        OutputExistsError, match="is there already: give another --out, or --force to replace"
    ):
        site.write(bundle, page, out, force=False)
    assert content(out) == before
    site.write(bundle, page, out, force=True)
    assert (out / "assets" / "newer.js").exists() and not (out / "assets" / "page.js").exists()
    assert sorted(os.listdir(tmp_path)) == ["page", "site", "tiny"]


@pytest.mark.parametrize("what", ["folder", "file", "link", "other json", "damaged json"])
def test_what_is_no_site_is_never_replaced(page: Path, bundle: Bundle, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    elif what == "link":
        site.write(bundle, page, tmp_path / "real", force=False)
        out.symlink_to(tmp_path / "real")
    else:
        out.mkdir()
        (out / "index.html").write_text("mine")
        text = {"other json": '{"files": ["index.html"]}', "damaged json": '{"files"'}.get(what)
        if text is not None:
            (out / "site.json").write_text(text)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(
        OutputExistsError, match="out is there already and is no site of dsmr web: give another"
    ):
        site.write(bundle, page, out, force=True)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_site_with_a_file_of_its_owners_is_not_replaced(page: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "site"
    site.write(bundle, page, out, force=False)
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref")
    with pytest.raises(
        OutputExistsError, match=r"holds \.git/HEAD, which is not of the site and would be lost"
    ):
        site.write(bundle, page, out, force=True)
    assert (out / ".git" / "HEAD").exists()


@pytest.mark.parametrize("place", ["tiny", "tiny/site", "."])
def test_a_site_in_the_bundle_or_around_it_is_refused(
    page: Path, bundle: Bundle, tmp_path: Path, place: str
) -> None:
    with pytest.raises(OutputError, match="is the bundle, or in it, or around it"):
        site.write(bundle, page, tmp_path / place, force=True)
    Bundle.open(bundle.path)


def test_a_site_that_fails_half_way_leaves_the_old_one(
    page: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "site"
    site.write(bundle, page, out, force=False)
    before, copied, real = content(out), [], shutil.copyfile

    def full(source: Path, target: Path) -> None:
        copied.append(source)
        if len(copied) == 4:
            raise OSError(28, os.strerror(28))
        real(source, target)

    monkeypatch.setattr(site.shutil, "copyfile", full)
    with pytest.raises(OutputError, match=r"site could not be written \(the disk is full\)"):
        site.write(bundle, page, out, force=True)
    assert content(out) == before and sorted(os.listdir(tmp_path)) == ["page", "site", "tiny"]


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def ready(page: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command whose page is built."""
    monkeypatch.setattr(build, "built", lambda say: page)
    return page


def test_out_says_how_large_it_is_and_how_to_look_at_it(ready: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "a site"
    result = dsmr(str(bundle.path), "--out", str(out))
    assert result.exit_code == 0, result.output
    files = content(out)
    size = sum(map(len, files.values())) / 1e6
    assert result.stdout == f"{out}: {size:.1f} MB in {len(files)} files\n"
    assert result.stderr == (
        f"to look at it: python3 -m http.server --bind 127.0.0.1 --directory '{out}'; "
        "from disk (file:) it does not run\n"
    )
    assert "is there already" in refusal(dsmr(str(bundle.path), "--out", str(out)))
    assert dsmr(str(bundle.path), "--out", str(out), "--force").exit_code == 0


def test_without_a_name_it_is_the_prebuilt_bundle(ready: Path, tmp_path: Path) -> None:
    assert dsmr("--out", str(tmp_path / "site")).exit_code == 0
    assert Bundle.open(tmp_path / "site" / "bundle").identity == Bundle.open().identity


def test_a_bundle_that_is_not_whole_is_refused_before_anything_is_built(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "built", lambda say: pytest.fail("built"))
    (bundle.path / "model.onnx").write_bytes(b"changed")
    assert "model.onnx was changed" in refusal(dsmr(str(bundle.path), "--out", str(tmp_path / "site")))
    assert "is not a folder" in refusal(dsmr(str(tmp_path / "none")))
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--force"], "--force replaces a folder of --out: give that, too"),
        (
            ["--out", "x", "--port", "1"],
            "--out writes a folder and serves nothing: leave out --port and --open",
        ),
        (["--out", "x", "--open"], "--out writes a folder and serves nothing: leave out --port and --open"),
        (["--port", "65536"], "65536 is not in the range"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], message: str) -> None:
    result = dsmr(*arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_without_node_it_is_one_line(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(node, "find_spec", lambda package: None)
    line = refusal(dsmr(str(bundle.path)))
    assert line.endswith("pip install 'dsmr-export[web]' brings one, or install it from nodejs.org")


@contextlib.contextmanager
def running(page: Path, *arguments: str, code: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`dsmr web` in a process of its own, with a page that is built; and the address that it prints."""
    code = (
        "from pathlib import Path; from dsmr_export.web import build;"
        f"build.built = lambda say: Path({str(page)!r}); {code}\n"
        f"from dsmr_export.cli import main; main({['web', *arguments]!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_ended(page: Path, bundle: Bundle, kind: signal.Signals) -> None:
    with running(page, str(bundle.path), "--port", "0") as (process, address):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        answer, data = ask(address, "/bundle/" + SUMS)
        assert data == (bundle.path / SUMS).read_bytes()
        assert [ask(address, f"/bundle/{name}")[0].status for name in bundle_files(bundle.path)]
        process.send_signal(kind)
        out, error = process.communicate(timeout=20)
        assert process.returncode == 0 and out == ""
        assert error == "serving to this machine only; Ctrl-C ends it\nended\n"


def test_it_ends_although_a_browser_holds_its_connection(page: Path, bundle: Bundle) -> None:
    with running(page, str(bundle.path), "--port", "0") as (process, address):
        place = urlsplit(address)
        with socket.create_connection((place.hostname, place.port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(1 << 16)
            process.terminate()
            assert process.wait(20) == 0


def test_the_same_port_again_is_one_line(page: Path, bundle: Bundle) -> None:
    with running(page, str(bundle.path), "--port", "0") as (_, address):
        port = str(urlsplit(address).port)
        with running(page, str(bundle.path), "--port", port) as (second, nothing):
            _, error = second.communicate(timeout=60)
            assert nothing == "" and second.returncode == 1
            assert error.startswith(f"Error: port {port} of 127.0.0.1 is taken") and error.count("\n") == 1


@pytest.mark.parametrize("opens", [True, False])
def test_open_opens_a_browser(page: Path, bundle: Bundle, tmp_path: Path, opens: bool) -> None:
    """Which may take as long as it likes: the page is served meanwhile."""
    file = tmp_path / "opened"
    fake = f"import webbrowser; file = Path({str(file)!r})\n"
    fake += f"webbrowser.open = lambda url: bool(file.write_text(url)) and {opens}"
    with running(page, str(bundle.path), "--port", "0", "--open", code=fake) as (process, address):
        until(lambda: file.exists() and file.read_text() == address)
        assert ask(address, "/")[0].status == 200
        time.sleep(0.2)
        process.terminate()
        _, error = process.communicate(timeout=20)
        assert (f"no browser could be opened: open {address} in yours\n" in error) == (not opens)


# --- all of it ----------------------------------------------------------------------------------------------


def test_the_page_that_is_built(web_site: Path) -> None:
    """An entry for the page and one for scripts of others, WebAssembly, and nothing from elsewhere."""
    files = content(web_site)
    names = set(files)
    assert {"index.html", "host.js", "sw.js", "manifest.webmanifest", "icon.svg", "site.json"} <= names
    assert any(name.endswith(".wasm") for name in names)
    assert Bundle.open(web_site / "bundle").identity == Bundle.open().identity
    html = files["index.html"].decode()
    for link in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert link.startswith("./") and link[2:] in names, link
    assert not [name for name in names if name.endswith((".ts", ".map"))]


@pytest.mark.slow
def test_what_is_said_to_look_at_a_site_shows_it(web_site: Path, web_browser: chromium.Browser) -> None:
    """A plain web server, below a folder, without any header of ours."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "http.server",
        "--bind",
        "127.0.0.1",
        "--directory",
        str(web_site.parent),
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"port (\d+)", process.stdout.readline())
            assert match is not None
            with web_browser.page() as page:
                page.open(f"http://127.0.0.1:{match[1]}/{web_site.name}/")
                page.wait("document.documentElement.dataset.phase === 'listening'")
                assert page.said == []
        finally:
            process.kill()
