"""What every tokenizer of the ``tokenizers`` library needs done to text."""

import re

_SURROGATES = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """Return ``text`` with each lone surrogate as U+FFFD.

    A Python string can hold half of a UTF-16 pair (``json.loads`` makes one of ``"\\ud800"``);
    UTF-8 cannot, and the library raises on it.
    """
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
