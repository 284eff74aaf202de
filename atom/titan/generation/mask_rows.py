"""Compute which earlier tokens the new tokens of texts see.

Shape suffixes: B = texts (1 if all are the same), L = new tokens of each, T = tokens so far,
R = rows of a table, C = tokens that there is memory for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_mask

MaskMod = Callable[..., torch.Tensor]

_ROWS = 256
"""Rows of a mask that are computed at once, at least."""


class Place:
    """Where the new tokens of one step stand; all layers share it.

    Attributes:
        starts: the number of earlier tokens of each text.
        steps: the number of steps so far.
        length: L.
        end: the largest T.
        capacity: C.
        shared: what layers have computed of the step for each other.
    """

    def __init__(self) -> None:
        self.starts: Sequence[int] = ()
        self.steps = self.length = self.end = self.capacity = 0
        self._tables: dict[Hashable, _Table] = {}
        self._seen: dict[Hashable, torch.Tensor | None] = {}
        self.shared: dict[Hashable, Any] = {}

    @property
    def aligned(self) -> bool:
        """Whether all texts have the same length."""
        return min(self.starts) == max(self.starts)

    def move(self, starts: Sequence[int], length: int, capacity: int) -> None:
        """Begin a step."""
        self.starts, self.length, self.capacity = starts, length, capacity
        self.end = max(starts) + length
        self.steps += 1
        self._seen, self.shared = {}, {}

    def forget(self) -> None:
        """Forget the masks, of which there are new ones."""
        self._tables = {}

    def seen(self, key: Hashable, mask_mod: MaskMod, device: torch.device) -> torch.Tensor | None:
        """Return which tokens each new token sees, bools of (B, 1, L, T); None if all.

        Args:
            key: identifies the mask among those of the model.
            mask_mod: the mask, as FlexAttention has it.
            device: the device of the result.
        """
        if key not in self._seen:
            table = self._tables.setdefault(key, _Table(mask_mod, device))
            self._seen[key] = table.rows(self)
        return self._seen[key]


class _Table:
    """Consecutive rows of a mask; all texts have the same mask."""

    def __init__(self, mask_mod: MaskMod, device: torch.device) -> None:
        self._mask_mod = mask_mod
        self._device = device
        self._first = self._last = 0
        self._seen_RC = torch.empty(0, 0)
        self._all_R: list[bool] = []

    def rows(self, place: Place) -> torch.Tensor | None:
        """Return what :meth:`Place.seen` returns."""
        low = min(place.starts)
        if not self._first <= low < place.end <= self._last:
            self._compute(low, max(place.end, min(low + _ROWS, place.capacity)), place.capacity)
        if place.aligned:
            row = low - self._first
            if place.length == 1 and self._all_R[row]:
                return None
            return self._seen_RC[None, None, row : row + place.length, : place.end]
        rows_BL = torch.tensor(place.starts, device=self._device)[:, None] - self._first
        rows_BL = rows_BL + torch.arange(place.length, device=self._device)
        return self._seen_RC[rows_BL, : place.end][:, None]

    def _compute(self, first: int, last: int, capacity: int) -> None:
        def shifted(b: Any, h: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return self._mask_mod(b, h, query + first, key)

        seen_11RC = create_mask(shifted, 1, 1, last - first, capacity, device=self._device)
        self._seen_RC, self._first, self._last = seen_11RC[0, 0], first, last
        queries_R1 = torch.arange(first, last, device=self._device)[:, None]
        later_RC = torch.arange(capacity, device=self._device)[None] > queries_R1
        self._all_R = (self._seen_RC | later_RC).all(dim=-1).tolist()
