"""A host in one screen: any bundle, from its manifest alone, with nothing of dsmr_export imported.

python examples/host.py BUNDLE [GRAPH] feeds the golden tokens in their stored segments and prints how far
the logits are from the stored ones. `run()` is for clearness; runtime/runner.py binds once, which is faster.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: Linux wheels upload usage data
import onnxruntime  # noqa: E402

folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
name = sys.argv[2] if len(sys.argv) > 2 else manifest["default_graph"]
graph, model = manifest["graphs"][name], manifest["model"]

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession(str(folder / graph["file"]), options)
outputs = ["logits", *(t["output"] for t in graph["state"])]
state = {t["input"]: np.zeros(t["shape"], t["dtype"]) for t in graph["state"]}
rule, rows, half = graph["stream"], max(t["shape"][2] for t in graph["state"]), model["head_dim"] // 2
total = position = 0  # total: tokens as the graph counts them; position: absolute, without a maximum


def feed(ids):
    """ids int64 [S], S <= max_segment -> logits float32 [S, V]; carries the state to the next call."""
    global state, total, position
    size = len(ids)
    angle = np.outer(position + np.arange(size), model["rope_base"] ** (-np.arange(half) / half))  # float64
    feeds = {"input_ids": ids[None], **state}
    if graph["ops"] == "fused":
        if total >= rule["wrap_at"]:
            total -= rule["period"] * ((total - rule["capacity"]) // rule["period"])
        feeds["position_ids"] = np.arange(size)[None]
        feeds["seqlens_k"] = np.array([total + size - 1], np.int32)
        feeds["total_sequence_length"] = np.array(total + size, np.int32)
        angle = np.pad(angle, ((0, rule["rope_rows"] - size), (0, 0)))
    else:
        feeds["past_length"] = np.array(min(total, rows))
    feeds |= {"rope_cos": np.cos(angle).astype(np.float32), "rope_sin": np.sin(angle).astype(np.float32)}
    logits, *present = session.run(outputs, feeds)
    state, total, position = dict(zip(state, present, strict=True)), total + size, position + size
    return logits[0]


golden = np.load(folder / manifest["golden"]["file"], allow_pickle=False)
cuts = np.cumsum(golden["segments"])[:-1]
found = np.concatenate([feed(ids) for ids in np.split(golden["input_ids"], cuts)])[golden["positions"]]
expected = golden[f"logits.{name}"]
same = (found.argmax(-1) == expected.argmax(-1)).mean()
print(f"{name}: {position} tokens, max |difference| {np.abs(found - expected).max():.2e}, top-1 {same:.4f}")
