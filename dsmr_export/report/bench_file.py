"""A result of `dsmr bench --json`, read from a file and checked to be one of this bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsmr_export.errors import DsmrError
from dsmr_export.report.blocks import amount, known
from dsmr_export.runtime.bundle import Bundle


class BenchResultError(DsmrError):
    """A file that is not a result of `dsmr bench`, or is one of another bundle."""


def read(path: Path, bundle: Bundle) -> dict[str, Any]:
    """The result in a file: the JSON alone, or all that `dsmr bench` printed, whose last line it is.

    Raises BenchResultError for a file that cannot be read, holds something else, or is of another bundle.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise BenchResultError(
            f"--bench {path}: cannot be read ({reason}); give a file with the output of dsmr bench --json"
        ) from error
    found = _parsed(text)
    if found is None:
        raise BenchResultError(
            f"--bench {path}: is not JSON; give a file with the output of dsmr bench --json"
        )
    if not _is_result(found):
        raise BenchResultError(
            f"--bench {path}: is not a result of dsmr bench (no graphs with a step_ms); "
            "give a file with the output of dsmr bench --json"
        )
    if other := _other_bundle(found, bundle):
        raise BenchResultError(
            f"--bench {path}: is of another bundle ({other}); measure this one: "
            f"dsmr bench {bundle.path} --json > {path.name}"
        )
    return dict(found)


def _parsed(text: str) -> Any:
    for candidate in (text, text.rstrip().rpartition("\n")[2]):
        try:
            return json.loads(candidate)
        except (json.JSONDecodeError, RecursionError):
            continue
    return None


def _is_result(found: Any) -> bool:
    graphs = known(found, "graphs")
    return (
        isinstance(graphs, dict)
        and bool(graphs)
        and all(amount(graph, "step_ms", "p50") is not None for graph in graphs.values())
    )


def _other_bundle(found: dict[str, Any], bundle: Bundle) -> str:
    """What says that it is of another bundle; "" where nothing does.

    The manifest's hash decides. A result without one is held against the graphs' names and the schedule.
    """
    identity = known(found, "bundle", "identity")
    if identity is not None:
        same = identity == bundle.identity
        return "" if same else f"{known(found, 'bundle', 'name') or 'its manifest has another SHA-256'}"
    manifest = bundle.manifest
    unknown = sorted(set(found["graphs"]) - set(manifest.graphs))
    if unknown:
        return f"it has a graph {unknown[0]}, this one has {', '.join(manifest.graphs)}"
    horizons = known(found, "architecture", "horizons")
    if horizons is not None and horizons != list(manifest.schedule.horizons):
        return "its horizons are others"
    return ""
