"""A graph's steps as an instrument makes them: grammar mask, sampling, the host's work and onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter_ns, process_time_ns, sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.performer import SAMPLING, Performer
from dsmr_export.runtime.session import load_onnxruntime
from dsmr_export.runtime.stream import Stream

SEGMENTS = (16, 64, 256)
"""Lengths whose throughput is measured."""
SEGMENT_TOKENS = 1024
"""Tokens that one turn of segments feeds."""
PACE_HZ = 50
"""Tokens a second of a paced performance: more than a busy one needs (a token each 20 ms)."""


def filling(bundle: Bundle) -> NDArray[np.int64]:
    """Real tokens [N], the golden ones again and again: enough that every layer has evicted some."""
    rules = [graph.stream for graph in bundle.manifest.graphs.values()]
    golden = bundle.golden.input_ids
    count = max(rule.wrap_at + rule.period for rule in rules)
    return np.resize(golden, max(count, len(golden)))


def music_seconds(bundle: Bundle, ids: NDArray[np.int64]) -> float:
    """Seconds of music that ids come to: what their shifts add up to."""
    table = bundle.event_table
    frames = sum(int(table.values[id_]) for id_ in ids.tolist() if table.kinds[id_] == "shift")
    return frames * table.step_ms / 1000


class MeteredSession:
    """An onnxruntime session that counts the time it computes."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.io_binding = session.io_binding
        self.ns = 0

    def run_with_iobinding(self, binding: Any) -> None:
        begin = perf_counter_ns()
        self._session.run_with_iobinding(binding)
        self.ns += perf_counter_ns() - begin


class MeteredBundle(Bundle):
    """A bundle whose session of one graph is metered."""

    def __init__(self, bundle: Bundle, graph: str, threads: int) -> None:
        super().__init__(bundle.path, bundle.manifest, bundle.identity, bundle.warnings)
        self.metered = MeteredSession(bundle.session(graph, threads))

    def session(self, name: str | None = None, threads: int | None = None, safe: bool | None = None) -> Any:
        return self.metered


class GraphSteps:
    """Steps of a graph through the runtime, as `dsmr play` makes them; and what it takes to get there.

    folder: the bundle's. ids: real tokens that fill the state, as `filling` gives them.
    """

    def __init__(self, folder: Path, graph: str, threads: int, ids: NDArray[np.int64]) -> None:
        load_onnxruntime()  # importing it is no part of loading
        _forget(folder)
        first, self.load_ms = _loaded(folder, graph, threads)
        del first  # the process's peak memory is that of one session
        self._bundle, self.load_warm_ms = _loaded(folder, graph, threads)
        self._graph, self._threads, self._ids = graph, threads, ids
        began = perf_counter_ns()
        Stream(self._bundle, graph, threads).step(int(ids[0]))
        self.first_ms = (perf_counter_ns() - began) / 1e6
        performer = Performer(self._bundle, SAMPLING, graph=graph, threads=threads)
        performer.begin(ids.tolist())
        self._stream, self._tokens = performer.stream, performer.play()

    def step(self) -> None:
        next(self._tokens)

    @property
    def kernel_ns(self) -> int:
        return self._bundle.metered.ns

    def start(self) -> dict[str, float]:
        """Milliseconds until it plays: load_ms, the bundle's files verified and the session opened, files not
        in the page cache; load_warm_ms, the same again; first_ms, state and bindings made and one token fed.
        """
        return {"load_ms": self.load_ms, "load_warm_ms": self.load_warm_ms, "first_ms": self.first_ms}

    def segments(self, size: int) -> float:
        """Tokens per second of segments of ``size`` tokens, the state full."""
        count = max(1, SEGMENT_TOKENS // size)
        segments = np.resize(self._ids, count * size).reshape(count, size)
        self._stream.feed(segments[0])
        began = perf_counter_ns()
        for segment in segments:
            self._stream.feed(segment)
        return 1e9 * count * size / (perf_counter_ns() - began)

    def paced(self, seconds: float, rate_hz: float = PACE_HZ) -> float:
        """Share of one core that the whole process takes when a token is made each 1/rate_hz seconds."""
        began, busy = perf_counter_ns(), process_time_ns()
        for count in range(1, round(seconds * rate_hz) + 1):
            self.step()
            due = began + round(1e9 * count / rate_hz)
            sleep(max(0.0, (due - perf_counter_ns()) / 1e9))
        return (process_time_ns() - busy) / (perf_counter_ns() - began)


def _loaded(folder: Path, graph: str, threads: int) -> tuple[MeteredBundle, float]:
    """A bundle with its session, opened afresh, and the milliseconds that took."""
    began = perf_counter_ns()
    bundle = MeteredBundle(Bundle.open(folder), graph, threads)
    return bundle, (perf_counter_ns() - began) / 1e6


def _forget(folder: Path) -> None:
    """Asks the system to drop a folder's files from its page cache, as after a start of the machine."""
    for path in folder.iterdir():
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
