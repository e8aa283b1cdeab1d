"""What the browser tests share: the host library in a page, and how bundles and numbers travel."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.manifest import MANIFEST
from dsmr_export.runtime.bundle import write_sums
from tests.chromium import Page

_PREPARED = """
const host = await import('./host.js');
const bytes = text => Uint8Array.from(atob(text), one => one.charCodeAt(0));
const packed = array => {
  let text = '';
  const all = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  for (let i = 0; i < all.length; i += 8192) text += String.fromCharCode(...all.subarray(i, i + 8192));
  return btoa(text);
};
const blobs = files => files.map(([path, data]) => [path, new Blob([bytes(data)])]);
const refusal = async work => {
  try { await work() }
  catch (error) { return [error.kind ?? error.name, error.message, error.graphs ?? null] }
  return null;
};
"""


def run(page: Page, body: str, **values: Any) -> Any:
    """Runs the body of an async function in the page, with `host` (the library), `given` (the values) and the
    small functions above; what it returns must be JSON."""
    return page.ask(f"(async () => {{ {_PREPARED} const given = {json.dumps(values)}; {body} }})()")


def contents(folder: Path) -> list[tuple[str, str]]:
    """Path and base64 of every file: a folder as it is dropped."""
    return [
        (path.relative_to(folder).as_posix(), base64.b64encode(path.read_bytes()).decode())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def zipped(folder: Path, within: str = "") -> bytes:
    """A zip file with the folder's content."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, within + path.relative_to(folder).as_posix())
    return packed.getvalue()


def rewritten(folder: Path, **values: Any) -> None:
    """Other entries in a bundle's manifest, with checksums that fit, whatever they are."""
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    write_sums(folder)


def damage(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rows(text: str, width: int) -> NDArray[np.float32]:
    """Base64 of float32 [N * width] as [N, width]."""
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, width)
