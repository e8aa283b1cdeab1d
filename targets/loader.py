"""Reads and validates device profiles: a built-in name, or the path of a user's TOML file.

A profile says what a machine has, how weights and recurrent state are quantized for it, and how onnxruntime
is set up; `generic.toml` has every key, and each table a `source`. The keys are the fields of the dataclasses
below, nothing else is accepted, and neither is a recipe that the kernel table in docs/decisions.md rules out.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dsmr_export.errors import TargetError, nearest
from dsmr_export.state import ITEMSIZE
from dsmr_export.targets.table import Table

QUANTIZATIONS = ("int8", "int4")
FEATURES: Mapping[str, tuple[str, ...]] = {
    "aarch64": ("asimd", "asimddp", "i8mm"),
    "x86_64": ("avx2", "avx_vnni", "avx512_vnni"),
}
"""The instruction sets that kernels are chosen by, per architecture, as /proc/cpuinfo spells them."""
IMPLIED = {"asimddp": "asimd", "i8mm": "asimd", "avx_vnni": "avx2", "avx512_vnni": "avx2"}
"""Which feature a CPU must have to have another one."""

BLOCK_REQUIRES = ("asimddp", "avx2")
"""A block graph is run only on a CPU with one of these."""
BITS = {"int8": 8, "int4": 4}
ACCURACY_LEVEL = 4
"""Of MatMulNBits: activations are quantized to int8, in the same blocks as the weights."""
BLOCK_SIZES = (16, 32, 64, 128, 256)

SLOW = "4-bit MatMulNBits runs at 0.18x of fp32 and 8-bit at 0.03x"
"""On ARM without dot products, in counted instructions (M = 1, 512 x 2048, Cortex-A53 and A72)."""


@dataclass(frozen=True)
class Recipe:
    """How the weights of one quantized graph are stored and multiplied, and what its recurrent state is.

    kernel dynamic: `activations`, `weights` and `per_channel`. kernel block: `bits`, `accuracy_level` and
    `block_size`, the largest: a tensor whose K is no multiple of it takes the largest power of two from 16 on
    that divides K. None: not of this kernel. state: float32 or int8, where the user does not say.
    """

    kernel: str
    state: str
    source: str
    activations: str | None = None
    weights: str | None = None
    per_channel: bool | None = None
    bits: int | None = None
    block_size: int | None = None
    accuracy_level: int | None = None

    @property
    def requires(self) -> tuple[str, ...]:
        """A CPU should have one of these to run the graph; () = any does."""
        return BLOCK_REQUIRES if self.kernel == "block" else ()


@dataclass(frozen=True)
class Cpu:
    """features: what every CPU of this target has, of FEATURES. cores: at least so many."""

    model: str
    features: tuple[str, ...]
    cores: int
    source: str


@dataclass(frozen=True)
class Memory:
    """What there is, and how much of it is for us.

    total_mb: of the smallest machine of this kind, as its maker says it. for_us_mb (1 MB = 1,000,000 bytes):
    Python, onnxruntime, weights, state and workspace together, beside the system and an audio engine.
    bandwidth_gb_per_s (1 GB = 10⁹ bytes): published, or computed from published facts; an upper bound.
    """

    total_mb: int
    for_us_mb: int
    bandwidth_gb_per_s: float
    source: str


@dataclass(frozen=True)
class System:
    """What the target is supported on: names of systems, versions of Python (3.11), and of onnxruntime."""

    os: tuple[str, ...]
    python: tuple[str, ...]
    min_onnxruntime: str
    source: str


@dataclass(frozen=True)
class Session:
    """How onnxruntime is set up.

    threads: of one call. options: session configuration entries. environment: by architecture, or "all"; set
    before a graph is loaded, where the user has not set it.
    """

    threads: int
    options: Mapping[str, str]
    environment: Mapping[str, Mapping[str, str]]
    source: str


@dataclass(frozen=True)
class Target:
    """One kind of machine."""

    name: str
    summary: str
    architectures: tuple[str, ...]
    cpu: Cpu
    memory: Memory
    system: System
    recipes: Mapping[str, Recipe]
    session: Session

    @property
    def quantizations(self) -> tuple[str, ...]:
        """Those that this target has a recipe for: of int8 and int4."""
        return tuple(name for name in QUANTIZATIONS if name in self.recipes)

    def recipe(self, quantization: str) -> Recipe:
        """The recipe for `--quantize NAME`. Raises TargetError where there is none, with the reason."""
        if quantization in self.recipes:
            return self.recipes[quantization]
        instead = f"use --quantize {','.join(self.quantizations) or 'none'}"
        reason = no_block(self.architectures, self.cpu.features)
        if quantization in QUANTIZATIONS and reason:
            raise TargetError(f"target {self.name} refuses {quantization}: {reason}; {instead}")
        raise TargetError(f"target {self.name} has no recipe for {quantization}; {instead}")


def no_block(architectures: Collection[str], features: Collection[str]) -> str | None:
    """Why MatMulNBits is no choice for CPUs with these features.

    None where it is one, or where that depends on the CPU: on several architectures no feature is common.
    """
    if len(architectures) > 1 or has_dot_products(features):
        return None
    if "aarch64" in architectures:
        return f"its CPUs have no dot products (asimddp), where {SLOW}"
    return "its CPUs have no avx2, without which MatMulNBits was not measured"


def has_dot_products(features: Collection[str]) -> bool:
    """Whether a CPU with these features runs block graphs well."""
    return bool(set(BLOCK_REQUIRES) & set(features))


# --- which profile ---


def names() -> list[str]:
    """Built-in profiles."""
    files = resources.files("dsmr_export.targets").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def best_for(architecture: str, features: Collection[str], model: str) -> Target:
    """The profile of a machine (`--target auto`): of a Raspberry Pi by its model, else by its CPU's features.

    architecture: as `platform.machine()` says it. features: of FEATURES, as /proc/cpuinfo says them. model:
    the board's, as in "Raspberry Pi 4 Model B Rev 1.5", or the CPU's. A Pi whose CPU does not report the dot
    products that its profile counts on goes by its features. Raises TargetError for another architecture.
    """
    if architecture not in FEATURES:
        raise TargetError(
            f"no target fits this system ({architecture or 'unknown'}): a 64-bit system is needed, "
            f"{' or '.join(FEATURES)}; on a Raspberry Pi install the 64-bit Raspberry Pi OS"
        )
    if architecture == "x86_64":
        vnni = {"avx_vnni", "avx512_vnni"} & set(features)
        return load("generic" if "avx2" not in features else "x86-64-vnni" if vnni else "x86-64-avx2")
    board = _raspberry_pi(model)
    if board and (has_dot_products(features) or not has_dot_products(load(board).cpu.features)):
        return load(board)
    if "asimd" not in features:
        return load("generic")
    return load("generic-arm64-dotprod" if "asimddp" in features else "generic-arm64")


def _raspberry_pi(model: str) -> str | None:
    """The profile for a model as the firmware names it: 4 stands for 400 and Compute Module 4 and 4S too."""
    # Model 3A+ and Compute Module 0: the Zero 2 W's processor with its 512 MB.
    if re.match(r"Raspberry Pi (Zero 2|3 Model A Plus|Compute Module 0)\b", model):
        return "raspberry-pi-zero-2w"
    found = re.match(r"Raspberry Pi (?:Compute Module )?([345])(?:S|00)?\b", model)
    return f"raspberry-pi-{found[1]}" if found else None


def text_of(name_or_path: str) -> tuple[str, str]:
    """(text, what messages call it) of a profile's file. Raises TargetError: unknown name, no such file."""
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        where = name_or_path
        try:
            text = Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TargetError(f"target {where} cannot be read: {error}") from error
    else:
        if name_or_path not in names():
            raise TargetError(
                f"unknown target {name_or_path!r}{nearest(name_or_path, names())}; there are: "
                f"{', '.join(names())}, or the path of a .toml file"
            )
        where = f"{name_or_path}.toml"
        text = resources.files("dsmr_export.targets").joinpath(where).read_text(encoding="utf-8")
    return text, where


def load(name_or_path: str) -> Target:
    """The profile with this built-in name, or the one in this file (a path ends in .toml or has a slash).

    Raises TargetError: unknown name, unreadable file, unknown or missing key, wrong type or value, keys that
    contradict each other.
    """
    text, where = text_of(name_or_path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"target {where} is not valid TOML: {error}") from error
    target = _target(Table(where, "", data))
    if where == name_or_path and target.name in names():  # a bundle says its target by name alone
        raise TargetError(
            f"target {where}: name {target.name} is a built-in profile's; give yours another one"
        )
    return target


# --- reading one, part by part ---


def _target(table: Table) -> Target:
    table.allow("name", "summary", "architectures", "cpu", "memory", "system", "recipes", "session")
    architectures = table.choices("architectures", tuple(FEATURES))
    if not architectures:
        raise table.error("architectures", f"is empty; use {' or '.join(FEATURES)}")
    cpu = _cpu(table.table("cpu"), architectures)
    recipes = table.table("recipes")
    recipes.allow(*QUANTIZATIONS)
    return Target(
        name=table.text("name"),
        summary=table.text("summary"),
        architectures=architectures,
        cpu=cpu,
        memory=_memory(table.table("memory")),
        system=_system(table.table("system")),
        recipes={name: _recipe(name, recipes.table(name), architectures, cpu) for name in recipes.data},
        session=_session(table.table("session"), architectures, cpu),
    )


def _cpu(table: Table, architectures: Collection[str]) -> Cpu:
    table.allow("model", "features", "cores", "source")
    features = table.choices("features", tuple(name for names in FEATURES.values() for name in names))
    if features and len(architectures) > 1:
        raise table.error(
            "features", f"must be empty: no feature is common to {' and '.join(sorted(architectures))}"
        )
    for feature in features:
        (architecture,) = architectures
        if feature not in FEATURES[architecture]:
            raise table.error(
                "features",
                f"has {feature}, which no {architecture} CPU has; use {' or '.join(FEATURES[architecture])}",
            )
        if feature in IMPLIED and IMPLIED[feature] not in features:
            raise table.error(
                "features",
                f"has {feature} without {IMPLIED[feature]}, which every CPU with {feature} has: add it",
            )
    return Cpu(table.text("model"), features, table.count("cores"), table.text("source"))


def _memory(table: Table) -> Memory:
    table.allow("total_mb", "for_us_mb", "bandwidth_gb_per_s", "source")
    total, for_us = table.count("total_mb"), table.count("for_us_mb")
    if for_us > total:
        raise table.error("for_us_mb", f"is {for_us}, more than total_mb, which is {total}")
    return Memory(total, for_us, table.amount("bandwidth_gb_per_s"), table.text("source"))


def _system(table: Table) -> System:
    table.allow("os", "python", "min_onnxruntime", "source")
    version = table.text("min_onnxruntime")
    if not re.fullmatch(r"\d+(\.\d+){1,2}", version):
        raise table.error("min_onnxruntime", f"cannot be {version!r}; give a version, as in 1.29.0")
    python = table.texts("python", r"3\.\d+", "versions of Python, as in 3.11")
    return System(table.texts("os", example="names of systems"), python, version, table.text("source"))


def _recipe(quantization: str, table: Table, architectures: Collection[str], cpu: Cpu) -> Recipe:
    kernel = table.choice("kernel", ("dynamic", "block"))
    if kernel == "dynamic":
        return _dynamic(quantization, table)
    return _block(quantization, table, architectures, cpu)


def _dynamic(quantization: str, table: Table) -> Recipe:
    table.allow("kernel", "activations", "weights", "per_channel", "state", "source")
    if quantization != "int8":
        raise table.error("kernel", "cannot be 'dynamic', which has 8-bit weights only; use block")
    activations = table.choice("activations", ("u8",))
    slow = {"u8": "u8 weights run at 0.6x of fp32 on CPUs without dot products"}
    weights = table.choice("weights", ("s8",), slow)
    if not table.flag("per_channel"):
        raise table.error("per_channel", "cannot be false: it costs quality and gains nothing")
    return Recipe("dynamic", *_common(table), activations=activations, weights=weights, per_channel=True)


def _block(quantization: str, table: Table, architectures: Collection[str], cpu: Cpu) -> Recipe:
    table.allow("kernel", "bits", "block_size", "accuracy_level", "state", "source")
    if reason := no_block(architectures, cpu.features):
        raise table.error("kernel", f"cannot be 'block': {reason}; use dynamic, or leave the recipe out")
    if len(architectures) > 1 and quantization == "int8":
        raise table.error(
            "kernel",
            "cannot be 'block' on several architectures: on some of these CPUs it would not run at all, "
            "and int8 must; use dynamic",
        )
    bits, block_size = table.whole("bits"), table.whole("block_size")
    if bits != BITS[quantization]:
        raise table.error("bits", f"must be {BITS[quantization]}, as {quantization} says, got {bits}")
    if block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise table.error("block_size", f"must be one of {sizes}, got {block_size}")
    level = table.whole("accuracy_level")
    if level != ACCURACY_LEVEL:
        raise table.error(
            "accuracy_level",
            f"must be {ACCURACY_LEVEL}, got {level}: without it MatMulNBits multiplies in float "
            "and is slower than fp32",
        )
    return Recipe("block", *_common(table), bits=bits, block_size=block_size, accuracy_level=level)


def _common(table: Table) -> tuple[str, str]:
    """(state, source)"""
    return table.choice("state", tuple(ITEMSIZE)), table.text("source")


def _session(table: Table, architectures: Collection[str], cpu: Cpu) -> Session:
    table.allow("threads", "options", "environment", "source")
    threads = table.count("threads")
    if threads > cpu.cores:
        raise table.error("threads", f"is {threads}, more than cpu.cores, which is {cpu.cores}")
    environment = table.table("environment", optional=True)
    environment.allow("all", *FEATURES)
    for part in environment.data:
        if part != "all" and part not in architectures:
            raise environment.error(part, f"is for another architecture than {' and '.join(architectures)}")
        for variable in environment.table(part).data:
            if not variable.startswith("ORT_"):  # the manifest would refuse it: the process is the user's
                raise environment.error(part, f"sets {variable}, which is not onnxruntime's")
    return Session(
        threads=threads,
        options=table.table("options", optional=True).strings(),
        environment={part: environment.table(part).strings() for part in environment.data},
        source=table.text("source"),
    )
