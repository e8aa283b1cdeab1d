"""The model card of a bundle: its README.md, written from the manifest alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsmr_export.manifest import Manifest
from dsmr_export.schedule import compact


def render(manifest: Manifest) -> str:
    """Markdown."""
    model, schedule = manifest.model, manifest.schedule
    origin = manifest.provenance
    return "\n".join(
        [
            f"# {manifest.name}",
            "",
            "A DSMR music transformer that reads segment by segment: each layer's recurrent keys and values",
            "go in and come out. `manifest.json` says everything a host needs; `SHA256SUMS` covers every",
            "file (`sha256sum -c SHA256SUMS`).",
            "",
            f"* {model.layers} layers, d_model {model.d_model}, {model.heads} heads over {model.kv_heads} kv "
            f"heads of {model.head_dim}",
            f"* schedule `{schedule.name}`: horizons {compact(schedule.horizons)} = "
            f"{schedule.budget_tokens:,} tokens",
            f"* {model.vocab_size} tokens, one step = {manifest.events.step_ms} ms",
            f"* trained on: {origin.get('data', 'unknown')}; licence of the data: "
            f"{origin.get('licence', 'unknown')}",
            f"* checkpoint SHA-256 `{origin.get('checkpoint_sha256', 'unknown')}`",
            f"* made by `{origin.get('command', 'unknown')}`",
            "",
            *_table(manifest),
            "",
            "Play it: `dsmr play BUNDLE --prompt in.mid --save out.mid --seconds 30`. "
            "Check it: `dsmr check BUNDLE`.",
            "",
        ]
    )


def _table(manifest: Manifest) -> list[str]:
    rows = [
        "| graph | file | bytes | state bytes | perplexity | PyTorch | change | KL mean | KL max | top-1 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in manifest.graphs.items():
        figures: Mapping[str, Any] = manifest.parity[name]
        rows.append(
            f"| {name} | {entry.file} | {entry.bytes:,} | {entry.state_bytes:,} "
            f"| {figures['perplexity']:.4f} | {figures['reference_perplexity']:.4f} "
            f"| {figures['relative_change']:+.1e} | {figures['kl_mean']:.1e} | {figures['kl_max']:.1e} "
            f"| {figures['top1_agreement']:.4f} |"
        )
    return rows
