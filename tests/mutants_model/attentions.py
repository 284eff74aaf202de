"""Attention that is right in everything but its windows, and that is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_mask
from torchtitan.config.override import derive, override
from torchtitan.models.common.attention import FlexAttention


class _Attention(FlexAttention):
    @dataclass(kw_only=True, slots=True)
    class Config(FlexAttention.Config):
        pass

    def __init__(self, config: Config) -> None:  # noqa: ARG002 (FlexAttention would compile)
        super(FlexAttention, self).__init__()

    def forward(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        *,
        attention_masks: Any,
        scale: float | None = None,
        enable_gqa: bool = False,
        **_unused: Any,
    ) -> torch.Tensor:
        batch, _, length, _ = attention_masks.shape
        seen_B1LL = create_mask(
            attention_masks.mask_mod, batch, None, length, length, device=q_BLNH.device
        )
        # A document ends where a token does not see the one before it.
        starts_BL = ~seen_B1LL[:, 0].diagonal(-1, dim1=-2, dim2=-1)
        document_BL = F.pad(starts_BL.cumsum(dim=-1), (1, 0))
        same_BLL = document_BL[:, :, None] == document_BL[:, None, :]
        q_BNLH, k_BNLH, v_BNLH = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNH))
        return F.scaled_dot_product_attention(
            q_BNLH,
            k_BNLH,
            v_BNLH,
            attn_mask=same_BLL.tril()[:, None],
            scale=scale,
            enable_gqa=enable_gqa,
        ).transpose(1, 2)


@override(target=FlexAttention.Config, exact=True)
def ignores_windows(node: FlexAttention.Config) -> FlexAttention.Config:
    return derive(node, _Attention.Config, block_size=16)
