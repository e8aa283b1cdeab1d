"""An instrument in a host of its own, without any MIDI library: a phrase in, an answer out.

    python examples/instrument_loop.py [BUNDLE]

Prints each event of the answer as it is made, takes it back, and gives another one.
"""

import sys

from dsmr_export.runtime import Instrument

PHRASE = (60, 64, 67, 72, 71, 67, 64, 60)

with Instrument.open(sys.argv[1] if len(sys.argv) > 1 else None, seed=1) as instrument:
    seconds = 0.0
    for pitch in PHRASE:
        instrument.feed(bytes([0x90, pitch, 70]), seconds)  # as MIDI: note-on, channel 1
        instrument.feed(bytes([0x80, pitch, 64]), seconds + 0.22)
        seconds += 0.25
    here = instrument.snapshot()
    for answer in (1, 2):
        print(f"answer {answer}, after {instrument.memory.position} tokens")
        for event in instrument.generate(4.0):
            print(f"{event.seconds:7.2f} {event.kind:3} {event.pitch:3} {event.velocity:3}")
        instrument.restore(here)
        instrument.memory.reseed(2)
