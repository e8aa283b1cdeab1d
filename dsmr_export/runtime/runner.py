"""One graph with its recurrent state: buffers allocated once, bindings made once, any number of calls.

`FusedRunner` updates the state in place (the same memory is bound as past and present); `PortableRunner`
keeps two copies and swaps them. Everything they need is in the manifest. Each call's inputs are written
into numpy arrays that onnxruntime shares; a call of one token reuses a binding as it is, a segment binds
three more values when its length changes.

Axes: S tokens of this segment, M cached tokens, D head width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsmr_export.manifest import GraphEntry, ModelShape
from dsmr_export.runtime.session import load_onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding


STEP_ROWS = 32
"""Positions whose angles are computed together for single steps."""


class RopeTable:
    """cos and sin of the rotary angles, float32 [rows, D/2]; row r belongs to the segment's r-th token.

    angle = position * rope_base^(-2j/D), from float64: at position 1e9 the angle is still right to 1e-7.
    Rows from `step_rows` on are for single steps: a row for each of the next positions.
    """

    def __init__(self, rows: int, head_dim: int, rope_base: float, step_rows: int = 0) -> None:
        self.cos = np.zeros((rows, head_dim // 2), np.float32)
        self.sin = np.zeros((rows, head_dim // 2), np.float32)
        self._frequency = float(rope_base) ** (-2.0 * np.arange(head_dim // 2) / head_dim)
        self._angle = np.empty(head_dim // 2)
        self._first = (self.cos[0], self.sin[0])
        self._step_rows = step_rows
        self._ahead = min(STEP_ROWS, rows - step_rows)
        self._block: int | None = None

    def fill(self, position: int, count: int) -> None:
        """Rows 0 ... count-1 become the angles of the absolute positions position ... position+count-1."""
        self._fill(0, position, count)

    def fill_one(self, position: int) -> None:
        np.multiply(self._frequency, float(position), out=self._angle)
        np.cos(self._angle, out=self._first[0])
        np.sin(self._angle, out=self._first[1])

    def step_row(self, position: int) -> int:
        """The row that has the angles of `position`, among those for single steps.

        The same positions are always computed together, so that the angles of one depend on nothing else.
        """
        block, row = divmod(position, self._ahead)
        if block != self._block:
            self._fill(self._step_rows, block * self._ahead, self._ahead)
            self._block = block
        return self._step_rows + row

    def _fill(self, row: int, position: int, count: int) -> None:
        positions = np.arange(position, position + count, dtype=np.float64)
        angle = np.multiply.outer(positions, self._frequency)
        np.cos(angle, out=self.cos[row : row + count])
        np.sin(angle, out=self.sin[row : row + count])


class Runner:
    """What both graphs share: the buffers, and the two kinds of call.

    `state` holds the graph's own arrays by input name, `tensors` says what they are; `count` is what the
    graph is told of the past (fused: T, wrapped; portable: valid tokens, saturating). Both together are the
    recurrent state."""

    def __init__(
        self, session: InferenceSession, entry: GraphEntry, model: ModelShape, rope: RopeTable
    ) -> None:
        self._session = session
        self._entry = entry
        self._ortvalue = load_onnxruntime().OrtValue.ortvalue_from_numpy
        self.max_segment = entry.stream.max_segment
        self.tensors = entry.state
        self.count = 0
        self.state = self._new_state()
        self._ids = np.zeros((1, self.max_segment), np.int64)
        # The logits of one step and of a segment have their own memory: a step's answer stays valid while a
        # segment runs.
        self._step_ids = np.zeros((1, 1), np.int64)
        self._step_logits = np.zeros((1, 1, model.vocab_size), np.float32)
        self.logits: NDArray[np.float32] = self._step_logits[0, 0]
        self._logits: NDArray[np.float32] | None = None
        self._vocab_size = model.vocab_size
        self._rope = rope

    def _new_state(self) -> dict[str, NDArray[np.generic]]:
        return {t.input: np.zeros(t.shape, np.dtype(t.dtype)) for t in self._entry.state}

    def _segment_logits(self, size: int) -> NDArray[np.float32]:
        """[1, S, V] of a buffer that exists only once a segment was run: max_segment * V * 4 bytes."""
        if self._logits is None:
            self._logits = np.zeros((1, self.max_segment, self._vocab_size), np.float32)
        return self._logits[:, :size]

    def reset(self) -> None:
        """Forgets everything: zero state, zero count."""
        self.count = 0
        for array in self.state.values():
            array.fill(0)

    def run(self, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Feeds ids [S], S <= max_segment, from `position` on; logits [S, V], a view until the next call."""
        raise NotImplementedError

    def step(self, token: int, position: int) -> None:
        """Feeds one token at `position`; its logits [V] are then in `self.logits`."""
        raise NotImplementedError


class FusedRunner(Runner):
    """GroupQueryAttention with window caches: one copy of the state, past and present the same memory."""

    def __init__(self, session: InferenceSession, entry: GraphEntry, model: ModelShape) -> None:
        rule = entry.stream
        rope = RopeTable(rule.rope_rows, model.head_dim, model.rope_base, rule.max_segment)
        super().__init__(session, entry, model, rope)
        self._advance = entry.stream.advance
        self._seqlens_k = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._rows = np.arange(self.max_segment, dtype=np.int64)[None]
        self._fixed = {
            "seqlens_k": self._ortvalue(self._seqlens_k),
            "total_sequence_length": self._ortvalue(self._total),
            "rope_cos": self._ortvalue(self._rope.cos),
            "rope_sin": self._ortvalue(self._rope.sin),
        }
        self._shared = {name: self._ortvalue(array) for name, array in self.state.items()}
        self._step_row = np.zeros((1, 1), np.int64)
        self._one = self._bind()
        self._bind_segment(self._one, self._step_ids, self._step_row, self._step_logits)
        self._many: IOBinding | None = None
        self._bound_size = 0

    def _bind(self) -> IOBinding:
        binding = self._session.io_binding()
        for name, value in self._fixed.items():
            binding.bind_ortvalue_input(name, value)
        for tensor in self._entry.state:
            binding.bind_ortvalue_input(tensor.input, self._shared[tensor.input])
            binding.bind_ortvalue_output(tensor.output, self._shared[tensor.input])
        return binding

    def _bind_segment(
        self, binding: IOBinding, ids: NDArray[np.int64], rows: NDArray[np.int64], logits: NDArray[np.float32]
    ) -> None:
        binding.bind_ortvalue_input("input_ids", self._ortvalue(ids))
        binding.bind_ortvalue_input("position_ids", self._ortvalue(rows))
        binding.bind_ortvalue_output("logits", self._ortvalue(logits))

    def run(self, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        size = len(ids)
        if self._many is None:
            self._many = self._bind()
        if size != self._bound_size:
            self._bind_segment(
                self._many, self._ids[:, :size], self._rows[:, :size], self._segment_logits(size)
            )
            self._bound_size = size
        total = self._advance(self.count, size)
        self._ids[0, :size] = ids
        self._seqlens_k[0] = total - 1
        self._total[()] = total
        self._rope.fill(position, size)
        self._session.run_with_iobinding(self._many)
        self.count = total
        logits: NDArray[np.float32] = self._segment_logits(size)[0]
        self.logits[:] = logits[-1]
        return logits

    def step(self, token: int, position: int) -> None:
        total = self._advance(self.count, 1)
        self._step_ids[0, 0] = token
        self._seqlens_k[0] = total - 1
        self._total[()] = total
        self._step_row[0, 0] = self._rope.step_row(position)
        self._session.run_with_iobinding(self._one)
        self.count = total


class PortableRunner(Runner):
    """Plain ONNX: the graph returns a new state, so two copies take turns as past and present."""

    def __init__(self, session: InferenceSession, entry: GraphEntry, model: ModelShape) -> None:
        rope = RopeTable(entry.stream.max_segment, model.head_dim, model.rope_base)
        super().__init__(session, entry, model, rope)
        self._spare = self._new_state()
        self._saturation = max(tensor.shape[2] for tensor in entry.state)
        self._past_length = np.zeros((), np.int64)
        self._length = self._ortvalue(self._past_length)
        # Two bindings for each kind of call: from `state` to `_spare`, and back. `_turn` says which is due.
        self._one = [self._bind(turn) for turn in (0, 1)]
        self._many = [self._bind(turn) for turn in (0, 1)]
        self._turn = 0
        self._bound_size = 0
        for binding in self._one:
            self._bind_segment(binding, self._step_ids, self._step_logits)

    def _bind(self, turn: int) -> IOBinding:
        past, present = (self._spare, self.state) if turn else (self.state, self._spare)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("past_length", self._length)
        for tensor in self._entry.state:
            binding.bind_ortvalue_input(tensor.input, self._ortvalue(past[tensor.input]))
            binding.bind_ortvalue_output(tensor.output, self._ortvalue(present[tensor.input]))
        return binding

    def _bind_segment(self, binding: IOBinding, ids: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        size = ids.shape[1]
        binding.bind_ortvalue_input("input_ids", self._ortvalue(ids))
        binding.bind_ortvalue_input("rope_cos", self._ortvalue(self._rope.cos[:size]))
        binding.bind_ortvalue_input("rope_sin", self._ortvalue(self._rope.sin[:size]))
        binding.bind_ortvalue_output("logits", self._ortvalue(logits))

    def _run(self, bindings: list[IOBinding], size: int) -> None:
        self._past_length[()] = self.count
        self._session.run_with_iobinding(bindings[self._turn])
        # The new state is in the other copy: from here on that one is `state`.
        self.state, self._spare = self._spare, self.state
        self._turn = 1 - self._turn
        self.count = min(self.count + size, self._saturation)

    def run(self, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        size = len(ids)
        if size != self._bound_size:
            for binding in self._many:
                self._bind_segment(binding, self._ids[:, :size], self._segment_logits(size))
            self._bound_size = size
        self._ids[0, :size] = ids
        self._rope.fill(position, size)
        self._run(self._many, size)
        logits: NDArray[np.float32] = self._segment_logits(size)[0]
        self.logits[:] = logits[-1]
        return logits

    def step(self, token: int, position: int) -> None:
        self._step_ids[0, 0] = token
        self._rope.fill_one(position)
        self._run(self._one, 1)


RUNNERS: dict[str, type[FusedRunner] | type[PortableRunner]] = {
    "fused": FusedRunner,
    "portable": PortableRunner,
}
