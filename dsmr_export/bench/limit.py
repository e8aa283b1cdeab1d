"""The least time a token can take here: the bytes it reads over the bandwidth at which this machine reads
them.

Where one token is made at a time, every weight and every attended key and value is read once and used once,
so memory, or whichever cache holds them, sets the pace and not arithmetic (the roofline model: Williams,
Waterman and Patterson, Communications of the ACM 52(4), 2009). A fraction near 1 says that only fewer bytes
would be faster.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

from dsmr_export.errors import DsmrError
from dsmr_export.manifest import GraphEntry, ModelShape
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.state import read_bytes

BLOCK = 8192
"""Values of one dot product. OpenBLAS gives those longer than 10,000 to threads of its own, as many as it
likes."""
BLOCK_BYTES = 2 * 8 * BLOCK
"""What one reads."""
PASSES, SECONDS = 5, 1.0
"""At least so many passes over the bytes, and for so long."""

EMBEDDING, HEAD = "embedding.weight", "head.weight"
"""As the exporter names them (export.py, which loads torch; a test compares)."""


def probe(bytes_: int, threads: int = 1, seconds: float = SECONDS) -> float:
    """10^9 bytes a second that ``threads`` threads read from ``bytes_`` bytes again and again, best pass.

    The reader is the float64 dot product of the two halves, block by block. Of what numpy offers it was the
    fastest at every size: max, or and add over integers come near it inside a cache and are a fourth to a
    third slower beyond; float sums are bound by their additions even inside one (docs/decisions.md). The best
    pass, not the median: other work on the machine can only take bandwidth away.

    Raises DsmrError for no thread, or for fewer bytes than one block (131,072) a thread.
    """
    if threads < 1:
        raise DsmrError(f"threads is {threads}: give 1 or more")
    blocks = bytes_ // BLOCK_BYTES
    if blocks < threads:
        raise DsmrError(
            f"{bytes_:,} bytes are too few to probe with {threads} thread(s): give {BLOCK_BYTES * threads:,}"
        )
    rows, columns, sums = np.ones((blocks, 1, BLOCK)), np.ones((blocks, BLOCK, 1)), np.empty((blocks, 1, 1))
    parts = [slice(*ends) for ends in pairwise(blocks * i // threads for i in range(threads + 1))]

    def read(part: slice) -> None:
        np.matmul(rows[part], columns[part], out=sums[part])

    best, spent, passes = float("inf"), 0.0, 0
    with ThreadPoolExecutor(threads) as pool:
        run = map if threads == 1 else pool.map
        while passes < PASSES or spent < seconds:
            began = perf_counter()
            list(run(read, parts))
            taken = perf_counter() - began
            best, spent, passes = min(best, taken), spent + taken, passes + 1
    return (rows.nbytes + columns.nbytes) / best / 1e9


def limit(bundle: Bundle, graph: str, threads: int = 1, seconds: float = SECONDS) -> dict[str, Any]:
    """{gb_per_s, bytes_per_token, weights_bytes, state_bytes, least_ms} of a graph, every window full.

    The bandwidth is probed at the size of what a token reads: a model that fits a cache is measured against
    that cache. least_ms: milliseconds a token takes at least; over the measured ones it is the fraction
    reached. Left out are activations, which stay in the nearest cache, and what is written: one row of keys
    and values a layer (by a portable graph the whole state, so that it reaches less than it could).
    """
    weights, state = weights_read(bundle, graph), read_bytes(bundle.graph(graph).state)
    gb_per_s = probe(max(weights + state, BLOCK_BYTES * threads), threads, seconds)
    return {
        "gb_per_s": gb_per_s,
        "bytes_per_token": weights + state,
        "weights_bytes": weights,
        "state_bytes": state,
        "least_ms": (weights + state) / gb_per_s / 1e6,
    }


def weights_read(bundle: Bundle, graph: str) -> int:
    """Bytes of weights that a token reads: the graph's file, but for the embedding's other rows where the
    head has a matrix of its own.

    Nodes and names, a few thousand bytes a layer, are counted with them: the manifest does not tell them
    apart, and of a model worth timing they are a thousandth. Norms and scales are in the file as well.
    """
    entry, model = bundle.graph(graph), bundle.manifest.model
    table = _table_bytes(entry, model)
    return entry.bytes - table + table // model.vocab_size


def _table_bytes(entry: GraphEntry, model: ModelShape) -> int:
    """Of an embedding that only rows are read of; 0 where the head reads it whole (quantize._untie_head)."""
    tensors: dict[str, Any] = (entry.quantization or {}).get("tensors", {})
    if EMBEDDING in tensors:
        return int(tensors[EMBEDDING]["bytes"])
    return 4 * model.vocab_size * model.d_model if HEAD in tensors else 0
