"""Cap a model's logits softly: ``cap tanh(logits / cap)`` (Gemma 2, 2024, section 2,
https://arxiv.org/abs/2408.00118).

For the modules of architecture plugins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.models.common import Linear


class CappedLinear(Linear):
    """An output layer with a cap on its logits, so that each loss and layout applies it.

    Kernels that fuse output layer and loss do not fit: it computes more than a product.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Linear.Config):
        cap: float

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.cap = config.cap

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the capped logits."""
        return self.cap * torch.tanh(super().forward(input) / self.cap)


def output_layer(cap: float | None, **fields: Any) -> Linear.Config:
    """Return the config of an output layer.

    Args:
        cap: on its logits; None for none.
        fields: of torchtitan's linear layer.
    """
    return Linear.Config(**fields) if cap is None else CappedLinear.Config(**fields, cap=cap)
