"""In the emulator: the golden vectors of every graph of bundles, and the logits of a piece that is fed to
them.

    python guest_bundle.py IDS SEGMENT OUTPUT BUNDLE…

IDS: a .npy of token ids, fed as `feed` does. OUTPUT: a folder; OUTPUT/NUMBER.GRAPH.npy are the logits [S, V]
of bundle NUMBER. Prints a line of JSON for every graph.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsmr_export.runtime import Bundle, Stream, check_golden


def feed(bundle: Bundle, graph: str, ids: NDArray[np.int64], segment: int) -> NDArray[np.float32]:
    """Logits [S, V] of ids [S], fed in whole segments and, at the end, at least one token at a time.

    The cuts matter: dynamic int8 has one scale for the activations of a whole segment.
    """
    stream = Stream(bundle, graph)
    parts = [stream.feed(ids[at : at + segment]) for at in range(0, len(ids) - segment, segment)]
    parts += [stream.step(int(token))[None].copy() for token in ids[stream.consumed :]]
    return np.concatenate(parts)


def main(ids_path: str, segment: int, output: str, bundles: Sequence[str]) -> None:
    ids = np.load(ids_path)
    for number, folder in enumerate(bundles):
        bundle = Bundle.open(folder)
        for graph in bundle.manifest.graphs:
            golden = check_golden(bundle, graph)
            np.save(Path(output) / f"{number}.{graph}.npy", feed(bundle, graph, ids, segment))
            print(json.dumps({"bundle": number, **asdict(golden)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
