"""Elements of HTML and SVG. What comes from files is text in them, whatever it holds."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, indent, tostring

Child = Element | str | None

_UNFIT = re.compile(
    # Control characters, halves of pairs and non-characters, which no page may hold; and those that
    # turn the direction of the text around them.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u2028-\u2029\u202a-\u202e\u2066-\u2069]"
)


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """Return an element; None among the children and attributes is left out.

    In names of attributes ``_`` stands for ``-``, and a last one is dropped: ``class_``.
    """
    found = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            found.set(name.rstrip("_").replace("_", "-"), text(str(value)))
    for child in children:
        if isinstance(child, str):
            if len(found):
                found[-1].tail = (found[-1].tail or "") + text(child)
            else:
                found.text = (found.text or "") + text(child)
        elif child is not None:
            found.append(child)
    return found


def text(raw: str) -> str:
    """Return ``raw`` with a question mark for each character that a page must not hold."""
    return _UNFIT.sub("?", raw)


def html(page: Element) -> str:
    """Return a whole page."""
    return f"<!doctype html>\n{tostring(page, encoding='unicode', method='html')}\n"


def svg_file(picture: Element) -> str:
    """Return a picture as the content of a file of its own."""
    picture.set("xmlns", "http://www.w3.org/2000/svg")
    indent(picture)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(picture, encoding="unicode")}\n'
