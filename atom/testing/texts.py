"""Provide texts of every kind that a tokenizer meets, and the settings of the kit's
property tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from atom.testing import corpus

examples = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,  # reproducible: a package that passes today passes tomorrow
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""Settings of functions with hypothesis examples."""

SPELLINGS = (
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|im_start|>",
    "<|im_end|>",
    "[CLS]",
    "[SEP]",
    "[BOS]",
    "[EOS]",
    "[PAD]",
    "[MASK]",
)
"""Spellings of special tokens in common tokenizers. In a document they are ordinary text."""

_ODD = (
    "",
    " ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\0",
    "\x1b[0m",
    "\x7f\x80\x9f",  # control characters
    "e\u0301",
    "\u0301",  # a combining mark without anything to combine with
    "a" + "\u0300\u0316\u0489" * 8,
    "\u00e9",  # must not become e + U+0301, nor vice versa
    "ﬁ½Å\u2126",  # compatibility characters
    "\u1100\u1161\u11a8각",  # the same syllable decomposed and composed
    "👩\u200d👩\u200d👧\ufe0f",
    "🇩🇪🇫🇷",
    "\u202eright to left\u202c",
    "\u200b\u200c\u200d\u2060\u00ad",  # invisible characters
    "\u00a0\u2003\u3000\u2028\u2029\u0085",  # spaces and line ends of all kinds
    "\ufeff",
    "\ufffd\ufffe\uffff",
    "\ue000\U000f0000",  # private use
    "\U0001fffe\U0010ffff",
    "İıßẞΣς",  # changed by lower() and upper()
    "▁Ġ##",  # word markers of tokenizers
)


def any_text(spellings: Iterable[str] = ()) -> st.SearchStrategy[str]:
    """Return a strategy for text of all planes that favours unusual characters.

    ``spellings`` are mixed in. Surrogates are excluded, because they are not valid text.
    """
    # Not st.characters(): its Unicode tables take seconds to build, and are left in the package.
    plane = st.integers(0, 16).flatmap(lambda n: st.integers(n << 16, (n << 16) + 0xFFFF))
    character = plane.filter(lambda point: not 0xD800 <= point < 0xE000).map(chr)
    odd = st.sampled_from((*_ODD, *spellings))
    words = st.sampled_from(
        [
            "the",
            "a",
            "of",
            "and",
            "def",
            "return",
            "self",
            "import",
            "1",
            "42",
            "3.14",
            "größer",
            "日本",
        ]
    )
    return st.lists(odd | character | words, max_size=16).map("".join)


def every_character() -> Iterator[str]:
    """Yield texts that together contain each character of the Basic Multilingual Plane, and every
    16th character of the other planes."""
    points = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 16)]
    for begin in range(0, len(points), 512):
        yield "".join(map(chr, points[begin : begin + 512]))


def megabytes() -> dict[str, str]:
    """Return description -> text of one megabyte of UTF-8."""
    prose = "".join(document.text for document in corpus.documents())
    size = 1 << 20
    return {
        "documents": (prose * (size // len(prose) + 1))[:size],
        "one word": "ab" * (size // 2),
        "four bytes a character": "🙂" * (size // 4),
    }


def samples(spellings: Iterable[str] = ()) -> list[str]:
    """Return a few hundred texts to compare two tokenizers on, including unusual ones."""
    prose = [document.text[:500] for document in corpus.documents()]
    return [*_ODD, *spellings, *list(every_character())[::8], *prose[:150]]
