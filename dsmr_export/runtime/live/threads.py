"""Drives a live session in real time: a thread that thinks, and one that plays."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar

from dsmr_export.errors import DsmrError
from dsmr_export.runtime.live.engine import Live

T = TypeVar("T")

SWITCH_S = 0.0005
"""How soon Python hands over between threads. Its 5 ms would be heard; sampling holds on for 0.2."""

ANSWER_S = 30.0
"""A wish that is not granted by then has met a thread that hangs."""

log = logging.getLogger("dsmr")


class Threads:
    """Begins with `start`, ends with `close`; in between `call` runs things on the inference thread.

    affinity: the cores that inference may use; none: all. nice: how much nicer it is than playback. realtime:
    SCHED_FIFO priority of playback, where the system allows it; 0: none. failed: what inference died of.
    """

    def __init__(self, live: Live, affinity: Sequence[int] = (), nice: int = 0, realtime: int = 0) -> None:
        self.live = live
        self.failed: BaseException | None = None
        self.stopping = threading.Event()
        self._affinity, self._nice, self._realtime = tuple(affinity), nice, realtime
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._beat = time.monotonic()
        self._switch_s: float | None = None  # as it was before
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._think,), name="dsmr-inference", daemon=True),
            threading.Thread(target=self._guarded, args=(self._play,), name="dsmr-playback", daemon=True),
        ]

    def start(self) -> None:
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        self.live.begin(time.monotonic())
        for thread in self._threads:
            thread.start()

    @property
    def beat_s_ago(self) -> float:
        """When inference last said that it lives."""
        return time.monotonic() - self._beat

    def call(self, what: Callable[[], T]) -> T:
        """Runs something between two steps of inference, and returns or raises what it does. Raises
        ``DsmrError`` where nobody is there to do so."""
        if threading.current_thread() is self._threads[0]:
            return what()
        future: Future[T] = Future()
        self._calls.append((what, future))
        self.live.wake.set()
        if self.stopping.is_set():
            raise DsmrError("the session has ended")
        if not wait([future], ANSWER_S).done:
            raise DsmrError(f"inference has not answered for {ANSWER_S:g} s")
        return future.result()

    def close(self) -> None:
        """Ends both threads and everything that sounds."""
        self._stop()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout=5)
        self.live.close()
        if self._switch_s is not None:
            sys.setswitchinterval(self._switch_s)

    def _stop(self) -> None:
        self.stopping.set()
        self.live.wake.set()
        with self.live.playback.changed:
            self.live.playback.changed.notify_all()

    def _guarded(self, run: Callable[[], None]) -> None:
        """Whatever happens, nothing is left sounding."""
        try:
            run()
        except BaseException as error:
            self.failed = self.failed or error
            log.exception("the session ends by an error of its own")
            self.live.close()
        finally:
            self._stop()
            while call := self._next_call():
                call[1].set_exception(DsmrError("the session has ended"))

    def _next_call(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        try:
            return self._calls.popleft()
        except IndexError:  # none, or the other thread, which ends, was quicker
            return None

    def _think(self) -> None:
        self._arrange()
        while not self.stopping.is_set():
            while call := self._next_call():
                what, future = call
                try:
                    future.set_result(what())
                except Exception as error:  # for whoever asked
                    future.set_exception(error)
            wait_s = self.live.work(time.monotonic())
            self._beat = time.monotonic()
            if wait_s > 0 and not self._calls:
                self.live.wake.wait(wait_s)
                self.live.wake.clear()

    def _play(self) -> None:
        if self._realtime:
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(self._realtime))
            except OSError as error:
                log.warning(
                    "no real-time priority for playback (%s): see limits.conf(5), rtprio", error.strerror
                )
        playback = self.live.playback
        with playback.changed:
            while not self.stopping.is_set():
                due = playback.run_due(time.monotonic())
                playback.changed.wait(None if due is None else max(due - time.monotonic(), 0.0))

    def _arrange(self) -> None:
        if self._affinity:
            try:
                os.sched_setaffinity(0, self._affinity)
            except OSError as error:
                cores = ",".join(map(str, self._affinity))
                log.warning("inference cannot be kept on cores %s (%s)", cores, error.strerror)
        if self._nice:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
