"""Override torchtitan's attention node with other attention kernels.

The node is called with ``q_BLNH, k_BLNH, v_BLNH``: torchtitan's sharding configs refer to these
names. B batch, L sequence, N heads, H head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import spmd_types
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_mask
from torch.nn.attention.varlen import varlen_attn
from torchtitan.config.override import derive, override
from torchtitan.distributed.utils import get_spmd_backend
from torchtitan.models.common.attention import (
    FlexAttention,
    VarlenAttention,
    VarlenMetadata,
)


class DenseAttention(FlexAttention):
    """Softmax attention by ``F.scaled_dot_product_attention`` under a dense mask.

    The mask comes from the ``BlockMask`` that flex attention uses, so documents and context
    parallelism have the same effect. The mask takes O(B L²) bits: a reference, not for training
    long sequences.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(FlexAttention.Config):
        pass

    def forward(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        *,
        attention_masks: BlockMask,
        scale: float | None = None,
        enable_gqa: bool = False,
        score_mod: Callable | None = None,
        out_transform: Callable | None = None,
        **_unused: object,
    ) -> torch.Tensor:
        """Return attention's output, shaped like ``q_BLNH``.

        ``out_transform(out_BLNH, lse_BLN)`` transforms it, given the logarithm of the softmax's
        sum.
        """
        if score_mod is not None:
            raise ValueError("the reference attention has no score_mod")
        q_BNLH, k_BNLH, v_BNLH = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNH))
        mask = _dense(attention_masks)
        if out_transform is not None:
            out_BNLH, lse_BNL = _with_sum(q_BNLH, k_BNLH, v_BNLH, mask, scale)
            return out_transform(out_BNLH.transpose(1, 2), lse_BNL.transpose(1, 2))
        out_BNLH = self.attend(
            q_BNLH, k_BNLH, v_BNLH, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
        return out_BNLH.transpose(1, 2)

    def attend(
        self, q_BNLH: torch.Tensor, k_BNLH: torch.Tensor, v_BNLH: torch.Tensor, **arguments: Any
    ) -> torch.Tensor:
        """Return torch's attention, by the backend that torch prefers."""
        return F.scaled_dot_product_attention(q_BNLH, k_BNLH, v_BNLH, **arguments)


class CudnnAttention(DenseAttention):
    """Dense attention by cuDNN.

    torch adds the mask to the scores there, as 0 or -inf in their dtype.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(DenseAttention.Config):
        pass

    def attend(
        self, q_BNLH: torch.Tensor, k_BNLH: torch.Tensor, v_BNLH: torch.Tensor, **arguments: Any
    ) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return super().attend(q_BNLH, k_BNLH, v_BNLH, **arguments)


class FlashVarlenAttention(VarlenAttention):
    """Variable-length attention by FlashAttention only: torch itself would prefer cuDNN."""

    @dataclass(kw_only=True, slots=True)
    class Config(VarlenAttention.Config):
        pass

    # torchtitan's shardings refer to arguments by these names.
    def forward(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        *,
        attention_masks: VarlenMetadata,
        **arguments: Any,
    ) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super().forward(
                q_BLNH, k_BLNH, v_BLNH, attention_masks=attention_masks, **arguments
            )


class CudnnVarlenAttention(VarlenAttention):
    """Variable-length attention by cuDNN.

    It does not request FlashAttention 3 or 4, as torchtitan's own does.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(VarlenAttention.Config):
        pass

    def __init__(self, config: Config) -> None:
        super(VarlenAttention, self).__init__()
        self.window_size = config.window_size

    def forward(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        *,
        attention_masks: VarlenMetadata,
        scale: float | None = None,
        enable_gqa: bool = False,
        **_unused: object,
    ) -> torch.Tensor:
        """Attend like torchtitan: in bfloat16, over the concatenated documents of all sequences."""
        q_TNH, k_TNH, v_TNH = (x.flatten(0, 1).bfloat16() for x in (q_BLNH, k_BLNH, v_BLNH))
        ends, longest = attention_masks.cu_seq_q, attention_masks.max_q
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), spmd_types.no_typecheck():
            # cuDNN aligns causal attention correctly if both ends are the same tensor.
            out_TNH = varlen_attn(
                q_TNH,
                k_TNH,
                v_TNH,
                ends,
                ends,
                longest,
                longest,
                scale=scale,
                window_size=self.window_size,
                enable_gqa=enable_gqa,
            )
        assert isinstance(out_TNH, torch.Tensor)
        if get_spmd_backend() == "spmd_types" and spmd_types.is_type_checking():
            of_q = spmd_types.get_local_type(q_TNH), spmd_types.get_partition_spec(q_TNH)
            spmd_types.assert_type(out_TNH, *of_q)
        return out_TNH.view(*q_BLNH.shape[:2], *out_TNH.shape[1:]).to(q_BLNH.dtype)


def _with_sum(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    mask: torch.Tensor,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention's output, and the logarithm of its softmax's sum, which torch's saves."""
    heads_per_kv = q_BNLH.shape[1] // k_BNLH.shape[1]
    k_BNLH, v_BNLH = (x.repeat_interleave(heads_per_kv, dim=1) for x in (k_BNLH, v_BNLH))
    scale = q_BNLH.shape[-1] ** -0.5 if scale is None else scale
    scores_BNLL = (q_BNLH @ k_BNLH.transpose(-2, -1) * scale).masked_fill(~mask, -torch.inf)
    return scores_BNLL.softmax(dim=-1) @ v_BNLH, scores_BNLL.logsumexp(dim=-1)


def _dense(mask: BlockMask) -> torch.Tensor:
    """Return ``mask`` as bools of shape (B, 1, Lq, Lkv), made once for all layers."""
    dense = getattr(mask, "atom_dense", None)
    if dense is None:
        batch, _heads, q_len, kv_len = mask.shape
        device = mask.kv_indices.device
        dense = create_mask(mask.mask_mod, batch, None, q_len, kv_len, device=device)
        mask.atom_dense = dense  # type: ignore[attr-defined]
    return dense


@override(target=FlexAttention.Config, exact=True, description="dense attention in plain PyTorch")
def dense_attention(node: FlexAttention.Config) -> DenseAttention.Config:
    # Context parallelism splits a block mask by whole blocks; small ones allow short sequences.
    return derive(node, DenseAttention.Config, block_size=16)


@override(target=FlexAttention.Config, exact=True, description="dense attention by cuDNN")
def cudnn_attention(node: FlexAttention.Config) -> CudnnAttention.Config:
    return derive(node, CudnnAttention.Config, block_size=16)


@override(target=FlexAttention.Config, exact=True, description="FlexAttention, FLASH backend")
def flex_flash_attention(node: FlexAttention.Config) -> FlexAttention.Config:
    # The block size that torchtitan uses for this backend (get_attention_config).
    return derive(
        node,
        FlexAttention.Config,
        block_size=(256, 128),
        kernel_options={**node.kernel_options, "BACKEND": "FLASH"},
    )


@override(target=FlexAttention.Config, exact=True, description="variable-length FlashAttention")
def varlen_attention(node: FlexAttention.Config) -> VarlenAttention.Config:
    return derive(node, FlashVarlenAttention.Config)


@override(target=FlexAttention.Config, exact=True, description="cuDNN, varlen")
def varlen_cudnn_attention(node: FlexAttention.Config) -> VarlenAttention.Config:
    return derive(node, CudnnVarlenAttention.Config)


# One function per override: torchtitan identifies overrides by function name.
@override(target=FlexAttention.Config, exact=True, description="FlashAttention 3, varlen")
def varlen_fa3_attention(node: FlexAttention.Config) -> VarlenAttention.Config:
    return derive(node, FlashVarlenAttention.Config)


@override(target=FlexAttention.Config, exact=True, description="FlashAttention 4, varlen")
def varlen_fa4_attention(node: FlexAttention.Config) -> VarlenAttention.Config:
    return derive(node, FlashVarlenAttention.Config)
