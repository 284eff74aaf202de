"""Build HTML and SVG elements; text from files is always escaped."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, indent, tostring

Child = Element | str | None

_UNFIT = re.compile(
    # Control characters, lone surrogates and non-characters, which are not allowed in a page, and
    # characters that change the direction of the surrounding text.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u2028-\u2029\u202a-\u202e\u2066-\u2069]"
)


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """Return an element; children and attributes that are None are left out.

    In attribute names ``_`` becomes ``-``, and a trailing ``_`` is dropped: ``class_``.
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
    """Return ``raw`` with each character that a page must not contain replaced by "?"."""
    return _UNFIT.sub("?", raw)


def html(page: Element) -> str:
    """Return a whole page."""
    return f"<!doctype html>\n{tostring(page, encoding='unicode', method='html')}\n"


def svg_file(picture: Element) -> str:
    """Return the content of a standalone SVG file."""
    picture.set("xmlns", "http://www.w3.org/2000/svg")
    indent(picture)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(picture, encoding="unicode")}\n'
