"""`dsmr report`: a bundle as one HTML file that opens from disk, with pictures, tables and music to play.

blocks      what a page is made of
model       sections from the bundle alone
measured    sections from a result of `dsmr bench`
music       a prompt, its continuations, their rolls
pictures    the plots; vector puts them inline, in the page's colours
page        the template, with its style and its scripts
output      where the page goes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsmr_export import __version__
from dsmr_export.bench.architecture import parameters
from dsmr_export.report import measured, model, page
from dsmr_export.report import music as listening
from dsmr_export.report.blocks import Missing, Section
from dsmr_export.runtime.bundle import Bundle
from dsmr_export.schedule import compact
from dsmr_export.tables import size


@dataclass(frozen=True)
class Content:
    """What is shown beside the bundle itself.

    parity: graph -> figures as `dsmr check --json` has them. source: in words, what they were measured on.
    bench: a result of `dsmr bench`, or None. music: None = none. name: of the bundle in commands. date and
    command: of this page.
    """

    parity: Mapping[str, Any]
    source: str
    bench: Mapping[str, Any] | None
    music: listening.Music | None
    name: str
    date: str
    command: str


@dataclass(frozen=True)
class Report:
    """html: the page. left_out: what is not in it, and the command that would bring it."""

    html: str
    left_out: list[Missing]


def build(bundle: Bundle, content: Content) -> Report:
    """The page of a bundle."""
    manifest = bundle.manifest
    written = [("this page", f"{content.date}, dsmr-export {__version__}"), ("written by", content.command)]
    sections: list[Section] = [
        model.overview(manifest, content.parity, content.bench),
        listening.section(content.music),
        model.schedule(bundle),
        model.parity(content.parity, content.source, content.name),
        model.quantization(manifest),
        *measured.sections(content.bench, content.name),
        model.provenance(manifest, written),
    ]
    music = {"step_ms": 10, "clips": []} if content.music is None else content.music.to_json()
    html = page.render(manifest.name, _summary(bundle), sections, music, __version__)
    return Report(html, [b for section in sections for b in section.blocks if isinstance(b, Missing)])


def _summary(bundle: Bundle) -> str:
    """One sentence under the name."""
    manifest = bundle.manifest
    graph = manifest.graphs[manifest.default_graph]
    return (
        f"A music transformer of {parameters(manifest.model) / 1e6:.1f} M parameters whose layers "
        f"remember {compact(manifest.schedule.horizons)} tokens, as {manifest.default_graph}: "
        f"{size(graph.bytes)} on disk, {size(graph.state_bytes)} of recurrent state."
    )
