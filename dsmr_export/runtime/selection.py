"""Which of a bundle's graphs a machine runs: what its CPU has, then what its golden vectors say.

The manifest's `preference` is gone through: graphs that this CPU runs well come first, the others after them.
The first whose golden vectors pass is taken; one that fails is tried again with safer session options before
the next. A machine's answer is remembered in the user's cache folder, by bundle, onnxruntime and CPU, so that
the golden vectors run at the first load only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dsmr_export import __version__
from dsmr_export.errors import BundleError, GraphError, OutputError
from dsmr_export.manifest import Manifest
from dsmr_export.runtime import cpu
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.runtime.files import write_atomically
from dsmr_export.runtime.golden import check_golden
from dsmr_export.runtime.session import load_onnxruntime


@dataclass(frozen=True)
class Attempt:
    """One graph on its golden vectors; `safe`: with safer session options."""

    graph: str
    safe: bool
    passed: bool
    detail: str


@dataclass(frozen=True)
class Selection:
    """What was chosen, and why in one sentence; `tried` ends with it. remembered: from an earlier load."""

    graph: str
    safe: bool
    reason: str
    tried: tuple[Attempt, ...]
    remembered: bool = False


def ordered(manifest: Manifest, features: Collection[str]) -> list[tuple[str, bool]]:
    """(graph, whether a CPU with these features runs it well) in the order to try them."""
    first = manifest.default_graph
    names = manifest.preference or (first, *(name for name in manifest.graphs if name != first))
    well = {name: suits(manifest.graphs[name].requires, features) for name in names}
    return sorted(well.items(), key=lambda item: not item[1])  # stable: each group keeps its order


def suits(requires: Collection[str], features: Collection[str]) -> bool:
    """Whether a CPU with these features runs a graph that requires any of those well."""
    return not requires or bool(set(requires) & set(features))


def select(bundle: Bundle, say: Callable[[str], None] = lambda text: None, fresh: bool = False) -> Selection:
    """The graph for this machine.

    say: gets a line for each graph that failed. fresh: run the golden vectors even if the answer is
    remembered. Raises BundleError where no graph passes, with what each of them did."""
    machine = cpu.read()
    memory, key = _memory(), _key(bundle, machine)
    if not fresh and (known := _recall(memory, key, bundle.manifest)):
        return known
    tried: list[Attempt] = []
    # Its sessions, those that fail among them, go when the answer is known: memory is short where this
    # matters.
    trial = Bundle(bundle.path, bundle.manifest, bundle.identity, [])
    for graph, well in ordered(bundle.manifest, machine.features):
        for attempt in _attempts(trial, graph):
            tried.append(attempt)
            if attempt.passed:
                found = Selection(
                    graph, attempt.safe, _reason(bundle.manifest, tried, well, machine), tuple(tried)
                )
                _remember(memory, key, found)
                return found
            say(f"graph {graph}{_how(attempt.safe)}: {attempt.detail}")
    failures = "; ".join(f"{attempt.graph}{_how(attempt.safe)}: {attempt.detail}" for attempt in tried)
    raise BundleError(
        f"no graph of {bundle.path} passes its golden vectors on this machine ({failures}): "
        "run dsmr doctor, try another onnxruntime, or export the bundle again"
    )


def _attempts(bundle: Bundle, graph: str) -> Iterator[Attempt]:
    for safe in (False, True):
        try:
            result = check_golden(bundle, graph, safe=safe)
        except GraphError as error:  # it does not load: other options would not change that
            yield Attempt(graph, safe, False, str(error))
            return
        except BundleError:  # the golden vectors themselves: no graph can pass them
            raise
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = " ".join(str(error).split())[:200]
            yield Attempt(graph, safe, False, f"golden vectors cannot be run ({reason})")
            continue
        figures = f"KL {result.kl_mean:.1e}, top-1 {result.top1:.4f}, logits {result.max_abs_logit:.1e} apart"
        verdict = "pass" if result.passed else "do not pass"
        yield Attempt(graph, safe, result.passed, f"golden vectors {verdict} ({figures})")


def _how(safe: bool) -> str:
    return " with safer session options" if safe else ""


def _reason(manifest: Manifest, tried: Sequence[Attempt], well: bool, machine: cpu.Cpu) -> str:
    """Why the last one tried is taken; which others failed is said every time, not only at the first load."""
    *failed, taken = tried
    requires = manifest.graphs[taken.graph].requires
    if not requires:
        suited = "runs on any CPU"
    elif well:
        suited = f"this CPU has {', '.join(sorted(set(requires) & machine.features))}"
    else:
        suited = f"slow here: this CPU has none of {', '.join(requires)}, but no better graph passes"
    others = list(dict.fromkeys(a.graph for a in failed if a.graph != taken.graph))
    instead = f"; failed here: {', '.join(others)}" if others else ""
    return f"{suited}; {taken.detail}{_how(taken.safe)}{instead}"


def _memory() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("dsmr-export") / "self-test.json"


def _key(bundle: Bundle, machine: cpu.Cpu) -> str:
    """What the answer depends on: another one of these, and the golden vectors run again."""
    facts = (
        bundle.identity,
        load_onnxruntime().__version__,
        __version__,
        machine.architecture,
        machine.model,
        sorted(machine.features),
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _recall(memory: Path, key: str, manifest: Manifest) -> Selection | None:
    """A remembered answer; None where there is none, or the file is damaged: then it is found out again."""
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))[key]
        tried = tuple(Attempt(**attempt) for attempt in known["tried"])
        found = Selection(known["graph"], known["safe"], known["reason"], tried, remembered=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.graph in manifest.graphs else None


def _remember(memory: Path, key: str, found: Selection) -> None:
    """Keeps an answer; where the cache folder cannot be written, the golden vectors run at every load."""
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    entry = {name: value for name, value in asdict(found).items() if name != "remembered"}
    with suppress(OSError, OutputError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        kept = known if isinstance(known, dict) else {}
        write_atomically(memory, json.dumps({**kept, key: entry}, indent=1).encode())
