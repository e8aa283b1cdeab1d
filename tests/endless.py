"""A graph on a very long stream, far away and near, in a process of its own: memory is nobody else's there.

python -m tests.endless BUNDLE GRAPH TOKENS
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dsmr_export.runtime import Bundle, Stream
from dsmr_export.runtime.metrics import kl_divergence

ROOT = Path(__file__).parents[1]
FAR = 10**9
MEGABYTE = 2**20


@dataclass
class Apart:
    """How far two streams are from each other. kl in nats; growth: bytes of memory since the first tokens."""

    max_abs_logit: float = 0.0
    kl_mean: float = 0.0
    top1: float = 0.0
    growth: int = 0


def measure(folder: Path, graph: str, tokens: int) -> Apart:
    """`far_and_near` of a bundle in a new process."""
    command = [sys.executable, "-m", "tests.endless", str(folder), graph, str(tokens)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Apart(**json.loads(run.stdout))


def far_and_near(bundle: Bundle, graph: str, tokens: int) -> Apart:
    """The golden tokens over and over, on a stream from 1e9 and on one from 0, in mixed segments."""
    far, near = Stream(bundle, graph, position=FAR), Stream(bundle, graph)
    rule = bundle.graph(graph).stream
    ids, rng = np.resize(bundle.golden.input_ids, tokens), np.random.default_rng(11)
    found, done, base = Apart(), 0, 0
    while done < tokens:
        part = ids[done : done + int(rng.choice([1, 2, 17, rule.max_segment], p=[0.2, 0.1, 0.1, 0.6]))]
        one, other = far.feed(part), near.feed(part)
        found.max_abs_logit = max(found.max_abs_logit, float(np.abs(one - other).max()))
        found.kl_mean += float(kl_divergence(other, one).sum()) / tokens
        found.top1 += float((one.argmax(axis=1) == other.argmax(axis=1)).sum()) / tokens
        done += len(part)
        base = base or (resident_bytes() if done > tokens // 20 else 0)
        assert far._runner.count <= rule.rope_rows
    assert (far.position, near.position) == (FAR + tokens, tokens)
    found.growth = resident_bytes() - base
    return found


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    print(json.dumps(asdict(far_and_near(Bundle.open(sys.argv[1]), sys.argv[2], int(sys.argv[3])))))
