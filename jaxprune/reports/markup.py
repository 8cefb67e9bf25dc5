"""HTML and SVG elements from the standard library's tree, which escapes whatever is put into them."""

import math
import re
from importlib import resources
from typing import Any
from xml.etree.ElementTree import Element, tostring

Child = Element | str | None


def element(tag: str, *children: Child, **attributes: Any) -> Element:
    """An element; ``class_`` is the attribute class, ``aria_label`` is aria-label, None leaves out."""
    made = Element(tag, {k.rstrip("_").replace("_", "-"): str(v) for k, v in attributes.items() if v is not None})
    for child in children:
        add(made, child)
    return made


def add(parent: Element, child: Child) -> None:
    """Appends an element or text; nothing for None."""
    if isinstance(child, Element):
        parent.append(child)
    elif child is not None and len(parent):
        parent[-1].tail = (parent[-1].tail or "") + child
    elif child is not None:
        parent.text = (parent.text or "") + child


def render(root: Element) -> str:
    """The element as HTML."""
    return tostring(root, encoding="unicode", method="html")


def visible(text: str) -> str:
    """The text with what cannot be printed (controls, lone surrogates, marks that turn the direction) as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def breakable(path: str) -> list[Child]:
    """A path that may be broken after its slashes, dots and underscores."""
    first, *others = re.split(r"(?<=[/._])", visible(path))
    return [first, *(child for part in others for child in (element("wbr"), part))]


def number(value: float) -> str:
    """A number in full, as both Python and JavaScript read it."""
    return repr(value) if math.isfinite(value) else "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"


def asset(name: str) -> str:
    """A file of this folder: a style sheet or a script."""
    return resources.files(__package__ or "").joinpath(name).read_text(encoding="utf-8")
