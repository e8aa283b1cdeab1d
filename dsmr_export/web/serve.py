"""Serves a site to the browsers of this machine, without copying it.

What can be asked for is a table of paths made when it starts: nothing is looked up in a folder, so there is
no way out of one and no listing. A page of another site that makes its own name lead to 127.0.0.1 (DNS
rebinding) names itself in Host, and is refused.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import socketserver
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from dsmr_export.errors import DsmrError
from dsmr_export.web.site import ABOUT, INDEX, Site

ADDRESS = "127.0.0.1"
HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
"""Any port: one that is forwarded (ssh -L) has another number."""
IDLE_S = 30.0
"""Seconds for which a connection is kept that asks for nothing."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        # A bundle may be opened by its address.
        "connect-src 'self' blob: data: https: http://127.0.0.1:* http://localhost:*",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Allow": "GET, HEAD",
    "Cache-Control": "no-cache",  # another bundle may be served at the same address tomorrow
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".md": TEXT,
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": TEXT,
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
"""By the end of the name; all others, .onnx and .npz among them, are bytes. The machine's own table is not
asked: some say text/plain for .js, which browsers then do not run."""

Content = Mapping[str, Path | bytes]


class ServeError(DsmrError):
    """A port that cannot be had."""


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1 as soon as it is made; `serve_forever` answers. port: 0 = any free one.

    Raises ServeError.
    """

    daemon_threads = True

    def __init__(self, site: Site, port: int) -> None:
        self.content: Content = {"": site.files[INDEX], **site.files, ABOUT: site.about}
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            raise ServeError(_refusal(port, error)) from error

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """http.server's own asks the DNS for this machine's name, which can take long; only CGI needs it."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up in the middle is nobody's error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _refusal(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {ADDRESS} is taken, maybe by another dsmr web: end that, or give another --port "
            "(0: any free one)"
        )
    if error.errno == errno.EACCES:
        return f"port {port} is not for this user: give a --port above 1023"
    return f"port {port} of {ADDRESS} cannot be had ({error.strerror or error}): give another --port"


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the table; everything else is a line of text with its status."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dsmr", ""
    timeout = IDLE_S
    error_content_type = TEXT
    error_message_format = "%(code)d %(message)s\n"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _refuse_method(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method

    def _answer(self, body: bool) -> None:
        if not self._is_for_us():
            self.send_error(HTTPStatus.FORBIDDEN, f"this server answers for {ADDRESS} and localhost only")
            return
        name = _name(self.path)
        content = None if name is None else self.server.content.get(name)
        opened = None if content is None else _opened(content)
        if name is None or opened is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        file, size = opened
        with file:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", TYPES.get(os.path.splitext(name or INDEX)[1].lower(), BYTES))
            self.send_header("Content-Length", str(size))
            self.end_headers()
            if body:
                shutil.copyfileobj(file, self.wfile)

    def _is_for_us(self) -> bool:
        hosts = self.headers.get_all("Host", [])
        return len(hosts) == 1 and HOST.fullmatch(hosts[0].strip()) is not None

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *values: object) -> None:
        """Silent: a page asks for thirty files."""


def _name(target: str) -> str | None:
    """Path in the site of a request's target: as in /assets/page.js?v=1. None for a target that has none."""
    if not target.startswith("/"):
        return None
    try:
        return unquote(urlsplit(target).path.removeprefix("/"), errors="strict")
    except ValueError:
        return None


def _opened(content: Path | bytes) -> tuple[BinaryIO, int] | None:
    """(file, bytes); None for a file that is gone, or that has become a link since the table was made."""
    if isinstance(content, bytes):
        return io.BytesIO(content), len(content)
    if os.path.realpath(content) != os.fspath(content):
        return None
    try:
        file = content.open("rb")
    except OSError:
        return None
    return file, os.fstat(file.fileno()).st_size
