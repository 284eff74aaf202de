"""Call Apple's cut cross-entropy as a function of tensors: no torchtitan here.

Suffixes: R rows (tokens), D width of the model, V vocabulary.
"""

from __future__ import annotations

import torch
from cut_cross_entropy import linear_cross_entropy as cut

IGNORE_INDEX = -100


def linear_cross_entropy(
    x_RD: torch.Tensor, weight_VD: torch.Tensor, labels_R: torch.Tensor
) -> torch.Tensor:
    return cut(x_RD, weight_VD, labels_R, ignore_index=IGNORE_INDEX, reduction="sum")
