"""The house (design, section 6): which part may import which, and that what is packaged is what is on disk.

Imports are read from the syntax tree, so that lazy ones inside functions count like those at the top.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"dsmr_export": "dsmr_export", "model": "dsmr_export.model", "targets": "dsmr_export.targets"}
PAGE = {"dsmr_export.web.page": "examples/web"}
"""Packed without being Python: what `dsmr web` builds its page from."""

SHARED = {"dsmr_export", *(f"dsmr_export.{name}" for name in ("errors", "schedule", "state", "manifest"))}
DEVICE = {"numpy", "onnxruntime", "mido", "rtmidi", "platformdirs"}

# Module prefix -> what it may import besides the standard library; the longest prefix that fits applies.
# Ours are given as modules (a package stands for all of it), others as top-level packages.
ALLOWED: dict[str, set[str]] = {
    "dsmr_export.errors": SHARED,
    "dsmr_export.schedule": SHARED,
    "dsmr_export.state": SHARED,
    "dsmr_export.manifest": SHARED,
    "dsmr_export.runtime": SHARED | DEVICE | {"dsmr_export.runtime"},
    "dsmr_export.corpus": SHARED | {"dsmr_export.runtime"},
    "dsmr_export.targets": SHARED | {"dsmr_export.targets"},
    "dsmr_export.web": SHARED | {"dsmr_export.runtime", "dsmr_export.web", "platformdirs"},
}
# The device install runs the command line: what it loads before a command is chosen must be light.
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "miditok",
    "symusic",
    "optimum",
    "transformers",
    "mido",
    "numpy",
    "matplotlib",
    "jinja2",
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module that is installed, with its file."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported, at the top or inside; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def is_allowed(name: str, allowed: set[str]) -> bool:
    top = name.split(".")[0]
    if top != "dsmr_export":
        return top in sys.stdlib_module_names or top in allowed
    while name not in OURS:  # the last parts may be a function or a class
        name = name.rpartition(".")[0]
    # The top package stands for its own names (the version), any other for all below it.
    return name in allowed or any(name.startswith(f"{ours}.") for ours in allowed - {"dsmr_export"})


OURS = dict(modules())


@pytest.mark.parametrize("module", sorted(OURS))
def test_import_directions(module: str) -> None:
    fitting = [prefix for prefix in ALLOWED if module == prefix or module.startswith(f"{prefix}.")]
    if not fitting:
        return  # the workstation's side: free to import, as long as it is declared (test_install.py)
    allowed, path = ALLOWED[max(fitting, key=len)], OURS[module]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for line, name in imports(module, path)
        if not is_allowed(name, allowed)
    ]
    assert not wrong, f"{module} must not import these"


def test_the_checker_sees_what_it_must(tmp_path: Path) -> None:
    """The test above is only worth something if it fails: lazy, relative, aliased and dynamic imports."""
    path = tmp_path / "stream.py"
    path.write_text(
        "import numpy as np\n"
        "from ..state import StateTensor\n"
        "from . import bundle\n"
        "def feed():\n"
        "    import torch.nn\n"
        "    from dsmr_export.model import network\n"
        "    from dsmr_export import __version__, model, targets\n"
        "    import importlib\n"
        "    importlib.import_module('miditok')\n",
        encoding="utf-8",
    )
    allowed = ALLOWED["dsmr_export.runtime"]
    found = [name for _, name in imports("dsmr_export.runtime.stream", path)]
    assert {name for name in found if not is_allowed(name, allowed)} == {
        "torch.nn",
        "dsmr_export.model.network",
        "dsmr_export.model",
        "dsmr_export.targets",
        "miditok",
    }


def test_packages_in_pyproject_are_those_on_disk() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    on_disk = {module for module, path in OURS.items() if path.name == "__init__.py"}
    assert set(setuptools["packages"]) == on_disk | PAGE.keys()
    # A folder of modules without __init__.py would be left out of the wheel without a word.
    assert {path.parent for path in OURS.values()} == {OURS[package].parent for package in on_disk}
    assert setuptools["package-dir"] == PAGE | {package: folder for folder, package in FOLDERS.items()}


def test_the_page_is_packed_whole_and_nothing_else_of_its_folder() -> None:
    """Patterns that are the build's own: what is built from a wheel is what is built from the repository."""
    from dsmr_export.web import build

    (package,) = PAGE
    assert tuple(PROJECT["tool"]["setuptools"]["package-data"][package]) == build.PATTERNS
    files = set(build.files(build.sources()))
    assert {"index.html", "package-lock.json", "src/host/index.ts", "public/sw.js"} <= files
    assert not {name for name in files if name.startswith(("node_modules/", "dist/"))}
    assert not list((ROOT / PAGE[package]).glob("*.py"))  # they would be packed, too


def test_every_package_but_our_own_is_out_of_site_packages_top_level() -> None:
    assert {name.split(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]} == {"dsmr_export"}


@pytest.mark.parametrize("folder", ["model", "targets"])
def test_mapped_folders_refuse_to_be_imported_under_their_bare_name(folder: str) -> None:
    run = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"import dsmr_export.{folder}, not {folder}" in run.stderr


@pytest.mark.parametrize("module", ["dsmr_export", "dsmr_export.cli", "dsmr_export.targets.loader"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not {name.split(".")[0] for name in run.stdout.split()} & HEAVY


def test_modules_stay_readable() -> None:
    """One idea a file: 600 lines are the sign of a second one."""
    assert [
        f"{path.relative_to(ROOT)}" for path in OURS.values() if len(path.read_text().splitlines()) > 600
    ] == []
