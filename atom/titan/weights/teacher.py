"""Load a teacher: the model of a run, of an export, or of a folder in Hugging Face's format."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from atom.run_dir.folder import RUN_FILE
from atom.titan.train.teaching import Forward
from atom.titan.weights import transformers_model
from atom.titan.weights.forward import logits
from atom.titan.weights.loaded import load as load_run


def provide(config: Any) -> None:
    """Let a ``Trainer.Config`` load its teacher."""
    config.teaching = replace(config.teaching, load=load)


def load(folder: Path, kind: str, dtype: str) -> Forward:
    """Load a teacher, whole; return its forward pass.

    Args:
        folder: its folder.
        kind: the device, ``cpu`` or ``cuda``.
        dtype: precision of its weights.

    Raises:
        UserError: it cannot be loaded.
    """
    if not (folder / RUN_FILE).is_file():
        return transformers_model.load(folder, kind=kind, dtype=getattr(torch, dtype)).forward
    return partial(logits, load_run(folder, step=None, kind=kind, dtype=dtype).model)
