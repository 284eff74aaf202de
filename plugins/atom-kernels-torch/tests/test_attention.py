"""What the attention overrides change of the node, and what they keep."""

from __future__ import annotations

from torchtitan.models.common.attention import FlexAttention, VarlenAttention

from atom_kernels_torch.attention import (
    DenseAttention,
    dense_attention,
    flex_flash_attention,
    varlen_attention,
)


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
