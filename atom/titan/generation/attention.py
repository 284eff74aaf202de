"""Attend to stored keys and values.

Shape suffixes: B = texts, L = new tokens of each, T = tokens so far, C = tokens that there is
memory for, N = query heads, K = key heads, G = query heads of a key head, H = width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask
from torchtitan.models.common.attention import (
    VarlenMetadata,
    get_causal_mask_mod,
    get_sliding_window_mask_mod,
)

from atom.titan.generation.mask_rows import MaskMod, Place


class UncachedError(Exception):
    """A module computes something that a cache does not support."""


class KeysAndValues:
    """The keys and values of an attention module of torchtitan.

    Args:
        module: the module.
        place: where the new tokens stand.
    """

    def __init__(self, module: Any, place: Place) -> None:
        self._of_whole_texts: Callable[..., torch.Tensor] = module.forward
        self._window = getattr(module, "window_size", None)
        self._place = place
        self._steps = 0
        self._keys_BKCH: torch.Tensor | None = None
        self._values_BKCH: torch.Tensor | None = None

    def forward(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        *,
        attention_masks: Any = None,
        scale: float | None = None,
        enable_gqa: bool = False,
        out_transform: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """Store the new keys and values; return attention to all, shaped like ``q_BLNH``.

        The first tokens of texts are computed by the module itself, if it has a mask for them.
        """
        for name, value in others.items():
            if value is not None and value is not True:
                raise UncachedError(f"{name} of an attention has no cache")
        if self._steps == self._place.steps:
            raise UncachedError("an attention that is called twice has no cache")
        self._steps = self._place.steps
        self._store(k_BLNH.transpose(1, 2), v_BLNH.transpose(1, 2))
        first = max(self._place.starts) == 0
        if isinstance(attention_masks, BlockMask):
            first = first and attention_masks.seq_lengths[1] == self._place.length
        if first:
            options = {"out_transform": out_transform} if out_transform is not None else {}
            return self._of_whole_texts(
                q_BLNH,
                k_BLNH,
                v_BLNH,
                attention_masks=attention_masks,
                scale=scale,
                enable_gqa=enable_gqa,
                **options,
                **others,
            )
        seen = self._place.seen(*self._mask(attention_masks), q_BLNH.device)
        return self._attend(q_BLNH, seen, scale, out_transform)

    def keep(self, rows_B: torch.Tensor) -> None:
        """Keep some texts, in the given order."""
        if self._keys_BKCH is not None and self._values_BKCH is not None:
            self._keys_BKCH = self._keys_BKCH[rows_B]
            self._values_BKCH = self._values_BKCH[rows_B]

    def join(self, parts: Sequence[KeysAndValues]) -> None:
        """Hold the texts of several of these."""
        self._keys_BKCH = _stacked([part._keys_BKCH for part in parts])
        self._values_BKCH = _stacked([part._values_BKCH for part in parts])

    def _store(self, k_BKLH: torch.Tensor, v_BKLH: torch.Tensor) -> None:
        place = self._place
        self._keys_BKCH = _with_room(self._keys_BKCH, k_BKLH, place.capacity)
        self._values_BKCH = _with_room(self._values_BKCH, v_BKLH, place.capacity)
        if place.aligned:
            new = slice(place.end - place.length, place.end)
            self._keys_BKCH[:, :, new] = k_BKLH
            self._values_BKCH[:, :, new] = v_BKLH
            return
        for text, start in enumerate(place.starts):
            new = slice(start, start + place.length)
            self._keys_BKCH[text, :, new] = k_BKLH[text]
            self._values_BKCH[text, :, new] = v_BKLH[text]

    def _mask(self, masks: Any) -> tuple[Hashable, MaskMod]:
        """Return the mask of this module, and what identifies it."""
        if isinstance(masks, BlockMask):
            return id(masks), masks.mask_mod
        if masks is not None and not isinstance(masks, VarlenMetadata):
            raise UncachedError(f"masks of {type(masks).__name__} have no cache")
        left, right = self._window or (-1, 0)
        if right != 0:
            raise UncachedError("attention to later tokens has no cache")
        return left, get_causal_mask_mod() if left < 0 else get_sliding_window_mask_mod(left + 1)

    def _attend(
        self,
        q_BLNH: torch.Tensor,
        seen: torch.Tensor | None,
        scale: float | None,
        out_transform: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
    ) -> torch.Tensor:
        assert self._keys_BKCH is not None
        assert self._values_BKCH is not None
        k_BKTH = self._keys_BKCH[:, :, : self._place.end]
        v_BKTH = self._values_BKCH[:, :, : self._place.end]
        _, length, heads, width = q_BLNH.shape
        groups = heads // k_BKTH.shape[1]
        # The query heads of a key head are further queries of it: no key is repeated.
        q_BKQH = _of_key_heads(q_BLNH, groups)
        if seen is not None and length > 1:
            seen = seen.repeat(1, 1, groups, 1)
        if out_transform is None:
            out_BKQH = F.scaled_dot_product_attention(
                q_BKQH, k_BKTH, v_BKTH, attn_mask=seen, scale=scale
            )
            return _heads_last(out_BKQH, groups)
        scores_BKQT = q_BKQH @ k_BKTH.mT * (width**-0.5 if scale is None else scale)
        if seen is not None:
            scores_BKQT = scores_BKQT.masked_fill(~seen, -torch.inf)
        out_BKQH = scores_BKQT.softmax(dim=-1) @ v_BKTH
        sums_BKQ1 = scores_BKQT.logsumexp(dim=-1, keepdim=True)
        return out_transform(
            _heads_last(out_BKQH, groups), _heads_last(sums_BKQ1, groups).squeeze(-1)
        )


def _of_key_heads(x_BLNH: torch.Tensor, groups: int) -> torch.Tensor:
    """Return ``x_BLNH`` as (B, K, G L, H)."""
    if x_BLNH.shape[1] == 1:
        return x_BLNH.reshape(x_BLNH.shape[0], -1, groups, x_BLNH.shape[3])
    return x_BLNH.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _heads_last(x_BKQH: torch.Tensor, groups: int) -> torch.Tensor:
    """Return ``x_BKQH`` as (B, L, N, H)."""
    if x_BKQH.shape[2] == groups:
        return x_BKQH.reshape(x_BKQH.shape[0], 1, -1, x_BKQH.shape[3])
    return x_BKQH.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _with_room(
    before_BKCH: torch.Tensor | None, new_BKLH: torch.Tensor, capacity: int
) -> torch.Tensor:
    """Return the stored tensor with memory for ``capacity`` tokens."""
    if before_BKCH is not None and before_BKCH.shape[2] >= capacity:
        return before_BKCH
    batch, heads, _, width = new_BKLH.shape
    room_BKCH = new_BKLH.new_zeros(batch, heads, capacity, width)
    if before_BKCH is not None:
        room_BKCH[:, :, : before_BKCH.shape[2]] = before_BKCH
    return room_BKCH


def _stacked(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Return the tensors of several texts as one."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    capacity = max(part.shape[2] for part in found)
    return torch.cat([_with_room(part, part, capacity) for part in found])
