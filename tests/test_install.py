"""The lock, the extras and the entry points agree with each other and with what the code imports."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dsmr_export
from tests.test_layout import OURS, imports

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[Requirement]] = {
    name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()
}
BASE = [Requirement(line) for line in PROJECT["dependencies"]]
# Where the name one imports is not the name one installs.
IMPORTED_AS = {"python-rtmidi": "rtmidi", "optimum-onnx": "optimum"}


def lock() -> dict[str, str]:
    """Canonical name -> version of every line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "every line of the lock pins one version"
    names = [canonicalize_name(name) for name, _ in pins]
    assert len(names) == len(set(names))
    return dict(zip(names, (version for _, version in pins), strict=True))


def direct() -> list[Requirement]:
    everything = [*BASE, *(requirement for extra in EXTRAS.values() for requirement in extra)]
    return [requirement for requirement in everything if requirement.name != PROJECT["name"]]


@pytest.mark.parametrize("requirement", direct(), ids=str)
def test_lock_pins_every_direct_dependency_at_a_version_it_allows(requirement: Requirement) -> None:
    assert requirement.specifier.contains(lock()[canonicalize_name(requirement.name)])


def test_lock_has_no_local_versions_and_the_versions_the_figures_were_taken_with() -> None:
    pins = lock()
    assert not [version for version in pins.values() if "+" in version]
    assert (pins["torch"], pins["onnxruntime"], pins["optimum-onnx"]) == ("2.13.0", "1.31.1", "0.1.0")


def test_lock_is_closed() -> None:
    """Whatever a locked package needs is locked too: nothing floats."""
    pins = lock()
    missing = set()
    for name in pins:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                missing |= (
                    {f"{name} needs {need.name}"} if canonicalize_name(need.name) not in pins else set()
                )
    assert not missing


def test_base_install_is_light() -> None:
    names = {"numpy", "onnxruntime", "click", "mido", "rich", "platformdirs"}
    assert {requirement.name for requirement in BASE} == names
    heavy = {"torch", "onnx", "miditok", "symusic", "optimum-onnx", "safetensors"}
    assert not {requirement.name for requirement in EXTRAS["live"]} & heavy


def test_dev_includes_export_and_train() -> None:
    included = [requirement for requirement in EXTRAS["dev"] if requirement.name == PROJECT["name"]]
    extras = {extra for requirement in included for extra in requirement.extras}
    assert extras == {"export", "train", "live", "web"}


def test_extras_agree_on_the_version_of_a_package_they_share() -> None:
    seen: dict[str, str] = {}
    for requirement in direct():
        assert seen.setdefault(requirement.name, str(requirement.specifier)) == str(requirement.specifier)


def test_every_import_is_declared() -> None:
    declared = {IMPORTED_AS.get(r.name, r.name.replace("-", "_")) for r in direct()}
    undeclared = {
        f"{path.relative_to(ROOT)}:{line} {name}"
        for module, path in OURS.items()
        for line, name in imports(module, path)
        if name.split(".")[0] not in {*sys.stdlib_module_names, *declared, "dsmr_export"}
    }
    assert not undeclared


def test_entry_points_and_version() -> None:
    installed = metadata.distribution("dsmr-export")
    scripts = {
        point.name: point.value for point in installed.entry_points if point.group == "console_scripts"
    }
    assert (
        scripts
        == PROJECT["scripts"]
        == {
            "dsmr": "dsmr_export.cli:main",
            "dsmr-export": "dsmr_export.cli:export_main",
        }
    )
    assert installed.version == dsmr_export.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?\w+)?", dsmr_export.__version__)
