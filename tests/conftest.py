"""What every test runs under: no telemetry, its own cache folder, property tests without a clock."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Read when onnxruntime is imported, and some tests import it directly.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# A deadline measures the machine, not the code: shared cores stall for longer than any sensible one.
settings.register_profile("dsmr", deadline=None, print_blob=True)
settings.load_profile("dsmr")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokenized corpora are cached for one run of the tests, never read from or left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """Under nohup, or in the background of a script, signals that tests send would be ignored, here and by
    every process that is started from here."""
    defaults = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {kind: signal.getsignal(kind) for kind in defaults}
    for kind, handler in defaults.items():
        if before[kind] is signal.SIG_IGN:
            signal.signal(kind, handler)
    yield
    for kind, known in before.items():
        signal.signal(kind, known)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with random weights (tests/exported.py)."""
    pytest.importorskip("torch", reason="exports start from PyTorch")
    from tests.exported import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny").path


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
    """A bundle exported from it, with every graph: read it, never write into it."""
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    from tests.exported import pack_tiny, small_gate

    with small_gate():
        return pack_tiny(tiny_checkpoint, tmp_path_factory.mktemp("export") / "bundle").path
