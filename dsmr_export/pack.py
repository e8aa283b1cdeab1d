"""A checkpoint becomes a bundle: graphs, golden vectors, parity, manifest, model card, hashes; its name last.

Everything is written into a hidden folder beside the output and renamed at the end, so an interrupted or
failed export leaves nothing behind and a bundle that is being replaced stays whole until then.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dsmr_export import card, export, parity, quantize
from dsmr_export import schedule as schedules
from dsmr_export.errors import DsmrError, OutputError, OutputExistsError
from dsmr_export.manifest import (
    MANIFEST,
    EventEntry,
    EventToken,
    FileEntry,
    Generation,
    GraphEntry,
    Manifest,
    ScheduleEntry,
    SpecialTokens,
)
from dsmr_export.model import checkpoint as checkpoints
from dsmr_export.model import data
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.network import DSMR
from dsmr_export.runtime.bundle import Bundle, file_sha256, write_sums
from dsmr_export.runtime.stream import Stream
from dsmr_export.schedule import Schedule
from dsmr_export.state import MAX_SEGMENT, StreamRule
from dsmr_export.targets import loader as targets

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx", "portable": "model.portable.onnx"}
TOKENIZER, GOLDEN, CARD = "tokenizer.json", "golden.npz", "README.md"

GATE_PIECES, GATE_TOKENS = 4, 8192
"""The export's own parity check: the first tokens of the longest held-out pieces; `dsmr check` does all."""

GOLDEN_STORED = 512
"""Positions whose logits are stored; half of them the last ones, where every layer has evicted."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to export.

    quantize and ops as on the command line; keep: names of the graphs that stay in the bundle (default: all).
    """

    output: Path
    checkpoint: Path | None = None
    schedule: str | None = None
    budget: int | None = None
    quantize: tuple[str, ...] = ("int8",)
    ops: tuple[str, ...] = ("fused",)
    target: str = "generic"
    name: str | None = None
    opset: int | None = None
    ir_version: int = export.IR_VERSION
    force: bool = False
    gate: bool = True
    keep: tuple[str, ...] | None = None
    command: str = "dsmr-export"

    def graphs(self) -> list[str]:
        """Names of the graphs to make. Raises DsmrError for a combination that makes no sense."""
        wanted = [name for name in self.quantize if name != "none"]
        if wanted and "fused" not in self.ops:
            raise DsmrError(
                f"--quantize {','.join(wanted)} quantizes the fused graph: "
                "add fused to --ops or use --quantize none"
            )
        fused = ["fp32", *wanted] if "fused" in self.ops else []
        return fused + (["portable"] if "portable" in self.ops else [])


@dataclass(frozen=True)
class Packed:
    """A written bundle: where it is, its manifest, and what to tell the user."""

    path: Path
    manifest: Manifest
    parity: dict[str, Any]
    worst_tensors: list[quantize.TensorError]


def pack(
    request: Request, say: Say = lambda text: None, progress: Callable[[int], None] = lambda tokens: None
) -> Packed:
    """Makes a bundle.

    say gets one line a stage; progress how many more tokens of the parity check were streamed. Raises
    OutputExistsError, CheckpointError, ScheduleError, TargetError, GraphError, ParityError or OutputError;
    none leaves a trace.
    """
    names = request.graphs()
    _check_output(request.output, request.force)
    target = targets.load(request.target)
    for name in names:
        if name in targets.QUANTIZATIONS:
            target.recipe(name)
    source = checkpoints.load(request.checkpoint)
    schedule = schedules.build(
        request.schedule or source.schedule.text,
        source.config.layers,
        request.budget,
        source.schedule.budget_tokens,
    )
    say(schedules.describe(schedule))
    for sentence in schedules.changes(source.schedule, schedule):
        say(f"note: {sentence}")
    network = source.network(schedule)
    tokenizer = source.tokenizer()
    with _new_folder(request.output, request.force) as folder:
        shutil.copyfile(source.tokenizer_path, folder / TOKENIZER)
        errors = _write_graphs(request, names, network, folder, say)
        manifest = _manifest(request, source, schedule, network, tokenizer, target.name, folder, errors)
        bundle = Bundle(folder, manifest, identity="", notes=[])
        say("golden vectors")
        kept = [name for name in names if request.keep is None or name in request.keep]
        _write_golden(bundle, tokenizer, kept)
        pieces = held_out(tokenizer)
        say(f"parity on {sum(len(ids) - 1 for ids in pieces):,} tokens of {len(pieces)} held-out pieces")
        result = parity.check(bundle, pieces, network, stepwise=False, progress=progress)
        if request.gate:
            parity.require(result)
        for name in set(names) - set(kept):
            (folder / FILES[name]).unlink()
        manifest = _finished(manifest, folder, kept, result)
        manifest.write(folder / MANIFEST)
        (folder / CARD).write_text(card.render(manifest), encoding="utf-8")
        write_sums(folder)
        Bundle.open(folder)
    return Packed(request.output, manifest, result, errors)


def _check_output(output: Path, force: bool) -> None:
    """--force replaces bundles and empty folders; anything else at that place is not ours to delete."""
    if not output.exists():
        return
    if not force:
        raise OutputExistsError(f"{output} exists: give another --output, or --force to replace it")
    if not (output / MANIFEST).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise OutputExistsError(
            f"{output} is not a bundle, so --force does not replace it: give another --output"
        )


def held_out(tokenizer: Any) -> list[NDArray[np.uint16]]:
    """The pieces of the export's parity check: how the longest ones of the bundled test split begin."""
    pieces = data.load(None, "test", tokenizer, progress=False).pieces
    longest = sorted(pieces, key=lambda piece: -len(piece.ids))[:GATE_PIECES]
    return [piece.ids[: GATE_TOKENS + 1] for piece in longest]


def _write_graphs(
    request: Request, names: Sequence[str], network: DSMR, folder: Path, say: Say
) -> list[quantize.TensorError]:
    for name, ops in (("fp32", "fused"), ("portable", "portable")):
        if name in names:
            say(f"exporting {FILES[name]} ({ops})")
            export.export_graph(network, ops, folder / FILES[name], request.opset, request.ir_version)
    if "int8" not in names:
        return []
    say(f"quantizing {FILES['int8']}")
    return quantize.quantize_int8(folder / FILES["fp32"], folder / FILES["int8"])


def _manifest(
    request: Request,
    source: checkpoints.Checkpoint,
    schedule: Schedule,
    network: DSMR,
    tokenizer: Any,
    target: str,
    folder: Path,
    errors: Sequence[quantize.TensorError],
) -> Manifest:
    """The manifest as far as it is known before golden vectors and parity."""
    events, special = tokens.event_table(tokenizer), tokens.special_ids(tokenizer)
    names = request.graphs()
    return Manifest(
        name=request.name or request.output.resolve().name,
        model=export.model_shape(network),
        schedule=ScheduleEntry(schedule.text, schedule.horizons, schedule.budget_tokens),
        tokenizer=FileEntry(TOKENIZER, file_sha256(folder / TOKENIZER)),
        vocabulary=tuple(tokens.vocabulary(tokenizer)),
        target=target,
        graphs={name: _graph_entry(name, network, folder, errors) for name in names},
        default_graph=next(name for name in ("int8", "fp32", "portable") if name in names),
        events=EventEntry(events["step_ms"], tuple(EventToken(**token) for token in events["tokens"])),
        grammar=tokens.grammar_rules(),
        special=SpecialTokens(special["pad"], special["bos"], special["eos"]),
        golden=FileEntry(GOLDEN, "0" * 64),
        parity={},
        provenance={
            "checkpoint_sha256": source.sha256,
            "data": source.data,
            "licence": source.licence,
            "command": request.command,
            "versions": versions(),
        },
        generation=Generation(source.pace) if source.pace else None,
    )


def _graph_entry(
    name: str, network: DSMR, folder: Path, errors: Sequence[quantize.TensorError]
) -> GraphEntry:
    ops = "portable" if name == "portable" else "fused"
    path = folder / FILES[name]
    model = onnx.load(path, load_external_data=False)
    quantization = None
    if name == "int8":
        quantization = {
            **quantize.INT8,
            "tensors": {e.tensor: {"type": "int8", "sqnr_db": e.sqnr_db} for e in errors},
        }
    return GraphEntry(
        file=FILES[name],
        sha256=file_sha256(path),
        bytes=path.stat().st_size,
        ops=ops,
        opset=next(o.version for o in model.opset_import if o.domain == ""),
        ir_version=model.ir_version,
        min_onnxruntime=export.MIN_ONNXRUNTIME[ops],
        quantization=quantization,
        state=export.graph_state(network, ops),
        stream=StreamRule.of(network.horizons),
    )


def _write_golden(bundle: Bundle, tokenizer: Any, kept: Sequence[str]) -> None:
    """Real tokens in mixed segments, with the logits of every graph that stays.

    Long enough that every layer evicts, as far as the longest piece of the bundled validation split goes.
    """
    pieces = data.load(None, "validation", tokenizer, progress=False).pieces
    ids = max(pieces, key=lambda piece: len(piece.ids)).ids
    rule = next(iter(bundle.manifest.graphs.values())).stream
    length = min(len(ids), max(GOLDEN_STORED, rule.wrap_at + 4 * rule.period + GOLDEN_STORED // 2))
    inputs = ids[:length].astype(np.int64)
    segments = np.array(
        parity.random_cuts(length, MAX_SEGMENT // 4, np.random.default_rng(0)), dtype=np.int64
    )
    last = np.arange(length - GOLDEN_STORED // 2, length)
    spread = np.linspace(0, last[0], GOLDEN_STORED // 2, endpoint=False).astype(np.int64)
    positions = np.concatenate([spread, last])
    logits = {}
    for name in kept:
        stream, cuts = Stream(bundle, name), np.cumsum(segments)[:-1]
        logits[f"logits.{name}"] = np.concatenate([stream.feed(part) for part in np.split(inputs, cuts)])[
            positions
        ]
    np.savez_compressed(
        bundle.path / GOLDEN, input_ids=inputs, segments=segments, positions=positions, **logits
    )


def _finished(manifest: Manifest, folder: Path, kept: Sequence[str], result: dict[str, Any]) -> Manifest:
    """The manifest with what was measured, and only the graphs that stay."""
    return replace(
        manifest,
        graphs={name: manifest.graphs[name] for name in kept},
        golden=FileEntry(GOLDEN, file_sha256(folder / GOLDEN)),
        parity={name: result["graphs"][name] for name in kept},
    )


def versions() -> dict[str, str]:
    """Of everything whose version shows in the bundle's bytes or figures."""
    packages = (
        "dsmr-export",
        "torch",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "optimum-onnx",
        "miditok",
        "numpy",
    )
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@contextmanager
def _new_folder(output: Path, force: bool) -> Iterator[Path]:
    """A hidden folder beside `output`: it takes that name when the block ends well, and vanishes else."""
    output = output.resolve()
    new_parents = [parent for parent in output.parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            yield folder
            folder.chmod(0o755)
            _rename(folder, output, force)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            for parent in new_parents:  # nearest first; one that holds the bundle stays
                with suppress(OSError):
                    parent.rmdir()
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OutputError(
            f"{output} could not be written ({reason}): nothing was left behind; give another --output"
        ) from error


def _rename(folder: Path, output: Path, force: bool) -> None:
    """Gives the folder its name; what had it before is put aside, and comes back on any failure."""
    old = folder.with_name(folder.name + ".old")
    try:
        if force and output.exists():
            os.rename(output, old)
        os.rename(folder, output)
    finally:
        if old.exists():
            if output.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(old, output)


def summary(packed: Packed) -> dict[str, Any]:
    """The result of an export as one JSON object."""
    manifest = packed.manifest
    return {
        "path": str(packed.path),
        "schedule": {"name": manifest.schedule.name, "horizons": list(manifest.schedule.horizons)},
        "graphs": {
            name: {
                "file": entry.file,
                "bytes": entry.bytes,
                "state_bytes": entry.state_bytes,
                **packed.parity["graphs"][name],
            }
            for name, entry in manifest.graphs.items()
        },
        "worst_tensors": [asdict(error) for error in packed.worst_tensors[:3]],
        "tokens": packed.parity["tokens"],
        "pieces": packed.parity["pieces"],
        "passed": packed.parity["passed"],
    }
