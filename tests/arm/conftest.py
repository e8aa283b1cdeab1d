"""What the tests on ARM64 share: the emulation, found or set up once, and a report where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.arm import emulator
from tests.arm.emulator import Emulator

# Fills the terminal's summary: a skip alone is one letter among hundreds.
_UNAVAILABLE: list[str] = []


@pytest.fixture(scope="session")
def arm_folder() -> Path:
    """What setup.sh made; every test that needs it skips where it cannot be had, with the reason."""
    try:
        return emulator.set_up()
    except emulator.Unavailable as reason:
        _UNAVAILABLE.append(str(reason))
        pytest.skip(f"no ARM64 emulation here: {reason}")


@pytest.fixture(scope="session")
def arm(arm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    """Runs programs with this tree's wheel."""
    return Emulator(arm_folder, emulator.unpacked_wheel(tmp_path_factory.mktemp("arm") / "wheel"))


@pytest.fixture(scope="session")
def counted_graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By model: a folder with the graphs of every recipe (models.write), made when it is first asked for."""
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    from tests.arm import models

    folder = tmp_path_factory.mktemp("counted")

    def graphs(model: str) -> Path:
        if not (folder / model).exists():
            models.write(folder / model, model, models.RECIPES)
        return folder / model

    return graphs


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in dict.fromkeys(_UNAVAILABLE):
        terminalreporter.section("nothing was run on ARM64", sep="!", yellow=True, bold=True)
        terminalreporter.write_line(f"{reason}\nTo try it alone: tests/arm/setup.sh", yellow=True)
