"""Page and bundle together: as paths of one site, and as a folder that any web server can show.

A site is the built page with a bundle beside it in bundle/, and site.json, which says so and lists every file
for the page's offline copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmr_export.errors import BundleError, OutputError, OutputExistsError
from dsmr_export.runtime.bundle import SUMS, Bundle, file_sha256, verify
from dsmr_export.runtime.files import new_folder

INDEX, ABOUT, BUNDLE = "index.html", "site.json", "bundle/"


@dataclass(frozen=True)
class Site:
    """files: path in the site, with `/` -> the file it is a copy of, all links resolved. about: site.json."""

    files: Mapping[str, Path]
    about: bytes

    @property
    def bytes(self) -> int:
        return len(self.about) + sum(path.stat().st_size for path in self.files.values())


def of(bundle: Bundle, page: Path) -> Site:
    """The site of a bundle and a built page (build.built).

    Of the bundle what SHA256SUMS lists, and nothing that was laid beside it. Raises BundleError for a file
    that is a link out of the bundle: what it leads to is not the bundle's to show.
    """
    listed, _ = verify(bundle.path)
    files = {name: page / name for name in _below(page)}
    files |= {BUNDLE + name: bundle.path / name for name in (*listed, SUMS) if (bundle.path / name).is_file()}
    resolved = {name: path.resolve() for name, path in sorted(files.items())}
    for name, path in resolved.items():
        root = (bundle.path if name.startswith(BUNDLE) else page).resolve()
        if not path.is_relative_to(root):
            raise BundleError(f"{files[name]} is a link out of its folder: copy the bundle without links")
    about = {"bundle": BUNDLE, "files": [*resolved, ABOUT], "version": _version(resolved)}
    return Site(resolved, json.dumps(about, indent=1).encode() + b"\n")


def _below(folder: Path) -> Iterator[str]:
    yield from (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _version(files: Mapping[str, Path]) -> str:
    """SHA-256 over names and contents, in hex; of the bundle its SHA256SUMS, which was seen to be right."""
    total = hashlib.sha256()
    for name, path in files.items():
        if not name.startswith(BUNDLE) or name == BUNDLE + SUMS:
            total.update(f"{file_sha256(path)}  {name}\n".encode())
    return total.hexdigest()


def write(bundle: Bundle, page: Path, out: Path, force: bool) -> Site:
    """Writes the site into the folder `out`, whole or not at all.

    force: replaces a site that is there, and nothing else. Raises OutputExistsError, OutputError,
    BundleError.
    """
    _require_place(bundle, out)
    _require_free(out, force)
    site = of(bundle, page)
    with new_folder(out, force, "--out") as folder:
        for name, path in site.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        (folder / ABOUT).write_bytes(site.about)
    return site


def _require_place(bundle: Bundle, out: Path) -> None:
    root, place = bundle.path.resolve(), out.resolve()
    if place.is_relative_to(root) or root.is_relative_to(place):
        raise OutputError(f"{out}: is the bundle, or in it, or around it; give a folder elsewhere with --out")


def _require_free(out: Path, force: bool) -> None:
    """Nothing there, an empty folder, or with force a site with nothing of anybody else's in it."""
    try:
        if not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
            return
        listed = _listed(out)
        others = [] if listed is None else sorted(set(_below(out)) - listed)
    except OSError as error:
        raise OutputError(f"{out}: cannot be read ({error.strerror}); give another --out") from error
    if listed is None:
        raise OutputExistsError(f"{out} is there already and is no site of dsmr web: give another --out")
    if others:
        raise OutputExistsError(
            f"{out}: holds {others[0]}, which is not of the site and would be lost: move it away, or give "
            "another --out"
        )
    if not force:
        raise OutputExistsError(
            f"{out} is there already: give another --out, or --force to replace that site"
        )


def _listed(folder: Path) -> set[str] | None:
    """The files of the site that is there; None where it is none."""
    if folder.is_symlink() or not (folder / INDEX).is_file():
        return None
    try:
        about: Any = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if not isinstance(about, dict) or about.keys() != {"bundle", "files", "version"}:
        return None
    files = about["files"]
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        return None
    return set(files)
