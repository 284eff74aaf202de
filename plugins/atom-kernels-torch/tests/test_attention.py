"""The reference attention against attention written out, forward and backward, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from torchtitan.models.common.attention import (
    FlexAttention,
    VarlenAttention,
    get_causal_mask_mod,
    get_document_mask_mod,
)

from atom_kernels_torch.attention import (
    DenseAttention,
    dense_attention,
    flex_flash_attention,
    varlen_attention,
)


def written_out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Attention of (B, L, N, H) tensors: each token sees the earlier ones of its own document."""
    batch, length, heads, width = q.shape
    groups = heads // k.shape[2]
    out = torch.zeros_like(q)
    document = torch.cumsum(positions == 0, dim=1)
    for b in range(batch):
        for n in range(heads):
            for i in range(length):
                seen = [j for j in range(i + 1) if document[b, j] == document[b, i]]
                scores = k[b, seen, n // groups] @ q[b, i, n] / width**0.5
                out[b, i, n] = scores.softmax(0) @ v[b, seen, n // groups]
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_reference_is_attention(kv_heads: int) -> None:
    torch.manual_seed(0)
    batch, length, heads, width = 2, 32, 4, 8
    q, k, v = (
        torch.randn(batch, length, n, width, dtype=torch.float64, requires_grad=True)
        for n in (heads, kv_heads, kv_heads)
    )
    positions = torch.tensor([[*range(13), *range(19)], [*range(32)]])
    causal, documents = get_causal_mask_mod(), get_document_mask_mod(positions)
    mask = create_block_mask(
        lambda b, h, i, j: causal(b, h, i, j) & documents(b, h, i, j),
        batch,
        None,
        length,
        length,
        device="cpu",
        BLOCK_SIZE=16,
    )
    attention = dense_attention(FlexAttention.Config()).build()
    out = attention(q, k, v, attention_masks=mask, enable_gqa=heads != kv_heads)
    reference = written_out(q, k, v, positions)
    torch.testing.assert_close(out, reference, rtol=1e-9, atol=1e-12)

    weight = torch.randn_like(out)
    ours = torch.autograd.grad((out * weight).sum(), (q, k, v))
    theirs = torch.autograd.grad((reference * weight).sum(), (q, k, v))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_overrides_carry_over_what_torchtitan_has_set() -> None:
    node = FlexAttention.Config(param_init={"weight": None}, kernel_options={"BLOCK_M": 64})
    dense = dense_attention(node)
    assert isinstance(dense, DenseAttention.Config)
    flash = flex_flash_attention(node)
    assert flash.kernel_options == {"BLOCK_M": 64, "BACKEND": "FLASH"}
    varlen = varlen_attention(node)
    assert isinstance(varlen, VarlenAttention.Config)
    for replacement in (dense, flash, varlen):
        assert replacement.param_init is node.param_init
        assert replacement.sharding_config is node.sharding_config
