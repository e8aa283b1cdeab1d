"""The page, built from its sources with npm and kept in the user's cache: 14 MB of WebAssembly that the base
install need not carry.

A build is named by the SHA-256 of what it was made from, so that each version of this package finds its
own. It is made in a hidden folder beside the kept ones and renamed into place: whole or not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dsmr_export.errors import DsmrError, OutputError
from dsmr_export.web.node import Node, find

PATTERNS = (
    "index.html",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "vite.config.ts",
    "src/**/*",
    "public/**/*",
)
"""The sources, as pyproject.toml packs them."""
KEPT_S = 30 * 86400.0
"""Seconds for which a build of other sources outlives its last use: a server may still be showing it."""
PAGE, LIST = "page", "files.json"
"""In a kept build: the page, and the names of its files, because caches get cleaned by others, too."""
INSTALL = (
    *("ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"),
    "--fetch-retry-mintimeout=1000",  # ms; npm's own 10 s are a long silence where there is no network
)
"""What the lock names, by its hashes, and nothing that a package would run."""
NETWORK = {
    *("EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETUNREACH", "ENOTCACHED", "ENOTFOUND"),
    *("EPIPE", "ERR_SOCKET_TIMEOUT", "ETIMEDOUT", "E502", "E503", "E504"),
}
"""npm's codes for a registry that it cannot reach."""
CACHE = "give another place with XDG_CACHE_HOME"

Say = Callable[[str], None]


class PageError(DsmrError):
    """The page cannot be built."""


class UnreachableError(PageError):
    """What the page is built with cannot be fetched."""


def sources() -> Path:
    """The folder of the page's sources: inside an installed package, or examples/web of the repository.

    Raises PageError where neither is there.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "page", here.parents[1] / "examples" / "web"):
        if (folder / "package-lock.json").is_file():
            return folder
    raise PageError(
        f"{here / 'page'} is missing, so this install is not whole: install dsmr-export again from its wheel"
    )


def built(say: Say, folder: Path | None = None) -> Path:
    """The folder of the built page, from the cache or built now. It is shared: read it, never write into it.

    say: is told what takes time. folder: other sources than this package's. Raises NodeError (no Node.js that
    is new enough), UnreachableError, PageError, OutputError (no room for it).
    """
    folder = folder or sources()
    kept = _cache() / _digest(folder)
    try:
        if not _whole(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with _alone(kept.parent, say):
                if not _whole(kept):  # built by another process while this one waited
                    _remove(kept)
                    _build(folder, kept, find(), say)
                _tidy(kept)
        os.utime(kept)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{kept.parent}: the page cannot be kept there ({reason}): {CACHE}") from error
    return kept / PAGE


def _whole(kept: Path) -> bool:
    """Whether a build is there, with every file that was made."""
    try:
        names = json.loads((kept / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((kept / PAGE / name).is_file() for name in names)


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("dsmr-export") / "web"


def files(folder: Path) -> Iterator[str]:
    """The sources below `folder`, sorted, as paths with `/`."""
    found = {path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()}
    yield from sorted(path.relative_to(folder).as_posix() for path in found)


def _digest(folder: Path) -> str:
    """Of every name and content, in hex."""
    total = hashlib.sha256()
    for name in files(folder):
        content = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        total.update(f"{content}  {name}\n".encode())
    return total.hexdigest()


@contextmanager
def _alone(cache: Path, say: Say) -> Iterator[None]:
    """One build at a time in a cache. The kernel holds the lock: it ends with its process in any case."""
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("the page is being built by another process: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(folder: Path, kept: Path, node: Node, say: Say) -> None:
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=kept.parent))
    try:
        for name in files(folder):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, work / name)
        say(f"building the page, once: fetching what it is made of, with npm and {node.source}")
        _install(work, node)
        say("building the page, once: vite")
        _vite(work, node)
        made, page = work / "made", work / "made" / PAGE
        made.mkdir()
        os.rename(work / "dist", page)
        names = [path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()]
        (made / LIST).write_text(json.dumps(names), encoding="utf-8")
        os.rename(made, kept)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _install(work: Path, node: Node) -> None:
    status, said = _run((*node.npm, *INSTALL), work, node)
    if status == 0:
        return
    code, reason = _npm_error(said, status)
    if code in NETWORK:
        raise UnreachableError(
            f"what the page is built with cannot be fetched (npm ci: {reason}): is there a network? "
            "The page is built once, then none is needed"
        )
    raise PageError(f"the page cannot be built (npm ci: {reason}): mend that, and run the command again")


def _npm_error(said: str, status: int) -> tuple[str, str]:
    """(code, what happened) of npm's report, whose lines begin with `npm error`."""
    lines = re.findall(r"^npm (?:error|ERR!) (.*\S)", said, re.MULTILINE)
    code = next((line.removeprefix("code ") for line in lines if line.startswith("code ")), "")
    telling = (line for line in lines if not re.match(r"(code|errno|syscall|path|A complete log) ", line))
    return code, next(telling, code or _last_line(said, status)).rstrip(".")


def _vite(work: Path, node: Node) -> None:
    vite = work / "node_modules" / "vite" / "bin" / "vite.js"
    status, said = _run((*node.node, str(vite), "build", "--logLevel", "warn"), work, node)
    if status != 0:
        raise PageError(
            f"the page cannot be built (vite: {_vite_error(said, status)}): mend its sources if you changed "
            "them, or else install dsmr-export again"
        )
    if not (work / "dist" / "index.html").is_file():
        raise PageError("the page cannot be built (vite made no dist/index.html): mend its vite.config.ts")


def _vite_error(said: str, status: int) -> str:
    """The line after `error during build:` that says what, and where it is; or the last one."""
    rest = said.partition("error during build:")[2]
    lines = [line.strip() for line in rest.splitlines() if line.strip()]
    telling = next((line for line in lines if not line.startswith("Build failed")), "")
    place = re.search(r"\[ (\S+:\d+:\d+) \]", rest)
    return f"{telling}{f', {place[1]}' if place else ''}" if telling else _last_line(said, status)


def _last_line(said: str, status: int) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {status}"


def _run(command: tuple[str, ...], folder: Path, node: Node) -> tuple[int, str]:
    """(exit status, what it said on both streams, without colours)."""
    environment = node.environment() | {"NO_COLOR": "1", "CI": "1"}
    environment.pop("FORCE_COLOR", None)
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def _tidy(kept: Path) -> None:
    """Removes what builds that were killed left, and builds of other sources that were not used lately."""
    for path in kept.parent.iterdir():
        old = path.is_dir() and path != kept and path.stat().st_mtime < time.time() - KEPT_S
        if old or path.name.startswith(".build-"):
            _remove(path)


def _remove(path: Path) -> None:
    """Under another name first, so that what a kill leaves of it is no build."""
    if path.exists():
        gone = path.with_name(f".build-{path.name.removeprefix('.build-')}-gone")
        os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)
