"""View tensors as rows for kernels."""

from __future__ import annotations

import torch


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as rows with contiguous elements; a view if possible."""
    width = tensor.shape[-1]
    rows = tensor.reshape(tensor.numel() // width if width else 0, width)
    return rows if rows.stride(-1) == 1 or width == 1 else rows.contiguous()
