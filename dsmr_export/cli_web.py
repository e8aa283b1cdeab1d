"""`dsmr web`: a bundle in a browser."""

from __future__ import annotations

import shlex
import signal
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsmr_export.options import PATH, bundle_argument, open_bundle
from dsmr_export.terminal import stdout

if TYPE_CHECKING:
    from dsmr_export.web.serve import Server

PORT = 8765


@click.command()
@bundle_argument
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"Port of 127.0.0.1; 0: any free one.  [default: {PORT}]",
)
@click.option("--open", "show", is_flag=True, help="Open the browser, too.")
@click.option("--out", type=PATH, help="Write a static site into this folder, for any web server, and exit.")
@click.option("--force", is_flag=True, help="With --out: replace a site that is there.")
def web(bundle: Path | None, port: int | None, show: bool, out: Path | None, force: bool) -> None:
    """Play with a bundle in a browser: the model runs in the page.

    Serves the page to this machine until Ctrl-C. The first time, the page is built, with Node.js and a
    network.

    \b
    Example:
      dsmr web
      dsmr web dsmr-bundle --port 9000 --open
      dsmr web dsmr-bundle --out site
    """
    if out is None and force:
        raise click.UsageError("--force replaces a folder of --out: give that, too")
    if out is not None and (port is not None or show):
        raise click.UsageError("--out writes a folder and serves nothing: leave out --port and --open")
    from dsmr_export.web import build, site

    opened = open_bundle(bundle)
    with _terminable():
        page = build.built(lambda text: click.echo(text, err=True))
        if out is None:
            from dsmr_export.web.serve import Server

            with Server(site.of(opened, page), PORT if port is None else port) as server:
                _serve(server, show)
            return
        written = site.write(opened, page, out, force)
    files = len(written.files) + 1
    stdout().print(f"{out}: {written.bytes / 1e6:.1f} MB in {files} files", soft_wrap=True)
    look = f"python3 -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(out))}"
    click.echo(f"to look at it: {look}; from disk (file:) it does not run", err=True)


def _serve(server: Server, show: bool) -> None:
    """Until SIGINT or SIGTERM."""
    try:
        click.echo(server.url)
        click.echo("serving to this machine only; Ctrl-C ends it", err=True)
        if show:  # in a thread of its own: a browser in the terminal would keep us from serving it
            threading.Thread(target=_show, args=(server.url,), daemon=True).start()
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("ended", err=True)


def _show(url: str) -> None:
    if not webbrowser.open(url):
        click.echo(f"no browser could be opened: open {url} in yours", err=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is as Ctrl-C: a page that is half built is removed, a server ends in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
