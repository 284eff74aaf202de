"""Run one forward pass with the inputs that torchtitan's trainer passes.

Shape suffixes: B = sequences, L = tokens per sequence, V = vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torchtitan.models.common.attention import FlexAttention, VarlenAttention
from torchtitan.models.common.decoder import Decoder


def logits(model: Any, ids_BL: torch.Tensor, positions_BL: torch.Tensor) -> torch.Tensor:
    """Return the model's output of shape (B, L, V).

    Args:
        model: a whole model, or this rank's part of one.
        ids_BL: the tokens.
        positions_BL: counted from 0 in each document, as in :mod:`atom.titan.train.data`.
    """
    output: torch.Tensor = model(ids_BL, **arguments(model, positions_BL))
    return output


def arguments(model: Any, positions_BL: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of a whole model beside the tokens."""
    found: dict[str, Any] = {"positions": positions_BL}
    # As in torchtitan's Trainer.post_dataloading_process.
    inner = None
    if isinstance(model, Decoder):
        inner = getattr(model.config.first_attention, "inner_attention", None)
    if isinstance(inner, FlexAttention.Config | VarlenAttention.Config):
        found["attention_masks"] = model.get_attention_masks(positions=positions_BL)
    return found
