"""Copy the tokenizer's files into an export; ``transformers`` then makes the ids of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from atom.errors import UserError
from atom.io import files, json_data

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

_MOST = 256 << 20
"""Largest accepted tokenizer.json, in bytes; the largest vocabularies need a tenth."""


_COMPARED = (
    "The quick brown fox jumps over the lazy dog, 1,234 times; isn't it 5.6% of 7?",
    "def f(x):\n    return x ** 2  # a comment\n\n\tif x: y[0] = {'a': 1}",
    "  two spaces,   three, a tab\tand lines\r\n\n of MIXED Case_names and-hyphens ",
    "Grüße, œuvre, Ἀθῆναι, Москва, שלום, مرحبا, नमस्ते, 東京, 한국어",
    "e\u0301, ﬁ, ½, 👩\u200d👩\u200d👧, 𝔸",
)
"""Texts that different tokenizers split differently."""


def differing(tokenizer_json: Path, tokenizer: Any) -> str | None:
    """Return a text that ``tokenizer_json`` and ``tokenizer`` encode differently, or None."""
    try:
        exported = Tokenizer.from_file(str(tokenizer_json))
    except Exception as error:  # the library raises no narrower type
        raise UserError(
            f"{tokenizer_json} cannot be read by Hugging Face's library: {error}"
        ) from None
    for text in _COMPARED:
        for part in [*text.split(), text]:
            ids = exported.encode(part, add_special_tokens=False).ids
            if ids != list(tokenizer.encode(part, add_bos=False, add_eos=False)):
                return part
    return None


def check(source: Path, tokenizer: Any) -> None:
    """Refuse a ``tokenizer.json`` that differs from the tokenizer that the run was trained with.

    Args:
        source: the run's tokenizer folder, which may be missing.
        tokenizer: the run's tokenizer.

    Raises:
        UserError: the ids differ.
    """
    path = source / TOKENIZER_JSON
    if files.is_regular(path) and (text := differing(path, tokenizer)) is not None:
        raise UserError(
            f"{path} encodes {text!r} to other ids than the run's tokenizer, so the exported "
            "model would not fit it",
            valid="one that produces the same ids, or none",
        )


def copy(source: Path, target: Path, *, bos_id: int | None) -> bool:
    """Copy the prepared tokenizer's files; return whether there is a ``tokenizer.json``.

    In training every document begins with BOS, even if the files do not configure it. In that case
    the copy is changed to add BOS, so that a prompt begins with it, too.

    Args:
        source: the run's tokenizer folder, which may be missing.
        target: the folder of the export.
        bos_id: id of the token that documents begin with, or None.
    """
    if not files.is_regular(source / TOKENIZER_JSON):
        return False
    for path in source.iterdir():
        files.copy(path, target / path.name, below=source.parent)
    if not files.is_regular(target / TOKENIZER_CONFIG):
        fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
        files.write_json(target / TOKENIZER_CONFIG, fast)
    if bos_id is not None:
        _begin_with(target / TOKENIZER_JSON, bos_id)
    return True


def _begin_with(path: Path, bos_id: int) -> None:
    content = json_data.read(path, most=_MOST)
    token = next(
        (added["content"] for added in content.get("added_tokens", ()) if added["id"] == bos_id),
        None,
    )
    before = content.get("post_processor")
    if token is None or (before is not None and before.get("type") != "ByteLevel"):
        return
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    template = {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, second],
        "special_tokens": {token: {"id": token, "ids": [bos_id], "tokens": [token]}},
    }
    if before is not None:
        template = {"type": "Sequence", "processors": [before, template]}
    content["post_processor"] = template
    files.write_text(path, json.dumps(content, ensure_ascii=False, indent=2))
