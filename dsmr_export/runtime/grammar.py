"""Which ids may come next, by the manifest's ``grammar`` and ``events``: a mask that is cheap enough for
every step.

The rules (``model.tokenizer.grammar_rules`` writes them):

* ``start``: the kinds that may come first; ``may_follow``: for each kind, the kinds that may come after it;
* ``off_needs_sounding``: a note-off only for a pitch that sounds; ``on_needs_silent``: a note-on only for one
  that does not;
* ``special`` among the kinds means EOS, where the caller allows it; ``eos_needs_silence``: only when no note
  sounds. PAD and BOS never come.

Every id sequence of a canonical performance obeys the rules, and every sequence that obeys them decodes to a
canonical performance. They do not fix the order among the note-offs, or among the note-ons, of one frame, nor
how a silence is cut into shifts: those change no note.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import BundleError
from dsmr_export.manifest import EVENT_KINDS
from dsmr_export.runtime.events import EventTable

_START = "start"


class Grammar:
    """The state of the rules after some ids. ``allowed`` is a boolean [V], at least one True, valid until
    ``advance``.

    ``allow_eos``: whether EOS may come (a device that plays on for ever does without). ``advance`` takes any
    id, also one that the rules forbid (a foreign prompt), and agrees with ``Decoder`` about what sounds then.
    Raises ``BundleError`` for rules that are incomplete or could end with no id allowed.
    """

    def __init__(self, table: EventTable, rules: Mapping[str, Any], allow_eos: bool = False) -> None:
        self.table = table
        self.rules = rules
        self.allow_eos = allow_eos
        self.sounding: set[int] = set()
        self._pending: int | None = None
        self._last = _START
        self._eos = table.special_id("eos") if allow_eos else None
        self._follow = _follow_masks(table, rules, self._eos)
        self._off_needs_sounding = bool(rules.get("off_needs_sounding"))
        self._on_needs_silent = bool(rules.get("on_needs_silent"))
        self._eos_needs_silence = bool(rules.get("eos_needs_silence"))
        # What the sounding notes permit; ``allowed`` is this and what the last kind permits.
        self._possible = np.ones(len(table), dtype=np.bool_)
        self._allowed = np.empty(len(table), dtype=np.bool_)
        self.reset()

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Boolean [V]: which ids may come next. One buffer, rewritten by ``advance``; copy it to keep it."""
        return self._allowed

    def reset(self) -> None:
        """As before the first id."""
        self._silence()
        self._last, self._pending = _START, None
        np.logical_and(self._follow[self._last], self._possible, out=self._allowed)

    def advance(self, token: int) -> None:
        """Take note that ``token`` came. BOS and EOS begin anew; PAD and ids out of range change nothing."""
        if not 0 <= token < len(self.table):
            return
        kind, value = self.table.kinds[token], self.table.values[token]
        if kind == "special":
            if value in ("bos", "eos"):
                self.reset()
            return
        if kind == "velocity":
            if self._pending is not None:
                self._set(self._pending, True)
        elif kind == "off":
            self._set(int(value), False)
        self._pending = int(value) if kind == "on" else None
        self._last = kind
        np.logical_and(self._follow[kind], self._possible, out=self._allowed)

    def copy(self) -> Grammar:
        """Another grammar at the same point; the tables are shared."""
        twin = Grammar.__new__(Grammar)
        twin.__dict__.update(self.__dict__)
        twin.sounding = set(self.sounding)
        twin._possible, twin._allowed = self._possible.copy(), self._allowed.copy()
        return twin

    def _set(self, pitch: int, sounds: bool) -> None:
        if sounds == (pitch in self.sounding):
            return
        if sounds:
            self.sounding.add(pitch)
        else:
            self.sounding.remove(pitch)
        if self._on_needs_silent:
            self._possible[self.table.on_ids[pitch]] = not sounds
        if self._off_needs_sounding:
            self._possible[self.table.off_ids[pitch]] = sounds
        if self._eos is not None and self._eos_needs_silence:
            self._possible[self._eos] = not self.sounding

    def _silence(self) -> None:
        self.sounding.clear()
        self._possible[:] = True
        if self._off_needs_sounding:
            self._possible[list(self.table.off_ids.values())] = False


def _follow_masks(
    table: EventTable, rules: Mapping[str, Any], eos: int | None
) -> dict[str, NDArray[np.bool_]]:
    """For each last kind (and the start) the ids whose kind may follow: boolean [V] each."""
    may_follow = rules.get("may_follow")
    if not isinstance(may_follow, Mapping):
        raise BundleError("grammar: the manifest has no may_follow; export the bundle again")
    masks = {}
    for last in (_START, *(kind for kind in EVENT_KINDS if kind != "special")):
        following = rules.get(_START) if last == _START else may_follow.get(last)
        if not isinstance(following, list | tuple) or not set(following) <= set(EVENT_KINDS):
            raise BundleError(
                f"grammar: what may follow {last} is {following!r}, not a list of {', '.join(EVENT_KINDS)}"
            )
        if not set(following) & {"velocity", "shift"}:
            # Only these two are possible whatever sounds.
            raise BundleError(f"grammar: after {last} there may be no token left; allow shift or velocity")
        mask = np.array([kind in following and kind != "special" for kind in table.kinds], dtype=np.bool_)
        if eos is not None:
            mask[eos] = "special" in following
        masks[last] = mask
    return masks
