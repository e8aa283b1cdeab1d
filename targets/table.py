"""One table of a TOML file, read strictly: every mistake is an error that names file, key and remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dsmr_export.errors import TargetError, nearest

_Value = TypeVar("_Value")

_WORDS: Mapping[type, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
    float: "a number",
}


@dataclass(frozen=True)
class Table:
    """A table, with the file (`where`) and the key (`path`) that it came from.

    Every method raises TargetError for a key that is missing, or whose value is not what the method reads.
    """

    where: str
    path: str
    data: dict[str, Any]

    def error(self, key: str, text: str) -> TargetError:
        """The error that says `text` of a key of this table."""
        return TargetError(f"target {self.where}: {self._key(key)} {text}")

    def allow(self, *known: str) -> None:
        """Refuses every key that is not among these."""
        for name in self.data:
            if name not in known:
                raise TargetError(
                    f"target {self.where}: unknown key {self._key(name)}{nearest(name, known)}; "
                    f"known here: {', '.join(known)}"
                )

    def table(self, name: str, optional: bool = False) -> Table:
        """A table inside this one; an empty one where it may be left out and is."""
        data = {} if optional and name not in self.data else self._get(name, dict)
        return Table(self.where, self._key(name), data)

    def text(self, name: str) -> str:
        """A string that says something; its line breaks count as blanks."""
        value = " ".join(self._get(name, str).split())
        if not value:
            raise self.error(name, "is empty")
        return value

    def flag(self, name: str) -> bool:
        return self._get(name, bool)

    def whole(self, name: str) -> int:
        return self._get(name, int)

    def count(self, name: str) -> int:
        """A whole number from 1 on."""
        value = self.whole(name)
        if value < 1:
            raise self.error(name, f"must be at least 1, got {value}")
        return value

    def amount(self, name: str) -> float:
        """A number above 0, whole or not."""
        value = self._get(name, int if type(self.data.get(name)) is int else float)
        if not (0 < value < math.inf):
            raise self.error(name, f"must be a number above 0, got {value}")
        return float(value)

    def choice(self, name: str, known: Sequence[str], why: Mapping[str, str] | None = None) -> str:
        """One of these strings; `why` says of some others what speaks against them."""
        value = self._get(name, str)
        if value not in known:
            reason = f" ({why[value]})" if why and value in why else nearest(value, known)
            raise self.error(name, f"cannot be {value!r}{reason}; use {' or '.join(known)}")
        return value

    def texts(self, name: str, form: str = r".*\S.*", example: str = "text") -> tuple[str, ...]:
        """A list of one or more strings, each of the form of the regular expression."""
        values = self._list(name)
        for value in values:
            if not re.fullmatch(form, value):
                raise self.error(name, f"cannot hold {value!r}; give {example}")
        if not values:
            raise self.error(name, f"is empty; give {example}")
        return values

    def choices(self, name: str, known: Sequence[str]) -> tuple[str, ...]:
        """A list, empty or not, of some of these strings."""
        values = self._list(name)
        for value in values:
            if value not in known:
                instead = f"{nearest(value, known)}; use {' or '.join(known)}"
                raise self.error(name, f"cannot hold {value!r}{instead}")
        return values

    def strings(self) -> dict[str, str]:
        """All of this table, which has strings only."""
        return {name: self._get(name, str) for name in self.data}

    def _key(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _get(self, name: str, kind: type[_Value]) -> _Value:
        if name not in self.data:
            raise self.error(name, "is missing")
        value = self.data[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(name, f"must be {_WORDS[kind]}, got {_WORDS.get(type(value), value)}")
        return value

    def _list(self, name: str) -> tuple[str, ...]:
        values = self._get(name, list)
        for value in values:
            if not isinstance(value, str):
                raise self.error(name, f"must hold strings only, got {_WORDS.get(type(value), value)}")
            if values.count(value) > 1:
                raise self.error(name, f"names {value!r} twice")
        return tuple(values)
