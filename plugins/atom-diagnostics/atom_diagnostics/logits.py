"""Compute the largest attention logit in blocks of queries, without the matrix of all logits.

B batch, L queries, S keys, N heads, M heads of keys, G = N / M heads per head of keys, H width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_mask

Visible = Callable[[int, int], torch.Tensor | None]
"""(first query, number of queries) -> which keys they see, as (B or 1, N or 1, queries, S)."""

_ELEMENTS = 2**24
"""Logits of a block, of all sequences and heads together: 64 MiB."""


def largest(
    q_BLNH: torch.Tensor, k_BSMH: torch.Tensor, visible: Visible, scale: float | None
) -> torch.Tensor:
    """Return the largest logit of a visible key; NaN if one is NaN, and -inf without keys.

    Args:
        q_BLNH: queries.
        k_BSMH: keys.
        visible: the mask.
        scale: factor of q·k; by default 1/sqrt(H).
    """
    batch, queries, heads, width = q_BLNH.shape
    keys, kv_heads = k_BSMH.shape[1:3]
    scale = width**-0.5 if scale is None else scale
    q_BMGLH = q_BLNH.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
    k_BM1HS = k_BSMH.permute(0, 2, 3, 1)[:, :, None].float()
    found = torch.tensor(-math.inf, device=q_BLNH.device)
    block = max(_ELEMENTS // max(batch * heads * keys, 1), 16)
    for first in range(0, queries, block):
        rows = min(block, queries - first)
        logits = q_BMGLH[:, :, :, first : first + rows].float() @ k_BM1HS * scale
        if (mask := visible(first, rows)) is not None:
            split = (kv_heads, -1) if mask.shape[1] > 1 else (1, 1)
            logits = logits.masked_fill_(~mask.unflatten(1, split), -math.inf)
        found = torch.maximum(found, logits.amax())
    return found


def visible_keys(
    node: Any, keywords: Mapping[str, Any], q_BLNH: torch.Tensor, k_BSMH: torch.Tensor
) -> Visible:
    """Return the mask of a call of an attention module.

    Args:
        node: the module.
        keywords: what it was called with.
        q_BLNH: its queries.
        k_BSMH: the keys of all ranks.
    """
    masks, keys = keywords.get("attention_masks"), k_BSMH.shape[1]
    if isinstance(masks, BlockMask):
        return _of_block_mask(masks, keys, q_BLNH.device)
    if masks is not None:  # the ends of the documents in all sequences
        batch, queries = q_BLNH.shape[:2]
        numbers = torch.arange(batch * queries, device=q_BLNH.device)
        documents_BL = torch.searchsorted(masks.cu_seq_q, numbers, right=True).view(batch, queries)
        return _of_documents(documents_BL, tuple(node.window_size))
    if keywords.get("is_causal", True):
        documents_BL = torch.zeros(1, keys, device=q_BLNH.device)
        return _of_documents(documents_BL, (-1, 0))
    return lambda _first, _rows: None


def _of_block_mask(masks: BlockMask, keys: int, device: torch.device) -> Visible:
    batch, heads = masks.shape[:2]

    def visible(first: int, rows: int) -> torch.Tensor:
        def shifted(b: Any, h: Any, query: Any, key: Any) -> Any:
            return masks.mask_mod(b, h, query + first, key)

        found: torch.Tensor = create_mask(shifted, batch, heads, rows, keys, device=str(device))
        return found

    return visible


def _of_documents(documents_BL: torch.Tensor, window: tuple[int, int]) -> Visible:
    numbers = torch.arange(documents_BL.shape[1], device=documents_BL.device)
    before, after = window

    def visible(first: int, rows: int) -> torch.Tensor:
        these = slice(first, first + rows)
        distance_LS = numbers[these, None] - numbers
        seen = documents_BL[:, these, None] == documents_BL[:, None]
        if before >= 0:
            seen &= distance_LS <= before
        if after >= 0:
            seen &= distance_LS >= -after
        return seen[:, None]

    return visible
