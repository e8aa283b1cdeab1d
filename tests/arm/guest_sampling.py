"""In the emulator: instructions per token of what a played step does besides the graph and its host.

    python guest_sampling.py TOKENS

The grammar's mask, the pace, the probabilities and the draw, over a continuation in which the graph does not
run (its logits stay as they are). Prints a line of JSON.
"""

from __future__ import annotations

import gc
import json
import sys

from guest_count import Counter  # beside this file, which is all that the emulator sees of the tests

from dsmr_export.runtime import Bundle
from dsmr_export.runtime.performer import SAMPLING, Performer

HEARD = 200
WARM_UP = 20


def main(tokens: int) -> None:
    counter, bundle = Counter(), Bundle.open()
    performer = Performer(bundle, SAMPLING, seed=0, graph=bundle.manifest.default_graph)
    performer.begin(bundle.golden.input_ids[1:HEARD].tolist())
    performer.stream._step = lambda token, position: None
    playing = performer.play()
    for _ in range(WARM_UP):
        next(playing)
    gc.disable()
    counts = [counter.of(lambda: next(playing)) for _ in range(tokens)]
    print(json.dumps({"sampling": round(sum(counts) / tokens)}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
