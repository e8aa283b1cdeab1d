"""What an instrument remembers: everything that sounded, whoever played it, and what is meant to sound next.

Two things happen to one recurrent state. What really sounds, of the player and of the model, goes through one
`Recorder` and is *committed*: canonical tokens, the ones that a file of the same events would have. And the
model runs ahead: it *plans*, sampling tokens for a future that has not sounded yet. As long as what sounds is
what was planned, a committed token is the next of the plan and costs nothing. When it is not (the player
struck a key, a note was cut off), the state goes back to an earlier copy, hears the committed tokens again,
and the plan is forgotten. So the state never holds anything but what sounded, and equals, bit for bit, one
that was fed the same events offline.

Frames count from the beginning of the piece (BOS), in steps of the bundle's vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.errors import DsmrError
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.events import Encoder, EventTable
from dsmr_export.runtime.performance import KeyEvent, Recorder
from dsmr_export.runtime.performer import (
    PROMPT_SEGMENT,
    SAMPLING,
    Moment,
    Paced,
    own_pace,
    pace_bias,
    seeded,
)
from dsmr_export.runtime.sampling import Sampling, sample
from dsmr_export.runtime.stream import Stream

PLAYER, MODEL = 0, 1
"""The recorder's tracks: a release belongs to whoever struck the note."""

ANCHOR_TOKENS = 16
"""A plan that breaks goes back to a copy of the state and feeds at most so many tokens again, one by one."""

PLAN_TOKENS = 512
"""The longest plan: look-ahead is bounded in tokens too, whatever the model does within a frame."""

STEPPED_TOKENS = 128
"""More tokens than this at once are fed in segments: a flood, never a pianist (the bundled corpus has 56 in
its busiest frame). int8 rounds activations per call, so only up to here is the state equal bit for bit."""


@dataclass(frozen=True)
class _Anchor:
    """A copy of the state after `position` tokens, at `frame`."""

    position: int
    frame: int
    moment: Moment


@dataclass(frozen=True)
class _Planned:
    """A token that was sampled ahead, and the generator's state before it."""

    token: int
    rng: Mapping[str, Any]


class Memory:
    """A stream that hears a player and a model, plans ahead, and goes back. For one thread.

    undo_s: how many seconds of music can be taken back; a copy of the state is kept every `undo_every_s`, so
    `undo_bytes` grows with both. Raises ``DsmrError`` for a seed below 0, and what ``Stream`` raises.
    """

    def __init__(
        self,
        bundle: Bundle,
        sampling: Sampling = SAMPLING,
        seed: int = 0,
        graph: str | None = None,
        threads: int | None = None,
        pace: float | None = None,
        undo_s: float = 0.0,
        undo_every_s: float = 5.0,
    ) -> None:
        self._rng = seeded(seed)
        self.bundle = bundle
        self.table = bundle.event_table
        self.sampling = sampling
        self.stream = Stream(bundle, graph, threads)
        self.committed: Callable[[KeyEvent], None] | None = None
        """Called with every event that became certain, in token order."""
        self.broken = 0
        """How many plans were forgotten because something else sounded."""
        self._mask = Paced(bundle.grammar(ordered=True))
        self._recorder = Recorder(self.table.pitch_range)
        self._undo_frames = self.frames(undo_s)
        self._undo_every = max(self.frames(undo_every_s), 1)
        self._masks = _PlanMasks(self.table)
        self.pace = own_pace(bundle) if pace is None else pace
        self._plan: deque[_Planned] = deque()
        self._plan_events = self._plan_from = 0
        self._pending_pitch = 0
        # Copies of the state, oldest first; the tokens committed since the first of them, each with the frame
        # that it belongs to.
        self._anchors: list[_Anchor] = []
        self._history: deque[tuple[int, int]] = deque()
        self.begin()

    @property
    def pace(self) -> float:
        """Above 0 longer pauses, below 0 shorter (`play.pace_bias`), in what is planned from now on."""
        return self._pace

    @pace.setter
    def pace(self, pace: float) -> None:
        self._bias = pace_bias(self.table, pace)
        self._pace = pace

    @property
    def frame(self) -> int:
        """The present: the last moment that anything was said about."""
        return max(self._recorder.frame, self._encoder.frame)

    @property
    def position(self) -> int:
        """Tokens committed since the beginning, BOS included."""
        return self.stream.position - len(self._plan)

    @property
    def planned(self) -> int:
        """Tokens of the plan."""
        return len(self._plan)

    @property
    def plan_frame(self) -> int:
        """The frame that the plan has reached."""
        return self._mask.frame

    @property
    def settled(self) -> bool:
        """Whether everything that was heard is committed; else time must pass first."""
        return self._recorder.settled

    @property
    def sounding(self) -> dict[int, int]:
        """The pitches that sound, each with PLAYER or MODEL."""
        return self._recorder.owners()

    @property
    def out_of_range(self) -> int:
        """Notes outside the vocabulary's pitches, which were left out."""
        return self._recorder.dropped

    @property
    def copies_bytes(self) -> int:
        """Bytes of the copies of the state that are kept for plans and for undo."""
        return sum(anchor.moment.stream.nbytes for anchor in self._anchors)

    def frames(self, seconds: float) -> int:
        """So many seconds in frames."""
        return round(seconds * 1000 / self.table.step_ms)

    # What sounds. What it returns: False if it was not what was planned, so that the plan is forgotten.

    def begin(self, ids: Sequence[int] = (), progress: Callable[[int], None] | None = None) -> None:
        """A new piece: forget everything but the random generator, then hear BOS and a prompt, as `hear`."""
        self._clear_plan()
        self.stream.reset()
        self._mask.reset()
        self.hear([self.bundle.manifest.special.bos, *ids], progress)

    def hear(self, ids: Sequence[int], progress: Callable[[int], None] | None = None) -> None:
        """Tokens [S] of a prompt, in segments; time goes on from its end. `progress` gets the count fed."""
        self.forget_plan()
        self._feed_segments(ids, progress)
        self._go_on(dict.fromkeys(self._mask.onsets, MODEL))

    def note_on(self, frame: int, pitch: int, velocity: int, channel: int = 0, by: int = PLAYER) -> bool:
        """A note begins, played by PLAYER (on a channel) or MODEL. A note of the model that the player
        strikes is the player's from there on."""
        taken = by == PLAYER and bool(self._plan) and self.sounding.get(pitch) == MODEL
        if taken:
            self.forget_plan()
        kept = self._commit(self._recorder.note_on(frame, pitch, velocity, _channel(channel, by), by))
        return kept and not taken

    def note_off(self, frame: int, pitch: int, channel: int = 0, by: int = PLAYER) -> bool:
        """A key comes up."""
        return self._commit(self._recorder.note_off(frame, pitch, _channel(channel, by), by))

    def pedal(self, frame: int, value: int, channel: int = 0) -> bool:
        """The player's sustain pedal moves. It holds notes of the player only: a model whose notes would not
        end where it ends them would end them again and again."""
        return self._commit(self._recorder.pedal(frame, value, _channel(channel, PLAYER)))

    def all_off(self, frame: int, channel: int = 0) -> bool:
        """Every note of the player's on a channel ends, pedal or not."""
        return self._commit(self._recorder.all_off(frame, _channel(channel, PLAYER)))

    def release(self, frame: int, by: int) -> bool:
        """Every note of PLAYER or MODEL ends, and pedals are up: an answer begins, a port is gone."""
        return self._commit(self._recorder.release_track(frame, by))

    def advance(self, frame: int) -> bool:
        """Time passes: what happened before `frame` is certain."""
        kept = self._commit(self._recorder.advance(frame))
        if self._recorder.settled:
            ids = self._encoder.advance(frame)
            kept = self._take([(token, self._encoder.frame) for token in ids]) and kept
        return kept

    def _commit(self, events: Iterable[KeyEvent]) -> bool:
        tokens: list[tuple[int, int]] = []
        for event in events:
            tokens += [(token, event.frame) for token in self._encoder.push(event)]
            self.last_event = event.frame
            if self.committed is not None:
                self.committed(event)
        return self._take(tokens)

    def _take(self, tokens: Sequence[tuple[int, int]]) -> bool:
        """Tokens that are certain: those of the plan are in the state already, another one breaks it."""
        for place, (token, frame) in enumerate(tokens):
            if self._plan and self._plan[0].token == token:
                self._plan.popleft()
                self._remember(token, frame)
                continue
            kept = not self._plan
            self.forget_plan()
            self._commit_new(tokens[place:])
            return kept
        return True

    def _commit_new(self, tokens: Sequence[tuple[int, int]]) -> None:
        if self._undo_frames and tokens[0][1] - self._anchors[-1].frame >= self._undo_every:
            self._keep()
        ids = [token for token, _ in tokens]
        if len(ids) <= STEPPED_TOKENS:
            self._feed(ids)
        else:
            self._feed_segments(ids)
        for token, frame in tokens:
            self._remember(token, frame)

    def _remember(self, token: int, frame: int) -> None:
        if not self._undo_frames and not self._plan and len(self._history) > 4 * ANCHOR_TOKENS:
            self._anchors.clear()  # nobody goes back there: the next plan makes a copy of its own
        if self._anchors:
            self._history.append((token, frame))
        else:
            self._history.clear()

    def _feed(self, ids: Iterable[int]) -> None:
        for token in ids:
            self.stream.step(token)
            self._mask.advance(token)

    def _feed_segments(self, ids: Sequence[int], progress: Callable[[int], None] | None = None) -> None:
        for start in range(0, len(ids), PROMPT_SEGMENT):
            segment = ids[start : start + PROMPT_SEGMENT]
            self.stream.feed(segment)
            for token in segment:
                self._mask.advance(token)
            if progress is not None:
                progress(start + len(segment))

    def _go_on(self, owners: Mapping[int, int]) -> None:
        """The present is where the state is; the notes that sound in it belong to `owners`."""
        frame, onsets = self._mask.frame, self._mask.onsets
        self._anchors.clear()  # they were of another past
        self._history.clear()
        self._encoder = Encoder(self.table, frame)
        self._recorder.resume(frame, onsets, owners)
        self.last_event = frame
        if self._undo_frames:
            self._keep()

    # What is meant to sound

    def plan(
        self, tokens: int, earliest: int, opening: int | None = None, until: int | None = None
    ) -> list[KeyEvent]:
        """Samples up to so many tokens more, and returns the events that they are, none before `earliest`.

        opening: nothing of an answer was played yet, and its first note must come by this frame. until: a
        plan that is beyond this frame is long enough.
        """
        events: list[KeyEvent] = []
        player = [pitch for pitch, by in self.sounding.items() if by == PLAYER]
        if not self._plan:
            self._plan_from = self._recorder.frame
        earliest = max(earliest, self._plan_from)  # before the present nothing can sound any more
        for _ in range(min(tokens, PLAN_TOKENS - len(self._plan))):
            if until is not None and self._mask.frame > until:
                break
            if not self._anchors or self.stream.position - self._anchors[-1].position >= ANCHOR_TOKENS:
                self._keep()
            first_by = opening if not self._plan_events else None
            allowed = self._masks.allowed(self._mask, player, earliest, first_by)
            before = self._rng.bit_generator.state
            token = sample(self.stream.logits + self._bias, self.sampling, self._rng, allowed)
            self._plan.append(_Planned(token, before))
            self._feed([token])
            kind, value = self.table.kinds[token], self.table.values[token]
            if kind == "on":
                self._pending_pitch = int(value)
            elif kind == "velocity":
                events.append(KeyEvent(self._mask.frame, "on", self._pending_pitch, int(value)))
            elif kind == "off":
                events.append(KeyEvent(self._mask.frame, "off", int(value), 0))
            self._plan_events = self._plan_events + (kind in ("velocity", "off"))
        return events

    def forget_plan(self) -> None:
        """The state goes back to what sounded."""
        if not self._plan:
            return
        position = self.position
        self._clear_plan()
        self.broken += 1
        while self._anchors[-1].position > position:
            self._anchors.pop()
        anchor = self._anchors[-1]
        self._back_to(anchor.moment)
        self._feed([token for token, _ in self._since(anchor)])

    def _clear_plan(self) -> None:
        self._plan.clear()
        self._plan_events = 0

    def _back_to(self, moment: Moment) -> None:
        self.stream.restore(moment.stream)
        self._mask.become(moment.mask)

    def _since(self, anchor: _Anchor) -> list[tuple[int, int]]:
        """The tokens committed after an anchor, with their frames."""
        skipped = anchor.position - self._anchors[0].position
        return list(islice(self._history, skipped, None))

    def _keep(self) -> None:
        """A copy of the state as it is, of those that are no longer needed none."""
        moment = Moment(self.stream.snapshot(), self._mask.copy(), {})
        self._anchors.append(_Anchor(self.stream.position, self._mask.frame, moment))
        committed = [anchor for anchor in self._anchors if anchor.position <= self.position]
        ahead = self._anchors[len(committed) :]
        kept = self._for_undo(committed[:-1]) + committed[-1:]
        for _ in range(kept[0].position - self._anchors[0].position):
            self._history.popleft()
        self._anchors = kept + ahead

    def _for_undo(self, anchors: Sequence[_Anchor]) -> list[_Anchor]:
        """Those that undo needs: one every so often, from the last before the time that it reaches back."""
        kept: list[_Anchor] = []
        for anchor in anchors if self._undo_frames else ():
            if not kept or anchor.frame - kept[-1].frame >= self._undo_every:
                kept.append(anchor)
        while len(kept) > 1 and kept[1].frame <= self.frame - self._undo_frames:
            del kept[0]
        return kept

    # Going elsewhere

    def undo(self, seconds: float) -> float:
        """Goes so many seconds back, and returns how many it were; what sounded then ends there.

        Raises ``DsmrError`` where nothing so old is kept.
        """
        self.forget_plan()
        target = max(self.frame - self.frames(seconds), 0)
        found = [anchor for anchor in self._anchors if anchor.frame <= target]
        if not self._undo_frames or not found:
            raise DsmrError(
                f"undo {seconds:g}: {self.undo_reach_s:.1f} s can be taken back; begin with a larger --undo"
            )
        anchor, before = found[-1], self.frame
        tokens = [(token, frame) for token, frame in self._since(anchor) if frame <= target]
        self._anchors = self._anchors[: self._anchors.index(anchor) + 1]
        kept = anchor.position - self._anchors[0].position
        self._history = deque([*islice(self._history, kept), *tokens])
        self._back_to(anchor.moment)
        self._feed([token for token, _ in tokens])
        onsets = self._mask.onsets
        self._encoder = Encoder(self.table, self._mask.frame)
        self._recorder.resume(max(target, self._mask.frame), onsets, dict.fromkeys(onsets, PLAYER))
        self.last_event = self._mask.frame
        self.release(self.frame, PLAYER)
        self.advance(self.frame + 2)
        return (before - target) * self.table.step_ms / 1000

    @property
    def undo_reach_s(self) -> float:
        """How many seconds can be taken back now."""
        if not self._undo_frames or not self._anchors:
            return 0.0
        return (self.frame - self._anchors[0].frame) * self.table.step_ms / 1000

    def snapshot(self) -> tuple[Moment, list[int]]:
        """Everything remembered now, as if nothing were planned, and the pitches that the player holds.

        The random generator is as it was before the first token of the plan: what is restored from this plans
        the same.
        """
        here = Moment(self.stream.snapshot(), self._mask.copy(), self._rng.bit_generator.state)
        moment = here
        if self._plan:
            anchor = next(a for a in reversed(self._anchors) if a.position <= self.position)
            self._back_to(anchor.moment)
            self._feed([token for token, _ in self._since(anchor)])
            moment = Moment(self.stream.snapshot(), self._mask.copy(), self._plan[0].rng)
            self._back_to(here)  # the plan stands as it stood: nothing of it is thought out again
        player = [pitch for pitch, by in self.sounding.items() if by == PLAYER]
        return moment, sorted(set(player) & set(moment.mask.onsets))

    def restore(self, moment: Moment, player: Collection[int] = ()) -> None:
        """Goes to a moment; the notes of `player` end there, the others are the model's to end.

        Raises ``BundleError``, with nothing changed but the plan, for a moment of another bundle or graph.
        """
        self.forget_plan()
        self._back_to(moment)
        self._rng.bit_generator.state = moment.rng
        self._go_on({pitch: PLAYER if pitch in player else MODEL for pitch in self._mask.onsets})
        if player:
            self.release(self.frame + 1, PLAYER)
            self.advance(self.frame + 1)

    def reseed(self, seed: int) -> None:
        """Another random generator, for what is planned from now on."""
        self._rng = seeded(seed)


def _channel(channel: int, by: int) -> int:
    """The recorder's: 0 is the model's own, which no pedal of the player's reaches."""
    return channel + 1 if by == PLAYER else 0


class _PlanMasks:
    """Which tokens a plan may have next: what the grammar allows, of the model's own notes, in time."""

    def __init__(self, table: EventTable) -> None:
        self._off_ids = table.off_ids
        self._longest = table.longest_shift
        kinds, values = table.kinds, table.values
        self._steps = np.array([int(v) if k == "shift" else 0 for k, v in zip(kinds, values, strict=True)])
        self._shift = self._steps > 0

    def allowed(
        self, mask: Paced, player: Sequence[int], earliest: int, first_by: int | None
    ) -> NDArray[np.bool_]:
        """Boolean [V]. player: pitches that are not the model's to end; earliest, first_by: see `plan`."""
        allowed = mask.allowed.copy()
        for pitch in player:
            allowed[self._off_ids[pitch]] = False
        wait = earliest - mask.frame
        if wait > 0:  # the time until now has passed in silence: only a shift over it agrees with that
            allowed &= (self._steps >= wait) | (self._steps == self._longest)
        if first_by is not None:
            soon = allowed & (self._steps <= max(first_by - mask.frame, 0))
            allowed = soon if soon.any() else allowed
            if wait <= 0 and (allowed & ~self._shift).any():
                allowed &= ~self._shift
        # Every key held by the player, say: then time passes.
        return allowed if allowed.any() else self._shift
