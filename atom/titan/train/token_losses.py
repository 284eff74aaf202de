"""Compute the cross-entropy of each token, of logits under any layout."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor, Shard
from torchtitan.components.loss import IGNORE_INDEX, _LossParallelCrossEntropy
from torchtitan.distributed.spmd_types import current_spmd_mesh, spmd_mesh_size
from torchtitan.distributed.utils import get_spmd_backend


def token_losses(
    logits: torch.Tensor, labels: torch.Tensor, *, global_vocab_size: int
) -> torch.Tensor:
    """Return the cross-entropy of each label in float32, 0 for ignored ones: [B, L].

    Args:
        logits: [B, L, V]; under TP the rank's share of the vocabulary.
        labels: ids: [B, L].
        global_vocab_size: V of all ranks together.
    """
    group = None
    if isinstance(logits, DTensor):
        if any(isinstance(p, Shard) and p.dim == logits.ndim - 1 for p in logits.placements):
            group = logits.device_mesh.get_group("tp")
        global_vocab_size = logits.shape[-1]
        logits = logits.to_local()
    elif get_spmd_backend() == "spmd_types" and spmd_mesh_size("tp") > 1:
        group = current_spmd_mesh().get_group("tp")
    flat, targets = logits.flatten(0, 1).float(), labels.flatten()
    if group is None:
        losses = torch.nn.functional.cross_entropy(
            flat, targets, reduction="none", ignore_index=IGNORE_INDEX
        )
    else:
        losses = _LossParallelCrossEntropy.apply(flat, targets, group, global_vocab_size, "none")
    return losses.view(labels.shape)
