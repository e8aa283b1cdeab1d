"""Reads and validates device profiles: a built-in name, or the path of a user's TOML file.

A profile says how weights are quantized for a machine and how onnxruntime is set up; `generic.toml` shows
every key with its reason. The keys are the fields of the dataclasses below, nothing else is accepted.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from dsmr_export.errors import TargetError, nearest

_Value = TypeVar("_Value")

ARCHITECTURES = ("aarch64", "x86_64")
QUANTIZATIONS = ("int8", "int4")
# What each kernel may be made of. u8 weights and static s8 x s8 are slower than fp32 on machines we serve.
KERNELS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "dynamic": {"activations": ("u8",), "weights": ("s8",)}
}


@dataclass(frozen=True)
class Recipe:
    """How the weights of one quantized graph are stored and multiplied."""

    kernel: str
    activations: str
    weights: str
    per_channel: bool
    source: str


@dataclass(frozen=True)
class Target:
    """One machine: recipes by quantization, session set-up, and the environment onnxruntime starts in.

    An export only asks whether there is a recipe. Session set-up and environment are declared, but not yet
    applied: runtime/session.py opens every session the same way.
    """

    name: str
    summary: str
    architectures: tuple[str, ...]
    recipes: Mapping[str, Recipe]
    threads: int
    session_options: Mapping[str, str]
    environment: Mapping[str, str]

    def recipe(self, quantization: str) -> Recipe:
        """The recipe for `--quantize NAME`. Raises TargetError where this machine has none."""
        if quantization not in self.recipes:
            raise TargetError(
                f"target {self.name} has no recipe for {quantization}; it has: {', '.join(self.recipes)}"
            )
        return self.recipes[quantization]


def names() -> list[str]:
    """Built-in profiles."""
    files = resources.files("dsmr_export.targets").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load(name_or_path: str) -> Target:
    """The profile with this built-in name, or the one in this file (a path ends in .toml or has a slash).

    Raises TargetError: unknown name, unreadable file, unknown or missing key, wrong type or value.
    """
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
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"target {where} is not valid TOML: {error}") from error
    return _target(_Table(where, "", data))


def _target(table: _Table) -> Target:
    table.allow("name", "summary", "architectures", "recipes", "session", "environment")
    session = table.table("session")
    session.allow("threads", "options")
    threads = session.get("threads", int)
    if threads < 1:
        raise TargetError(f"target {table.where}: session.threads must be at least 1, got {threads}")
    recipes = table.table("recipes")
    recipes.allow(*QUANTIZATIONS)
    return Target(
        name=table.get("name", str),
        summary=table.get("summary", str),
        architectures=table.choices("architectures", ARCHITECTURES),
        recipes={name: _recipe(recipes.table(name)) for name in recipes.data},
        threads=threads,
        session_options=session.table("options").strings(),
        environment=table.table("environment").strings(),
    )


def _recipe(table: _Table) -> Recipe:
    table.allow("kernel", "activations", "weights", "per_channel", "source")
    kernel = table.choice("kernel", tuple(KERNELS))
    return Recipe(
        kernel=kernel,
        activations=table.choice("activations", KERNELS[kernel]["activations"]),
        weights=table.choice("weights", KERNELS[kernel]["weights"]),
        per_channel=table.get("per_channel", bool),
        source=table.get("source", str),
    )


@dataclass(frozen=True)
class _Table:
    """One TOML table with the file and the key it came from, so that errors can name both."""

    where: str
    path: str
    data: dict[str, Any]

    def key(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def allow(self, *known: str) -> None:
        for name in self.data:
            if name not in known:
                raise TargetError(
                    f"target {self.where}: unknown key {self.key(name)}{nearest(name, known)}; "
                    f"known here: {', '.join(known)}"
                )

    def get(self, name: str, kind: type[_Value]) -> _Value:
        if name not in self.data:
            raise TargetError(f"target {self.where}: {self.key(name)} is missing")
        value = self.data[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TargetError(
                f"target {self.where}: {self.key(name)} must be {_WORDS[kind]}, "
                f"got {_WORDS.get(type(value), value)}"
            )
        return value

    def table(self, name: str) -> _Table:
        return _Table(self.where, self.key(name), self.get(name, dict))

    def choice(self, name: str, known: tuple[str, ...]) -> str:
        value = self.get(name, str)
        if value not in known:
            raise TargetError(
                f"target {self.where}: {self.key(name)} cannot be {value!r}{nearest(value, known)}; "
                f"use {' or '.join(known)}"
            )
        return value

    def choices(self, name: str, known: tuple[str, ...]) -> tuple[str, ...]:
        values = self.get(name, list)
        for value in values:
            if value not in known:
                raise TargetError(
                    f"target {self.where}: {self.key(name)} cannot hold {value!r}; use {' or '.join(known)}"
                )
        if not values:
            raise TargetError(f"target {self.where}: {self.key(name)} is empty; use {' or '.join(known)}")
        return tuple(values)

    def strings(self) -> dict[str, str]:
        return {name: self.get(name, str) for name in self.data}


_WORDS: Mapping[type, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
    float: "a decimal number",
}
