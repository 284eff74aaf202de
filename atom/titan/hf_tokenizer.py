"""The tokenizer's files in an export, so that ``transformers`` makes ids as training did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


def copy(source: Path, target: Path, *, bos_id: int | None) -> bool:
    """Copy the prepared tokenizer's files; return whether there is a ``tokenizer.json``.

    In training every document begins with BOS, whatever the files say. So that a prompt does too,
    the copy of a tokenizer that adds nothing by itself adds it.

    Args:
        source: the run's folder of the tokenizer, which may be missing.
        target: the folder of the export.
        bos_id: of the token that documents begin with, if there is one.
    """
    if not (source / TOKENIZER_JSON).is_file():
        return False
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
    if not (target / TOKENIZER_CONFIG).is_file():
        fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (target / TOKENIZER_CONFIG).write_text(json.dumps(fast, indent=2) + "\n")
    if bos_id is not None:
        _begin_with(target / TOKENIZER_JSON, bos_id)
    return True


def _begin_with(path: Path, bos_id: int) -> None:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
