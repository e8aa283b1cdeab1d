"""An instrument between two mido objects: hears a file message by message, and goes on for a while.

    python examples/instrument_mido.py IN.mid OUT.mid [SECONDS]

With ports it is the same: `for message in mido.open_input(name)`, the time from `time.monotonic()`, and
`port.send(message)` when an event's second has come. `dsmr play --midi-in` does that with a plan that runs
ahead on a thread of its own, so that no note waits for the model.
"""

import sys

import mido

from dsmr_export.runtime import Instrument

source, target = sys.argv[1:3]
length = float(sys.argv[3]) if len(sys.argv) > 3 else 10.0
answer = mido.MidiTrack()

with Instrument.open(seed=1) as instrument:
    seconds = 0.0
    for message in mido.MidiFile(source):  # with tempo applied: `time` is seconds since the message before
        seconds += message.time
        if not message.is_meta:
            instrument.feed(message, seconds)
    last = seconds
    for event in instrument.generate(length):
        ticks = round((event.seconds - last) * 1000)  # 500 ticks a quarter note at 120 bpm: one is 1 ms
        answer.append(
            mido.Message(f"note_{event.kind}", note=event.pitch, velocity=event.velocity, time=ticks)
        )
        last += ticks / 1000

mido.MidiFile(ticks_per_beat=500, tracks=[answer]).save(target)
print(f"{target}: {len(answer)} events after {seconds:.1f} s of {source}")
