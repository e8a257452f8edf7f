"""A matplotlib figure as an SVG element of a page: text stays text, colours follow the page's light or dark scheme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from parspike.tables import COLOURS, UNDATED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["INK", "inline", "style"]

INK = "#1f2328"
"""Text and axes, drawn in this colour, take that of the page's text."""
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
VARIABLES = {INK: "var(--ink)"} | {colour.lower(): f"var(--c{place})" for place, colour in enumerate(COLOURS)}
"""Colours of figures by the names that the page's style sheet gives them, one value for each scheme."""
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
FAMILY = re.compile(r"font-family:[^;]*;?|font: (\S+) [^;]*")
REFERENCE = re.compile(r"url\(#([^)]+)\)")


@contextmanager
def style() -> Iterator[None]:
    """How figures of a page are drawn: in the page's ink, text as text, without a background."""
    from matplotlib import rc_context

    ink: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color",
         "axes.titlecolor"), INK,
    )  # fmt: skip
    plain: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "parspike", "font.size": 9.5, "legend.frameon": False,
        "legend.fontsize": "small", "path.simplify": False, "axes.linewidth": 0.8,
    }  # fmt: skip
    with rc_context({**ink, **plain}), warnings.catch_warnings():
        # The browser has letters for what matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def inline(draw: Callable[[], Axes], name: str, label: str) -> str:
    """The figure that `draw` makes, as one <svg> element. name: begins its ids, which a page must have once each.
    label: read aloud in its place."""
    stream = io.BytesIO()
    with style():
        figure: Any = draw().figure
        figure.savefig(stream, format="svg", transparent=True, metadata=UNDATED[".svg"])
    root = ElementTree.fromstring(stream.getvalue())
    for gone in ("metadata", "defs/style"):
        _remove(root, gone)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        element.attrib = {
            key.removeprefix(f"{{{XLINK}}}"): _of_page(key, value, name) for key, value in element.attrib.items()
        }
    for key in ("version", "width", "height"):
        root.attrib.pop(key, None)
    width = float(root.attrib["viewBox"].split()[2])
    root.attrib |= {"class": "figure", "role": "img", "aria-label": label, "style": f"max-width: {width * 1.55:.0f}px"}
    return ElementTree.tostring(root, encoding="unicode")


def _remove(root: ElementTree.Element, path: str) -> None:
    *parents, name = path.split("/")
    for parent in root.findall("/".join(f"{{{SVG}}}{part}" for part in parents)) if parents else [root]:
        for child in parent.findall(f"{{{SVG}}}{name}"):
            parent.remove(child)


def _of_page(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return f"#{name}-{value.removeprefix('#')}"
    if key == "style":
        value = FAMILY.sub(lambda found: f"font-size: {found[1]};" if found[1] else "", value)
        value = COLOUR.sub(lambda found: VARIABLES.get(found[0], found[0]), value)
    return REFERENCE.sub(lambda found: f"url(#{name}-{found[1]})", value)
