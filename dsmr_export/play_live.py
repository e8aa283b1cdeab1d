"""`dsmr play` with MIDI ports: what stands around a live session, from its start to its last note-off."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Any

import click

from dsmr_export import live_view
from dsmr_export.errors import DsmrError, StateError
from dsmr_export.live_keys import Keys
from dsmr_export.play_files import in_bank
from dsmr_export.progress import stages
from dsmr_export.runtime.bank import Bank
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.live import keeper, service, status_socket
from dsmr_export.runtime.live.engine import Live
from dsmr_export.runtime.live.keeper import Keeper
from dsmr_export.runtime.live.machine import Machine
from dsmr_export.runtime.live.ports import InputPort, OutputPort, Watcher, find_port, list_ports
from dsmr_export.runtime.live.recording import Recording
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.live.status import Spread, Status
from dsmr_export.runtime.live.threads import Threads
from dsmr_export.runtime.memory import Memory
from dsmr_export.runtime.performance import Performance
from dsmr_export.runtime.play import ids_to_let_go, prompt_ids
from dsmr_export.runtime.sampling import Sampling
from dsmr_export.runtime.saved_state import SavedState
from dsmr_export.terminal import print_json

HANGS_S = 5.0
"""Inference that has not said a word for so long is not reported to systemd as alive."""

log = logging.getLogger("dsmr")


@dataclass(frozen=True)
class LiveJob:
    """The command's options. seed None: 0, or the generator of the state that is gone on from. seconds None:
    until it is told to end. prompt and state are read already. controls: those that were given, which are
    not as the state had them. autosave None: nothing is saved by itself."""

    settings: LiveSettings
    sampling: Sampling
    midi_in: str | None
    midi_out: str | None
    virtual: bool
    prompt: Performance | None
    state: SavedState | None
    seed: int | None
    graph: str | None
    threads: int | None
    pace: float | None
    controls: Mapping[str, float]
    seconds: float | None
    save: Path | None
    save_state: str | None
    bank: Path | None
    autosave_s: float
    autosave: Path | None
    status_socket: Path | None
    affinity: tuple[int, ...]
    nice: int
    realtime: int
    view: bool
    log_level: str
    as_json: bool


class Session:
    """Everything that runs during `dsmr play`, and the words that it understands."""

    def __init__(self, bundle: Bundle, job: LiveJob, said: deque[str]) -> None:
        self.bundle, self.job = bundle, job
        self.ended = threading.Event()
        self.recording = Recording() if job.save is not None else None
        self.memory, self._extra = _memory(bundle, job)
        self.output = OutputPort(None if job.virtual else job.midi_out, "dsmr out" if job.virtual else None)
        self.input: InputPort | None = None
        self._said = said
        try:
            self.live = Live(self.memory, job.settings, self.output.send, time.monotonic)
            if self.recording is not None:
                self.live.heard, self.live.heard_pedal = self.recording.add, self.recording.pedal
            for name, value in {**self._extra.get("controls", {}), **job.controls}.items():
                self.live.controls.set(name, value)
            self.live.on_action = self._later
            if job.virtual or job.midi_in is not None:
                name, virtual = (None, "dsmr in") if job.virtual else (job.midi_in, None)
                self.input = InputPort(name, virtual, self.live.input.push, self.output.api)
        except BaseException:
            self.output.close()
            raise
        self.threads = Threads(self.live, job.affinity, job.nice, job.realtime)
        bank = None if job.bank is None else Bank(job.bank, bundle)
        self.keeper = Keeper(self.threads, bank, job.autosave, job.autosave_s)

    @property
    def ports(self) -> list[InputPort | OutputPort]:
        return [self.output] if self.input is None else [self.input, self.output]

    def status(self) -> Status:
        """Of now; for the view and the socket."""
        ports = {port.kind.removesuffix("put"): _said(port) for port in self.ports}
        return self.live.status(
            ports=ports, autosaved_s_ago=self.keeper.autosaved_s_ago, log=tuple(self._said)[-3:]
        )

    def act(self, line: str) -> str:
        """Does what a line says; by any thread. Raises ``DsmrError``."""
        word, _, rest = line.strip().partition(" ")
        if word == "quit":
            self.ended.set()
            return "ending"
        if word == "save":
            return self.keeper.save_as(rest.strip() or time.strftime("%Y-%m-%d-%H%M%S"))
        if word == "load":
            return self.keeper.load(rest.strip())
        if word == "bank":
            return self.keeper.names()
        if word == "delete":
            return self.keeper.delete(rest.strip())
        if word in ("pause", "panic"):  # at once, whatever inference is doing
            self.live.playback.cut(time.monotonic())
            if word == "panic":
                self.live.voices.panic()
        return self.threads.call(lambda: self.live.act(line))

    def lost(self, name: str) -> None:
        """A port, or the server of all of them, is gone: nothing is left sounding, nothing is forgotten."""
        log.warning("%s is gone; waiting for it", name)
        if self.input is not None and not self.input.connected:
            self.live.input.release(time.monotonic())
        if not self.output.connected:
            self.live.voices.lost()

    def back(self, name: str) -> None:
        log.info("%s is back", name)
        if self.output.connected:
            self.live.voices.start()

    def _later(self, line: str) -> None:
        """From the inference thread, which waits for no file."""
        threading.Thread(target=self._logged, args=(line,), daemon=True).start()

    def _logged(self, line: str) -> None:
        try:
            log.info("%s", self.act(line))
        except DsmrError as error:
            log.warning("%s", error)

    def run(self) -> None:
        """Until it is told to end. Raises what inference died of."""
        job = self.job
        with ExitStack() as stack:
            for port in self.ports:
                stack.callback(port.close)
            stack.callback(self.threads.close)
            self.live.voices.start()
            self.threads.start()
            stack.enter_context(_watched(self))
            self.keeper.start()
            stack.callback(self._keep)
            stack.enter_context(_socket(self, job.status_socket))
            if job.view:
                stack.enter_context(live_view.View(self.status))
                stack.enter_context(Keys(self.status, self.act, lambda text: log.info("%s", text)))
            service.ready()
            stack.callback(service.stopping)
            self._wait()
        if self.threads.failed is not None:
            raise self.threads.failed

    def _wait(self) -> None:
        until = None if self.job.seconds is None else time.monotonic() + self.job.seconds
        tick = min(service.alive_every_s() or 1.0, 1.0)
        phase = None
        while not self.threads.stopping.is_set():
            left = tick if until is None else min(tick, until - time.monotonic())
            if left <= 0 or self.ended.wait(left):
                return
            if self.threads.beat_s_ago < HANGS_S:
                service.alive()
            if phase != self.live.phase:
                phase = self.live.phase
                service.say(f"{self.job.settings.mode}: {phase}")

    def _keep(self) -> None:
        """At the end: what sounds ends, and what was asked for is saved."""
        self.live.close()  # at once, whatever inference is doing
        if self.threads.stopping.is_set():
            return
        self.act("pause")
        self.keeper.close()
        if self.job.save_state is not None:
            if in_bank(self.job.bank, self.job.save_state):
                log.info("%s", self.keeper.save_as(self.job.save_state))
            else:
                path = self.keeper.save(Path(self.job.save_state))
                log.info("%s: the state after %s tokens", path, f"{self.memory.position:,}")

    def result(self) -> dict[str, Any]:
        """What it came to."""
        found = figures(self.live)
        if self.recording is not None and self.job.save is not None:
            table = self.memory.table
            found["saved"] = str(self.job.save)
            found["saved_notes"] = self.recording.save(self.job.save, table.pitch_range, table.step_ms)
        return found

    def rescue(self) -> None:
        """After an error: what was played until then is not lost with the session."""
        if self.live.input.notes or self.live.playback.notes:
            self.result()


def figures(live: Live) -> dict[str, Any]:
    """What a session came to, in numbers."""
    status = live.status()
    return {
        "heard_notes": status.heard_notes,
        "played_notes": status.played_notes,
        "position": status.position,
        "uptime_s": status.uptime_s,
        "answer_ms": vars(status.answer_ms),
        "reply_ms": vars(live.replies.spread()),
        "stop_ms": vars(live.stops.spread()),
        "lateness_ms": vars(status.lateness_ms),
        "shifts": status.shifts,
        "shifted_s": status.shifted_s,
        "left_out": status.left_out,
        "rss_bytes": Machine().facts()["rss_bytes"],
    }


def run(bundle: Bundle, job: LiveJob) -> None:
    """A whole session; what it came to on stdout. Raises ``DsmrError`` before the first note for whatever
    cannot work."""
    said: deque[str] = deque(maxlen=50)
    with _logging(job, said):
        session = Session(bundle, job, said)
        for port in session.ports:
            log.info("MIDI %s: %s", port.kind, port.name)
        with _signals(session.ended):  # until all is silent and saved
            try:
                session.run()
            except BaseException:
                session.rescue()
                raise
            found = session.result()
    if job.as_json:
        print_json(found)
    else:
        for line in lines(found, job.settings):
            click.echo(line)


def lines(found: dict[str, Any], settings: LiveSettings) -> Iterator[str]:
    """The same in words."""
    heard, played = found["heard_notes"], found["played_notes"]
    yield f"heard {heard:,} notes, played {played:,}, in {found['uptime_s']:.0f} s"
    if found["answer_ms"]["count"]:
        pause = f"of it {settings.pause_s:g} s pause"
        yield f"from your last note to the first of an answer: {_times(found['answer_ms'])}; {pause}"
        yield f"from the end of that pause: {_times(found['reply_ms'])}"
    if found["stop_ms"]["count"]:
        yield f"from your first key to silence: {_times(found['stop_ms'])}"
    if found["lateness_ms"]["count"]:
        moved = f"the music moved {found['shifts']} times, by {found['shifted_s']:.2f} s in all"
        yield f"lateness: {_times(found['lateness_ms'])}; {moved}"
    if found["left_out"]:
        yield "left out: " + ", ".join(f"{count} ({reason})" for reason, count in found["left_out"].items())
    if "saved" in found:
        yield f"{found['saved']}: {found['saved_notes']} notes"


def _times(spread: dict[str, Any]) -> str:
    times = Spread(**spread)
    return f"p50 {times.p50:.1f}, p99 {times.p99:.1f}, max {times.max:.1f} ms ({times.count})"


def _memory(bundle: Bundle, job: LiveJob) -> tuple[Memory, dict[str, Any]]:
    """The memory at its start, after state and prompt, and what else the state held.

    What was saved by itself is gone on from as it was: seed and prompt were for its beginning.
    """
    state, prompt, seed = job.state, job.prompt, job.seed
    if state is None and job.autosave is not None:
        state = keeper.resume(job.autosave, lambda path: _read_state(path, bundle, job.graph))
        if state is not None:
            prompt = seed = None
            log.info("going on from %s, %s tokens", job.autosave, f"{state.moment.stream.position:,}")
    graph = job.graph
    if state is not None:  # its own; by no name where that is this machine's choice, safer options and all
        graph = None if state.graph == bundle.default_graph else state.graph
    threads = job.threads or min(bundle.threads, max((os.cpu_count() or 1) - 1, 1))  # a core is for audio
    memory = Memory(bundle, job.sampling, job.seed or 0, graph, threads, job.pace, undo_s=job.settings.undo_s)
    if state is not None:
        memory.restore(state.moment, state.extra.get("player", ()))
        if seed is not None:
            memory.reseed(seed)
    if prompt:
        table = bundle.event_table
        ids = ids_to_let_go(memory.snapshot()[0], table) + prompt_ids(prompt, table)
        hear = memory.begin if state is None else memory.hear
        with stages("tokens") as progress:
            hear(ids, lambda fed: progress("hearing", fed, len(ids)))
    return memory, {} if state is None else dict(state.extra)


def check_ports(midi_in: str | None, midi_out: str | None) -> None:
    """Before a graph is loaded. Raises ``PortError`` where there are no ports, or none of these names."""
    there = list_ports()
    if midi_in is not None:
        find_port(midi_in, there.inputs, "input")
    if midi_out is not None:
        find_port(midi_out, there.outputs, "output")


def _read_state(path: Path, bundle: Bundle, graph: str | None) -> SavedState:
    from dsmr_export.runtime import saved_state

    state = saved_state.read(path, bundle)
    if graph not in (None, state.graph):
        raise StateError(f"{path}: was saved with graph {state.graph}, not {graph}")
    return state


def _said(port: InputPort | OutputPort) -> str:
    return port.name if port.connected else f"{port.name} (lost)"


@contextmanager
def _watched(session: Session) -> Iterator[None]:
    watcher = Watcher(session.ports, session.lost, session.back).start()
    try:
        yield
    finally:
        watcher.close()


@contextmanager
def _signals(ended: threading.Event) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the session in order, however often they come; after it they are as they
    were. SIGHUP that is ignored (nohup) stays so; Ctrl-Z is ignored: who is stopped can end no note."""
    kinds = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        kinds.append(signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.signal(kind, lambda *_: ended.set()) for kind in kinds}
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextmanager
def _socket(session: Session, path: Path | None) -> Iterator[None]:
    """One that was asked for must work; the usual one is left out where another session has it."""
    try:
        server = status_socket.StatusServer(
            path or status_socket.default_path(make_folder=True), session.status, session.act
        )
    except (DsmrError, OSError) as error:
        if path is not None:
            raise
        log.warning("no status socket: %s", error)
        yield
        return
    with server:
        yield


@contextmanager
def _logging(job: LiveJob, said: deque[str]) -> Iterator[None]:
    """On stderr, where no view is drawn there; the last lines always."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handlers: list[logging.Handler] = [Lines()]
    if not (job.view and live_view.is_possible()):
        handlers.append(logging.StreamHandler())
        clock = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "  # the journal has its own
        handlers[-1].setFormatter(logging.Formatter(clock + "%(levelname)s %(message)s", "%H:%M:%S"))
    # Through a queue: a terminal that takes nothing must not hold up the thread that plays.
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    writer, door = QueueListener(waiting, *handlers), QueueHandler(waiting)
    before = log.level, log.propagate
    log.setLevel(job.log_level.upper())
    log.propagate = False
    log.addHandler(door)
    writer.start()
    try:
        yield
    finally:
        log.removeHandler(door)
        writer.stop()
        log.setLevel(before[0])
        log.propagate = before[1]
