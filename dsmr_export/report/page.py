"""Sections as one HTML file: everything inline, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsmr_export.report.blocks import Section
from dsmr_export.web.build import sources

HERE = Path(__file__).parent
PIANO, HOUSE = "src/piano.js", "src/house.css"
"""The synthesizer and the house's colours, which the page of `dsmr web` has, too."""


def render(
    title: str, summary: str, sections: Sequence[Section], music: dict[str, Any], generator: str
) -> str:
    """The page. All text is escaped; scripts are allowed by their hash alone, so that nothing else can run.

    generator: what made it, for the head.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = sources()
    script = "\n".join(('"use strict";', _text(shared / PIANO), _text(HERE / "page.js")))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        title=title,
        summary=summary,
        sections=sections,
        music=music,
        generator=generator,
        css="\n".join((_text(shared / HOUSE), _text(HERE / "page.css"))),
        script=script,
        digest=digest,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
