"""A live session: hears the player, remembers, answers, and says how it fares.

    input thread      `input.push`: through to the output, and into the inbox; a key cuts an answer off
    inference thread  `work`: the inbox into the memory, then the plan ahead, into the queue of `playback`
    playback thread   `playback.run_due`: what is due, and its report into the inbox

No method waits or looks at a clock of its own, so a simulation can drive a session through hours in minutes;
`threads.Threads` drives it in real time.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from dsmr_export.errors import DsmrError, nearest
from dsmr_export.runtime.live.clock import MusicClock
from dsmr_export.runtime.live.controls import Controls
from dsmr_export.runtime.live.input import Heard, Input
from dsmr_export.runtime.live.playback import Playback
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.live.status import LayerFill, Phase, RollNote, Status
from dsmr_export.runtime.live.timings import Timings
from dsmr_export.runtime.live.voices import Send, Voices
from dsmr_export.runtime.memory import MODEL, PLAN_TOKENS, PLAYER, Memory
from dsmr_export.runtime.performance import KeyEvent
from dsmr_export.runtime.performer import Moment

LEAD_FRAMES = 2
"""A plan begins so many frames from now: about what its first event takes."""

START_S = 0.05
"""What plays by itself begins so much later than it could: time for the first few events to be there."""

OPENING_S = 0.3
"""The first note of an answer comes within so much of the pause that called for it."""

PLAN_AT_ONCE = 8
"""Tokens between two looks into the inbox."""

BEHIND_S, BEHIND_ITEMS = 0.5, 256
"""Where more is unread than a pianist plays in a stall of seconds, it came faster than it can be read: what
was struck so long ago is then not remembered."""

TURN_S = 0.1
"""Controls that are turned throw the plan away so often at most."""

ROLL_S = 8.0
"""How far back a status shows notes."""

log = logging.getLogger("dsmr")


class Live:
    """One session on one memory. See the module for who may call what."""

    def __init__(
        self,
        memory: Memory,
        settings: LiveSettings,
        send: Send,
        now: Callable[[], float],
    ) -> None:
        self.memory, self.settings = memory, settings
        self.clock = MusicClock(memory.table.step_ms)
        self.voices = Voices(send, now, settings.program, settings.channel)
        self.playback = Playback(self.clock, self.voices, self._played, settings.channel, settings.max_note_s)
        self._inbox: deque[Heard | tuple[float, KeyEvent]] = deque()
        self.input = Input(settings, self.voices, self._put, self._struck, self._inbox.__len__)
        self.controls = Controls(memory)
        self.wake = threading.Event()
        self.answers, self.replies, self.stops = Timings(), Timings(), Timings()
        """From the player's last event to an answer's first; from the pause that was waited for; from a key
        to the end of what sounded."""
        self.phase: Phase = "listening"
        self.on_action: Callable[[str], object] = lambda name: None
        """Told of actions that are not the memory's own: save."""
        self._now = now
        self.heard: Callable[[float, int, KeyEvent], object] = lambda moment, by, event: None
        """Called with every event as it sounded, by PLAYER or MODEL: for recordings. Set before it begins."""
        self.heard_pedal: Callable[[float, int], object] = lambda moment, value: None
        """Called with every move of the player's sustain pedal."""
        self._began = now()
        self._asked = False  # the player played something that no answer was given to
        self._fresh = memory.position <= 1  # time begins with the first note
        self._earliest = 0
        self._opening: int | None = None
        self._answering_since: tuple[float, float] | None = None  # last event of the player, end of the pause
        self._take = self.playback.take
        self._stale = False
        self._turned = 0.0
        self._fed_from, self._rate_since, self._rate = memory.position, self._began, 0.0
        self._roll: deque[tuple[float, int, int, int]] = deque(maxlen=512)
        self.begin(self._began)

    def begin(self, now: float) -> None:
        """Time goes on from here: before the threads start."""
        self._began = self._rate_since = now
        self.clock.align(now, self.memory.frame)
        if self.settings.mode == "loop":
            self.phase = "playing"
            self.clock.align(now + START_S, self.memory.frame)

    # The input and playback threads

    def _put(self, item: Heard) -> None:
        self._inbox.append(item)
        self.wake.set()

    def _played(self, moment: float, event: KeyEvent) -> None:
        self._inbox.append((moment, event))

    def _struck(self, moment: float, pitch: int) -> None:
        if self.phase == "answering":
            self.phase = "listening"
            self.playback.cut(moment)
            self.stops.add(self._now() - moment)
        else:
            self.playback.give_up(pitch, moment)

    # The inference thread

    def work(self, now: float) -> float:
        """Does what there is to do, a few tokens at a time; how many seconds it may sleep (0: not at all)."""
        # What playback has not sent cannot be certain: its event moves if it is late. Asked before the inbox
        # is read, so that whatever is sent meanwhile lies behind it.
        ahead = self.playback.next_frame
        kept = self._read_inbox(now)
        self._rest(now)
        kept = self.memory.advance(self._certain(now, ahead)) and kept
        if self._stale and now - self._turned >= TURN_S:
            self._stale, self._turned, kept = False, now, False
        self._change_phase(now)
        self._fresh = self._fresh and not self._plays
        if not kept or self._take != self.playback.take:
            self._replan(now)
        # Unsettled is the present frame: where all that was planned for it sounded, its rest is missing.
        if self._plays and (self.memory.settled or (ahead is None and self.memory.planned)):
            self._plan(now)
        return self._idle(now)

    @property
    def _plays(self) -> bool:
        return self.phase in ("answering", "playing")

    def _certain(self, now: float, ahead: int | None) -> int:
        """The frame before which nothing more can sound; `ahead`: that of the next event in the queue."""
        memory, frame = self.memory, self.clock.frame(now)
        if not self._plays:
            return memory.frame if self._fresh and memory.settled else frame
        if ahead is not None:
            return min(frame, ahead)
        reached = max(memory.plan_frame, self._earliest)
        if not memory.settled and (memory.frame > reached or not memory.planned):
            reached = memory.frame + 1  # what is not settled is none of the plan
        return min(frame, reached)

    def _read_inbox(self, now: float) -> bool:
        items = [self._inbox.popleft() for _ in range(len(self._inbox))]
        oldest = now - BEHIND_S if len(items) > BEHIND_ITEMS else 0.0
        kept, actions = True, []
        for item in sorted(items, key=lambda item: item[0]):
            if not isinstance(item, Heard):
                kept = self._remember(*item) and kept
            elif item.kind == "action":
                actions.append(item.name)
            else:
                kept = self._hear(item, oldest) and kept
        for name in actions:  # after all that sounded on the way to where they may lead back from
            self._try(name)
        return kept

    def _try(self, line: str) -> None:
        try:
            log.info("%s", self.act(line))
        except DsmrError as error:
            log.warning("%s", error)

    def _hear(self, item: Heard, oldest: float) -> bool:
        memory, moment = self.memory, item.moment
        if self._fresh and not self._plays:
            self.clock.align(moment, memory.frame)
            self._fresh = item.kind != "on"
        self._rest(moment)
        frame = self.clock.frame(moment)
        if item.kind == "on":
            self._asked = True
            self._roll.append((moment, item.number, item.value, PLAYER))
            self.heard(moment, PLAYER, KeyEvent(frame, "on", item.number, item.value))
            if moment < oldest:
                self.input.left_out["flood"] += 1
                return True
            return memory.note_on(frame, item.number, item.value, item.channel)
        if item.kind == "off":
            self.heard(moment, PLAYER, KeyEvent(frame, "off", item.number, 0))
            return memory.note_off(frame, item.number, item.channel)
        if item.kind == "pedal":
            self.heard_pedal(moment, item.value)
            return memory.pedal(frame, item.value, item.channel)
        if item.kind == "all_off":
            if self.settings.thru and item.channel == self.settings.channel:
                self.playback.cut(self._now())  # the synthesizer has silenced the model too
            return memory.all_off(frame, item.channel)
        if item.kind == "lost":
            self.heard_pedal(moment, 0)
            return memory.release(frame, PLAYER)
        self.controls.turn(item.name, item.value)
        self._stale = True
        return True

    def _remember(self, moment: float, event: KeyEvent) -> bool:
        """What the model played is heard like anything else."""
        self.heard(moment, MODEL, event)
        if event.kind == "off":
            return self.memory.note_off(event.frame, event.pitch, by=MODEL)
        self._roll.append((moment, event.pitch, event.velocity, MODEL))
        if self._answering_since is not None:
            last, pause_over = self._answering_since
            self.answers.add(moment - last)
            self.replies.add(moment - pause_over)
            self._answering_since = None
        self._opening = None
        return self.memory.note_on(event.frame, event.pitch, event.velocity, by=MODEL)

    def _rest(self, moment: float) -> None:
        """A silence that nobody plans is remembered up to `longest_rest_s`."""
        if self._plays or not self.memory.settled:  # what ended the silence is no event yet
            return
        latest = self.memory.last_event + self.memory.frames(self.settings.longest_rest_s)
        if self.clock.frame(moment) > latest:
            self.clock.align(moment, latest)

    def _change_phase(self, now: float) -> None:
        mode, quiet, struck = self.settings.mode, now - self.input.last_key, self.input.notes
        if mode == "continue":
            if self.phase == "listening" and self._pause_over(now):
                self._answer(now, struck)
            elif self.phase == "answering" and self.settings.answer_s and now >= self._answer_ends:
                self._stop(now)
        elif mode == "duet":
            if self.phase == "listening" and self._asked:
                self.phase = "playing"
                self._replan(now)
            elif self.phase == "playing" and quiet > self.settings.alone_s and not self.input.held:
                self._stop(now)

    def _pause_over(self, now: float) -> bool:
        return self._asked and not self.input.held and now - self.input.last_key >= self.settings.pause_s

    def _answer(self, now: float, struck: int) -> None:
        """What the player left sounding in the pedal ends, for the memory, where the answer begins. struck:
        how many keys had been when the pause was found to be over."""
        self.memory.release(self.clock.frame(now), PLAYER)
        self._asked = False
        self._answering_since = self.input.last_key, self.input.last_key + self.settings.pause_s
        self._answer_ends = now + self.settings.answer_s
        self.phase = "answering"
        if self.input.notes != struck:  # a key came down meanwhile, and found nothing to stop
            self.phase, self._asked = "listening", True
            return
        self._replan(now)
        self._opening = self._earliest + self.memory.frames(OPENING_S)

    def _stop(self, now: float, phase: Phase = "listening") -> None:
        self.phase = phase
        self.playback.cut(now)
        self._asked = False

    def _replan(self, now: float) -> None:
        """What was planned no longer follows from what sounded: from now on anew."""
        self.playback.clear()
        self._take = self.playback.take
        self.memory.forget_plan()
        self._earliest = max(self.clock.frame(now) + LEAD_FRAMES, self.memory.frame + 1)
        if self._opening is not None:
            self._opening = max(self._opening, self._earliest + self.memory.frames(0.1))

    def _plan(self, now: float) -> None:
        until = self.clock.frame(now + self.settings.ahead_s)
        if self.memory.plan_frame > until:
            return
        events = self.memory.plan(PLAN_AT_ONCE, self._earliest, self._opening, until)
        if not self.playback.put(events, self._take):  # a key was struck meanwhile
            self.memory.forget_plan()

    def _idle(self, now: float) -> float:
        if self._inbox:
            return 0.0
        waits = [0.25]
        if not self.memory.settled:
            starved = self.memory.planned and self.memory.plan_frame <= self.memory.frame
            late = self.clock.seconds(self.memory.frame + 1) - now  # below 0: playback is late
            waits.append(0.0 if starved else max(late, 0.001))
        elif self._plays and self.memory.planned < PLAN_TOKENS:
            waits.append(self.clock.seconds(self.memory.plan_frame + 1) - self.settings.ahead_s - now)
        if self.phase == "listening" and self._asked and not self.input.held:
            waits.append(self.input.last_key + self.settings.pause_s - now)
        if self.phase == "answering" and self.settings.answer_s:
            waits.append(self._answer_ends - now)
        return max(min(waits), 0.0)

    # What it can be told, on the inference thread or where none runs

    def act(self, line: str) -> str:
        """Does what a line says (`pause`, `resume`, `panic`, `undo [SECONDS]`, `undo-bar [N]`, `reset`, `set
        CONTROL VALUE`), and says what was done. Raises ``DsmrError`` for what it does not understand."""
        now = self._now()
        word, *rest = line.split() or [""]
        known = ("pause", "resume", "panic", "undo", "undo-bar", "reset", "set")
        if word == "save":
            self.on_action(line)
            return "saving"
        if word not in known:
            said, words = word or "nothing", ", ".join((*known, "save", "load", "bank", "delete", "quit"))
            raise DsmrError(f"{said}: there is no such command{nearest(word, known)}; {words}")
        if word == "set":
            if len(rest) != 2:
                raise DsmrError("set: give a control and a value, as in `set temperature 0.9`")
            self.controls.set(rest[0], _number(f"set {rest[0]}", rest[1]))
            self._stale = True
            return f"{rest[0]} {float(rest[1]):g}"
        if word == "pause":
            self._stop(now, "paused")
            return "paused"
        if word == "resume":
            if self.phase == "paused":
                self.phase = "playing" if self.settings.mode == "loop" else "listening"
                self._replan(now)
            return self.phase
        if word == "panic":
            self._stop(now, "paused" if self.settings.mode == "loop" else "listening")
            self._put(Heard(now, "lost"))  # the player's keys, for the memory
            self.voices.panic()
            return "all notes off"
        if word == "reset":
            self._stop_for_travel(now)
            self.memory.begin()
            self._arrive(now)
            self._fresh = True
            return "forgotten: a new piece begins"
        count = _number(word, rest[0]) if rest else (1.0 if word == "undo-bar" else 8.0)
        seconds = count * self.input.bar_s(now) if word == "undo-bar" else count
        if not 0 < seconds < math.inf:
            raise DsmrError(f"{line}: give seconds, or bars, above 0")
        self._stop_for_travel(now)
        try:
            gone = self.memory.undo(seconds)
        finally:
            self._arrive(now)
        return f"{gone:.1f} s taken back"

    def state(self) -> tuple[Moment, dict[str, Any]]:
        """Everything remembered, and what else a saved state keeps."""
        moment, player = self.memory.snapshot()
        return moment, {"player": player, "controls": self.controls.values()}

    def go_to(self, moment: Moment, extra: dict[str, Any]) -> None:
        """To a state that was saved. Raises ``BundleError`` for one of another bundle or graph."""
        now = self._now()
        self._stop_for_travel(now)
        try:
            self.memory.restore(moment, extra.get("player", ()))
            for name, value in extra.get("controls", {}).items():
                self.controls.set(name, float(value))
        finally:
            self._arrive(now)

    def _stop_for_travel(self, now: float) -> None:
        """Before the memory goes elsewhere: what sounds ends, and is remembered to have ended."""
        self.playback.cut(now)
        self._read_inbox(now)
        self.memory.forget_plan()

    def _arrive(self, now: float) -> None:
        """After that: the present goes on from there; keys that are down are no part of it."""
        self.clock.align(now + START_S if self._plays else now, self.memory.frame)
        self._asked, self._fresh, self._opening, self._answering_since = False, False, None, None
        if self.phase == "answering":
            self.phase = "listening"
        self._replan(now)
        if self._plays:  # it goes on by itself: nothing has passed in between
            self._earliest = 0

    def close(self) -> None:
        """Ends everything that sounds. May be called by any thread, at any time, more than once."""
        self.phase = "paused"
        self.playback.cut(self._now())
        self.voices.close()

    # How it fares

    def status(self, **others: Any) -> Status:
        """Everything about now; `others` are the fields that only the caller knows (ports, autosave, log)."""
        now, memory = self._now(), self.memory
        position = memory.position
        if now - self._rate_since >= 1.0:
            self._rate = max(position - self._fed_from, 0) / (now - self._rate_since)  # undo goes back
            self._fed_from, self._rate_since = position, now
        queued = self.playback.queued
        coming = [(self.clock.seconds(e.frame), e.pitch, e.velocity, MODEL) for e in queued if e.kind == "on"]
        notes = [note for note in [*self._roll, *coming] if note[0] > now - ROLL_S]
        entry = memory.bundle.graph(memory.stream.graph)
        horizons = memory.bundle.manifest.schedule.horizons
        left_out = dict(self.input.left_out)
        if memory.out_of_range:
            left_out["pitch"] = left_out.get("pitch", 0) + memory.out_of_range
        fields: dict[str, Any] = {
            "mode": self.settings.mode,
            "phase": self.phase,
            "uptime_s": now - self._began,
            "graph": memory.stream.graph,
            "position": position,
            "tokens_per_s": self._rate,
            "lateness_ms": self.playback.lateness.spread(),
            "answer_ms": self.answers.spread(),
            "shifts": self.playback.shifts,
            "shifted_s": self.playback.shifted_s,
            "queue_events": len(queued),
            "queue_s": max(self.clock.seconds(queued[-1].frame) - now, 0.0) if queued else 0.0,
            "heard_notes": self.input.notes,
            "played_notes": self.playback.notes,
            "left_out": left_out,
            "memory": tuple(LayerFill(i, min(position, h), h) for i, h in enumerate(horizons)),
            "controls": self.controls.values(),
            "ports": {},
            "autosaved_s_ago": None,
            "state_bytes": entry.state_bytes,
            "undo_bytes": memory.copies_bytes,
            "roll": tuple(
                RollNote(t - now, p, v, "model" if by == MODEL else "player") for t, p, v, by in notes
            ),
            "log": (),
        }
        return Status(**{**fields, **others})


def _number(word: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DsmrError(f"{word} {text}: {text!r} is not a number") from None
