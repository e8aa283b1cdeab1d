"""Which ids may come next, by the manifest's ``grammar`` and ``events``: a mask that is cheap enough for
every step.

The rules (``model.tokenizer.grammar_rules`` writes them):

* ``start``: the kinds that may come first; ``may_follow``: for each kind, the kinds that may come after it;
* ``off_needs_sounding``: a note-off only for a pitch that sounds; ``on_needs_silent``: a note-on only for one
  that does not;
* ``ordered``: within a frame note-offs come by (onset, pitch) and note-ons by ascending pitch, and a shift
  follows another one only if that was the longest;
* ``special`` among the kinds means EOS, where the caller allows it; ``eos_needs_silence``: only when no note
  sounds. PAD and BOS never come.

Every id sequence of a canonical performance obeys the rules, and every sequence that obeys them decodes to a
canonical performance. With ``ordered`` it is also the sequence that ``events.encode`` makes of that
performance, up to shifts at its end: so what was sampled is what would have been heard.
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

    ``ordered``: whether that rule, if there is one, holds (who plays ahead of itself needs it).
    ``allow_eos``: whether EOS may come (a device that plays on for ever does without). ``advance`` takes any
    id, also one that the rules forbid (a foreign prompt), and agrees with ``Decoder`` about what sounds then.
    Raises ``BundleError`` for rules that are incomplete or could end with no id allowed.
    """

    def __init__(
        self, table: EventTable, rules: Mapping[str, Any], allow_eos: bool = False, ordered: bool = False
    ) -> None:
        self.table = table
        self.rules = rules
        self.allow_eos = allow_eos
        self._meaning, self._beginning = _meaning(table)
        self._onsets: dict[int, int] = {}  # of the sounding notes: pitch to frame
        self._frame = 0
        self._pending: int | None = None
        self._last = _START
        self.ordered = ordered and bool(rules.get("ordered"))
        self._order = _Order(table)
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

    @property
    def sounding(self) -> frozenset[int]:
        """The pitches that sound."""
        return frozenset(self._onsets)

    @property
    def onsets(self) -> dict[int, int]:
        """The pitches that sound, each with the frame of its onset since BOS."""
        return dict(self._onsets)

    @property
    def frame(self) -> int:
        """Frames that the shifts since BOS come to."""
        return self._frame

    def reset(self) -> None:
        """As before the first id."""
        self._silence()
        self._last, self._pending, self._frame = _START, None, 0
        np.logical_and(self._follow[self._last], self._possible, out=self._allowed)

    def advance(self, token: int) -> None:
        """Take note that ``token`` came. BOS and EOS begin anew; PAD and ids out of range change nothing."""
        if not 0 <= token < len(self._meaning):
            return
        kind, value = self._meaning[token]
        if kind == "special":
            if token in self._beginning:
                self.reset()
            return
        onset, struck = 0, self._pending
        self._pending = None
        if kind == "shift":
            self._frame += value
        elif kind == "on":
            self._pending = value
        elif kind == "off":
            onset = self._onsets.get(value, self._frame)
            self._set(value, False)
        elif struck is not None:  # the velocity of a note-on
            self._set(struck, True)
        self._last = kind
        np.logical_and(self._follow[kind], self._possible, out=self._allowed)
        if self.ordered:
            self._keep_order(kind, value, onset, struck)

    def _keep_order(self, kind: str, value: int, onset: int, struck: int | None) -> None:
        if kind == "velocity" and struck is not None:
            self._allowed[self._order.on_ids_up_to(struck)] = False
        elif kind == "off":
            for pitch, began in self._onsets.items():
                if (began, pitch) < (onset, value):
                    self._allowed[self.table.off_ids[pitch]] = False
        elif kind == "shift" and value < self.table.longest_shift:
            self._allowed[self._order.shift_ids] = False

    def copy(self) -> Grammar:
        """Another grammar at the same point; the tables are shared."""
        twin = Grammar.__new__(Grammar)
        twin.__dict__.update(self.__dict__)
        twin._onsets = dict(self._onsets)
        twin._possible, twin._allowed = self._possible.copy(), self._allowed.copy()
        return twin

    def state(self) -> dict[str, Any]:
        """Where it is, as plain JSON: what a saved state keeps."""
        return {
            "last": self._last,
            "pending": self._pending,
            "frame": self._frame,
            "onsets": sorted(self._onsets.items()),
            "allowed": np.packbits(self._allowed).tobytes().hex(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go to where another one was. Raises ``BundleError``, with nothing changed, for what is no such
        state."""
        size = len(self.table)
        try:
            last, pending, frame = state["last"], state["pending"], int(state["frame"])
            onsets = {int(pitch): int(onset) for pitch, onset in state["onsets"]}
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(state["allowed"]), np.uint8))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"this state is not whole: its grammar is damaged ({error})") from error
        allowed = bits[:size].astype(np.bool_)
        pitches = {*onsets, *([] if pending is None else [pending])}
        if last not in self._follow or not pitches <= set(self.table.on_ids) or not allowed.any():
            raise BundleError("this state is not whole: its grammar is not this bundle's")
        self._silence()
        self._frame = frame
        for pitch in onsets:
            self._set(pitch, True)
        self._onsets.update(onsets)
        self._last, self._pending = last, pending
        self._allowed[:] = allowed

    def _set(self, pitch: int, sounds: bool) -> None:
        if sounds == (pitch in self._onsets):
            return
        if sounds:
            self._onsets[pitch] = self._frame
        else:
            del self._onsets[pitch]
        if self._on_needs_silent:
            self._possible[self.table.on_ids[pitch]] = not sounds
        if self._off_needs_sounding:
            self._possible[self.table.off_ids[pitch]] = sounds
        if self._eos is not None and self._eos_needs_silence:
            self._possible[self._eos] = not self._onsets

    def _silence(self) -> None:
        self._onsets.clear()
        self._possible[:] = True
        if self._off_needs_sounding:
            self._possible[list(self.table.off_ids.values())] = False


class _Order:
    """Ids by value, for the masks of ``ordered``."""

    def __init__(self, table: EventTable) -> None:
        pitches = sorted(table.on_ids)
        self._place = {pitch: place for place, pitch in enumerate(pitches)}
        self._on_ids = np.array([table.on_ids[pitch] for pitch in pitches])
        self.shift_ids = np.array(list(table.shift_ids.values()))

    def on_ids_up_to(self, pitch: int) -> NDArray[np.intp]:
        """Ids of the note-ons of ``pitch`` and all below."""
        return self._on_ids[: self._place[pitch] + 1]


def _meaning(table: EventTable) -> tuple[list[tuple[str, int]], set[int]]:
    """Kind and value of each id (0 for special ones), and the ids with which all begins anew."""
    meaning = [
        (kind, 0 if kind == "special" else int(value))
        for kind, value in zip(table.kinds, table.values, strict=True)
    ]
    beginning = (table.special_id(name) for name in ("bos", "eos"))
    return meaning, {token for token in beginning if token is not None}


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
