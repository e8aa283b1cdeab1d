"""In the emulator: instructions per token of a graph with a full state, at several positions of a stream.

    python guest_position.py FOLDER STEPS NAME POSITION…        (a folder of models.write)

Prints a line of JSON for every position.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from guest_count import Counter, per_token  # beside this file, all that the emulator sees of the tests

from dsmr_export.manifest import Manifest
from dsmr_export.runtime.bundle import Bundle


def main(folder: str, steps: int, name: str, positions: Sequence[int]) -> None:
    counter, path = Counter(), Path(folder)
    bundle = Bundle(path, Manifest.read(path), identity="", notes=[])
    gc.disable()
    for position in positions:
        found = per_token(counter, bundle, name, steps, position)
        print(json.dumps({"position": position, "instructions": round(found)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], [int(position) for position in sys.argv[4:]])
