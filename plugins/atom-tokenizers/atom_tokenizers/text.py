"""Prepare text for the ``tokenizers`` library."""

import re

_SURROGATES = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    r"""Return ``text`` with each lone surrogate as U+FFFD.

    A Python string can contain half of a UTF-16 pair (``json.loads`` makes one of ``"\\ud800"``);
    UTF-8 cannot, and the library raises on it.
    """
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
