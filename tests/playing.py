"""A session in real time without ports, in a process of its own, to be killed: `python -m tests.playing`.

    python -m tests.playing BUNDLE AUTOSAVE SECONDS SEED

Plays for ever in `loop` mode, saves into AUTOSAVE every so often, goes on from it if it is there, and prints
the token position that it has reached.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dsmr_export.runtime import Bundle, Sampling, saved_state
from dsmr_export.runtime.live import keeper
from dsmr_export.runtime.live.engine import Live
from dsmr_export.runtime.live.settings import LiveSettings
from dsmr_export.runtime.live.threads import Threads
from dsmr_export.runtime.memory import Memory


def main(folder: str, file: str, every_s: str, seed: str) -> None:
    bundle, autosave = Bundle.open(folder), Path(file)
    memory = Memory(bundle, Sampling(), int(seed), "fp32")
    state = keeper.resume(autosave, lambda path: saved_state.read(path, bundle))
    if state is not None:
        memory.restore(state.moment, state.extra["player"])
    live = Live(memory, LiveSettings(mode="loop"), lambda message: None, time.monotonic)
    threads = Threads(live)
    threads.start()
    keeper.Keeper(threads, autosave=autosave, every_s=float(every_s)).start()
    while threads.failed is None:
        print(memory.position, flush=True)
        time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
