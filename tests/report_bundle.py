"""A tiny bundle that says all a report can show, and reports of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dsmr_export import report
from dsmr_export.manifest import MANIFEST, Manifest
from dsmr_export.report import music
from dsmr_export.runtime import Bundle
from dsmr_export.runtime.bundle import write_sums
from dsmr_export.runtime.performance import Note
from tests import tiny_bundle as tiny

HORIZONS = (3, 20, 1)
NASTY = "<script>alert(1)</script>$x_{$ \"'&<b>"
"""As a bundle of somebody else might be called: markup, and what matplotlib would read as mathematics."""
PROMPT = [Note(30 * n, 30 * n + 25, 60 + n % 12, 40 + n) for n in range(60)]


def make(folder: Path) -> Bundle:
    """With parity of both graphs, and one of them as if it were quantized."""
    made = tiny.make_bundle(folder, HORIZONS)
    portable = dataclasses.replace(made.manifest.graphs["portable"], quantization=quantization())
    return changed(
        made,
        graphs={**made.manifest.graphs, "portable": portable},
        parity={"fp32": parity(1e-9), "portable": parity(2e-4)},
        provenance={"checkpoint_sha256": "c0ffee", "data": "random", "licence": "none", "command": "make"},
    )


def changed(bundle: Bundle, **values: Any) -> Bundle:
    """The same with other entries of its manifest."""
    manifest: Manifest = dataclasses.replace(bundle.manifest, **values)
    manifest.write(bundle.path / MANIFEST)
    write_sums(bundle.path)
    return Bundle.open(bundle.path)


def parity(change: float) -> dict[str, Any]:
    figures = {
        "perplexity": 16.5 * (1 + change),
        "reference_perplexity": 16.5,
        "relative_change": change,
        "kl_mean": abs(change) / 3,
        "kl_max": abs(change),
        "top1_agreement": 0.9912,
        "max_abs_logit": 0.25,
    }
    rows = [
        {"from": start, "to": end, "tokens": 4096, **figures}
        for start, end in ((0, 1024), (1024, 4096), (4096, None))
    ]
    return {**figures, "by_position": rows}


def quantization() -> dict[str, Any]:
    """Twelve matrices of three layers and the head; the first is the worst, 40 dB: an error of 1 %."""
    names = [f"layers.{n}.{part}.weight" for n in range(3) for part in ("qkv", "out", "up", "down")]
    tensors = {
        name: {"type": "int8", "sqnr_db": 40.0 + place, "bytes": 100 + place}
        for place, name in enumerate([*names, "head.weight"])
    }
    return {"weights": "int8", "granularity": "per_channel", "tensors": tensors}


def page(bundle: Bundle, bench: dict[str, Any] | None, seconds: float = 3.0) -> report.Report:
    """Its report, with its manifest's parity and two continuations."""
    found = music.continuations(bundle, PROMPT, "Prompt", seconds, 0, lambda what, done, total: None)
    content = report.Content(
        parity=bundle.manifest.parity,
        source="on made-up pieces",
        bench=bench,
        music=found,
        name="tiny",
        date="2026-01-02",
        command="dsmr report tiny",
    )
    return report.build(bundle, content)
