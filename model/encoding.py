"""Canonical notes to token ids and back, whole pieces at once in numpy: what the trainer does all the time.

The same ids as miditok's (`tokenizer.encode`) and the same notes as the runtime's decoder (`runtime.events`),
which work event by event; tests hold all three together. What a token means comes from the tokenizer's event
table alone, and how a gap without a token of its own is said from the runtime's `Encoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import CheckpointError
from dsmr_export.model import tokenizer as tokens
from dsmr_export.runtime import events
from dsmr_export.runtime.events import EventTable
from dsmr_export.runtime.performance import Performance

if TYPE_CHECKING:
    from miditok import MIDILike

Ids = NDArray[np.uint16]

Notes = NDArray[np.int32]
"""A performance as an array [N, 4] of start, end (frames), pitch, velocity."""

MOST_IDS = np.iinfo(np.uint16).max + 1
"""Vocabularies up to here fit 16 bits a token."""

_MIDI_VALUES = 128


class Codec:
    """Encodes and decodes by one event table; made once, then used for every piece.

    Raises ``CheckpointError`` for a vocabulary that does not fit 16 bits or lacks BOS or EOS.
    """

    def __init__(self, table: EventTable) -> None:
        bos, eos = table.special_id("bos"), table.special_id("eos")
        if bos is None or eos is None:
            raise CheckpointError("tokenizer: has no BOS or no EOS token; add both to its special tokens")
        if len(table) > MOST_IDS:
            raise CheckpointError(
                f"tokenizer: a vocabulary of {len(table):,} ids does not fit the 16 bits a token that pieces "
                f"are kept in (at most {MOST_IDS:,}); use fewer time shifts or velocities"
            )
        self.table, self.bos, self.eos = table, bos, eos
        self._on, self._off = _by_value(table.on_ids), _by_value(table.off_ids)
        self._velocity = np.array(table.velocity_ids, dtype=np.uint16)
        # What is left of a gap after its longest shifts, 0 … longest - 1 steps: how many ids, and which.
        chains = [events.Encoder(table).wait(steps) for steps in range(table.longest_shift)]
        self._chain_length = np.array([len(chain) for chain in chains])
        self._chain = np.zeros((len(chains), max(map(len, chains))), dtype=np.uint16)
        for steps, chain in enumerate(chains):
            self._chain[steps, : len(chain)] = chain
        kinds = np.array(table.kinds)
        self._is_on, self._is_off, self._is_velocity = (kinds == kind for kind in ("on", "off", "velocity"))
        self._is_special = kinds == "special"
        self._values = np.array([value if isinstance(value, int) else 0 for value in table.values])
        self._steps = np.where(kinds == "shift", self._values, 0)

    @classmethod
    def of(cls, tokenizer: MIDILike) -> Codec:
        """The codec of a tokenizer."""
        return cls(EventTable.from_json(tokens.event_table(tokenizer)))

    def encode(self, notes: Notes | Performance) -> Ids:
        """Ids of a canonical performance (int [N, 4], or a list of notes), without BOS and EOS: uint16 [T].

        Pitches must be in the table (``table.pitch_range``), velocities 1-127.
        """
        rows = np.asarray(notes, dtype=np.int64).reshape(-1, 4)
        if not len(rows):
            return np.zeros(0, dtype=np.uint16)
        # One row an event: the offs, then the ons, each in the order of the notes, which is (onset, pitch).
        # A stable sort by (frame, offs first) then gives the order of tokens.
        is_on = np.repeat([False, True], len(rows))
        frame = np.concatenate([rows[:, 1], rows[:, 0]])
        order = np.argsort(2 * frame + is_on, kind="stable")
        is_on, frame, note = is_on[order], frame[order], order % len(rows)
        gap = np.diff(frame, prepend=0)
        longest, rest = np.divmod(gap, self.table.longest_shift)
        shifts = longest + self._chain_length[rest]
        key = np.cumsum(shifts + 1 + is_on) - 1 - is_on  # place of each event's own (first) id
        ids = np.full(key[-1] + 1 + is_on[-1], self.table.shift_ids[self.table.longest_shift], np.uint16)
        for place in range(self._chain.shape[1]):
            has = self._chain_length[rest] > place
            ids[(key - self._chain_length[rest] + place)[has]] = self._chain[rest[has], place]
        pitch = rows[note, 2]
        ids[key] = np.where(is_on, self._on[pitch], self._off[pitch])
        ids[key[is_on] + 1] = self._velocity[rows[note[is_on], 3]]
        return ids

    def piece(self, notes: Notes | Performance) -> Ids:
        """A whole piece: BOS + ``encode(notes)`` + EOS, uint16 [T + 2]."""
        return np.concatenate([[self.bos], self.encode(notes), [self.eos]]).astype(np.uint16)

    def decode(self, ids: Ids | NDArray[np.integer[Any]] | Sequence[int]) -> Notes:
        """The canonical performance that ids say: int32 [N, 4]; BOS and EOS may be there or not.

        Velocities are those of the tokens: an encoded performance comes back with each at its nearest bin.
        Ids that no performance is encoded as are read as the runtime reads them.
        """
        found = self._decode_canonical(np.asarray(ids, dtype=np.int64))
        if found is None:
            found = np.array(events.decode(np.asarray(ids).tolist(), self.table), dtype=np.int32)
        return found.reshape(-1, 4)

    def _decode_canonical(self, ids: NDArray[np.int64]) -> Notes | None:
        """None if the ids are not such as ``encode`` and ``piece`` write."""
        if not len(ids) or ids.min() < 0 or ids.max() >= len(self.table):
            return None
        if ids[0] == self.bos:
            ids = ids[1:]
        if len(ids) and ids[-1] == self.eos:
            ids = ids[:-1]
        on, off = np.flatnonzero(self._is_on[ids]), np.flatnonzero(self._is_off[ids])
        velocity = np.flatnonzero(self._is_velocity[ids])
        if self._is_special[ids].any() or len(on) != len(off) or not np.array_equal(on + 1, velocity):
            return None
        frame, values = np.cumsum(self._steps[ids]), self._values[ids]
        # By pitch and place: canonical ids give on, off, on, off of one pitch, then those of the next.
        on, off = on[np.argsort(values[on], kind="stable")], off[np.argsort(values[off], kind="stable")]
        notes = np.stack([frame[on], frame[off], values[on], values[on + 1]], axis=1)
        again = values[on[1:]] == values[on[:-1]]
        if (
            (values[on] != values[off]).any()
            or (notes[:, 0] >= notes[:, 1]).any()
            or (again & (off[:-1] > on[1:])).any()
        ):
            return None
        return notes[np.lexsort((notes[:, 2], notes[:, 0]))].astype(np.int32)


def _by_value(ids: dict[int, int]) -> NDArray[np.uint16]:
    """Ids by MIDI value 0-127, as an array to index with."""
    found = np.zeros(_MIDI_VALUES, dtype=np.uint16)
    for value, token in ids.items():
        found[value] = token
    return found
