"""Device profiles: the built-in ones load, a user's file works like a name, and every mistake is named."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from dsmr_export.errors import TargetError
from dsmr_export.targets.loader import Target, load, names

GENERIC = resources.files("dsmr_export.targets").joinpath("generic.toml").read_text(encoding="utf-8")


@pytest.fixture
def profile(tmp_path: Path) -> Callable[[str, str], Path]:
    """generic.toml with one thing replaced, as a user's file."""

    def write(old: str, new: str) -> Path:
        assert old in GENERIC
        path = tmp_path / "mine.toml"
        path.write_text(GENERIC.replace(old, new), encoding="utf-8")
        return path

    return write


def test_names() -> None:
    assert {"generic", "desktop"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_built_in_profiles_load_and_keep_to_the_safe_kernels(name: str) -> None:
    target = load(name)
    assert isinstance(target, Target)
    assert target.name == name
    recipe = target.recipe("int8")
    # u8 weights run at 0.6x of fp32 on boards without dot products, per-tensor scales cost quality.
    assert (recipe.kernel, recipe.activations, recipe.weights, recipe.per_channel) == (
        "dynamic",
        "u8",
        "s8",
        True,
    )
    assert target.session_options["session.x64quantprecision"] == "1"
    assert target.environment["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_path_works_like_a_name(profile: Callable[[str, str], Path]) -> None:
    path = profile('name = "generic"', 'name = "my-board"')
    mine, generic = load(str(path)), load("generic")
    assert mine.name == "my-board"
    assert mine.recipes == generic.recipes
    assert mine.session_options == generic.session_options


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('summary = "', 'sumary = "', r"unknown key sumary \(did you mean summary\?\)"),
        ("threads = 1", "thread = 1", r"unknown key session.thread \(did you mean threads\?\)"),
        ("threads = 1", 'threads = "1"', "session.threads must be a whole number, got a string"),
        ("threads = 1", "threads = true", "session.threads must be a whole number, got true or false"),
        ("threads = 1", "threads = 0", "session.threads must be at least 1"),
        ("threads = 1", "", "session.threads is missing"),
        (
            "per_channel = true",
            "per_channel = 1",
            "recipes.int8.per_channel must be true or false, got a whole number",
        ),
        ('weights = "s8"', 'weights = "u8"', "recipes.int8.weights cannot be 'u8'; use s8"),
        ('kernel = "dynamic"', 'kernel = "dynmic"', r"'dynmic' \(did you mean dynamic\?\)"),
        ("[recipes.int8]", "[recipes.int9]", r"unknown key recipes.int9 \(did you mean int8\?\)"),
        (
            '["aarch64", "x86_64"]',
            '["riscv64"]',
            "architectures cannot hold 'riscv64'; use aarch64 or x86_64",
        ),
        ('["aarch64", "x86_64"]', "[]", "architectures is empty"),
        ('["aarch64", "x86_64"]', '"x86_64"', "architectures must be a list, got a string"),
        ('= "50"', "= 50", "session.options.session.intra_op.spin_duration_us must be a string"),
        ('name = "generic"', "name = ", "is not valid TOML"),
    ],
)
def test_mistakes_are_named(profile: Callable[[str, str], Path], old: str, new: str, message: str) -> None:
    path = profile(old, new)
    with pytest.raises(TargetError, match=message) as caught:
        load(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(
        TargetError, match=r"unknown target 'desktp' \(did you mean desktop\?\); there are: desktop, generic"
    ):
        load("desktp")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="nowhere.toml cannot be read"):
        load(str(tmp_path / "nowhere.toml"))


def test_a_quantization_without_recipe_is_refused() -> None:
    with pytest.raises(TargetError, match="target generic has no recipe for int4; it has: int8"):
        load("generic").recipe("int4")
