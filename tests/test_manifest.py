"""The manifest: reads what it writes, and refuses every damaged form with the key's name."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsmr_export.errors import BundleError
from dsmr_export.manifest import FORMAT_VERSION, FileEntry, GraphEntry, Manifest
from dsmr_export.state import StreamRule, fused_state

HORIZONS = (20, 3)
SHA = "0" * 64


def a_graph(**changes: Any) -> GraphEntry:
    entry = GraphEntry(
        file="model.onnx",
        sha256=SHA,
        bytes=1000,
        ops="fused",
        opset=21,
        ir_version=10,
        min_onnxruntime="1.29.0",
        quantization=None,
        state=fused_state(HORIZONS, kv_heads=2, head_dim=16),
        stream=StreamRule.of(HORIZONS),
    )
    return dataclasses.replace(entry, **changes)


def a_manifest() -> dict[str, Any]:
    """Parsed JSON written by hand from the design's list of keys, not by our writer."""
    graph = a_graph()
    return {
        "format": "dsmr-bundle",
        "format_version": 1,
        "name": "default",
        "model": {
            **{"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16},
            **{"d_model": 64, "d_ff": 256, "vocab_size": 4, "rope_base": 10000.0},
        },
        "schedule": {"name": "20x1,3x1", "horizons": [20, 3], "budget_tokens": 23},
        "tokenizer": {"file": "tokenizer.json", "sha256": SHA},
        "vocabulary": ["PAD_None", "BOS_None", "EOS_None", "NoteOn_60"],
        "target": "desktop",
        "graphs": {
            "fp32": {
                **{"file": "model.onnx", "sha256": SHA, "bytes": 1000, "ops": "fused", "opset": 21},
                **{"ir_version": 10, "min_onnxruntime": "1.29.0", "quantization": None},
                "state": [
                    {
                        **{"layer": t.layer, "kind": t.kind, "input": t.input, "output": t.output},
                        **{"shape": list(t.shape), "dtype": "float32", "horizon": t.horizon},
                    }
                    for t in graph.state
                ],
                "stream": {
                    **{"slack": 16, "period": 17, "capacity": 37, "wrap_at": 54},
                    **{"max_segment": 512, "rope_rows": 583},
                },
            }
        },
        "default_graph": "fp32",
        "events": {
            "step_ms": 10.0,
            "tokens": [
                *({"kind": "special", "value": name} for name in ("PAD", "BOS", "EOS")),
                {"kind": "on", "value": 60},
            ],
        },
        "grammar": {"follow": {"on": ["velocity"]}},
        "special": {"pad": 0, "bos": 1, "eos": 2},
        "golden": {"file": "golden.npz", "sha256": SHA},
        "parity": {"fp32": {"perplexity": 5.5}},
        "provenance": {"checkpoint": SHA},
    }


def test_json_to_dataclasses_and_back_loses_nothing() -> None:
    data = a_manifest()
    manifest = Manifest.from_json(data)
    assert manifest.to_json() == data
    assert manifest.graphs["fp32"] == a_graph()
    assert manifest.schedule.horizons == HORIZONS


SESSION = {
    "threads": 1,
    "options": {"session.intra_op.spin_duration_us": "50"},
    "environment": {"all": {"ORT_A": "1", "ORT_B": "2"}, "aarch64": {"ORT_B": "3"}},
}


def test_what_a_target_asks_for_is_read_and_written() -> None:
    data = a_manifest() | {"preference": ["fp32"], "session": SESSION}
    data["graphs"]["fp32"]["requires"] = ["asimddp", "avx2"]
    manifest = Manifest.from_json(data)
    assert manifest.to_json() == data
    assert manifest.session is not None and manifest.graphs["fp32"].requires == ("asimddp", "avx2")
    assert manifest.session.environment_on("aarch64") == {"ORT_A": "1", "ORT_B": "3"}
    assert manifest.session.environment_on("x86_64") == {"ORT_A": "1", "ORT_B": "2"}


def test_write_then_read(tmp_path: Path) -> None:
    manifest = Manifest.from_json(a_manifest())
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path) == Manifest.read(tmp_path / "manifest.json") == manifest


def test_unknown_keys_are_kept() -> None:
    data = a_manifest()
    data["composer"] = {"name": "Satie"}
    data["graphs"]["fp32"]["speed"] = [1, 2]
    data["events"]["tokens"][3]["colour"] = "white"
    assert Manifest.from_json(data).to_json() == data


def test_scales_of_an_int8_state_are_read() -> None:
    data = a_manifest()
    data["graphs"]["fp32"]["state"][0] |= {"dtype": "int8", "scale": [0.5, 0.25]}
    tensor = Manifest.from_json(data).graphs["fp32"].state[0]
    assert tensor.scale == (0.5, 0.25) and tensor.nbytes == 2 * 37 * 16


def required_keys(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every key that the format lists; below grammar, parity and provenance nothing is fixed."""
    if isinstance(data, list):
        return [p for i, entry in enumerate(data[:1]) for p in required_keys(entry, (*path, i))]
    if not isinstance(data, dict) or path[:1] in (("grammar",), ("parity",), ("provenance",)):
        return []
    found = []
    for key, value in data.items():
        if path != ("graphs",):
            found.append((*path, key))
        found += required_keys(value, (*path, key))
    return found


KEYS = required_keys(a_manifest())


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


@pytest.mark.parametrize("path", KEYS, ids=lambda p: ".".join(map(str, p)))
def test_a_missing_key_is_named(path: tuple[Any, ...]) -> None:
    data = a_manifest()
    del at(data, path[:-1])[path[-1]]
    with pytest.raises(BundleError) as error:
        Manifest.from_json(data)
    assert str(path[-1]) in str(error.value)


@pytest.mark.parametrize("path", KEYS, ids=lambda p: ".".join(map(str, p)))
def test_a_wrong_type_is_named(path: tuple[Any, ...]) -> None:
    data = a_manifest()
    at(data, path[:-1])[path[-1]] = True  # no key of the format holds a boolean
    with pytest.raises(BundleError) as error:
        Manifest.from_json(data)
    assert str(path[-1]) in str(error.value)


def test_a_newer_format_says_so() -> None:
    data = a_manifest() | {"format_version": FORMAT_VERSION + 1}
    with pytest.raises(BundleError, match=r"format_version is 2, this version reads up to 1: upgrade"):
        Manifest.from_json(data)


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        at(data, path[:-1])[path[-1]] = to

    return apply


CONTRADICTIONS = {
    "heads over nothing": (change("model", "kv_heads", to=0), "not one that a graph can have"),
    "another model's vocabulary": (change("vocabulary", to=["PAD"]), "vocabulary has 1"),
    "events of another vocabulary": (change("events", "tokens", to=[]), "events.tokens has 0"),
    "horizons of another model": (change("schedule", "horizons", to=[23]), "schedule.horizons has 1"),
    "budget is not the sum": (change("schedule", "budget_tokens", to=24), "budget_tokens has 24"),
    "default graph that is not there": (change("default_graph", to="int8"), "'int8' is not among"),
    "kind of event": (change("events", "tokens", 3, "kind", to="bend"), "kind is 'bend'"),
    "special id": (change("special", "eos", to=4), "special.eos"),
    "unknown operators": (change("graphs", "fp32", "ops", to="gpu"), "ops is 'gpu'"),
    "unknown dtype": (change("graphs", "fp32", "state", 0, "dtype", to="int2"), "dtype is 'int2'"),
    "shape of 3": (change("graphs", "fp32", "state", 0, "shape", to=[1, 2, 37]), "shape has 3"),
    "shape below the horizon": (change("graphs", "fp32", "state", 0, "shape", 2, to=19), "contradicts"),
    "no rotary rows for steps": (change("graphs", "fp32", "stream", "rope_rows", to=512), "stream"),
    "layer that is not there": (change("graphs", "fp32", "state", 0, "layer", to=2), "contradicts"),
    "no state": (change("graphs", "fp32", "state", to=[]), "state names"),
    "period 0": (change("graphs", "fp32", "stream", "period", to=0), "stream"),
    "file outside the bundle": (change("graphs", "fp32", "file", to="../x"), "not a path inside"),
    "absolute file": (change("golden", "file", to="/etc/passwd"), "not a path inside"),
    "not a hash": (change("tokenizer", "sha256", to="abc"), "64 hex digits"),
    "preference without a graph": (change("preference", to=["int8"]), "preference does not name"),
    "no thread": (change("session", to=SESSION | {"threads": 0}), "session.threads is 0"),
    "somebody else's environment": (
        change("session", to=SESSION | {"environment": {"all": {"LD_PRELOAD": "x"}}}),
        "session.environment.all sets LD_PRELOAD",
    ),
    "not a bundle": (change("format", to="zip"), '"format" is not'),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_refused(name: str) -> None:
    apply, message = CONTRADICTIONS[name]
    data = copy.deepcopy(a_manifest())
    apply(data)
    with pytest.raises(BundleError) as error:
        Manifest.from_json(data)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "dsmr-bundle"}'])
def test_a_file_that_is_no_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Manifest.read(tmp_path / "none")
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match="cannot be read"):
        Manifest.read(tmp_path)


def test_nothing_unreadable_is_written(tmp_path: Path) -> None:
    broken = dataclasses.replace(Manifest.from_json(a_manifest()), golden=FileEntry("../golden.npz", SHA))
    with pytest.raises(BundleError, match="not a path inside"):
        broken.write(tmp_path / "manifest.json")
    assert not list(tmp_path.iterdir())


def test_text_is_plain_json(tmp_path: Path) -> None:
    """Browsers refuse NaN and other extensions of Python's writer."""
    data = a_manifest() | {"parity": {"fp32": {"perplexity": float("nan")}}}
    with pytest.raises(BundleError, match="NaN"):
        Manifest.from_json(data).write(tmp_path / "manifest.json")
    Manifest.from_json(a_manifest()).write(tmp_path / "manifest.json")
    assert list(json.loads((tmp_path / "manifest.json").read_text()))[:2] == ["format", "format_version"]
