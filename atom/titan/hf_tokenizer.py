"""The tokenizer's files in an export, so that ``transformers`` makes ids as training did."""

from __future__ import annotations

import json
from pathlib import Path

from atom import files, json_data

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

_MOST = 256 << 20
"""Bytes of a tokenizer.json; those of the largest vocabularies have a tenth."""


def copy(source: Path, target: Path, *, bos_id: int | None) -> bool:
    """Copy the prepared tokenizer's files; return whether there is a ``tokenizer.json``.

    In training every document begins with BOS, whatever the files say. So that a prompt does too,
    the copy of a tokenizer that adds nothing by itself adds it.

    Args:
        source: the run's folder of the tokenizer, which may be missing.
        target: the folder of the export.
        bos_id: of the token that documents begin with, if there is one.
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
