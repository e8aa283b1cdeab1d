"""A bundle small enough to build in a second, its two graphs put together node by node, without torch or the
exporter.

The runtime's tests drive these graphs and compare with `reference.forward` on the same weights; they hold
whatever the exporter does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dsmr_export import manifest as m
from dsmr_export.model.tokenizer import grammar_rules
from dsmr_export.runtime.bundle import Bundle, file_sha256, write_sums
from dsmr_export.state import StateTensor, StreamRule, fused_state, portable_state
from tests.reference import forward

V, HEADS, KV_HEADS, D, D_MODEL, D_FF, EPS, BASE = 40, 4, 2, 16, 32, 48, 1e-5, 10_000.0
MAX_SEGMENT = 64
PAD, BOS, EOS = 0, 1, 2


def weights(layers: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random tensors with a checkpoint's names and shapes (design, section 5)."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float64]:
        return rng.normal(size=(rows, columns)) / np.sqrt(columns)

    tensors = {"embedding.weight": matrix(V, D_MODEL) * 3, "norm.weight": 1 + 0.1 * rng.normal(size=D_MODEL)}
    for i in range(layers):
        tensors |= {
            f"layers.{i}.attention_norm.weight": 1 + 0.1 * rng.normal(size=D_MODEL),
            f"layers.{i}.qkv.weight": matrix((HEADS + 2 * KV_HEADS) * D, D_MODEL) * 2,
            f"layers.{i}.out.weight": matrix(D_MODEL, HEADS * D),
            f"layers.{i}.mlp_norm.weight": 1 + 0.1 * rng.normal(size=D_MODEL),
            f"layers.{i}.up.weight": matrix(D_FF, D_MODEL),
            f"layers.{i}.down.weight": matrix(D_MODEL, D_FF),
        }
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def reference(
    ids: Sequence[int], horizons: Sequence[int], start: int = 0, seed: int = 0
) -> NDArray[np.float64]:
    """Logits [S, V] of the tiny model by the independent numpy forward, float64."""
    return forward(
        weights(len(horizons), seed),
        ids,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=D,
        horizons=horizons,
        rope_base=BASE,
        norm_eps=EPS,
        start=start,
    )


class _Graph:
    """Nodes by their output: `g("Add", a, b)` is the name of the sum; arrays become initializers."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def __call__(
        self, op: str, *inputs: str | NDArray | None, out: str | Sequence[str] = "", **attributes: object
    ):
        outputs = [out] if isinstance(out, str) else list(out)
        names = [name or f"{op}_{len(self.nodes)}" if i == 0 else name for i, name in enumerate(outputs)]
        domain = "com.microsoft" if op in ("GroupQueryAttention", "SkipSimplifiedLayerNormalization") else ""
        self.nodes.append(
            helper.make_node(op, [self._name(x) for x in inputs], names, domain=domain, **attributes)
        )
        return names[0] if isinstance(out, str) else names

    def _name(self, value: str | NDArray | None) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        self.initializers.append(
            numpy_helper.from_array(np.ascontiguousarray(value), f"c{len(self.initializers)}")
        )
        return self.initializers[-1].name

    def save(self, path: Path, inputs: list, outputs: list, opset: int) -> None:
        graph = helper.make_graph(self.nodes, "tiny", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def _value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _state_values(state: Sequence[StateTensor]) -> tuple[list, list]:
    shapes = [(t, list(t.shape)) for t in state]
    return (
        [_value(t.input, TensorProto.FLOAT, s) for t, s in shapes],
        [
            _value("logits", TensorProto.FLOAT, [1, "S", V]),
            *(_value(t.output, TensorProto.FLOAT, s) for t, s in shapes),
        ],
    )


def _block(g: _Graph, w: dict, horizons: Sequence[int], norm: Callable, attend: Callable) -> None:
    """The network around `attend(layer, qkv)`; `norm(x, weight)` is either graph's."""
    x = g("Gather", w["embedding.weight"], "input_ids")
    for i in range(len(horizons)):
        p = f"layers.{i}."
        qkv = g("MatMul", norm(x, w[p + "attention_norm.weight"]), w[p + "qkv.weight"].T)
        x = g("Add", x, g("MatMul", attend(i, qkv), w[p + "out.weight"].T))
        up = g("MatMul", norm(x, w[p + "mlp_norm.weight"]), w[p + "up.weight"].T)
        cube = g("Mul", g("Mul", up, up), up)
        inner = g("Add", up, g("Mul", cube, np.float32(0.044715)))
        tanh = g("Tanh", g("Mul", inner, np.float32(np.sqrt(2 / np.pi))))
        hidden = g("Mul", g("Mul", up, np.float32(0.5)), g("Add", tanh, np.float32(1)))
        x = g("Add", x, g("MatMul", hidden, w[p + "down.weight"].T))
    g("MatMul", norm(x, w["norm.weight"]), w["embedding.weight"].T, out="logits")


def build_fused(path: Path, horizons: Sequence[int], seed: int = 0) -> None:
    g, w = _Graph(), weights(len(horizons), seed)
    state = fused_state(horizons, KV_HEADS, D)

    def attend(layer: int, qkv: str) -> str:
        key, value = state[2 * layer : 2 * layer + 2]
        host = ("seqlens_k", "total_sequence_length", "rope_cos", "rope_sin", "position_ids")
        return g(
            "GroupQueryAttention",
            *(qkv, None, None, key.input, value.input, *host),
            out=(f"attended.{layer}", key.output, value.output),
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            do_rotary=1,
            local_window_size=horizons[layer] + 1,
            sliding_window_cache=1,
        )[0]

    _block(g, w, horizons, lambda x, n: g("SimplifiedLayerNormalization", x, n, axis=-1, epsilon=EPS), attend)
    past, outputs = _state_values(state)
    inputs = [
        _value("input_ids", TensorProto.INT64, [1, "S"]),
        _value("position_ids", TensorProto.INT64, [1, "S"]),
        _value("seqlens_k", TensorProto.INT32, [1]),
        _value("total_sequence_length", TensorProto.INT32, []),
        _value("rope_cos", TensorProto.FLOAT, ["R", D // 2]),
        _value("rope_sin", TensorProto.FLOAT, ["R", D // 2]),
    ]
    g.save(path, inputs + past, outputs, opset=21)


def build_portable(path: Path, horizons: Sequence[int], seed: int = 0) -> None:
    g, w = _Graph(), weights(len(horizons), seed)
    state = portable_state(horizons, KV_HEADS, D)

    def norm(x: str, weight: NDArray) -> str:
        mean = g("ReduceMean", g("Mul", x, x), np.array([-1]))
        return g("Mul", g("Div", x, g("Sqrt", g("Add", mean, np.float32(EPS)))), weight)

    def heads(x: str, first: int, count: int) -> str:
        part = g("Slice", x, *(np.array([n]) for n in (first * D, (first + count) * D, 2)))
        return g("Transpose", g("Reshape", part, np.array([1, -1, count, D])), perm=[0, 2, 1, 3])

    def rotate(x: str) -> str:
        a, b = (g("Slice", x, *(np.array([n]) for n in (i * D // 2, (i + 1) * D // 2, 3))) for i in (0, 1))
        left = g("Sub", g("Mul", a, "rope_cos"), g("Mul", b, "rope_sin"))
        return g("Concat", left, g("Add", g("Mul", b, "rope_cos"), g("Mul", a, "rope_sin")), axis=3)

    size = g("Gather", g("Shape", "input_ids"), np.array(1))
    rows = g("Unsqueeze", g("Range", np.array(0), size, np.array(1)), np.array([1]))
    shared = np.repeat(np.arange(KV_HEADS), HEADS // KV_HEADS)

    def attend(layer: int, qkv: str) -> str:
        h = horizons[layer]
        key, value = state[2 * layer : 2 * layer + 2]
        keys = g("Concat", key.input, rotate(heads(qkv, HEADS, KV_HEADS)), axis=2)
        values = g("Concat", value.input, heads(qkv, HEADS + KV_HEADS, KV_HEADS), axis=2)
        for name, tensor in ((key.output, keys), (value.output, values)):
            g("Slice", tensor, *(np.array([n]) for n in (-h, 2**31, 2)), out=name)
        columns = g("Range", np.array(0), g("Add", size, np.array(h)), np.array(1))
        # Row i is the query at h + i among the columns; columns below h - past_length were never filled.
        age = g("Sub", g("Add", rows, np.array(h)), columns)
        inside = g("And", g("GreaterOrEqual", age, np.array(0)), g("LessOrEqual", age, np.array(h)))
        seen = g("And", inside, g("GreaterOrEqual", columns, g("Sub", np.array(h), "past_length")))
        query = g("Mul", rotate(heads(qkv, 0, HEADS)), np.float32(D**-0.5))
        scores = g("MatMul", query, g("Transpose", g("Gather", keys, shared, axis=1), perm=[0, 1, 3, 2]))
        weight = g("Softmax", g("Where", seen, scores, np.float32(-1e30)), axis=-1)
        mixed = g("Transpose", g("MatMul", weight, g("Gather", values, shared, axis=1)), perm=[0, 2, 1, 3])
        return g("Reshape", mixed, np.array([1, -1, HEADS * D]))

    _block(g, w, horizons, norm, attend)
    past, outputs = _state_values(state)
    inputs = [
        _value("input_ids", TensorProto.INT64, [1, "S"]),
        _value("past_length", TensorProto.INT64, []),
        _value("rope_cos", TensorProto.FLOAT, ["S", D // 2]),
        _value("rope_sin", TensorProto.FLOAT, ["S", D // 2]),
    ]
    g.save(path, inputs + past, outputs, opset=18)


def manifest_of(folder: Path, horizons: Sequence[int]) -> m.Manifest:
    """The manifest of the files in `folder`."""
    rule = StreamRule.of(horizons, max_segment=MAX_SEGMENT)
    tensors = {
        "fused": fused_state(horizons, KV_HEADS, D),
        "portable": portable_state(horizons, KV_HEADS, D),
    }
    graphs = {
        name: m.GraphEntry(
            file=file,
            sha256=file_sha256(folder / file),
            bytes=(folder / file).stat().st_size,
            ops=ops,
            opset=opset,
            ir_version=10,
            min_onnxruntime=minimum,
            quantization=None,
            state=tensors[ops],
            stream=rule,
        )
        for name, file, ops, opset, minimum in (
            ("fp32", "model.onnx", "fused", 21, "1.29.0"),
            ("portable", "model.portable.onnx", "portable", 18, "1.18.0"),
        )
    }
    special = [m.EventToken("special", name) for name in ("pad", "bos", "eos")]
    notes = [m.EventToken(kind, pitch) for kind in ("on", "off") for pitch in range(60, 72)]
    others = [m.EventToken("velocity", 10 * n) for n in range(1, 8)] + [
        m.EventToken("shift", n) for n in range(1, 7)
    ]
    return m.Manifest(
        name="tiny",
        model=m.ModelShape(len(horizons), HEADS, KV_HEADS, D, D_MODEL, D_FF, V, BASE),
        schedule=m.ScheduleEntry(",".join(f"{h}x1" for h in horizons), tuple(horizons), sum(horizons)),
        tokenizer=m.FileEntry("tokenizer.json", file_sha256(folder / "tokenizer.json")),
        vocabulary=tuple(f"{t.kind}_{t.value}" for t in special + notes + others),
        target=None,
        graphs=graphs,
        default_graph="fp32",
        events=m.EventEntry(10.0, tuple(special + notes + others)),
        grammar=grammar_rules(),
        special=m.SpecialTokens(PAD, BOS, EOS),
        golden=m.FileEntry("golden.npz", file_sha256(folder / "golden.npz")),
        parity={},
        provenance={"checkpoint": hashlib.sha256(b"tiny").hexdigest()},
    )


def write_golden(folder: Path, horizons: Sequence[int]) -> None:
    """Random tokens in mixed segments; the expected logits are the numpy forward's, not onnxruntime's."""
    rng = np.random.default_rng(7)
    segments = np.array([1, 7, 64, 1, 1, 30, 2, 40], np.int64)
    ids = rng.integers(0, V, segments.sum())
    positions = np.arange(0, len(ids), 3)
    expected = reference(ids, horizons)[positions].astype(np.float32)
    logits = {"logits.fp32": expected, "logits.portable": expected}
    np.savez(folder / "golden.npz", input_ids=ids, segments=segments, positions=positions, **logits)


def make_bundle(folder: Path, horizons: Sequence[int] = (3, 20, 1)) -> Bundle:
    """Writes a whole bundle into `folder` (made if missing) and opens it."""
    folder.mkdir(parents=True, exist_ok=True)
    build_fused(folder / "model.onnx", horizons)
    build_portable(folder / "model.portable.onnx", horizons)
    write_golden(folder, horizons)
    (folder / "tokenizer.json").write_text("{}\n")
    (folder / "README.md").write_text("# tiny\n")
    manifest_of(folder, horizons).write(folder / m.MANIFEST)
    write_sums(folder)
    return Bundle.open(folder)
