"""Figures as SVG inside a page: in its colours, light or dark, and with ids of their own."""

import io
import re
from collections.abc import Callable
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

INK = "#010203"
"""Drawn with in place of black, and replaced by the colour of the page's text."""

DARK = "#14171a"
"""The page's dark background."""

LEAST_CONTRAST = 3.5
"""Of a line or a bar against it."""

_STYLE = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "image.interpolation": "none",  # Cells stay sharp at any size.
    "svg.fonttype": "none",
    "svg.hashsalt": "ape_jax",
}


class InlineSVG(NamedTuple):
    """A figure, ready to stand in a page."""

    markup: str
    """One ``<svg>`` element without a size of its own."""
    colours: frozenset[str]
    """Those that the page has to define as ``variable`` says, for light and for dark."""


def draw(make: Callable[[], Figure], name: str, recolour: bool = True) -> InlineSVG:
    """Draw a figure for a page.

    Args:
      make: draws it, in colours that it takes from matplotlib's settings where it names none.
      name: begins every id, so that figures of one page do not collide; plain letters.
      recolour: whether black follows the page's text, and dark colours are left to the page to
        define. Not where colours stand on an image.
    """
    file = io.StringIO()
    with plt.rc_context(_STYLE):
        figure = make()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing, bbox_inches="tight", pad_inches=0.04)
        plt.close(figure)
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    colours: set[str] = set()
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            element.set(key, _attribute(key, value, name, recolour, colours))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    for group in root.iter("g"):
        _tidy(group)
    return InlineSVG(ElementTree.tostring(root, encoding="unicode"), frozenset(colours))


def _tidy(group: ElementTree.Element) -> None:
    """Leave out arrows without length, and say once what all parts of a group say alike."""
    for path in list(group):
        points = re.findall(r"[-\d.]+ [-\d.]+", path.get("d", ""))
        if len(points) > 1 and len(set(points)) == 1:
            group.remove(path)
    for key in ("style", "clip-path"):
        values = {part.get(key, "") for part in group}
        alike = values.pop() if len(values) == 1 else ""
        # Opacity of a group is that of what its parts make together.
        if len(group) > 1 and alike and key not in group.attrib and "; opacity" not in f"; {alike}":
            group.set(key, alike)
            for part in group:
                del part.attrib[key]


def variable(colour: str) -> str:
    """The name of the page's variable for a colour such as ``#1f5fa8``."""
    return f"--ink-{colour.removeprefix('#')}"


def on_dark(colour: str) -> str:
    """The colour, mixed with as much white as it takes to be seen on the dark background."""
    channels, white = np.array(_channels(colour)), 0.0
    while contrast(colour, DARK) < LEAST_CONTRAST:
        white += 0.02
        mixed = np.rint(255 * (channels + white * (1 - channels))).astype(int)
        colour = "#{:02x}{:02x}{:02x}".format(*mixed)
    return colour


def contrast(one: str, other: str) -> float:
    """Of two colours, from 1 to 21, as the guidelines of WCAG 2 define it."""
    low, high = sorted(_luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    linear = [
        x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in _channels(colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _local(name: str) -> str:
    """Without its namespace: in HTML an ``<svg>`` needs none."""
    return name.rpartition("}")[2]


def _attribute(key: str, value: str, name: str, recolour: bool, colours: set[str]) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    if key in ("d", "x", "y"):  # Hundredths of a point are enough.
        value = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value)
        return " ".join(value.split())
    if key == "style":

        def replaced(match):
            colour = match[0]
            if colour == INK or (recolour and colour == "#000000"):
                return "currentColor"
            if recolour and contrast(colour, DARK) < LEAST_CONTRAST:
                colours.add(colour)
                return f"var({variable(colour)})"
            return colour

        value = re.sub(r"#[0-9a-f]{6}\b", replaced, value)
    return re.sub(r"url\(#", f"url(#{name}-", value)
