"""Provide a few hundred real documents that every machine has, and their digest, without torch."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from atom.plugin import Document

_MOST = 300
_CHARACTERS = 4000
"""Characters kept per document, so that preparing is fast."""

_SCRIPTS = (
    "The quick brown fox jumps over the lazy dog. ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. ",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ。",
    "天地玄黃 宇宙洪荒 日月盈昃 辰宿列張。",
    "نص حكيم له سر قاطع وذو شأن عظيم. ",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश। ",
    "e\u0301 a\u0308 n\u0303 🙂 👩‍🚀 🇪🇺 ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ",
)


def documents() -> Iterator[Document]:
    """Yield modules of the standard library, and one page in each of several scripts."""
    for number, text in enumerate(_texts()):
        yield Document(text=text, id=f"document {number}")


@cache
def digest() -> str:
    """Return a digest of the documents."""
    return hashlib.sha256("\0".join(_texts()).encode()).hexdigest()


@cache
def _texts() -> tuple[str, ...]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[: _MOST - len(_SCRIPTS)]
    texts = [file.read_text("utf-8", "replace")[:_CHARACTERS] for file in files]
    return (*(text * 20 for text in _SCRIPTS), *filter(None, texts))
