"""Tensors as the rows that kernels go through."""

from __future__ import annotations

import torch


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as rows whose elements are neighbours in memory; a view where it can be."""
    width = tensor.shape[-1]
    rows = tensor.reshape(tensor.numel() // width if width else 0, width)
    return rows if rows.stride(-1) == 1 or width == 1 else rows.contiguous()
