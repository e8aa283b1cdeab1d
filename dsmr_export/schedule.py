"""Schedules: how many tokens each layer remembers. Named builders, explicit lists, and their text form.

A schedule is one *horizon* per layer, layer 0 being the lowest. The horizon h of a layer is how many tokens
before the current one it may attend to; the *budget* is the sum of all horizons. The text form round-trips:

    NAME                        two_scale                       horizons follow from a budget
    NAME:key=value,key=value    two_scale:long=2048,short=256   horizons follow from the parameters
    LIST                        2048x2,256x6                    horizons as they are, layer 0 first

Rules that hold for every name:

* Everything is rounded down, so the sum of the horizons never exceeds the budget.
* No layer gets less than FLOOR tokens unless `floor=` says so. Where a published schedule has layers without
  memory (selective_uniform, selective_random, perceiver_ar_like) they get the floor here: h >= 1 always.
* `budget=` may stand among the parameters of every name and means the same as the argument of `build`.

The names are those of Yi et al., "Depth-Structured Music Recurrence" (DSMR), arXiv:2602.19816v2;
`interleaved` is the local/global pattern of language models. The paper fixes what the schedules are (long
windows in the lower layers and one short window in the rest; memory kept in selected layers only; caps that
change with depth; all under one budget). The arithmetic, for L layers, a budget B and the floor F, is ours:

full
    Every layer the same cap, B // L: the full-memory reference with an end. State the `cap`; the budget
    follows from it.
uniform
    Every layer the same share, B // L. State the budget, the share follows (at one budget it equals `full`).
two_scale
    The lowest n_long = max(1, L // 4) layers are long, the rest short = max(F, B // (4 L)); the long layers
    share what is left.
reverse_two_scale
    The same two horizons, the long ones in the highest layers.
progressive_ascending
    Grows with depth: linearly from low = F in layer 0 to high in the last.
progressive_descending
    Shrinks with depth: linearly from high in layer 0 to low = F in the last.
selective_uniform
    n_long layers, evenly spaced from layer 0, share what the others' floor leaves.
selective_random
    The same with n_long layers drawn by `seed` (0).
perceiver_ar_like
    The same with layer 0 alone, as only the first layer of Perceiver AR reads the long input.
interleaved
    k short layers, then one long, and so on upwards (k = 3); horizons as in two_scale.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dsmr_export.errors import ScheduleError, nearest

FLOOR = 64
"""Tokens: the least horizon that a named schedule gives a layer, unless `floor=` says otherwise."""

EXPLICIT = "explicit"
"""The name of a schedule that is a list of horizons."""


@dataclass(frozen=True)
class Schedule:
    """One horizon (tokens, >= 1) per layer; `build(text, layers)` gives it back."""

    name: str
    text: str
    horizons: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.horizons:
            raise ScheduleError("a schedule needs at least one layer")
        for layer, horizon in enumerate(self.horizons):
            if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
                raise ScheduleError(
                    f"schedule {self.text}: layer {layer} has horizon {horizon!r}; "
                    "it must be a whole number >= 1"
                )

    @property
    def layers(self) -> int:
        return len(self.horizons)

    @property
    def budget_tokens(self) -> int:
        """Tokens kept by all layers together."""
        return sum(self.horizons)

    def __str__(self) -> str:
        return self.text


def build(text: str, layers: int, budget: int | None = None, default_budget: int | None = None) -> Schedule:
    """The schedule that `text` means for a model of `layers` layers.

    budget          tokens asked for: shared out where the text leaves horizons open, else a limit
    default_budget  tokens shared out where a budget is needed and none was asked for (the checkpoint's own
                    budget); never a limit

    Raises ScheduleError: unknown name or parameter, wrong number of layers, budget too small or exceeded.
    """
    text = text.strip()
    if layers < 1:
        raise ScheduleError(f"a model needs at least one layer, got {layers}")
    if not text:
        raise ScheduleError(f"the schedule is empty; use one of {', '.join(NAMES)}, or a list: 2048x2,256x6")
    if text[0].isdigit():
        schedule, limit = _parse_list(text, layers), budget
    else:
        name, parameters = _parse_named(text)
        limit = parameters.pop("budget", budget)
        if budget is not None and limit != budget:
            raise ScheduleError(f"schedule {text}: the budget is also given as {budget}; leave one out")
        share = default_budget if limit is None else limit
        schedule = _build_named(text, name, layers, share, parameters)
    if limit is not None and schedule.budget_tokens > limit:
        raise ScheduleError(
            f"schedule {text} keeps {schedule.budget_tokens:,} tokens, more than the budget of {limit:,}; "
            "raise the budget or shorten the horizons"
        )
    return schedule


def explicit(horizons: Iterable[int]) -> Schedule:
    """The schedule with these horizons, layer 0 first. ScheduleError if one is not a whole number >= 1."""
    horizons = tuple(horizons)
    return Schedule(EXPLICIT, compact(horizons), horizons)


def compact(horizons: Sequence[int]) -> str:
    """Horizons in list form, equal neighbours counted: (2048, 2048, 256) -> "2048x2,256"."""
    runs = [(value, len(list(group))) for value, group in groupby(horizons)]
    return ",".join(f"{value}x{count}" if count > 1 else f"{value}" for value, count in runs)


def describe(schedule: Schedule) -> str:
    """One line for people: horizons, budget in tokens, and the floor given to layers without memory."""
    line = (
        f"{schedule.name}: {compact(schedule.horizons)} "
        f"= {schedule.budget_tokens:,} tokens in {schedule.layers} layers"
    )
    builder = _BUILDERS.get(schedule.name)
    if builder is not None and builder.floored and schedule.layers > 1:
        kept = min(schedule.horizons)
        line += f" (layers without memory in the published schedule keep {kept} tokens here)"
    return line


def changes(trained: Schedule, exported: Schedule) -> list[str]:
    """What differs, in sentences, when a model is exported with another schedule than its own.

    Empty if nothing does. Both must have the same number of layers (ScheduleError otherwise).
    """
    if trained.layers != exported.layers:
        raise ScheduleError(
            f"schedule {exported} is for {exported.layers} layers, "
            f"the model was trained with {trained.layers}"
        )
    if trained.horizons == exported.horizons:
        return []
    pairs = list(zip(trained.horizons, exported.horizons, strict=True))
    sentences = [
        f"schedule {exported} differs from the trained {trained}: "
        f"{trained.budget_tokens:,} -> {exported.budget_tokens:,} tokens of state"
    ]
    layer = 0
    for (old, new), group in groupby(pairs):
        last = layer + len(list(group)) - 1
        if old != new:
            where = f"layer {layer}" if layer == last else f"layers {layer}-{last}"
            how = "shorter" if new < old else "longer"
            sentences.append(f"{where}: horizon {old:,} -> {new:,} tokens ({how})")
        layer = last + 1
    if any(new > old for old, new in pairs):
        sentences.append("longer horizons than trained reach distances the model never learnt: measure first")
    return sentences


# --- text form ---


def _parse_list(text: str, layers: int) -> Schedule:
    runs: list[tuple[int, int]] = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d{1,12})(?:[xX](\d{1,6}))?", item.strip(), flags=re.ASCII)
        if match is None:
            raise ScheduleError(
                f"schedule {text}: cannot read {item.strip()!r}; "
                "write HORIZON or HORIZONxLAYERS, as in 2048x2,256x6"
            )
        runs.append((int(match[1]), int(match[2] or 1)))
    named = sum(count for _, count in runs)
    if named != layers:  # before expanding: a count may be huge
        raise ScheduleError(f"schedule {text} lists {named} horizons, the model has {layers} layers")
    return explicit(horizon for horizon, count in runs for _ in range(count))


def _parse_named(text: str) -> tuple[str, dict[str, int]]:
    head, _, tail = text.partition(":")
    name = head.strip().lower().replace("-", "_")
    if name not in _BUILDERS:
        raise ScheduleError(
            f"unknown schedule {head.strip()!r}{nearest(name, NAMES)}; there are: {', '.join(NAMES)}"
        )
    known = (*_BUILDERS[name].parameters, "budget", "floor")
    parameters: dict[str, int] = {}
    for item in tail.split(",") if tail.strip() else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise ScheduleError(
                f"schedule {name} has no parameter {key!r}{nearest(key, known)}; it has: {', '.join(known)}"
            )
        if key in parameters:
            raise ScheduleError(f"schedule {text}: {key} is given twice")
        if not equals or not re.fullmatch(r"\d{1,12}", value, flags=re.ASCII):
            raise ScheduleError(f"schedule {text}: {key} must be a whole number, got {value!r}")
        parameters[key] = int(value)
    return name, parameters


def _format(name: str, settled: Mapping[str, int], floor: int) -> str:
    parameters = dict(settled) if floor == FLOOR else {**settled, "floor": floor}
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in parameters.items())


# --- builders ---


def _build_named(
    text: str, name: str, layers: int, budget: int | None, parameters: dict[str, int]
) -> Schedule:
    floor = parameters.pop("floor", FLOOR)
    if floor < 1:
        raise ScheduleError(f"schedule {text}: floor must be at least 1 token")
    request = _Request(text, layers, budget, floor, parameters)
    horizons, settled = _BUILDERS[name].rule(request)
    request.check_floor(horizons)
    return Schedule(name, _format(name, settled, floor), tuple(horizons))


@dataclass(frozen=True)
class _Request:
    """What a builder works from: `parameters` are those of the text, without budget and floor."""

    text: str
    layers: int
    budget: int | None
    floor: int
    parameters: Mapping[str, int]

    def need_budget(self, least_horizon: int | None = None) -> int:
        """The budget, checked to give every layer `least_horizon` (default: the floor)."""
        if self.budget is None:
            raise ScheduleError(
                f"schedule {self.text} needs a budget in tokens (--budget, or budget= in the schedule)"
            )
        each = max(self.floor, least_horizon or 0)
        least = each * self.layers
        if self.budget < least:
            raise ScheduleError(
                f"schedule {self.text}: a budget of {self.budget:,} tokens is too small for {self.layers} "
                f"layers that keep at least {each} each; the least is {least:,} (floor= lowers it)"
            )
        return self.budget

    def check_floor(self, horizons: Sequence[int]) -> None:
        for layer, horizon in enumerate(horizons):
            if horizon < self.floor:
                raise ScheduleError(
                    f"schedule {self.text} gives layer {layer} {horizon} tokens, "
                    f"below the floor of {self.floor}; add floor={max(horizon, 1)} if you mean it"
                )

    def count(self, key: str, default: int) -> int:
        """A number of layers among the parameters, 1 ... layers."""
        value = self.parameters.get(key, default)
        if not 1 <= value <= self.layers:
            raise ScheduleError(
                f"schedule {self.text}: {key} must be 1 to {self.layers} (layers), got {value}"
            )
        return value


_Built = tuple[list[int], dict[str, int]]
"""Horizons, and the parameters that settle them without a budget."""


def _constant(key: str) -> Callable[[_Request], _Built]:
    """Every layer the same: `key` tokens, or an equal share of the budget."""

    def rule(request: _Request) -> _Built:
        horizon = request.parameters.get(key)
        if horizon is None:
            horizon = request.need_budget() // request.layers
        return [horizon] * request.layers, {key: horizon}

    return rule


def _progressive(ascending: bool) -> Callable[[_Request], _Built]:
    """h_i = low + (high - low) i // (L - 1): i counts upwards if ascending, else downwards."""

    def rule(request: _Request) -> _Built:
        low = request.parameters.get("low", request.floor)
        high = request.parameters.get("high")
        if high is None:
            spare = request.need_budget(low) - request.layers * low
            # The unrounded line sums to L (low + high) / 2. One layer alone gets the upper end.
            high = low + (spare if request.layers == 1 else 2 * spare // request.layers)
        if high < low:
            raise ScheduleError(f"schedule {request.text}: high ({high}) must not be less than low ({low})")
        steps = request.layers - 1
        line = (
            [high]
            if request.layers == 1
            else [low + (high - low) * i // steps for i in range(request.layers)]
        )
        return (line if ascending else line[::-1]), {"low": low, "high": high}

    return rule


def _binary(
    choose: Callable[[_Request], tuple[set[int], dict[str, int]]], short_is_floor: bool
) -> Callable[[_Request], _Built]:
    """Two horizons: `choose` picks the long layers (and names the parameters that did).

    Short is the floor, or a quarter of an equal share; the long layers divide what is left.
    With `long=` no budget is needed, and short defaults to the floor.
    """

    def rule(request: _Request) -> _Built:
        long_layers, chosen = choose(request)
        n_short = request.layers - len(long_layers)
        short = request.parameters.get("short")
        long = request.parameters.get("long")
        if long is None:
            budget = request.need_budget(short)
            if short is None:
                quarter = 0 if short_is_floor else budget // (4 * request.layers)
                short = max(request.floor, quarter)
            long = (budget - n_short * short) // len(long_layers)
        elif short is None:
            short = request.floor
        if n_short and long < short:
            raise ScheduleError(
                f"schedule {request.text}: long ({long}) must not be less than short ({short})"
            )
        horizons = [long if layer in long_layers else short for layer in range(request.layers)]
        return horizons, {"long": long, "short": short, **chosen}

    return rule


def _n_long(request: _Request) -> int:
    # A quarter, as in two_scale: at one budget the binary schedules then differ in place, not in number.
    return request.count("n_long", max(1, request.layers // 4))


def _lowest(request: _Request) -> tuple[set[int], dict[str, int]]:
    n = _n_long(request)
    return set(range(n)), {"n_long": n}


def _highest(request: _Request) -> tuple[set[int], dict[str, int]]:
    n = _n_long(request)
    return set(range(request.layers - n, request.layers)), {"n_long": n}


def _evenly(request: _Request) -> tuple[set[int], dict[str, int]]:
    n = _n_long(request)
    return {i * request.layers // n for i in range(n)}, {"n_long": n}


def _drawn(request: _Request) -> tuple[set[int], dict[str, int]]:
    n, seed = _n_long(request), request.parameters.get("seed", 0)
    # Sorted by random(): the one method whose sequence Python promises to keep between versions.
    generator = random.Random(seed)
    keys = [generator.random() for _ in range(request.layers)]
    return set(sorted(range(request.layers), key=keys.__getitem__)[:n]), {"n_long": n, "seed": seed}


def _first(request: _Request) -> tuple[set[int], dict[str, int]]:
    return {0}, {}


def _every(request: _Request) -> tuple[set[int], dict[str, int]]:
    k = request.parameters.get("k", 3)
    if k < 1:
        raise ScheduleError(f"schedule {request.text}: k (short layers for one long) must be at least 1")
    # Fewer layers than one period: the last is the long one.
    return set(range(k, request.layers, k + 1)) or {request.layers - 1}, {"k": k}


@dataclass(frozen=True)
class _Builder:
    rule: Callable[[_Request], _Built]
    parameters: tuple[str, ...]
    floored: bool = False
    """The published schedule has layers without memory; here they keep the floor."""


_BUILDERS: dict[str, _Builder] = {
    "full": _Builder(_constant("cap"), ("cap",)),
    "uniform": _Builder(_constant("horizon"), ("horizon",)),
    "two_scale": _Builder(_binary(_lowest, short_is_floor=False), ("long", "short", "n_long")),
    "reverse_two_scale": _Builder(_binary(_highest, short_is_floor=False), ("long", "short", "n_long")),
    "progressive_ascending": _Builder(_progressive(ascending=True), ("low", "high")),
    "progressive_descending": _Builder(_progressive(ascending=False), ("low", "high")),
    "selective_uniform": _Builder(
        _binary(_evenly, short_is_floor=True), ("long", "short", "n_long"), floored=True
    ),
    "selective_random": _Builder(
        _binary(_drawn, short_is_floor=True), ("long", "short", "n_long", "seed"), floored=True
    ),
    "perceiver_ar_like": _Builder(_binary(_first, short_is_floor=True), ("long", "short"), floored=True),
    "interleaved": _Builder(_binary(_every, short_is_floor=False), ("long", "short", "k")),
}

NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""Every name that `build` knows."""
