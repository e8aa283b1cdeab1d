"""A matplotlib figure as SVG inside the page, in the page's colours and font.

Colours of the project's pictures become CSS variables, so that one drawing serves the light and the dark
theme. Every id gets the picture's own prefix: clip paths of two pictures in one document would otherwise be
taken for each other.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from dsmr_export.figures import GRID, INK, OTHER, SCHEDULES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = {
    INK: "ink",
    GRID: "line",
    "#000000": "ink",
    "#ffffff": "paper",
    "#0072b2": "blue",
    "#56b4e9": "sky",
    "#d55e00": "orange",
    "#009e73": "green",
    "#e69f00": "amber",
    "#cc79a7": "pink",
    "#882255": "wine",
    "#999933": "olive",
    "#332288": "indigo",
    OTHER[0]: "grey",
}
"""Colour in a picture -> the page's variable."""
TINT = 0.45
"""Share of its colour that a pale bar of ``figures.draw_schedule`` has."""
STYLE: Any = {
    "svg.fonttype": "none",  # the page's own font; paths would be three times the size, and no text
    "svg.hashsalt": "dsmr",
    "savefig.transparent": True,
}
PX_PER_PT = 96 / 72
_XLINK = "{http://www.w3.org/1999/xlink}"


def inline(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element. name: of this picture in its page, letters and dashes. label: what it
    shows, for who cannot see it."""
    from matplotlib import rc_context

    out = io.BytesIO()
    with rc_context(STYLE):
        # tight: a label that is longer than the figure widens it instead of being cut off.
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", pad_inches=0.04
        )
    return _rewritten(out.getvalue(), name, label)


def themed(style: str) -> str:
    """A style attribute with the page's colours, and with its font in the same size."""
    style = re.sub(
        r"#[0-9a-f]{6}\b", lambda found: VARIABLES.get(found[0].lower(), found[0]), style, flags=re.I
    )
    return re.sub(r"font: (?:[\w-]+ )*?([\d.]+px)[^;]*", r"font-size: \1", style)


def _rewritten(svg: bytes, name: str, label: str) -> str:
    root = ElementTree.fromstring(svg)
    referenced = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg.decode()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = dict(_attributes(element, name, referenced))
    for parent in root.iter():
        # metadata says where matplotlib is at home; style would apply to the whole page.
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    width, height = (float(root.attrib[key].removesuffix("pt")) for key in ("width", "height"))
    root.attrib = {
        "viewBox": f"0 0 {width:g} {height:g}",
        "role": "img",
        "aria-label": label,
        "class": "plot",
        "style": f"--natural: {width * PX_PER_PT:.0f}px",
    }
    for element in root.iter():
        element.text = (element.text or "").strip() or None
        element.tail = None
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _attributes(element: Any, name: str, referenced: set[str]) -> Iterator[tuple[str, str]]:
    for key, value in element.attrib.items():
        if key == "id":
            if value in referenced:
                yield key, f"{name}-{value}"
        elif key == f"{_XLINK}href" or key == "href":
            yield "href", value.replace("#", f"#{name}-", 1)
        elif key == "style":
            yield key, themed(value)
        else:
            yield key, value.replace("url(#", f"url(#{name}-")


def _variables() -> dict[str, str]:
    found = {colour: f"var(--{name})" for colour, name in NAMED.items()}
    for colour, _ in (*SCHEDULES.values(), OTHER):
        channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        pale = "#" + "".join(f"{round(TINT * each + (1 - TINT) * 255):02x}" for each in channels)
        mixed = f"color-mix(in srgb, var(--{NAMED[colour]}) {TINT:.0%}, var(--paper))"
        found.setdefault(pale, mixed)
    return found


VARIABLES = _variables()
