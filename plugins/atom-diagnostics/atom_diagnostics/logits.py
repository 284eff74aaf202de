"""Compute the largest attention logit in blocks of queries, without the matrix of all logits.

B batch, L queries, S keys, N heads, M heads of keys, G = N / M heads per head of keys, H width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_mask

Hidden = Callable[[int, int], torch.Tensor | None]
"""(first query, number of queries) -> which keys they do not see, as (B or 1, N or 1, queries, S);
None if they see all."""

_ELEMENTS = {"cpu": 2**18}
"""Logits of a block, of all sequences and heads together: what a cache of the CPU holds."""

_MOST = 2**24
"""The same on other devices: 64 MiB."""

_KEPT = 2**26
"""Elements of a strip of a mask: 64 MiB."""

_MOST_MASKS = 4
"""Masks that are kept: models have one or two."""


def largest(
    q_BLNH: torch.Tensor, k_BSMH: torch.Tensor, hidden: Hidden, scale: float | None
) -> torch.Tensor:
    """Return the largest logit of a visible key; NaN if one is NaN, and -inf without keys.

    Args:
        q_BLNH: queries.
        k_BSMH: keys.
        hidden: the mask.
        scale: factor of q·k; by default 1/sqrt(H).
    """
    batch, queries, heads, width = q_BLNH.shape
    keys, kv_heads = k_BSMH.shape[1:3]
    scale = width**-0.5 if scale is None else scale
    q_BMGLH = q_BLNH.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
    k_BMHS = k_BSMH.permute(0, 2, 3, 1).float().contiguous()
    found = torch.tensor(-math.inf, device=q_BLNH.device)
    most = _ELEMENTS.get(q_BLNH.device.type, _MOST)
    block = max(most // max(batch * heads * keys, 1), 16)
    for first in range(0, queries, block):
        rows = min(block, queries - first)
        q_BMRH = (q_BMGLH[:, :, :, first : first + rows].float() * scale).flatten(2, 3)
        logits = (q_BMRH @ k_BMHS).unflatten(2, (-1, rows))
        if (mask := hidden(first, rows)) is not None:
            split = (kv_heads, -1) if mask.shape[1] > 1 else (1, 1)
            logits.masked_fill_(mask.unflatten(1, split), -math.inf)
        found = torch.maximum(found, logits.amax())
    return found


class Masks:
    """The masks of the calls of attention modules; those of FlexAttention are made once for all
    layers."""

    def __init__(self) -> None:
        self._strips: dict[int, _Strips] = {}

    def hidden(
        self, node: Any, keywords: Mapping[str, Any], q_BLNH: torch.Tensor, k_BSMH: torch.Tensor
    ) -> Hidden:
        """Return the mask of a call of an attention module.

        Args:
            node: the module.
            keywords: what it was called with.
            q_BLNH: its queries.
            k_BSMH: the keys of all ranks.
        """
        masks, keys = keywords.get("attention_masks"), k_BSMH.shape[1]
        batch, queries = q_BLNH.shape[:2]
        if isinstance(masks, BlockMask):
            if id(masks) not in self._strips:
                while len(self._strips) >= _MOST_MASKS:  # those of earlier micro-batches
                    del self._strips[next(iter(self._strips))]
                self._strips[id(masks)] = _Strips(masks, queries, keys, q_BLNH.device)
            return self._strips[id(masks)].hidden
        if masks is not None:  # the ends of the documents in all sequences
            numbers = torch.arange(batch * queries, device=q_BLNH.device)
            documents = torch.searchsorted(masks.cu_seq_q, numbers, right=True)
            return _of_documents(documents.view(batch, queries), tuple(node.window_size))
        if keywords.get("is_causal", True):
            documents_BL = torch.zeros(1, keys, device=q_BLNH.device)
            return _of_documents(documents_BL, (-1, 0))
        return lambda _first, _rows: None


class _Strips:
    """A block mask, of which a strip of queries is made at a time; the last strip is kept."""

    def __init__(self, masks: BlockMask, queries: int, keys: int, device: torch.device) -> None:
        self._masks, self._device = masks, device
        self._queries, self._keys = queries, keys
        self._first, self._strip = 0, torch.empty(1, 1, 0, keys)

    def hidden(self, first: int, rows: int) -> torch.Tensor:
        if not self._first <= first <= first + rows <= self._first + self._strip.shape[2]:
            self._first, self._strip = first, self._made(first, rows)
        begin = first - self._first
        return self._strip[:, :, begin : begin + rows]

    def _made(self, first: int, rows: int) -> torch.Tensor:
        batch, heads = self._masks.shape[:2]
        rows = min(max(_KEPT // (batch * heads * self._keys), rows), self._queries - first)

        def shifted(b: Any, h: Any, query: Any, key: Any) -> Any:
            return self._masks.mask_mod(b, h, query + first, key)

        seen = create_mask(shifted, batch, heads, rows, self._keys, device=str(self._device))
        return ~seen


def _of_documents(documents_BL: torch.Tensor, window: tuple[int, int]) -> Hidden:
    numbers = torch.arange(documents_BL.shape[1], device=documents_BL.device)
    before, after = window

    def hidden(first: int, rows: int) -> torch.Tensor:
        these = slice(first, first + rows)
        distance_LS = numbers[these, None] - numbers
        seen = documents_BL[:, these, None] == documents_BL[:, None]
        if before >= 0:
            seen &= distance_LS <= before
        if after >= 0:
            seen &= distance_LS >= -after
        return ~seen[:, None]

    return hidden
