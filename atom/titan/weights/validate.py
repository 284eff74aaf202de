"""Validate a trained model on sets of text, on one rank or several.

Shape suffixes: B = sequences of one pass, L = tokens per sequence, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from atom.data.lanes import IGNORED
from atom.data.validation import Texts, ValidationSet
from atom.errors import UserError
from atom.plugin import Objective
from atom.recipe.scoring_layout import ScoringLayout
from atom.run_dir.validated import SetResult
from atom.titan.train.validation import ValidationConfig, read
from atom.titan.trainer_config import encoder_of
from atom.titan.weights.forward import logits
from atom.titan.weights.loaded import ALONE, load

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
    layout: ScoringLayout = ALONE,
) -> tuple[int | None, dict[str, SetResult]]:
    """Return the step of the weights, and the result of each set, on all ranks.

    Args:
        folder: the folder of the run or the export.
        sets: the sets by name.
        step: the checkpoint's step, for a run; None for the newest.
        tokens: tokens of a set to read.
        kind: the device that torchtitan is set up for, ``cpu`` or ``cuda``.
        average: the callback whose averaged weights to validate; None: the weights.
        layout: the layout of the ranks that share the model.

    Raises:
        UserError: there are no readable weights, or a set has nothing to predict.
    """
    loaded = load(folder, step=step, kind=kind, average=average, layout=layout)
    rank, ranks = loaded.ranks.share if loaded.ranks is not None else (0, 1)
    run = loaded.trained.run
    assert run.resolved is not None  # a run that has not started has no weights
    trained = loaded.trained
    objective = trained.selection.optional(Objective)
    declared = objective.declaration if objective is not None else None
    if objective is not None and declared is not None and declared.loss and not declared.teacher:
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
        found = read(texts, config, tokenizer, length, rank=rank, ranks=ranks)
        nats = _nats(loaded.model, found, ranks, kind)
        if loaded.ranks is not None:
            nats = loaded.ranks.sum(nats, kind)
        results[name] = SetResult(
            loss=nats / found.tokens,
            tokens=found.tokens,
            bytes=found.bytes,
            data=found.digest,
        )
    return loaded.step, results


@torch.no_grad()
def _nats(model: Any, found: ValidationSet, ranks: int, kind: str) -> float:
    """Return the sum of the losses of this rank's tokens."""
    total = 0.0
    size = max(1, TOKENS // found.inputs.shape[1])
    # Each rank takes part in each pass: without a sequence of its own, with padding.
    for begin in range(0, -(-found.sequences // ranks), size):
        here = max(1, min(size, len(found.inputs) - begin))
        inputs_BL, labels_BL, positions_BL = (
            torch.from_numpy(array).to(kind) for array in found.rows(begin, here)
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
