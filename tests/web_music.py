"""What the tests of the host library's music share: two vocabularies, and how things are written down."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dsmr_export.errors import DsmrError
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.events import EventTable
from dsmr_export.runtime.performance import Note

_BUNDLE = Bundle.open()
TABLE: EventTable = _BUNDLE.event_table
_MANIFEST = json.loads((_BUNDLE.path / "manifest.json").read_text())
EVENTS: dict[str, Any] = _MANIFEST["events"]
RULES: dict[str, Any] = _MANIFEST["grammar"]

GAPPY: dict[str, Any] = {
    "step_ms": 7,
    "tokens": [
        *({"kind": "special", "value": name} for name in ("pad", "bos", "eos")),
        *({"kind": kind, "value": pitch} for kind in ("off", "on") for pitch in (40, 60, 61, 62, 70)),
        *({"kind": "velocity", "value": velocity} for velocity in (100, 20, 60)),
        *({"kind": "shift", "value": steps} for steps in (20, 1, 7, 3)),
    ],
}
"""A vocabulary with holes, in another order: pitches, velocities, and gaps that need several shifts."""

both_tables = pytest.mark.parametrize("events", [EVENTS, GAPPY], ids=["bundled", "gappy"])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def flat(notes: Sequence[Note]) -> list[list[int]]:
    return [list(note) for note in notes]


def plain(value: Any) -> Any:
    """As it comes back from the page: lists, no tuples."""
    return json.loads(json.dumps(value))


def refusal(work: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """What Python says where it refuses."""
    with pytest.raises(DsmrError) as error:
        work(*arguments, **options)
    return str(error.value)
