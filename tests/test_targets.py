"""Device profiles: the built-in ones keep to what was measured, a user's file works like a name, mistakes and
contradictions are named, and `dsmr targets` shows them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dsmr_export.cli_device import targets as command
from dsmr_export.errors import TargetError
from dsmr_export.targets import loader
from dsmr_export.targets.loader import Target, best_for, load, names

BUILT_IN = {
    "generic",
    "raspberry-pi-zero-2w",
    "raspberry-pi-3",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "generic-arm64",
    "generic-arm64-dotprod",
    "x86-64-avx2",
    "x86-64-vnni",
    "desktop",
}

Profile = Callable[..., Path]


def toml(name: str) -> str:
    return resources.files("dsmr_export.targets").joinpath(f"{name}.toml").read_text(encoding="utf-8")


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    """A built-in profile with one thing replaced at its first place, as a user's file."""

    def write(name: str, old: str, new: str) -> Path:
        text = toml(name)
        assert old in text
        path = tmp_path / "mine.toml"
        changed = text.replace(old, new, 1).replace(f'name = "{name}"', 'name = "mine"')
        path.write_text(changed, encoding="utf-8")
        return path

    return write


# --- the built-in profiles ---


def test_names() -> None:
    assert set(names()) == BUILT_IN and names() == sorted(names())


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_what_every_profile_says(name: str) -> None:
    target = load(name)
    assert isinstance(target, Target) and target.name == name
    assert target.quantizations[0] == "int8", "what --quantize is by default"
    session, memory = target.session, target.memory
    assert session.options["session.intra_op.spin_duration_us"] == "50"
    assert session.environment["all"] == {"ORT_DISABLE_TELEMETRY": "1"}
    # Without it AVX2 saturates; on ARM there is nothing to say.
    x86 = "x86_64" in target.architectures
    assert session.options.get("session.x64quantprecision") == ("1" if x86 else None)
    # It saves instructions on ARM and loses on x86, so it must never be for all.
    flash = session.environment.get("aarch64", {}).get("ORT_GQA_DISABLE_FLASH_ATTENTION")
    assert flash == ("1" if "aarch64" in target.architectures else None)
    assert memory.for_us_mb <= memory.total_mb // 2, "the system and an audio engine need theirs"
    assert session.threads == (2 if name == "desktop" else 1)
    assert target.system.min_onnxruntime == "1.29.0"
    parts = (target.cpu, target.memory, target.system, target.session, *target.recipes.values())
    assert all(len(part.source.split()) > 5 and "\n" not in part.source for part in parts)


# design, section 8, and docs/decisions.md: speed against fp32, one token, by kernel and the CPUs of a target.
# AVX2 without VNNI is not in that table: whole steps, 1 / 0.545, 1 / 0.531 and 1 / 0.43 of fp32's time.
# AVX-VNNI without AVX-512 was not measured: it can do all that AVX2 can.
FASTER = {
    ("dynamic", "s8"): {"A53": 1.0, "A72": 1.0, "A76": 1.5, "AVX2": 1.83, "AVX-VNNI": 1.83, "VNNI": 3.7},
    ("dynamic", "u8"): {"A53": 0.6, "A72": 0.6, "A76": 1.5, "VNNI": 2.1},
    ("block", 8): {"A53": 0.03, "A72": 0.03, "A76": 2.3, "AVX2": 1.88, "AVX-VNNI": 1.88, "VNNI": 3.9},
    ("block", 4): {"A53": 0.18, "A72": 0.18, "A76": 1.7, "AVX2": 2.33, "AVX-VNNI": 2.33, "VNNI": 11.7},
}
FEATURES = {
    "A53": {"asimd"},
    "A72": {"asimd"},
    "A76": {"asimd", "asimddp"},
    "AVX2": {"avx2"},
    "AVX-VNNI": {"avx2", "avx_vnni"},
    "VNNI": {"avx2", "avx512_vnni"},
}
CPUS = {
    "generic": ["A53", "A72", "A76", "AVX2", "AVX-VNNI", "VNNI"],
    "raspberry-pi-zero-2w": ["A53"],
    "raspberry-pi-3": ["A53"],
    "raspberry-pi-4": ["A72"],
    "raspberry-pi-5": ["A76"],
    "generic-arm64": ["A53", "A72", "A76"],
    "generic-arm64-dotprod": ["A76"],
    "x86-64-avx2": ["AVX2", "AVX-VNNI", "VNNI"],
    "x86-64-vnni": ["AVX-VNNI", "VNNI"],
    "desktop": ["AVX2", "AVX-VNNI", "VNNI"],
}
NO_DOT_PRODUCTS = {"raspberry-pi-zero-2w", "raspberry-pi-3", "raspberry-pi-4", "generic-arm64"}


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_no_recipe_is_one_that_the_measurements_rule_out(name: str, quantization: str) -> None:
    """Read from the TOML itself: the rule is the table above, not the loader's."""
    data = tomllib.loads(toml(name))
    common = set.intersection(*(FEATURES[cpu] for cpu in CPUS[name]))
    assert set(data["cpu"]["features"]) == common
    recipe = data["recipes"].get(quantization)
    if recipe is None:
        assert quantization == "int4" and name in NO_DOT_PRODUCTS
        message = f"target {name} refuses int4: its CPUs have no dot products .*0.18x.*; use --quantize int8$"
        with pytest.raises(TargetError, match=message):
            load(name).recipe(quantization)
        return
    assert quantization == "int8" or name not in NO_DOT_PRODUCTS
    # The runtime runs a graph only on a CPU with one of what it requires.
    requires = load(name).recipe(quantization).requires
    runs = [cpu for cpu in CPUS[name] if not requires or FEATURES[cpu] & set(requires)]
    kind = recipe["weights"] if recipe["kernel"] == "dynamic" else recipe["bits"]
    assert runs and all(FASTER[recipe["kernel"], kind][cpu] >= 1.0 for cpu in runs)
    if quantization == "int8":
        assert runs == CPUS[name], "int8 is for every CPU of a target"
    if recipe["kernel"] == "dynamic":
        assert recipe["per_channel"] is True and recipe["activations"] == "u8"
    else:
        assert recipe["accuracy_level"] == 4 and recipe["bits"] == int(quantization[-1])
    # int8 state doubles the instructions of attention on ARM.
    arm = {"A53", "A72", "A76"} & set(CPUS[name])
    assert recipe["state"] == ("float32" if arm else "int8")


def test_recipes_have_what_their_kernel_has() -> None:
    dynamic, block = load("generic").recipe("int8"), load("generic").recipe("int4")
    assert (dynamic.kernel, dynamic.activations, dynamic.weights, dynamic.per_channel) == (
        "dynamic",
        "u8",
        "s8",
        True,
    )
    assert dynamic.bits is dynamic.block_size is dynamic.accuracy_level is None and dynamic.requires == ()
    assert (block.kernel, block.bits, block.block_size, block.accuracy_level) == ("block", 4, 64, 4)
    assert block.activations is block.weights is block.per_channel is None
    assert block.requires == loader.BLOCK_REQUIRES == ("asimddp", "avx2")


def test_loader_knows_the_features_that_the_runtime_reads() -> None:
    from dsmr_export.runtime import cpu

    assert {name for names in loader.FEATURES.values() for name in names} == set(cpu.FEATURES)


# --- a user's file ---


def test_a_path_works_like_a_name(profile: Profile) -> None:
    path = profile("raspberry-pi-5", 'name = "raspberry-pi-5"', 'name = "my-board"')
    mine, built_in = load(str(path)), load("raspberry-pi-5")
    assert mine.name == "my-board"
    assert (mine.cpu, mine.memory, mine.recipes) == (built_in.cpu, built_in.memory, built_in.recipes)


def test_the_least_that_a_profile_can_say(tmp_path: Path) -> None:
    path = tmp_path / "least.toml"
    path.write_text("""
        name = "least"
        summary = "a board"
        architectures = ["aarch64"]
        cpu = {model = "a CPU", features = [], cores = 1, source = "ours"}
        memory = {total_mb = 256, for_us_mb = 256, bandwidth_gb_per_s = 1, source = "ours"}
        system = {os = ["Linux"], python = ["3.11"], min_onnxruntime = "1.29", source = "ours"}
        session = {threads = 1, source = "ours"}
        recipes = {}
        """)
    target = load(str(path))
    assert target.quantizations == () and target.session.options == target.session.environment == {}
    assert target.memory.bandwidth_gb_per_s == 1.0
    with pytest.raises(TargetError, match="refuses int8: .*; use --quantize none$"):
        target.recipe("int8")


def test_a_recipe_that_was_left_out_is_refused_without_blaming_the_cpu(profile: Profile) -> None:
    text = toml("raspberry-pi-5")
    start, end = text.index("[recipes.int4]"), text.index("[session]")
    target = load(str(profile("raspberry-pi-5", text[start:end], "")))
    with pytest.raises(TargetError, match="target mine has no recipe for int4; use --quantize int8"):
        target.recipe("int4")


BLOCK = 'kernel = "block"\nbits = 8\nblock_size = 128\naccuracy_level = 4'
DYNAMIC = 'kernel = "dynamic"\nactivations = "u8"\nweights = "s8"\nper_channel = true'


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        # keys
        ("generic", "summary =", "sumary =", r"unknown key sumary \(did you mean summary\?\)"),
        ("generic", "threads =", "thread =", r"unknown key session.thread \(did you mean threads\?\)"),
        ("generic", "for_us_mb", "for_us_bm", r"unknown key memory.for_us_bm \(did you mean for_us_mb\?\)"),
        ("generic", "cores", "core", r"unknown key cpu.core \(did you mean cores\?\)"),
        ("generic", "[system]", "[sytem]", r"unknown key sytem \(did you mean system\?\)"),
        ("generic", "python =", "pyton =", r"unknown key system.pyton \(did you mean python\?\)"),
        ("generic", "[recipes.int8]", "[recipes.int9]", r"unknown key recipes.int9 \(did you mean int8\?\)"),
        (
            "generic",
            "per_channel",
            "per_chanel",
            r"unknown key recipes.int8.per_chanel \(did you mean per_channel",
        ),
        (
            "raspberry-pi-5",
            "block_size",
            "blocksize",
            r"recipes.int8.blocksize \(did you mean block_size\?\)",
        ),
        ("raspberry-pi-5", "bits = 8", 'weights = "s8"', "unknown key recipes.int8.weights"),
        ("generic", "environment.aarch64", "environment.arm64", r"environment.arm64 \(did you mean aarch64"),
        ("generic", "threads = 1", "", "session.threads is missing"),
        ("generic", "cores = 1", "", "cpu.cores is missing"),
        ("generic", 'state = "float32"', "", "recipes.int8.state is missing"),
        ("raspberry-pi-5", "accuracy_level = 4", "", "recipes.int8.accuracy_level is missing"),
        # types and values
        ("generic", "threads = 1", 'threads = "1"', "session.threads must be a whole number, got a string"),
        (
            "generic",
            "threads = 1",
            "threads = true",
            "session.threads must be a whole number, got true or false",
        ),
        ("generic", "threads = 1", "threads = 0", "session.threads must be at least 1, got 0"),
        (
            "generic",
            "for_us_mb = 384",
            "for_us_mb = 38.4",
            "memory.for_us_mb must be a whole number, got a number",
        ),
        (
            "generic",
            "bandwidth_gb_per_s = 3.6",
            "bandwidth_gb_per_s = inf",
            "must be a number above 0, got inf",
        ),
        (
            "generic",
            "bandwidth_gb_per_s = 3.6",
            "bandwidth_gb_per_s = nan",
            "must be a number above 0, got nan",
        ),
        ("generic", "bandwidth_gb_per_s = 3.6", "bandwidth_gb_per_s = 0", "must be a number above 0, got 0"),
        (
            "generic",
            "bandwidth_gb_per_s = 3.6",
            "bandwidth_gb_per_s = true",
            "must be a number, got true or false",
        ),
        ("generic", "bandwidth_gb_per_s = 3.6", 'bandwidth_gb_per_s = "3"', "must be a number, got a string"),
        (
            "generic",
            "per_channel = true",
            "per_channel = 1",
            "int8.per_channel must be true or false, got a whole number",
        ),
        ("generic", '["aarch64", "x86_64"]', '["riscv64"]', "architectures cannot hold 'riscv64'"),
        (
            "generic",
            '["aarch64", "x86_64"]',
            '["arch64"]',
            r"'arch64' \(did you mean aarch64\?\); use aarch64",
        ),
        ("generic", '["aarch64", "x86_64"]', "[]", "architectures is empty; use aarch64 or x86_64"),
        ("generic", '["aarch64", "x86_64"]', '"x86_64"', "architectures must be a list, got a string"),
        (
            "generic",
            '["aarch64", "x86_64"]',
            "[64]",
            "architectures must hold strings only, got a whole number",
        ),
        ("generic", '["aarch64", "x86_64"]', '["x86_64", "x86_64"]', "architectures names 'x86_64' twice"),
        ("generic", '= "50"', "= 50", "session.options.session.intra_op.spin_duration_us must be a string"),
        ("generic", 'summary = "', 'summary = "" # ', "summary is empty"),
        (
            "generic",
            '"3.11"',
            '"2.7"',
            "system.python cannot hold '2.7'; give versions of Python, as in 3.11",
        ),
        (
            "generic",
            '"1.29.0"',
            '"newest"',
            "min_onnxruntime cannot be 'newest'; give a version, as in 1.29.0",
        ),
        ("generic", '["64-bit', '[" ", "64-bit', "system.os cannot hold ' '; give names of systems"),
        ("generic", 'kernel = "dynamic"', 'kernel = "dynmic"', r"'dynmic' \(did you mean dynamic\?\)"),
        (
            "generic",
            'kernel = "dynamic"',
            'kernel = "QLinearMatMul"',
            "cannot be 'QLinearMatMul'; use dynamic",
        ),
        (
            "generic",
            'state = "float32"',
            'state = "int4"',
            r"int8.state cannot be 'int4'.*use float32 or int8",
        ),
        ("generic", 'name = "generic"', "name = ", "is not valid TOML"),
        # what the measurements rule out
        (
            "generic",
            'weights = "s8"',
            'weights = "u8"',
            r"cannot be 'u8' \(u8 weights run at 0.6x .*; use s8",
        ),
        (
            "generic",
            "per_channel = true",
            "per_channel = false",
            "cannot be false: it costs quality and gains nothing",
        ),
        (
            "raspberry-pi-5",
            "accuracy_level = 4",
            "accuracy_level = 0",
            "must be 4, got 0: without it MatMulNBits",
        ),
        (
            "raspberry-pi-5",
            "accuracy_level = 4",
            "accuracy_level = 1",
            "multiplies in float and is slower than fp32",
        ),
        ("raspberry-pi-4", DYNAMIC, BLOCK, "int8.kernel cannot be 'block': .*asimddp.*0.18x.*8-bit at 0.03x"),
        (
            "raspberry-pi-5",
            '"asimd", "asimddp"',
            '"asimd"',
            "int8.kernel cannot be 'block': its CPUs have no dot products",
        ),
        ("x86-64-avx2", '["avx2"]', "[]", "int8.kernel cannot be 'block': its CPUs have no avx2"),
        ("generic", DYNAMIC, BLOCK, "int8.kernel cannot be 'block' on several architectures"),
        # contradictions
        ("raspberry-pi-5", '"asimd", ', "", "features has asimddp without asimd, .*: add it"),
        ("raspberry-pi-5", '"asimd", "asimddp"', '"i8mm"', "features has i8mm without asimd"),
        ("x86-64-avx2", '["avx2"]', '["avx_vnni"]', "features has avx_vnni without avx2"),
        ("x86-64-avx2", '["avx2"]', '["avx512_vnni"]', "features has avx512_vnni without avx2"),
        (
            "raspberry-pi-5",
            '"asimddp"',
            '"avx2"',
            "has avx2, which no aarch64 CPU has; use asimd or asimddp or i8mm",
        ),
        ("x86-64-avx2", '["avx2"]', '["avx2", "asimd"]', "cpu.features has asimd, which no x86_64 CPU has"),
        ("raspberry-pi-5", '"asimddp"', '"dotprod"', "cpu.features cannot hold 'dotprod'"),
        (
            "generic",
            "features = []",
            'features = ["avx2"]',
            "cpu.features must be empty: no feature is common to",
        ),
        (
            "generic",
            "for_us_mb = 384",
            "for_us_mb = 1025",
            "for_us_mb is 1025, more than total_mb, which is 1024",
        ),
        ("generic", "threads = 1", "threads = 2", "session.threads is 2, more than cpu.cores, which is 1"),
        ("raspberry-pi-5", "bits = 8", "bits = 4", "int8.bits must be 8, as int8 says, got 4"),
        ("raspberry-pi-5", "bits = 4", "bits = 8", "int4.bits must be 4, as int4 says, got 8"),
        (
            "raspberry-pi-5",
            "block_size = 128",
            "block_size = 96",
            "must be one of 16, 32, 64, 128, 256, got 96",
        ),
        ("raspberry-pi-5", "block_size = 128", "block_size = 512", "must be one of .*, got 512"),
        ("raspberry-pi-5", "block_size = 128", "block_size = 8", "must be one of .*, got 8"),
        (
            "raspberry-pi-4",
            "recipes.int8",
            "recipes.int4",
            "int4.kernel cannot be 'dynamic', which has 8-bit weights only",
        ),
        (
            "raspberry-pi-4",
            "environment.aarch64",
            "environment.x86_64",
            "x86_64 is for another architecture than aarch64",
        ),
        (
            "generic",
            "ORT_DISABLE_TELEMETRY =",
            "LD_PRELOAD =",
            "all sets LD_PRELOAD, which is not onnxruntime's",
        ),
    ],
)
def test_mistakes_are_named(profile: Profile, name: str, old: str, new: str, message: str) -> None:
    path = profile(name, old, new)
    with pytest.raises(TargetError, match=message) as caught:
        load(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(
        TargetError, match=r"unknown target 'desktp' \(did you mean desktop\?\); there are: "
    ) as e:
        load("desktp")
    assert all(name in str(e.value) for name in BUILT_IN)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="nowhere.toml cannot be read"):
        load(str(tmp_path / "nowhere.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TargetError, match="bytes.toml cannot be read"):
        load(str(tmp_path / "bytes.toml"))


# --- which profile fits a machine ---

A72, A76 = {"asimd"}, {"asimd", "asimddp"}


# As /proc/device-tree/model says: Raspberry Pi documentation (revision codes), and what users posted.
@pytest.mark.parametrize(
    ("model", "features", "name"),
    [
        ("Raspberry Pi Zero 2 W Rev 1.0", A72, "raspberry-pi-zero-2w"),
        ("Raspberry Pi 3 Model A Plus Rev 1.0", A72, "raspberry-pi-zero-2w"),  # the same CPU and 512 MB
        ("Raspberry Pi Compute Module 0 Rev 1.0", A72, "raspberry-pi-zero-2w"),
        ("Raspberry Pi 3 Model B Rev 1.2", A72, "raspberry-pi-3"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", A72, "raspberry-pi-3"),
        ("Raspberry Pi 3 Model B Plus", A72, "raspberry-pi-3"),
        ("Raspberry Pi Compute Module 3 Rev 1.0", A72, "raspberry-pi-3"),
        ("Raspberry Pi Compute Module 3 Plus Rev 1.0", A72, "raspberry-pi-3"),
        ("Raspberry Pi 4 Model B Rev 1.5", A72, "raspberry-pi-4"),
        ("Raspberry Pi 4 Model B Rev 1.5", set(), "raspberry-pi-4"),  # cpuinfo could not be read
        ("Raspberry Pi 400 Rev 1.0", A72, "raspberry-pi-4"),
        ("Raspberry Pi Compute Module 4 Rev 1.0", A72, "raspberry-pi-4"),
        ("Raspberry Pi Compute Module 4S Rev 1.0", A72, "raspberry-pi-4"),
        ("Raspberry Pi 5 Model B Rev 1.0", A76, "raspberry-pi-5"),
        ("Raspberry Pi Compute Module 5 Rev 1.0", A76, "raspberry-pi-5"),
        ("Raspberry Pi Compute Module 5 Lite Rev 1.0", A76, "raspberry-pi-5"),
        ("Raspberry Pi 500 Rev 1.0", A76, "raspberry-pi-5"),
        ("Raspberry Pi 5 Model B Rev 1.0", A72, "generic-arm64"),  # no dot products, whatever the board says
        ("Raspberry Pi 5 Model B Rev 1.0", set(), "generic"),
        ("Raspberry Pi 2 Model B Rev 1.2", A72, "generic-arm64"),
        ("Raspberry Pi 6 Model B Rev 1.0", A76 | {"i8mm"}, "generic-arm64-dotprod"),
        ("Radxa ROCK 5B", A76, "generic-arm64-dotprod"),
        ("Hardkernel ODROID-C2", A72, "generic-arm64"),
        ("unknown", set(), "generic"),
    ],
)
def test_best_for_arm_boards(model: str, features: set[str], name: str) -> None:
    assert best_for("aarch64", frozenset(features), model).name == name


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ({"avx2", "avx512_vnni"}, "x86-64-vnni"),
        ({"avx2", "avx_vnni"}, "x86-64-vnni"),
        ({"avx2"}, "x86-64-avx2"),
        (set(), "generic"),
    ],
)
def test_best_for_x86(features: set[str], name: str) -> None:
    # A model string is no proof of a Raspberry Pi where the architecture is another one.
    for model in ("AMD EPYC", "Raspberry Pi 5 Model B Rev 1.0"):
        assert best_for("x86_64", features, model).name == name


@pytest.mark.parametrize("architecture", ["armv7l", "armv6l", "i686", "riscv64", ""])
def test_best_for_refuses_what_is_not_64_bit_arm_or_x86(architecture: str) -> None:
    with pytest.raises(
        TargetError, match="a 64-bit system is needed, aarch64 or x86_64; .* 64-bit Raspberry Pi OS"
    ):
        best_for(architecture, {"asimd"}, "Raspberry Pi 4 Model B Rev 1.5")


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_best_for_gives_no_recipe_that_the_cpu_cannot_run(name: str) -> None:
    """On every CPU of every target, auto gives a target whose features that CPU has."""
    for cpu in CPUS[name]:
        architecture = "aarch64" if "asimd" in FEATURES[cpu] else "x86_64"
        found = best_for(architecture, FEATURES[cpu], "unknown")
        assert set(found.cpu.features) <= FEATURES[cpu] and architecture in found.architectures


# --- dsmr targets ---


def dsmr_targets(*arguments: object) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_list_fits_the_page() -> None:
    result = dsmr_targets()
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert max(map(len, lines)) <= 110 and "…" not in result.stdout
    rows = {line.split()[0]: line for line in lines if line.strip() and line.split()[0] in BUILT_IN}
    assert set(rows) == BUILT_IN
    assert re.search(r"Cortex-A72.* 384 MB +dynamic +– +float32$", rows["raspberry-pi-4"])
    assert re.search(r"1,024 MB +blocks of 128 +blocks of 64 +int8$", rows["x86-64-avx2"])


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_one_is_shown_with_its_sources(name: str) -> None:
    result = dsmr_targets(name)
    assert result.exit_code == 0
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 110
    shown, target = " ".join(result.stdout.split()), load(name)
    parts = (target.cpu, target.memory, target.system, target.session, *target.recipes.values())
    for part in parts:
        assert part.source in shown
    assert f"{target.memory.for_us_mb:,} of {target.memory.total_mb:,} MB" in shown
    assert all(f"{option} = {value}" in shown for option, value in target.session.options.items())
    assert ("refuses int4" in shown) == (name in NO_DOT_PRODUCTS)


def test_json_is_one_object_on_one_line(profile: Profile) -> None:
    result = dsmr_targets("--json")
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    assert {target["name"] for target in json.loads(result.stdout)["targets"]} == BUILT_IN
    path = profile("raspberry-pi-5", 'name = "raspberry-pi-5"', 'name = "my-board"')
    found = json.loads(dsmr_targets(path, "--json").stdout)
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    assert found["name"] == "my-board" and found["session"]["options"] == data["session"]["options"]
    recipe = found["recipes"]["int4"]
    assert recipe.pop("requires") == ["asimddp", "avx2"]
    assert recipe == data["recipes"]["int4"], "nothing of the other kernel"


def test_the_command_refuses_what_the_loader_refuses(profile: Profile) -> None:
    result = dsmr_targets("no-such-board")
    assert isinstance(result.exception, TargetError), "the group turns it into one line"
    result = dsmr_targets(profile("generic", "threads = 1", "threads = 0"))
    assert isinstance(result.exception, TargetError)


def test_the_help_has_an_example() -> None:
    assert "dsmr targets raspberry-pi-5" in dsmr_targets("--help").stdout


def test_a_file_may_not_take_a_built_in_name(tmp_path: Path) -> None:
    """A bundle's manifest says its target by name: it would be taken for the other one."""
    path = tmp_path / "mine.toml"
    path.write_text(toml("raspberry-pi-5"), encoding="utf-8")
    with pytest.raises(TargetError, match="name raspberry-pi-5 is a built-in profile's; give yours another"):
        load(str(path))
