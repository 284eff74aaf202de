"""Call QuACK's kernels (CuTe DSL) as functions of tensors: no torchtitan here.

Suffixes: R rows (tokens), D width of the model, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from quack.cross_entropy import cross_entropy as quack_cross_entropy
from quack.linear_cross_entropy import chunked_linear_cross_entropy
from quack.rmsnorm import rmsnorm

IGNORE_INDEX = -100
_ALIGNED_ROWS = 8
"""TMA requires rows at multiples of 16 bytes, so QuACK requires multiples of this many tokens."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    y: torch.Tensor = rmsnorm(x, weight, eps=eps)
    return y


def cross_entropy(logits_RV: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = quack_cross_entropy(
        logits_RV.contiguous(), labels_R, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return found


def linear_cross_entropy(
    x_RD: torch.Tensor, weight_VD: torch.Tensor, labels_R: torch.Tensor
) -> torch.Tensor:
    if missing := -x_RD.shape[0] % _ALIGNED_ROWS:
        x_RD = F.pad(x_RD, (0, 0, 0, missing))
        labels_R = F.pad(labels_R, (0, missing), value=IGNORE_INDEX)
    found: torch.Tensor = chunked_linear_cross_entropy(
        x_RD.contiguous(), weight_VD, labels_R, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return found
