"""Compute an objective's loss of tokens against the predictions of a teacher.

Each label carries the number of its row in a table of the step: the ids that the teacher thinks
likeliest, and their log-probabilities. So the table's rows follow the labels to shards of a
sequence, micro-batches, pipeline stages and chunks.

Shape suffixes: B = sequences, L = tokens, N = predicted tokens, V = vocabulary, K = ids of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import spmd_types as spmd
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss, ChunkedLossWrapper
from torchtitan.config import CompileConfig
from torchtitan.distributed.spmd_types import current_spmd_mesh, spmd_mesh_size
from torchtitan.distributed.utils import get_spmd_backend

from atom.data import numbering
from atom.plugin import Predictions, TokenLoss


class TeacherLoss(BaseLoss):
    """The loss of tokens with a number; cross-entropy of tokens without, as in validation.

    Call :meth:`expect` before the passes of a step.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        loss: TokenLoss

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        self.fn = config.loss
        self._maybe_compile(compile_config)
        self._ids_NK = self._logprobs_NK = torch.empty(0, 0)

    def expect(self, ids_NK: torch.Tensor, logprobs_NK: torch.Tensor) -> None:
        """Set the table of the step, on its device."""
        self._ids_NK, self._logprobs_NK = ids_NK, logprobs_NK

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the sum of the losses, divided by the tokens of the global batch if given."""
        with spmd.no_typecheck():
            labels_R, logits_RV = labels.flatten(), whole(pred).flatten(0, 1).float()
            numbers_R = numbering.numbers(labels_R)
            if len(self._ids_NK):
                taught_R = numbers_R >= 0
                rows_N = numbers_R[taught_R]
                loss = self.fn(
                    Predictions(
                        logits=logits_RV[taught_R],
                        labels=numbering.ids(labels_R[taught_R]),
                        teacher_ids=self._ids_NK[rows_N],
                        teacher_logprobs=self._logprobs_NK[rows_N],
                    )
                ).sum()
                # Ranks without a label take part in the backward pass, too.
                loss = loss + 0 * logits_RV[:1].sum()
            else:
                loss = torch.nn.functional.cross_entropy(
                    logits_RV, numbering.ids(labels_R), reduction="sum", ignore_index=IGNORE_INDEX
                )
            if global_valid_tokens is not None:
                loss = loss / global_valid_tokens
            return loss, {}


def whole(logits: torch.Tensor) -> torch.Tensor:
    """Return logits with the whole vocabulary, gathered from the ranks that share it."""
    if isinstance(logits, DTensor):
        last = logits.ndim - 1
        placements = [
            Replicate() if isinstance(each, Shard) and each.dim == last else each
            for each in logits.placements
        ]
        return logits.redistribute(placements=placements).to_local()
    if get_spmd_backend() == "spmd_types" and spmd_mesh_size("tp") > 1:
        mesh = current_spmd_mesh()
        assert mesh is not None
        # To I and not R: the loss is the same on these ranks, so the gradient is a slice of one.
        found: torch.Tensor = spmd.redistribute(
            logits, mesh.get_group("tp"), src=spmd.S(-1), dst=spmd.I
        )
        return found
    return logits


def of(loss: BaseLoss) -> TeacherLoss | None:
    """Return the loss against a teacher that a trainer's loss computes; None: it has none."""
    inner = loss.loss_fn if isinstance(loss, ChunkedLossWrapper) else loss
    return inner if isinstance(inner, TeacherLoss) else None
