"""How soon a live session answers and stops, and how late its notes leave, in real time and without ports.

    python -m scripts.measure_live [BUNDLE] [--seconds 120] [--threads 1] [--mode continue] [--picture SVG]

A pianist's hands come from a held-out piece: eight seconds of it, six of listening, a key into the answer,
and so on. Prints what `dsmr play` prints at its end. --picture: the terminal view in the middle of an answer.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from dsmr_export import corpus, play_live
from dsmr_export.live_view import render
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.live.engine import Live
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.live.threads import Threads
from dsmr_export.runtime.memory import Memory
from dsmr_export.runtime.midi import read_midi
from dsmr_export.runtime.performance import Performance

PLAYED_S, HEARD_S = 8.0, 6.0
TITLE = "dsmr play --midi-in … --midi-out …"


def moves(piece: Performance, seconds: float) -> Iterator[tuple[float, bytes]]:
    """(second, message) of the pianist."""
    now, begin = 0.0, 0
    while now + PLAYED_S + HEARD_S <= seconds and begin < piece[-1].start:
        length = int(PLAYED_S * 100)
        keys = []
        for note in piece:
            if begin <= note.start < begin + length:
                keys.append((note.start - begin, 1, note.pitch, note.velocity))
                keys.append((min(note.end - begin, length), 0, note.pitch, 64))
        for frame, is_on, pitch, velocity in sorted(keys):
            yield now + frame / 100, bytes([0x90 if is_on else 0x80, pitch, velocity])
        now, begin = now + PLAYED_S + HEARD_S, begin + length


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mode", default="continue")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()

    bundle, settings = Bundle.open(options.bundle), LiveSettings(mode=options.mode)
    memory = Memory(bundle, seed=1, threads=options.threads, undo_s=settings.undo_s)
    live = Live(memory, settings, lambda message: None, time.monotonic)
    threads = Threads(live, nice=5)
    piece = read_midi(corpus.pieces(None, "test", 1)[0].read())
    threads.start()
    start = time.monotonic()
    drawn = options.picture is None
    for second, message in moves(piece, options.seconds):
        if not drawn and second > 3 * PLAYED_S and second % (PLAYED_S + HEARD_S) < PLAYED_S / 2:
            time.sleep(max(start + second - 1.5 - time.monotonic(), 0))
            picture(live, options.picture)
            drawn = True
        time.sleep(max(start + second - time.monotonic(), 0))
        live.input.push(message, time.monotonic())
    time.sleep(HEARD_S)
    threads.close()
    if threads.failed is not None:
        raise threads.failed
    for line in play_live.lines(play_live.figures(live), settings):
        print(line)


def picture(live: Live, path: Path) -> None:
    """What the terminal shows now, as SVG."""
    console = Console(record=True, width=92, height=30, force_terminal=True, file=io.StringIO())
    console.print(render(live.status(), 92, 30))
    console.save_svg(str(path), title=TITLE)


if __name__ == "__main__":
    main()
