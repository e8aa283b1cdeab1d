"""`manifest.json`: everything a host needs to know about a bundle, as frozen dataclasses (design, section 5).

Standard library only. Reading is strict: a missing key, a value of the wrong type or facts that contradict
each other raise `BundleError` with the key's path. Unknown keys are kept in `extra` and written back, so
that a bundle may say more than this version reads; a newer `format_version` is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Union, get_args, get_origin, get_type_hints

from dsmr_export.errors import BundleError
from dsmr_export.state import ITEMSIZE, StateTensor, StreamRule, state_bytes

FORMAT = "dsmr-bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
OPS = ("fused", "portable")
EVENT_KINDS = ("on", "off", "velocity", "shift", "special")


@dataclass(frozen=True)
class ModelShape:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    d_model: int
    d_ff: int
    vocab_size: int
    rope_base: float
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheduleEntry:
    """The schedule of the exported graphs; `name` is its text form (`two_scale`, `2048x2,256x6`)."""

    name: str
    horizons: tuple[int, ...]
    budget_tokens: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: path inside the folder (with `/`) and the SHA-256 of its bytes in hex."""

    file: str
    sha256: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphEntry:
    """One ONNX graph. `quantization` is None for float weights, else what was applied, per tensor.

    requires: CPU features as Linux names them; a CPU with any one of them runs this graph well. Empty: any
    CPU."""

    file: str
    sha256: str
    bytes: int
    ops: str
    opset: int
    ir_version: int
    min_onnxruntime: str
    quantization: dict[str, Any] | None
    state: tuple[StateTensor, ...]
    stream: StreamRule
    requires: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def state_bytes(self) -> int:
        return state_bytes(self.state)


@dataclass(frozen=True)
class EventToken:
    """What one token means.

    value: a pitch (on, off), a MIDI velocity, steps of `step_ms` (shift), or a name (special).
    """

    kind: str
    value: int | str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EventEntry:
    """The meaning of every token, by id."""

    step_ms: float
    tokens: tuple[EventToken, ...]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SpecialTokens:
    pad: int
    bos: int
    eos: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """How this model likes to be played; a host may choose otherwise.

    pace: what to add to the logits of a shift, per ln(length / 60 ms). 0 = as the model means it.
    """

    pace: float
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionEntry:
    """How the target wants onnxruntime set up: threads of one call, session configuration entries, and the
    environment it starts in, by architecture (`platform.machine()`; "all" = any).
    """

    threads: int
    options: dict[str, str]
    environment: dict[str, dict[str, str]]
    extra: dict[str, Any] = field(default_factory=dict)

    def environment_on(self, architecture: str) -> dict[str, str]:
        """What to set on this architecture; the more specific entry wins."""
        return {**self.environment.get("all", {}), **self.environment.get(architecture, {})}


@dataclass(frozen=True)
class Manifest:
    """The whole of `manifest.json`.

    `grammar`, `parity` and `provenance` stay plain JSON: their readers own their form. default_graph runs
    well on every CPU of the target. preference names all graphs, the one to run first where the CPU has what
    it requires; empty in bundles of older versions."""

    name: str
    model: ModelShape
    schedule: ScheduleEntry
    tokenizer: FileEntry
    vocabulary: tuple[str, ...]
    target: str | None
    graphs: dict[str, GraphEntry]
    default_graph: str
    events: EventEntry
    grammar: dict[str, Any]
    special: SpecialTokens
    golden: FileEntry
    parity: dict[str, Any]
    provenance: dict[str, Any]
    generation: Generation | None = None
    preference: tuple[str, ...] = ()
    session: SessionEntry | None = None
    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Reads `path`, a `manifest.json` or the folder that holds one. Raises BundleError."""
        file = Path(path)
        if file.is_dir():
            file = file / MANIFEST
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise BundleError(f"{file} does not exist: give the folder that dsmr-export wrote") from None
        except (OSError, UnicodeDecodeError) as error:
            raise _bad(f"{file} cannot be read ({error})") from error
        try:
            return cls.from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise _bad(f"{file} is not JSON ({error})") from None
        except BundleError as error:
            raise BundleError(f"{file}: {error}") from None

    @classmethod
    def from_json(cls, data: object) -> Manifest:
        """The manifest in parsed JSON. Raises BundleError naming the key and what is wrong with it."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError(f'"format" is not "{FORMAT}": give a folder that dsmr-export wrote')
        version = data.get("format_version")
        if type(version) is int and version > FORMAT_VERSION:
            raise BundleError(
                f"format_version is {version}, this version reads up to {FORMAT_VERSION}: "
                "upgrade dsmr-export, or export the bundle again with this version"
            )
        manifest: Manifest = _read(cls, data, "")
        _check(manifest)
        return manifest

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, in the order of the fields, unknown keys last."""
        plain: dict[str, Any] = _plain(self)
        return {"format": plain.pop("format"), "format_version": plain.pop("format_version"), **plain}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes `path`. Raises BundleError for what could not be read back."""
        try:
            text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        except ValueError:
            raise BundleError(
                "a manifest cannot hold NaN or infinity: write null where a figure is not known"
            ) from None
        Manifest.from_json(json.loads(text))
        Path(path).write_text(text, encoding="utf-8")


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value` (parsed JSON) as `kind`, a type hint of a field above; `where` is its path, for messages."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_record(kind, value, where)
    if origin in (Union, types.UnionType):
        for option in args:
            if option is type(None) and value is None:
                return None
            if option is not type(None) and _matches(option, value):
                return _read(option, value, where)
        raise _wrong_type(where, " or ".join(_word(option) for option in args), value)
    if origin is tuple and isinstance(value, list):
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise _bad(f"{where} has {len(value)} entries, not {len(args)}")
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: _read(args[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if origin is None and _matches(kind, value):
        return float(value) if kind is float else value
    raise _wrong_type(where, _word(kind), value)


def _read_record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong_type(where, "object", value)
    hints, known, prefix = get_type_hints(kind), {}, f"{where}." if where else ""
    rest = dict(value)
    for f in dataclasses.fields(kind):
        if f.name == "extra":
            continue
        if f.name in rest:
            known[f.name] = _read(hints[f.name], rest.pop(f.name), prefix + f.name)
        elif f.default is dataclasses.MISSING or f.name == "format_version":
            raise _bad(f"{prefix}{f.name} is missing")
    if "extra" in hints:
        known["extra"] = rest
    return kind(**known)


def _matches(kind: Any, value: Any) -> bool:
    origin = get_origin(kind) or kind
    if dataclasses.is_dataclass(origin):
        return type(value) is dict
    if origin is tuple:
        return isinstance(value, list)
    if origin is float:
        return type(value) in (int, float)
    return type(value) is origin


_WORDS = {
    tuple: "list",
    dict: "object",
    list: "list",
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
}


def _word(kind: Any) -> str:
    return "null" if kind is type(None) else _WORDS.get(get_origin(kind) or kind, "object")


def _bad(problem: str) -> BundleError:
    return BundleError(f"{problem}: export the bundle again")


def _wrong_type(where: str, expected: str, value: Any) -> BundleError:
    return _bad(f"{where} should be {expected} and is {_word(type(value))}")


def _plain(value: Any) -> Any:
    """Dataclasses to JSON values; an optional key at its default is left out, except the format's own."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: _plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.name != "extra" and (f.name.startswith("format") or getattr(value, f.name) != f.default)
        }
        return {**fields, **_plain(getattr(value, "extra", {}))}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def _check(manifest: Manifest) -> None:
    """What types do not say: counts that agree, names that exist, paths that stay inside the folder."""
    model, layers, vocab = manifest.model, manifest.model.layers, manifest.model.vocab_size
    for where, count, expected in (
        ("schedule.horizons", len(manifest.schedule.horizons), layers),
        ("schedule.budget_tokens", manifest.schedule.budget_tokens, sum(manifest.schedule.horizons)),
        ("vocabulary", len(manifest.vocabulary), vocab),
        ("events.tokens", len(manifest.events.tokens), vocab),
    ):
        if count != expected:
            raise _bad(f"{where} has {count}, the model and its schedule say {expected}")
    if min(manifest.schedule.horizons, default=0) < 1 or model.kv_heads < 1 or model.heads % model.kv_heads:
        raise _bad("schedule or model is not one that a graph can have")
    if manifest.default_graph not in manifest.graphs:
        raise _bad(f"default_graph {manifest.default_graph!r} is not among the graphs")
    if manifest.preference and sorted(manifest.preference) != sorted(manifest.graphs):
        raise _bad("preference does not name each graph once")
    if manifest.session:
        _check_session(manifest.session)
    for i, token in enumerate(manifest.events.tokens):
        if token.kind not in EVENT_KINDS:
            raise _bad(f"events.tokens[{i}].kind is {token.kind!r}, not one of {', '.join(EVENT_KINDS)}")
    for name in ("pad", "bos", "eos"):
        if not 0 <= getattr(manifest.special, name) < vocab:
            raise _bad(f"special.{name} is not an id of the vocabulary")
    for name, graph in manifest.graphs.items():
        _check_graph(f"graphs.{name}", graph, manifest)
    for where, entry in (("tokenizer", manifest.tokenizer), ("golden", manifest.golden)):
        _check_file(where, entry.file, entry.sha256)


def _check_graph(where: str, graph: GraphEntry, manifest: Manifest) -> None:
    _check_file(where, graph.file, graph.sha256)
    if graph.ops not in OPS:
        raise BundleError(
            f"{where}.ops is {graph.ops!r}, this version runs {' and '.join(OPS)}: upgrade dsmr-export"
        )
    for i, tensor in enumerate(graph.state):
        if tensor.dtype not in ITEMSIZE:
            raise BundleError(f"{where}.state[{i}].dtype is {tensor.dtype!r}: upgrade dsmr-export")
        rows, horizons = tensor.shape[2], manifest.schedule.horizons
        if (
            not 0 <= tensor.layer < len(horizons)
            or tensor.horizon != horizons[tensor.layer]
            or rows < tensor.horizon
        ):
            raise _bad(f"{where}.state[{i}] contradicts schedule.horizons")
    if len({tensor.input for tensor in graph.state}) != len(graph.state) or not graph.state:
        raise _bad(f"{where}.state names an input twice, or none")
    rule = graph.stream
    too_few_rows = graph.ops == "fused" and rule.rope_rows <= rule.max_segment
    if min(rule.period, rule.max_segment) < 1 or rule.wrap_at < rule.capacity or too_few_rows:
        raise _bad(f"{where}.stream is not a rule that a host can follow")


def _check_session(session: SessionEntry) -> None:
    if session.threads < 1:
        raise _bad(f"session.threads is {session.threads}, it should be 1 or more")
    for architecture, variables in session.environment.items():
        for variable in variables:
            if not variable.startswith("ORT_"):  # a bundle sets up onnxruntime, not the process
                raise _bad(f"session.environment.{architecture} sets {variable}, which is not onnxruntime's")


def _check_file(where: str, file: str, sha256: str) -> None:
    path = PurePosixPath(file)
    if not file or path.is_absolute() or ".." in path.parts or "\\" in file:
        raise _bad(f"{where}.file {file!r} is not a path inside the bundle")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise _bad(f"{where}.sha256 is not 64 hex digits")
