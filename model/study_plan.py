"""What a study compares: schedules under one budget of recurrent-state bytes, each trained with every seed.

A schedule of a study is written as everywhere, and `@kv_heads=K` may follow:

    two_scale    two_scale:long=832,short=64    832x2,64x6    full@kv_heads=1

Equal budget means equal bytes. A token of history costs 2 · kv_heads · head_dim values a layer, so with K
instead of kv_heads heads the budget is kv_heads / K times as many tokens. `full:cap=N` may exceed the budget:
it is the reference that says what more memory would be worth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dsmr_export import corpus
from dsmr_export import schedule as schedules
from dsmr_export.errors import CheckpointError, TrainingError
from dsmr_export.model.train_config import TrainConfig
from dsmr_export.model.trainer import model_config
from dsmr_export.runtime.files import write_atomically
from dsmr_export.schedule import Schedule
from dsmr_export.state import portable_state, state_bytes

STUDY = "study.json"
PER_RUN = ("schedule", "seed", "minutes")
"""Options of a training run that a study sets itself; its runs are equally long in steps, not in minutes."""

NAMED = (
    "two_scale",
    "uniform",
    "reverse_two_scale",
    "progressive_ascending",
    "progressive_descending",
    "perceiver_ar_like",
)
"""Compared by default; `default_schedules` adds `full` with fewer heads and the uncapped reference."""


@dataclass(frozen=True)
class Entry:
    """One row of the comparison: a schedule, and how many key and value heads if not the study's."""

    text: str
    schedule: str
    kv_heads: int | None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Reads SCHEDULE[@kv_heads=K]. Raises TrainingError; the schedule itself is read by `config`."""
        schedule, at, option = text.strip().partition("@")
        match = re.fullmatch(r"kv_heads=([1-9]\d{0,3})", option, flags=re.ASCII)
        if at and match is None:
            raise TrainingError(f"schedule {text}: after the @ stands kv_heads=K, as in full@kv_heads=1")
        return cls(text.strip(), schedule, int(match[1]) if match else None)

    @property
    def slug(self) -> str:
        """The text as part of a folder's name."""
        return re.sub(r"[^A-Za-z0-9_]+", "-", self.text).strip("-")

    def config(self, base: TrainConfig, seed: int) -> TrainConfig:
        """The run of this entry with that seed: `base` with its own schedule, heads and budget in tokens.

        Raises ScheduleError or TrainingError if there is no such run.
        """
        kv_heads = self.kv_heads or base.kv_heads
        budget = base.budget * base.kv_heads // kv_heads
        if re.match(r"full:.*\bcap=", self.schedule):
            budget = max(budget, schedules.build(self.schedule, base.layers).budget_tokens)
        config = replace(base, schedule=self.schedule, kv_heads=kv_heads, budget=budget, seed=seed)
        try:
            model_config(config, vocab_size=1)
        except CheckpointError as error:
            raise TrainingError(f"schedule {self.text}: {error}") from error
        build(config)
        return config


@dataclass(frozen=True)
class Run:
    """One training run of a study; `name` is its folder's."""

    entry: Entry
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        return f"{self.entry.slug}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """The whole comparison. base: the options of every run but those in PER_RUN.

    data, limit: what is trained on (None: the bundled corpus, all of it); eval_splits, eval_limit: what is
    judged.
    """

    base: TrainConfig
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    eval_splits: tuple[str, ...]
    data: Path | None = None
    limit: int | None = None
    eval_limit: int | None = None

    def __post_init__(self) -> None:
        if not self.entries or not self.seeds:
            raise TrainingError("a study needs at least one --schedule and one of --seeds")
        seen: dict[tuple[tuple[int, ...], int], str] = {}
        slugs: dict[str, str] = {}
        for entry in self.entries:
            config = entry.config(self.base, 0)
            alike = seen.setdefault((build(config).horizons, config.kv_heads), entry.text)
            if alike != entry.text:
                raise TrainingError(
                    f"--schedule {entry.text} is {alike} again, the same horizons and heads: leave one out"
                )
            if slugs.setdefault(entry.slug, entry.text) != entry.text or self.entries.count(entry) > 1:
                raise TrainingError(f"--schedule {entry.text} is given twice: leave one out")

    @property
    def data_name(self) -> str:
        return "bundled" if self.data is None else self.data.resolve().name

    @property
    def budget_bytes(self) -> int:
        """Float32 recurrent state that the budget pays for."""
        return state_bytes(portable_state([self.base.budget], self.base.kv_heads, self.base.head_dim))

    def runs(self) -> list[Run]:
        """All schedules with the first seed, then with the next: a study cut short still compares."""
        return [Run(e, seed, e.config(self.base, seed)) for seed in self.seeds for e in self.entries]

    def save(self, out: Path) -> None:
        """Writes study.json. Raises OutputError."""
        values = {
            "schedules": [entry.text for entry in self.entries],
            "seeds": list(self.seeds),
            "data": None if self.data is None else str(self.data.resolve()),
            "limit": self.limit,
            "eval_splits": list(self.eval_splits),
            "eval_limit": self.eval_limit,
            "config": {key: value for key, value in asdict(self.base).items() if key not in PER_RUN},
        }
        write_atomically(out / STUDY, (json.dumps(values, indent=2) + "\n").encode())


def build(config: TrainConfig) -> Schedule:
    """The schedule of a run. Raises ScheduleError."""
    return schedules.build(config.schedule, config.layers, config.budget)


def run_state_bytes(config: TrainConfig) -> int:
    """Float32 keys and values of all horizons: what one stream of this run keeps on a device."""
    return state_bytes(portable_state(build(config).horizons, config.kv_heads, config.head_dim))


def default_schedules(base: TrainConfig) -> tuple[str, ...]:
    """The named ones, `full` in the same bytes with 2 and 1 heads, and the reference above the budget.

    There every layer may keep as much as the budget gives all layers together. In a network of few layers
    some are the same; they are named once.
    """
    fewer = [k for k in (2, 1) if k < base.kv_heads and base.heads % k == 0]
    texts = (*NAMED, *(f"full@kv_heads={k}" for k in fewer), f"full:cap={base.budget}")
    different: dict[tuple[tuple[int, ...], int], str] = {}
    for text in texts:
        config = Entry.parse(text).config(base, 0)
        different.setdefault((build(config).horizons, config.kv_heads), text)
    return tuple(different.values())


def settle(out: Path, given: Mapping[str, Any]) -> Study:
    """The study in `out` as asked for: what is not given is as study.json has it, or by default.

    given: fields of TrainConfig (not PER_RUN), and `schedules`, `seeds`, `data`, `limit`, `eval_splits`,
    `eval_limit`. Schedules, seeds and what is judged may change from call to call, since runs are told apart
    by them. Raises TrainingError if study.json is damaged or any other option differs from it, ScheduleError
    for a schedule that cannot be, DataError for data that cannot be read.
    """
    saved = _read(out / STUDY)
    options = {k: given[k] for k in (field.name for field in fields(TrainConfig)) if k in given}
    if saved is not None:
        _require_same(out, saved, options, given)
    config = {**(saved or {}).get("config", {}), **options}
    if config.get("steps") is None:
        raise TrainingError("give the length of every run in --steps")
    base = TrainConfig(**config)
    values = {**(saved or {}), **given}
    data = None if values.get("data") is None else Path(values["data"])
    return Study(
        base=base,
        entries=tuple(Entry.parse(text) for text in values.get("schedules") or default_schedules(base)),
        seeds=tuple(values.get("seeds") or (0, 1)),
        eval_splits=tuple(values.get("eval_splits") or _default_splits(data)),
        data=data,
        limit=values.get("limit"),
        eval_limit=values.get("eval_limit"),
    )


def _default_splits(data: Path | None) -> Sequence[str]:
    named = {piece.split for piece in corpus.pieces(data)}
    return [split for split in ("validation", "test") if split in named] or ["validation"]


def _require_same(
    out: Path, saved: Mapping[str, Any], options: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    had = asdict(TrainConfig(**saved["config"]))
    for name, value in options.items():
        if had[name] != value:
            raise _differs(out, name, had[name], value)
    if "limit" in given and given["limit"] != saved.get("limit"):
        raise _differs(out, "limit", saved.get("limit"), given["limit"])
    names = [path and Path(path).name for path in (saved.get("data"), given.get("data"))]
    if "data" in given and names[0] != names[1]:
        raise _differs(out, "data", names[0], names[1])


def _differs(out: Path, option: str, had: Any, value: Any) -> TrainingError:
    before = "without" if had is None or had is False else "with"
    flag = "--" + option.replace("_", "-") + ("" if had is None or isinstance(had, bool) else f" {had}")
    return TrainingError(
        f"{out} holds a study {before} {flag}, now it is {value}: leave it out or choose another --out"
    )


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no JSON object")
        TrainConfig(**values["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path} cannot be read as a study of this version ({error}): choose another --out"
        ) from error
    return values
