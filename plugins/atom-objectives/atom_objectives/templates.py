"""Find the chat template of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io.chat_files import SETTINGS, TEMPLATE, default_of
from atom.io.files import read_text
from atom.plugin import TemplateContext
from atom_objectives.config import Sft

FOLDER = Path(__file__).parent / "chat_templates"

MOST = 1 << 20
"""Bytes of a template."""

_KEY = "objective.template"


def of_run(config: Sft, context: TemplateContext) -> str | None:
    """Return the template that the parameters name; None: the tokenizer's own, which it has.

    Raises:
        UserError: there is no such template, or the tokenizer has none.
    """
    if config.template is None:
        if _of_files(context.files) is None:
            raise UserError(
                "the tokenizer has no chat template",
                valid=f"{', '.join(named())}, or the path of a Jinja file",
                key=_KEY,
            )
        return None
    return _named(config.template)


def context_of(folder: Path) -> TemplateContext:
    """Return the context of the files in a folder."""
    names = (TEMPLATE, SETTINGS)
    return TemplateContext(
        files={name: folder / name for name in names if (folder / name).is_file()}
    )


def of_files(folder: Path) -> str:
    """Return the template in the folder of a run's tokenizer.

    Raises:
        UserError: there is none.
    """
    found = _of_files(context_of(folder).files)
    if found is None:
        raise UserError(f"{folder} has no chat template", key=_KEY)
    return found


def named() -> list[str]:
    """Return the names of the templates of this package."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def special(folder: Path, tokenizer: Any) -> dict[str, str]:
    """Return the texts of special tokens by the names that templates use."""
    settings = _settings(folder / SETTINGS)
    found = {}
    for role in ("bos", "eos", "pad", "unk"):
        name = f"{role}_token"
        value = settings.get(name, getattr(tokenizer, name, None))
        if isinstance(value, dict):
            value = value.get("content")
        found[name] = value if isinstance(value, str) else ""
    return found


def _of_files(files: Mapping[str, Path]) -> str | None:
    if (path := files.get(TEMPLATE)) is not None:
        return read_text(path, most=MOST)
    path = files.get(SETTINGS)
    value = _settings(path).get("chat_template") if path is not None else None
    return default_of(value)


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = json.loads(read_text(path))
    return found if isinstance(found, dict) else {}


def _named(name: str) -> str:
    if name in named():
        return read_text(FOLDER / f"{name}.jinja", most=MOST)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            "there is no such template",
            valid=f"{', '.join(named())}, or the path of a Jinja file",
            key=_KEY,
            value=name,
        )
    try:
        return read_text(path, most=MOST)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", key=_KEY, value=name) from None
