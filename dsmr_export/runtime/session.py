"""The one place that opens onnxruntime sessions: options, version check, interface check.

Options (design, section 8): explicit threads, no spinning (the default spins a core at 50 steps a second),
s8 weights in the precision that AVX2 without VNNI needs, telemetry off before the import; what a bundle's
manifest asks for comes on top of them.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dsmr_export.errors import GraphError
from dsmr_export.manifest import GraphEntry, SessionEntry
from dsmr_export.runtime.cpu import require_64_bit
from dsmr_export.runtime.pages import large_pages

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPTIONS = {
    # How long an idle thread spins before it sleeps: the gap between two nodes, not two tokens.
    "session.intra_op.spin_duration_us": "50",
    "session.x64quantprecision": "1",
}
"""Session configuration of every graph, whatever its target: a bundle for ARM is made and checked on x86,
where int8 sums would saturate without the second. A manifest's own entries win.
"""

SAFE_OPTIONS = {"mlas.disable_kleidiai": "1"}
"""What a session gets on top where the golden vectors failed with all optimizations: no KleidiAI kernels on
ARM, and only onnxruntime's basic graph optimizations, so that every operator runs unfused."""


def load_onnxruntime() -> ModuleType:
    """onnxruntime, imported without telemetry unless the user asked for it.

    Raises GraphError where it cannot be imported, DsmrError on a 32-bit system, which it has no wheels for.
    """
    require_64_bit()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise GraphError(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from None
    module: ModuleType = onnxruntime
    return module


def version_tuple(version: str) -> tuple[int, ...]:
    """`1.31.0.dev2026` -> (1, 31, 0): the leading numbers, which is what releases are ordered by."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")[:3]) if match else ()


def open_session(
    path: str | os.PathLike[str],
    threads: int = 1,
    min_onnxruntime: str | None = None,
    name: str = "",
    setup: SessionEntry | None = None,
    safe: bool = False,
    profile: str | None = None,
) -> InferenceSession:
    """A CPU session for the graph at `path` with `threads` intra-op threads.

    setup: the manifest's options and environment. The environment is the process's: a variable that the user
    has set stays. safe: SAFE_OPTIONS. profile: onnxruntime writes the time of every node to a file whose path
    begins so, at end_profiling; each node then takes longer. Raises GraphError when the graph needs a newer
    onnxruntime (naming both versions) or cannot be loaded.
    """
    if threads < 1:
        raise GraphError(f"threads is {threads}: give 1 or more")
    onnxruntime = load_onnxruntime()  # telemetry is off before a bundle can ask for anything
    for variable, value in setup.environment_on(platform.machine()).items() if setup else ():
        os.environ.setdefault(variable, value)
    label = name or Path(path).name
    if min_onnxruntime and version_tuple(onnxruntime.__version__) < version_tuple(min_onnxruntime):
        raise GraphError(
            f"graph {label} needs onnxruntime {min_onnxruntime} and this is {onnxruntime.__version__}: "
            f"pip install 'onnxruntime>={min_onnxruntime}', or use the portable graph if the bundle has one"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = (
        3  # errors only: onnxruntime probes for GPUs and warns about it on many boards
    )
    wanted = setup.options if setup else {}
    for key, value in {**OPTIONS, **wanted, **(SAFE_OPTIONS if safe else {})}.items():
        options.add_session_config_entry(key, value)
    if safe:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    try:
        with large_pages():
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        reason = " ".join(str(error).split())[:200]
        raise GraphError(
            f"graph {label} ({path}) cannot be loaded by onnxruntime {onnxruntime.__version__}: {reason}"
        ) from None


_FIXED_INPUTS = {
    "fused": ("input_ids", "position_ids", "seqlens_k", "total_sequence_length", "rope_cos", "rope_sin"),
    "portable": ("input_ids", "past_length", "rope_cos", "rope_sin"),
}


def check_interface(session: InferenceSession, entry: GraphEntry, name: str) -> None:
    """Compares a session with the manifest. Raises GraphError listing every difference."""
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    problems = _differences(
        "input", {*_FIXED_INPUTS[entry.ops], *(t.input for t in entry.state)}, set(inputs)
    )
    problems += _differences("output", {"logits", *(t.output for t in entry.state)}, set(outputs))
    for tensor in entry.state:
        kind = {"float32": "tensor(float)", "int8": "tensor(int8)"}[tensor.dtype]
        for node in (inputs.get(tensor.input), outputs.get(tensor.output)):
            if node is None:
                continue
            if node.type != kind:
                problems.append(f"{node.name} is {node.type}, the manifest says {tensor.dtype}")
            if any(isinstance(d, int) and d != e for d, e in zip(node.shape, tensor.shape, strict=False)):
                problems.append(f"{node.name} has shape {node.shape}, the manifest says {list(tensor.shape)}")
    if problems:
        raise GraphError(
            f"graph {name} is not what its manifest says ({'; '.join(problems)}): export the bundle again"
        )


def _differences(what: str, expected: set[str], found: set[str]) -> list[str]:
    missing = [f"{what} {name} is missing" for name in sorted(expected - found)]
    return missing + [f"{what} {name} is not in the manifest" for name in sorted(found - expected)]
