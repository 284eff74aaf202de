"""Name the files with a chat template, as ``transformers`` does, and choose one of several."""

from __future__ import annotations

from typing import Any

TEMPLATE = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"
"""It may have the template, too, as ``chat_template``."""


def default_of(value: Any) -> str | None:
    """Return the template of settings, or None; of several named ones, the default."""
    if isinstance(value, list):
        named = {each.get("name"): each for each in value if isinstance(each, dict)}
        value = named.get("default", {}).get("template")
    return value if isinstance(value, str) else None
