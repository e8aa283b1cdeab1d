"""What might make a step faster: each idea beside the graph as it is, in turns, with the ratio of times.

    python -m benchmarks.trials BUNDLE [--graph NAME] [--rounds N] [--only TEXT]

A ratio below 1 is faster. Every trial runs in a process of its own with a full state, feeding real tokens, so
that ideas that change the environment or the graph stand beside those that change a session option. What came
of them is in docs/decisions.md.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from dsmr_export.bench import graphs, turns
from dsmr_export.bench.process import LostError, Remote
from dsmr_export.bench.turns import Contestant
from dsmr_export.manifest import GraphEntry, ModelShape, SessionEntry
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.runner import FusedRunner
from dsmr_export.state import StateTensor, StreamRule


@dataclass(frozen=True)
class Trial:
    """An idea. options: session configuration entries. attributes: of SessionOptions, by name.

    change: edits the graph. slack: spare rows of the state, None = as exported. size: tokens of a call; the
    time is that of one of them.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    change: Callable[[onnx.ModelProto], None] | None = None
    slack: int | None = None
    size: int = 1


def trials() -> Iterator[Trial]:
    """All of them; the first is what a bundle does now."""
    yield Trial("as it is")
    yield Trial("as it is, again (the noise)")
    yield Trial("small pages", environment={"DSMR_LARGE_PAGES": "0"})
    yield Trial("spinning between calls", {"session.intra_op.spin_duration_us": "1000"})
    yield Trial("no spinning", {"session.intra_op.allow_spinning": "0"})
    yield Trial("x64quantprecision 0 (saturates)", {"session.x64quantprecision": "0"})
    yield Trial("denormals are zero", {"session.set_denormal_as_zero": "1"})
    yield Trial("no memory arena", attributes={"enable_cpu_mem_arena": False})
    yield Trial("no memory pattern", attributes={"enable_mem_pattern": False})
    yield Trial("no reuse of memory", attributes={"enable_mem_reuse": False})
    yield Trial("extended optimizations only", attributes={"graph_optimization_level": 2})
    yield Trial("attention without the flash kernel", environment={"ORT_GQA_DISABLE_FLASH_ATTENTION": "1"})
    yield Trial("Gelu instead of its tanh form", change=_erf_gelu)
    yield Trial("no activation at all (a bound)", change=_no_gelu)
    for slack in (0, 4, 64, 255):
        yield Trial(f"slack {slack}{' (C = W)' if slack == 0 else ''}", slack=slack)
    for size in (2, 4, 8, 16):
        yield Trial(f"{size} tokens a call", size=size)


class TrialSteps:
    """Steps of one trial's graph without sampling; a call of several tokens takes turns with nothing."""

    def __init__(
        self,
        trial: Trial,
        file: Path,
        entry: GraphEntry,
        model: ModelShape,
        setup: SessionEntry | None,
        ids: NDArray[np.int64],
    ) -> None:
        os.environ.update(setup.environment_on(platform.machine()) if setup else {})
        os.environ.update(trial.environment)
        from dsmr_export.runtime.pages import large_pages
        from dsmr_export.runtime.session import OPTIONS, load_onnxruntime

        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in {**OPTIONS, **(setup.options if setup else {}), **trial.options}.items():
            options.add_session_config_entry(key, value)
        for name, value in trial.attributes.items():
            kind = type(getattr(options, name))
            setattr(options, name, kind(value))
        with large_pages():
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._runner = FusedRunner(session, entry, model)
        self._ids, self._size, self._position = ids, trial.size, 0
        for start in range(0, len(ids), 128):
            self._feed(ids[start : start + 128])

    kernel_ns = None

    def step(self) -> None:
        if self._size == 1:
            self._runner.step(int(self._ids[self._position % len(self._ids)]), self._position)
            self._position += 1
        else:
            self._feed(np.resize(np.roll(self._ids, -self._position), self._size))

    def _feed(self, ids: NDArray[np.int64]) -> None:
        self._runner.run(ids, self._position)
        self._position += len(ids)


def _with_slack(entry: GraphEntry, slack: int) -> GraphEntry:
    def fitted(tensor: StateTensor) -> StateTensor:
        batch, heads, _, width = tensor.shape
        return replace(tensor, shape=(batch, heads, tensor.horizon + 1 + slack, width))

    state = tuple(fitted(tensor) for tensor in entry.state)
    horizons = [tensor.horizon for tensor in state]
    return replace(entry, state=state, stream=StreamRule.of(horizons, slack, entry.stream.max_segment))


def _declare(model: onnx.ModelProto, entry: GraphEntry) -> None:
    """The state's shapes in the graph's interface."""
    shapes = {name: t.shape for t in entry.state for name in (t.input, t.output)}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in shapes:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, shapes[value.name], strict=True):
                dim.dim_value = size
        elif value.name in ("rope_cos", "rope_sin"):
            value.type.tensor_type.shape.dim[0].dim_param = "rows"


def _gelus(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    found = [node for node in model.graph.node if "Gelu" in node.op_type]
    if not found:
        raise click.ClickException(f"no Gelu in {sorted({node.op_type for node in model.graph.node})}")
    return found


def _erf_gelu(model: onnx.ModelProto) -> None:
    for node in _gelus(model):
        node.op_type, node.domain = "Gelu", "com.microsoft"
        del node.attribute[:]


def _no_gelu(model: onnx.ModelProto) -> None:
    for node in _gelus(model):
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]


def _start(stack: ExitStack, trial: Trial, bundle: Bundle, graph: str, folder: Path) -> Remote:
    entry, file, manifest = bundle.graph(graph), bundle.path / bundle.graph(graph).file, bundle.manifest
    ids = graphs.filling(bundle)
    if trial.slack is not None:
        entry = _with_slack(entry, trial.slack)
    if trial.change or trial.slack is not None:
        model = onnx.load(file)
        _declare(model, entry)
        if trial.change:
            trial.change(model)
        if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
            model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        file = folder / f"{abs(hash(trial.name))}.onnx"
        onnx.save(model, file)
    remote = Remote(Contestant, TrialSteps, trial, file, entry, manifest.model, manifest.session, ids)
    stack.callback(remote.close)
    return remote.wait()


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--graph", help="Which graph.  [default: what this machine runs]")
@click.option("--rounds", default=20, show_default=True)
@click.option("--size", default=20, show_default=True, help="Steps of a turn.")
@click.option("--only", default="", help="Trials whose name has this text.")
def main(folder: Path, graph: str | None, rounds: int, size: int, only: str) -> None:
    bundle = Bundle.open(folder)
    graph = graph or bundle.default_graph
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running, per_call = {}, {}
        for index, trial in enumerate(trials()):
            if index and only not in trial.name:
                continue
            try:
                running[trial.name] = _start(stack, trial, bundle, graph, scratch)
                per_call[trial.name] = trial.size
            except LostError as error:
                click.echo(f"{trial.name:40} does not run: {error}")
        times = turns.take_turns(running, rounds, size)
    base = next(iter(times.values())).step_ms
    click.echo(f"{bundle.manifest.name}, {graph}: {np.median(base):.3f} ms a token; ratio, least and largest")
    for name, found in times.items():
        ratio = turns.ratio(found.step_ms / per_call[name], base)
        click.echo(f"{name:40} {ratio['ratio']:.3f} ({ratio['ratio_min']:.3f}–{ratio['ratio_max']:.3f})")


if __name__ == "__main__":
    main()
