"""Load the tokenizer of a teacher, to compare its vocabulary with a run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.run_dir.folder import RUN_FILE
from atom.titan.checkpoint.hugging_face_folder import CONFIG
from atom.titan.saved_model import trained

_KEY = "objective.teacher"


def tokenizer_of(folder: Path) -> tuple[Any, int]:
    """Return the tokenizer of a teacher, and the number of its ids.

    Raises:
        UserError: there is no teacher.
    """
    if (folder / RUN_FILE).is_file():
        run = trained(folder)
        assert run.run.resolved is not None
        return run.tokenizer(), run.run.resolved.vocab_size
    if not (folder / CONFIG).is_file():
        raise UserError(
            "holds no model",
            valid="the folder of a run, of an export, or of a model in Hugging Face's format",
            key=_KEY,
            value=folder,
        )
    try:
        from transformers import AutoTokenizer

        found: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"its tokenizer cannot be loaded by transformers: {reason}", key=_KEY, value=folder
        ) from None
    return found, len(found)
