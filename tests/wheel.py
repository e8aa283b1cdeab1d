"""The wheel, built from a copy of what is packed: building leaves files in its tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = "examples/web"
PACKAGED = (
    *("pyproject.toml", "README.md", "LICENSE", "NOTICE", "dsmr_export", "model", "targets"),
    *(f"{PAGE}/{name}" for name in ("index.html", "package.json", "package-lock.json", "tsconfig.json")),
    *(f"{PAGE}/{name}" for name in ("vite.config.ts", "src", "public")),
)
"""What a wheel is built from."""


def copy_tree(folder: Path) -> Path:
    """Copies it into `folder`, which need not exist."""
    for name in PACKAGED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(tree: Path, folder: Path) -> Path:
    """The wheel of a copied tree, in `folder`. Raises RuntimeError with what was said where it fails."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--quiet"]
    run = subprocess.run([*command, "--outdir", str(folder), str(tree)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"the wheel cannot be built: {run.stderr.strip()[-2000:]}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpacked(folder: Path) -> Path:
    """The content of the wheel, below `folder`."""
    with zipfile.ZipFile(build(copy_tree(folder / "tree"), folder)) as archive:
        archive.extractall(folder / "site")
    return folder / "site"
