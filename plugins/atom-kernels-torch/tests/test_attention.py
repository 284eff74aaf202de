"""What the attention overrides change of the node, and what they keep."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from torchtitan.models.common.attention import FlexAttention, VarlenAttention, get_causal_mask_mod

from atom_kernels_torch.attention import (
    CudnnAttention,
    DenseAttention,
    cudnn_attention,
    dense_attention,
    flex_flash_attention,
    varlen_attention,
)


def test_overrides_carry_over_what_torchtitan_has_set() -> None:
    node = FlexAttention.Config(param_init={"weight": None}, kernel_options={"BLOCK_M": 64})
    dense = dense_attention(node)
    assert isinstance(dense, DenseAttention.Config)
    cudnn = cudnn_attention(node)
    assert isinstance(cudnn, CudnnAttention.Config)
    flash = flex_flash_attention(node)
    assert flash.kernel_options == {"BLOCK_M": 64, "BACKEND": "FLASH"}
    varlen = varlen_attention(node)
    assert isinstance(varlen, VarlenAttention.Config)
    for replacement in (dense, cudnn, flash, varlen):
        assert replacement.param_init is node.param_init


def test_cudnn_attention_is_cudnns_or_none() -> None:
    """On a CPU there is no cuDNN, and nothing else takes its place."""
    mask = create_block_mask(get_causal_mask_mod(), 1, None, 16, 16, device="cpu", BLOCK_SIZE=16)
    q_BLNH = torch.randn(1, 16, 2, 8)
    with pytest.raises(RuntimeError, match="No viable backend"):
        cudnn_attention(FlexAttention.Config()).build()(
            q_BLNH, q_BLNH, q_BLNH, attention_masks=mask
        )


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_sink_is_a_key_of_no_value(kv_heads: int) -> None:
    """What ``out_transform`` makes of the softmax's sum is softmax with one key more."""
    torch.manual_seed(0)
    length, heads, width, scale = 32, 4, 8, 0.3
    q_BLNH, k_BLNH, v_BLNH = (
        torch.randn(2, length, n, width, dtype=torch.float64) for n in (heads, kv_heads, kv_heads)
    )
    sinks_N = torch.randn(heads, dtype=torch.float64)
    mask = create_block_mask(
        get_causal_mask_mod(), 2, None, length, length, device="cpu", BLOCK_SIZE=16
    )
    out_BLNH = dense_attention(FlexAttention.Config()).build()(
        q_BLNH,
        k_BLNH,
        v_BLNH,
        attention_masks=mask,
        scale=scale,
        enable_gqa=kv_heads != heads,
        out_transform=lambda out, lse: out * torch.sigmoid(lse - sinks_N)[..., None],
    )
    for n in range(heads):
        group = n * kv_heads // heads
        scores_BLL = q_BLNH[:, :, n] @ k_BLNH[:, :, group].transpose(1, 2) * scale
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        scores_BLL = scores_BLL.masked_fill(~causal, -torch.inf)
        sink_BL1 = sinks_N[n].expand(2, length, 1)
        weights = torch.cat([scores_BLL, sink_BL1], dim=-1).softmax(dim=-1)[..., :-1]
        torch.testing.assert_close(out_BLNH[:, :, n], weights @ v_BLNH[:, :, group])
