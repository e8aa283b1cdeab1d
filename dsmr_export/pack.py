"""A checkpoint becomes a bundle: graphs, golden vectors, parity, manifest, model card, hashes; its name last.

Everything is written into a hidden folder beside the output and renamed at the end, so an interrupted or
failed export leaves nothing behind and a bundle that is being replaced stays whole until then.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dsmr_export import budget, card, export, parity, quantize, quantize_state
from dsmr_export import schedule as schedules
from dsmr_export.errors import DsmrError, OutputExistsError
from dsmr_export.manifest import (
    MANIFEST,
    EventEntry,
    EventToken,
    FileEntry,
    Generation,
    GraphEntry,
    Manifest,
    ModelShape,
    ScheduleEntry,
    SessionEntry,
    SpecialTokens,
)
from dsmr_export.model import checkpoint as checkpoints
from dsmr_export.model import data
from dsmr_export.model import tokenizer as tokens
from dsmr_export.model.network import DSMR
from dsmr_export.runtime import cpu
from dsmr_export.runtime.bundle import Bundle, file_sha256, write_sums
from dsmr_export.runtime.files import new_folder
from dsmr_export.runtime.runner import FusedRunner
from dsmr_export.runtime.selection import suits
from dsmr_export.runtime.session import open_session, version_tuple
from dsmr_export.runtime.stream import Stream
from dsmr_export.schedule import Schedule
from dsmr_export.state import ITEMSIZE, MAX_SEGMENT, StateTensor, StreamRule, quantized_state
from dsmr_export.targets import loader as targets

FILES = {
    "fp32": "model.onnx",
    "int8": "model.int8.onnx",
    "int4": "model.int4.onnx",
    "portable": "model.portable.onnx",
}
PREFERENCE = ("int4", "int8", "fp32", "portable")
"""What a device runs first of what its CPU runs well: the fewest bits that were asked for."""
TOKENIZER, GOLDEN, CARD = "tokenizer.json", "golden.npz", "README.md"

GATE_PIECES, GATE_TOKENS = 4, 8192
"""The export's own parity check: the first tokens of the longest held-out pieces; `dsmr check` does all."""

CALIBRATION_PIECES, CALIBRATION_TOKENS = 8, 4096
"""What int8 state is calibrated on: how the longest pieces of the bundled train split begin."""

GOLDEN_STORED = 512
"""Positions whose logits are stored; half of them the last ones, where every layer has evicted."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to export.

    quantize, quantize_state and ops as on the command line; quantize_state None: as the target's recipes say.
    plans: by graph name, the level of every matrix, instead of the recipe's own (quantize.default_plan).
    budget_bytes: of recurrent state; the schedule is then the largest two_scale inside it. keep: names of the
    graphs that stay in the bundle (default: all).
    """

    output: Path
    checkpoint: Path | None = None
    schedule: str | None = None
    budget: int | None = None
    budget_bytes: int | None = None
    quantize: tuple[str, ...] = ("int8",)
    quantize_state: str | None = None
    plans: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
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
        if self.quantize_state == "int8" and not wanted:
            raise DsmrError(
                "--quantize-state int8 goes with quantized weights, fp32 keeps its state: "
                "add --quantize int8, or leave it out"
            )
        fused = ["fp32", *wanted] if "fused" in self.ops else []
        return fused + (["portable"] if "portable" in self.ops else [])


@dataclass(frozen=True)
class Packed:
    """A written bundle: where it is, its manifest, and what to tell the user."""

    path: Path
    manifest: Manifest
    parity: dict[str, Any]
    errors: dict[str, list[quantize.TensorError]]
    needs: budget.Needs


@dataclass(frozen=True)
class Prepared:
    """What a request comes to before anything is written.

    runs: the graphs that every CPU of the target runs well, the preferred first. needs: of the first of them.
    """

    names: list[str]
    target: targets.Target
    recipes: dict[str, quantize.GraphRecipe]
    source: checkpoints.Checkpoint
    shape: ModelShape
    schedule: Schedule
    runs: list[str]
    needs: budget.Needs

    def notes(self) -> list[str]:
        """What does not keep the bundle from its target, and should be known."""
        horizons = self.schedule.horizons
        found = []
        for name in self.runs[1:]:
            other = budget.needs(self.shape, horizons, name, self.recipes.get(name), self.target)
            if not budget.fits(other, self.target):
                found.append(
                    f"{name} would need about {other.memory / budget.MB:,.0f} MB there, so a device cannot "
                    "fall back to it"
                )
        return found

    def alternatives(self) -> list[tuple[Schedule, budget.Needs]]:
        """The same graph under two_scale of other budgets: rows of a table."""
        graph, tokens = self.needs.graph, self.schedule.budget_tokens
        return list(budget.alternatives(self.shape, tokens, graph, self.recipes.get(graph), self.target))


def prepare(request: Request) -> Prepared:
    """Raises what `pack` raises before it writes, but for the output and for what does not fit the target."""
    names = request.graphs()
    target = _target(request.target)
    recipes = {
        name: quantize.GraphRecipe(recipe, request.quantize_state or recipe.state, request.plans.get(name))
        for name in names
        if name in targets.QUANTIZATIONS
        for recipe in [target.recipe(name)]
    }
    source = checkpoints.load(request.checkpoint)
    shape = export.model_shape(source.config)
    schedule = _schedule(request, source, shape, recipes)
    runs = _runs(names, recipes, target)
    needs = budget.needs(shape, schedule.horizons, runs[0], recipes.get(runs[0]), target)
    return Prepared(names, target, recipes, source, shape, schedule, runs, needs)


def check(request: Request) -> Prepared:
    """Everything that can be refused before a graph is made. Raises what `pack` does."""
    _check_output(request.output, request.force)
    prepared = prepare(request)
    budget.require(prepared.needs, prepared.shape, prepared.target)
    return prepared


def pack(
    request: Request, say: Say = lambda text: None, progress: Callable[[int], None] = lambda tokens: None
) -> Packed:
    """Makes a bundle.

    say gets one line a stage; progress how many more tokens of the parity check were streamed. Raises
    OutputExistsError, CheckpointError, ScheduleError, TargetError (no such recipe, or it does not fit),
    GraphError, ParityError or OutputError; none leaves a trace.
    """
    prepared = check(request)
    names, target, recipes = prepared.names, prepared.target, prepared.recipes
    source, schedule, needs = prepared.source, prepared.schedule, prepared.needs
    say(schedules.describe(schedule))
    for sentence in schedules.changes(source.schedule, schedule):
        say(f"note: {sentence}")
    say(budget.sentence(needs, target))
    for sentence in prepared.notes():
        say(f"note: {sentence}")
    network = source.network(schedule)
    tokenizer = source.tokenizer()
    with new_folder(request.output, request.force, "--output") as folder:
        shutil.copyfile(source.tokenizer_path, folder / TOKENIZER)
        made = _write_graphs(request, names, recipes, network, tokenizer, folder, say)
        manifest = _manifest(request, source, schedule, network, tokenizer, target, made, folder)
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
        manifest = _finished(manifest, folder, kept, result, prepared.runs)
        manifest.write(folder / MANIFEST)
        (folder / CARD).write_text(card.render(manifest), encoding="utf-8")
        write_sums(folder)
        Bundle.open(folder)
    errors = {name: graph.errors for name, graph in made.items() if graph.errors}
    return Packed(request.output, manifest, result, errors, needs)


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
    return longest_pieces(tokenizer, "test", GATE_PIECES, GATE_TOKENS + 1)


def longest_pieces(tokenizer: Any, split: str, count: int, ids: int) -> list[NDArray[np.uint16]]:
    """The first so many ids of the longest pieces of a bundled split."""
    pieces = data.load(None, split, tokenizer, progress=False).pieces
    return [piece.ids[:ids] for piece in sorted(pieces, key=lambda piece: -len(piece.ids))[:count]]


def _target(name: str) -> targets.Target:
    """A profile by name or path; auto: the one for this machine."""
    if name != "auto":
        return targets.load(name)
    machine = cpu.read()
    cpu.require_64_bit(machine)
    return targets.best_for(machine.architecture, machine.features, machine.model)


def _schedule(
    request: Request,
    source: checkpoints.Checkpoint,
    shape: ModelShape,
    recipes: Mapping[str, quantize.GraphRecipe],
) -> Schedule:
    own = source.schedule.budget_tokens
    if request.budget_bytes is None:
        # a budget alone is shared out anew by the checkpoint's own rule; a list of horizons has none
        asked_anew = request.budget is not None and source.schedule.name != schedules.EXPLICIT
        text = request.schedule or (source.schedule.name if asked_anew else source.schedule.text)
        return schedules.build(text, source.config.layers, request.budget, own)
    if request.budget is not None or request.schedule not in (None, "two_scale"):
        raise DsmrError("--budget-bytes solves for two_scale: leave --budget and any other --schedule out")
    states = {recipe.state for recipe in recipes.values()} or {"float32"}
    return budget.largest_two_scale(shape, request.budget_bytes, max(states, key=lambda s: ITEMSIZE[s]))


def _runs(
    names: Sequence[str], recipes: Mapping[str, quantize.GraphRecipe], target: targets.Target
) -> list[str]:
    """The graphs that every CPU of the target runs well, the preferred one first; fp32 or portable always."""
    return [
        name
        for name in PREFERENCE
        if name in names
        and (name not in recipes or suits(recipes[name].weights.requires, target.cpu.features))
    ]


@dataclass(frozen=True)
class _Made:
    """A written graph: its state, what quantization did, and what its CPU should have."""

    state: tuple[StateTensor, ...]
    quantization: dict[str, Any] | None = None
    errors: list[quantize.TensorError] = field(default_factory=list)
    requires: tuple[str, ...] = ()


def _write_graphs(
    request: Request,
    names: Sequence[str],
    recipes: Mapping[str, quantize.GraphRecipe],
    network: DSMR,
    tokenizer: Any,
    folder: Path,
    say: Say,
) -> dict[str, _Made]:
    made = {}
    for name, ops in (("fp32", "fused"), ("portable", "portable")):
        if name in names:
            say(f"exporting {FILES[name]} ({ops})")
            export.export_graph(network, ops, folder / FILES[name], request.opset, request.ir_version)
            made[name] = _Made(export.graph_state(network, ops))
    scales: quantize_state.Scales = {}
    if any(recipe.state == "int8" for recipe in recipes.values()):
        say("calibrating the recurrent state")
        scales = _calibrate(network, tokenizer, folder / FILES["fp32"])
    for name, recipe in recipes.items():
        path = folder / FILES[name]
        say(f"quantizing {FILES[name]}")
        errors = quantize.quantize(folder / FILES["fp32"], path, recipe.weights, recipe.plan)
        applied, state = quantize.describe(name, recipe.weights, errors), made["fp32"].state
        if recipe.state == "int8":
            quantize_state.quantize_state(path, state, scales)
            state = quantized_state(state, {key: array.ravel().tolist() for key, array in scales.items()})
            applied["state"] = quantize_state.METHOD
        made[name] = _Made(state, applied, errors, recipe.weights.requires)
    return {name: made[name] for name in names}


def _calibrate(network: DSMR, tokenizer: Any, path: Path) -> quantize_state.Scales:
    entry = export.trial_entry(network, "fused", path)
    runner = FusedRunner(open_session(path), entry, export.model_shape(network.config))
    pieces = longest_pieces(tokenizer, "train", CALIBRATION_PIECES, CALIBRATION_TOKENS)
    return quantize_state.calibrate(runner, pieces)


def _manifest(
    request: Request,
    source: checkpoints.Checkpoint,
    schedule: Schedule,
    network: DSMR,
    tokenizer: Any,
    target: targets.Target,
    made: Mapping[str, _Made],
    folder: Path,
) -> Manifest:
    """The manifest as far as it is known before golden vectors and parity."""
    events, special = tokens.event_table(tokenizer), tokens.special_ids(tokenizer)
    session = target.session
    return Manifest(
        name=request.name or request.output.resolve().name,
        model=export.model_shape(network.config),
        schedule=ScheduleEntry(schedule.text, schedule.horizons, schedule.budget_tokens),
        tokenizer=FileEntry(TOKENIZER, file_sha256(folder / TOKENIZER)),
        vocabulary=tuple(tokens.vocabulary(tokenizer)),
        target=target.name,
        graphs={name: _graph_entry(name, network, target, folder, graph) for name, graph in made.items()},
        default_graph="",
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
        session=SessionEntry(
            session.threads,
            dict(session.options),
            {architecture: dict(variables) for architecture, variables in session.environment.items()},
        ),
    )


def _graph_entry(name: str, network: DSMR, target: targets.Target, folder: Path, made: _Made) -> GraphEntry:
    ops = "portable" if name == "portable" else "fused"
    path = folder / FILES[name]
    model = onnx.load(path, load_external_data=False)
    return GraphEntry(
        file=FILES[name],
        sha256=file_sha256(path),
        bytes=path.stat().st_size,
        ops=ops,
        opset=next(o.version for o in model.opset_import if o.domain == ""),
        ir_version=model.ir_version,
        min_onnxruntime=_min_onnxruntime(ops, target),
        quantization=made.quantization,
        state=made.state,
        stream=StreamRule.of(network.horizons),
        requires=made.requires,
    )


def _min_onnxruntime(ops: str, target: targets.Target) -> str:
    """The target's where that is newer; portable stays for any."""
    needed = export.MIN_ONNXRUNTIME[ops]
    return max(needed, target.system.min_onnxruntime, key=version_tuple) if ops == "fused" else needed


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


def _finished(
    manifest: Manifest,
    folder: Path,
    kept: Sequence[str],
    result: dict[str, Any],
    runs: Sequence[str],
) -> Manifest:
    """The manifest with what was measured, and only the graphs that stay.

    runs: the graphs that every CPU of the target runs well.
    """
    preference = tuple(name for name in PREFERENCE if name in kept)
    return replace(
        manifest,
        graphs={name: manifest.graphs[name] for name in kept},
        default_graph=next((name for name in preference if name in runs), preference[0]),
        preference=preference,
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
        "worst_tensors": {
            name: [asdict(error) for error in errors[:3]] for name, errors in packed.errors.items()
        },
        "needs": {**asdict(packed.needs), "memory": packed.needs.memory, "read": packed.needs.read},
        "tokens": packed.parity["tokens"],
        "pieces": packed.parity["pieces"],
        "passed": packed.parity["passed"],
    }
