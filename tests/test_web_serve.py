"""A bundle and its page are served to this machine and to nobody else: these files, with these headers."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dsmr_export.runtime import Bundle
from dsmr_export.web import serve, site
from tests import tiny_bundle, web_stand_in
from tests.web_stand_in import ask, content, serving


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return web_stand_in.page(tmp_path / "page")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle.make_bundle(tmp_path / "tiny")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a site that no test changes."""
    folder = tmp_path_factory.mktemp("served")
    bundle = tiny_bundle.make_bundle(folder / "tiny")
    with serving(site.of(bundle, web_stand_in.page(folder / "page"))) as address:
        yield address


@pytest.fixture
def own_url(page: Path, bundle: Bundle) -> Iterator[str]:
    with serving(site.of(bundle, page)) as address:
        yield address


def test_it_serves_what_it_would_write(own_url: str, page: Path, bundle: Bundle, tmp_path: Path) -> None:
    site.write(bundle, page, tmp_path / "site", force=False)
    files = content(tmp_path / "site")
    for name in json.loads(files["site.json"])["files"]:
        answer, data = ask(own_url, f"/{name}")
        assert (answer.status, data) == (200, files[name]), name
        answer, data = ask(own_url, f"/{name}", "HEAD")
        assert (answer.status, data) == (200, b"") and answer.headers["Content-Length"] == str(
            len(files[name])
        )
    assert ask(own_url, "/")[1] == files["index.html"]
    assert ask(own_url, "/?a=b#c")[0].status == ask(own_url, "/%69ndex.html")[0].status == 200


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", "text/html; charset=utf-8"),
        ("index.html", "text/html; charset=utf-8"),
        ("assets/page.js", "text/javascript; charset=utf-8"),
        ("assets/ort.mjs", "text/javascript; charset=utf-8"),
        ("assets/ort.wasm", "application/wasm"),
        ("assets/page.css", "text/css; charset=utf-8"),
        ("site.json", "application/json"),
        ("bundle/manifest.json", "application/json"),
        ("manifest.webmanifest", "application/manifest+json"),
        ("icon.svg", "image/svg+xml"),
        ("bundle/model.onnx", "application/octet-stream"),
        ("bundle/golden.npz", "application/octet-stream"),
        ("bundle/SHA256SUMS", "application/octet-stream"),
    ],
)
def test_types_are_its_own_and_headers_are_everywhere(url: str, name: str, kind: str) -> None:
    answer, _ = ask(url, f"/{name}")
    assert answer.status == 200 and answer.headers["Content-Type"] == kind
    for header, value in serve.HEADERS.items():
        assert answer.headers.get_all(header) == [value]


def test_the_policy() -> None:
    """What the page needs, and nothing else: WebAssembly, the worklet's blobs, bundles by their address."""
    policy = dict(part.split(" ", 1) for part in serve.POLICY.split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert policy["worker-src"] == "'self' blob:"
    assert policy["connect-src"] == "'self' blob: data: https: http://127.0.0.1:* http://localhost:*"
    assert policy["frame-ancestors"] == "'none'"
    others = (
        serve.POLICY.replace("https:", "").replace("http://127.0.0.1:*", "").replace("http://localhost:*", "")
    )
    assert "http:" not in others


OUTSIDE = [
    "/nothing",
    "/assets",
    "/assets/",
    "/bundle/",
    "/bundle",
    "/../page/index.html",
    "/..%2f..%2f..%2f..%2fetc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/bundle/../../../etc/passwd",
    "/bundle/%2e%2e/index.html",
    "/bundle/..%5c..%5cetc",
    "//etc/passwd",
    "/%2fetc/passwd",
    "/index.html%00.js",
    "/%ff",
    "/./index.html",
    "index.html",
    "*",
]


@pytest.mark.parametrize("target", OUTSIDE)
def test_there_is_no_way_out_and_no_listing(url: str, target: str) -> None:
    answer, data = ask(url, target)
    assert answer.status == 404 and data == b"404 Not Found\n"
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Content-Security-Policy"] == serve.POLICY


def test_a_file_that_becomes_a_link_or_goes_is_not_found(
    own_url: str, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (bundle.path / "README.md").unlink()
    assert ask(own_url, "/bundle/README.md")[0].status == 404
    (bundle.path / "README.md").symlink_to(tmp_path / "secret")
    assert ask(own_url, "/bundle/README.md")[0].status == 404
    (bundle.path / "golden.npz").rename(tmp_path / "golden.npz")
    (bundle.path / "golden.npz").symlink_to(bundle.path / "manifest.json")
    assert ask(own_url, "/bundle/golden.npz")[0].status == 404


def test_a_file_laid_beside_the_others_is_not_found(own_url: str, page: Path) -> None:
    (page / "later.html").write_text("later")
    assert ask(own_url, "/later.html")[0].status == 404


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:1", "localhost", "LOCALHOST:8765", "[::1]", "[::1]:9000", " localhost "]
)
def test_names_of_this_machine_are_answered(url: str, host: str) -> None:
    assert ask(url, "/", headers={"Host": host})[0].status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example#127.0.0.1",
        "127.0.0.1:80@evil.example",
        "127.0.0.2",
        "0.0.0.0",
        "::1",
        "localhost:",
        "",
    ],
)
def test_another_name_is_refused(url: str, host: str) -> None:
    """A page of evil.example whose name was made to lead here (DNS rebinding) sends its own name."""
    answer, data = ask(url, "/bundle/manifest.json", headers={"Host": host})
    assert answer.status == 403
    assert data == b"403 this server answers for 127.0.0.1 and localhost only\n"


def raw(url: str, request: bytes) -> bytes:
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while part := connection.recv(1 << 16):
            found += part
    return found


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 403 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"HTTP/1.1 403 "),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 404 "),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", b"HTTP/1.1 414 "),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", b"505 "),  # as HTTP 0.9: the text alone
        (b"nonsense\r\n\r\n", b"400 "),
    ],
    ids=["no host", "two hosts", "absolute", "long", "version", "nonsense"],
)
def test_odd_requests(url: str, text: bytes, begins: bytes) -> None:
    answer = raw(url, text)
    assert answer.startswith(begins), answer[:200]
    assert ask(url, "/")[0].status == 200  # and the server goes on


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_it_only_gives(url: str, method: str) -> None:
    answer, data = ask(url, "/", method)
    assert answer.status == 405 and data == b"405 Method Not Allowed\n"
    assert answer.headers["Allow"] == "GET, HEAD"


def test_a_browser_that_hangs_up_is_nobodys_error(
    own_url: str, page: Path, bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    (page / "assets" / "ort.wasm").write_bytes(bytes(20_000_000))
    place = urlsplit(own_url)
    for _ in range(3):
        with socket.create_connection((place.hostname, place.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.sendall(b"GET /assets/ort.wasm HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.recv(100)
    assert len(ask(own_url, "/assets/ort.wasm")[1]) == 20_000_000
    assert capfd.readouterr() == ("", "")


def test_many_at_once(own_url: str, page: Path) -> None:
    (page / "assets" / "ort.wasm").write_bytes(bytes(3_000_000))
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(ask(own_url, "/assets/ort.wasm")[1])))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [3_000_000] * 20


def test_it_listens_to_this_machine_only(page: Path, bundle: Bundle) -> None:
    with serve.Server(site.of(bundle, page), 0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken(page: Path, bundle: Bundle) -> None:
    shown = site.of(bundle, page)
    with serve.Server(shown, 0) as server:
        port = server.server_address[1]
        with pytest.raises(serve.ServeError) as error:
            serve.Server(shown, port)
    assert str(error.value) == (
        f"port {port} of 127.0.0.1 is taken, maybe by another dsmr web: end that, or give another --port "
        "(0: any free one)"
    )
    serve.Server(shown, port).server_close()  # free again at once


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (13, "port 80 is not for this user: give a --port above 1023"),
        (99, "port 80 of 127.0.0.1 cannot be had (Cannot assign requested address): give another --port"),
    ],
)
def test_a_port_that_cannot_be_had(
    page: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def bind(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(serve.Server, "server_bind", bind)
    with pytest.raises(serve.ServeError) as error:
        serve.Server(site.of(bundle, page), 80)
    assert str(error.value) == message
