"""Validate a trained model on sets of text, in one process.

Shape suffixes: B = sequences of one pass, L = tokens per sequence, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from atom.data.lanes import IGNORED
from atom.data.validation import Texts, ValidationSet
from atom.errors import UserError
from atom.plugin import Objective
from atom.run_dir.validated import SetResult
from atom.titan.train.validation import ValidationConfig, read
from atom.titan.trainer_config import encoder_of
from atom.titan.weights.forward import logits
from atom.titan.weights.loaded import load

TOKENS = 4096
"""Tokens of one pass, at least one sequence."""


def validate(
    folder: Path,
    sets: Mapping[str, Texts],
    *,
    step: int | None,
    tokens: int,
    kind: str,
    average: str | None = None,
) -> tuple[int | None, dict[str, SetResult]]:
    """Return the step of the weights, and the result of each set.

    Args:
        folder: the folder of the run or the export.
        sets: the sets by name.
        step: the checkpoint's step, for a run; None for the newest.
        tokens: tokens of a set to read.
        kind: the device that torchtitan is set up for, ``cpu`` or ``cuda``.
        average: the callback whose averaged weights to validate; None: the weights.

    Raises:
        UserError: there are no readable weights, or a set has nothing to predict.
    """
    loaded = load(folder, step=step, kind=kind, average=average)
    run = loaded.trained.run
    assert run.resolved is not None  # a run that has not started has no weights
    trained = loaded.trained
    objective = trained.selection.optional(Objective)
    if objective is not None and objective.declaration.loss is not None:
        raise UserError(
            f"the loss of objective={objective.component.name} is computed while it trains",
            valid="validation.sets of the run, whose results are in metrics.jsonl",
        )
    config = ValidationConfig(
        tokens=tokens,
        vocab_size=run.resolved.vocab_size,
        encoder=encoder_of(trained.selection, run, trained.tokenizer_files),
    )
    tokenizer, length = trained.tokenizer(), run.training.seq_len
    results = {}
    for name, texts in sets.items():
        found = read(texts, config, tokenizer, length)
        results[name] = SetResult(
            loss=_nats(loaded.model, found, kind) / found.tokens,
            tokens=found.tokens,
            bytes=found.bytes,
            data=found.digest,
        )
    return loaded.step, results


@torch.no_grad()
def _nats(model: Any, found: ValidationSet, kind: str) -> float:
    """Return the sum of the losses of all tokens."""
    total = 0.0
    size = max(1, TOKENS // found.inputs.shape[1])
    for begin in range(0, found.sequences, size):
        inputs_BL, labels_BL, positions_BL = (
            torch.from_numpy(array[begin : begin + size].astype(np.int64)).to(kind)
            for array in (found.inputs, found.labels, found.positions)
        )
        logits_BLV = logits(model, inputs_BL, positions_BL)
        loss = F.cross_entropy(
            logits_BLV.flatten(0, 1).float(),
            labels_BL.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        total += loss.item()
    return total
