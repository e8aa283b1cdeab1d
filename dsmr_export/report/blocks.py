"""What a page is made of: sections of plain blocks, which the template shows one below the other.

All text is plain; the template escapes it. Only ``Picture.svg`` and ``Roll.svg`` are markup, made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

DASH = "–"


@dataclass(frozen=True)
class Bar:
    """A cell with a bar behind its number. share: its length, 0 … 1 of the cell."""

    text: str
    share: float


Cell = str | Bar


@dataclass(frozen=True)
class Table:
    """lead: a sentence that says what it shows and what to look for. words: columns of text, the others
    are numbers. shown: so many rows are open, the rest (with 0 the lead, too) folded away under ``rest``."""

    kind: ClassVar = "table"
    lead: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: frozenset[int] = frozenset({0})
    shown: int | None = None
    rest: str = "The rest"


@dataclass(frozen=True)
class Picture:
    """label: what it shows, for who cannot see it. lead: the sentence above it."""

    kind: ClassVar = "picture"
    svg: str
    label: str
    lead: str


@dataclass(frozen=True)
class Pictures:
    """Side by side where there is room."""

    kind: ClassVar = "pictures"
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Note:
    kind: ClassVar = "note"
    text: str


@dataclass(frozen=True)
class Missing:
    """What is not in the page, and the command that would bring it."""

    kind: ClassVar = "missing"
    what: str
    command: str

    @classmethod
    def of(cls, what: str, *command: str) -> Missing:
        """The command in parts, of which empty ones (no bundle was named) are left out."""
        return cls(what, " ".join(part for part in command if part))


@dataclass(frozen=True)
class Facts:
    """(term, value); code: the values are hashes and commands."""

    kind: ClassVar = "facts"
    pairs: Sequence[tuple[str, str]]
    code: bool = False


@dataclass(frozen=True)
class Roll:
    """A piano roll that can be played. index: of its notes in the page's music. octaves: (name, place) of
    each C, the place in percent from the top."""

    kind: ClassVar = "roll"
    index: int
    title: str
    lead: str
    svg: str
    seconds: float
    octaves: Sequence[tuple[str, float]]


Block = Table | Picture | Pictures | Note | Missing | Facts | Roll


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    blocks: Sequence[Block]


def number(value: object, spec: str, unit: str = "") -> str:
    """A dash for what is not known, or is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DASH
    return format(value, spec) + unit


def known(values: object, *path: str) -> Any:
    """What stands under keys inside keys; None where one of them is missing."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def entries(values: object, *path: str) -> dict[str, Any]:
    """The same, where it is an object; an empty one otherwise."""
    found = known(values, *path)
    return found if isinstance(found, dict) else {}


def amount(value: object, *path: str) -> float | None:
    """The same, where it is a number."""
    found = known(value, *path)
    return None if isinstance(found, bool) or not isinstance(found, int | float) else float(found)
