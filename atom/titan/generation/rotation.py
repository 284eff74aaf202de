"""Compute the rotation of a step's positions once for all layers.

Shape suffixes: B = texts, L = new tokens of each, N = heads, H = width of a head.
"""

from __future__ import annotations

from typing import Any

import torch

from atom.titan.generation.mask_rows import Place


class Rotation:
    """A rotary embedding that shares its factors with those of the same configuration.

    Args:
        module: a rotary embedding of torchtitan, with the forward of its base class.
        place: where the new tokens stand.
    """

    def __init__(self, module: Any, place: Place) -> None:
        self._module = module
        self._place = place
        self._kind = (type(module), repr(module.config))

    def forward(
        self, q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, positions_BL: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the queries and keys, rotated."""
        shared = self._place.shared
        key = (self._kind, id(positions_BL), q_BLNH.shape[-1])
        if key not in shared:
            # The positions stay alive with their factors, so that no others get their id.
            shared[key] = positions_BL, self._module._reshape_cache(q_BLNH, positions_BL)
        _, factors = shared[key]
        rotated: tuple[torch.Tensor, torch.Tensor] = self._module.apply_rotary_emb(
            q_BLNH, k_BLNH, factors
        )
        return rotated
