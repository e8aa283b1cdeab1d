"""examples/host.py is what the format promises: a host that knows a bundle from its manifest alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_bundle import make_bundle

HOST = Path(__file__).parent.parent / "examples" / "host.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("host") / "tiny").path


@pytest.mark.parametrize("graph", ["fp32", "portable"])
def test_it_gets_the_golden_logits(folder: Path, graph: str) -> None:
    run = subprocess.run(
        [sys.executable, str(HOST), str(folder), graph], capture_output=True, text=True, check=True
    )
    match = re.fullmatch(rf"{graph}: 146 tokens, max \|difference\| (\S+), top-1 1\.0000\n", run.stdout)
    assert match and float(match[1]) < 1e-4, run.stdout  # float32 against the float64 numpy forward


def test_it_is_one_screen_and_imports_nothing_of_ours() -> None:
    source = HOST.read_text()
    assert len(source.splitlines()) <= 60
    modules = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert modules - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
