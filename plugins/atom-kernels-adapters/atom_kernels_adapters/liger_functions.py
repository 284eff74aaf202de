"""Call Liger-Kernel's kernels as functions of tensors: no torchtitan here.

Liger overwrites its inputs where it can: backward passes overwrite the incoming gradient, RoPE
overwrites q and k. Inputs that may be needed again are copied here.

Suffixes: B sequences, L tokens per sequence, N heads, H width of a head; R rows (tokens), D width
of the model, F width of the feed-forward, V vocabulary.
"""

from __future__ import annotations

import torch
from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction
from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
from liger_kernel.ops.rms_norm import LigerRMSNormFunction
from liger_kernel.ops.rope import LigerRopeFunction
from liger_kernel.ops.swiglu import LigerSiLUMulFunction

IGNORE_INDEX = -100
_IN_FLOAT32 = "gemma"
"""Liger's name for a norm that is computed in float32 and rounded once, as torch's is."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    # in_place=False: another branch may use the gradient, too, as after a residual add.
    y: torch.Tensor = LigerRMSNormFunction.apply(x, weight, eps, 0.0, _IN_FLOAT32, False)
    return y


def rope_halves(
    q_BLNH: torch.Tensor,
    k_BLNH: torch.Tensor,
    cache: torch.Tensor,
    positions_BL: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate halves of q and k.

    ``cache`` is (positions, 2H) in float32, cosines before sines; positions default to 0, 1, 2, …
    """
    rows = cache[None, : q_BLNH.shape[1]] if positions_BL is None else cache[positions_BL]
    cos, sin = rows.chunk(2, dim=-1)  # (1 or B, L, H)
    # Copies: activation checkpointing may keep q and k, and rotate them again.
    q_BNLH, k_BNLH = (
        each.clone(memory_format=torch.contiguous_format).transpose(1, 2)
        for each in (q_BLNH, k_BLNH)
    )
    q_BNLH, k_BNLH = LigerRopeFunction.apply(q_BNLH, k_BNLH, cos, sin)
    return q_BNLH.transpose(1, 2), k_BNLH.transpose(1, 2)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = LigerSiLUMulFunction.apply(gate, up)
    return product


def cross_entropy(logits_RV: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
    # In float32, like torchtitan's: Liger rounds each token's loss to the dtype of the logits.
    found: torch.Tensor = LigerCrossEntropyFunction.apply(
        logits_RV.float(), labels_R, None, IGNORE_INDEX, 0.0, 0.0, "sum"
    )[0]
    return found


def linear_cross_entropy(
    x_RD: torch.Tensor, weight_VD: torch.Tensor, labels_R: torch.Tensor
) -> torch.Tensor:
    found: torch.Tensor = LigerFusedLinearCrossEntropyFunction.apply(
        x_RD,
        weight_VD,
        labels_R,
        None,  # bias
        None,  # class weights
        IGNORE_INDEX,
        0.0,  # z-loss
        0.0,  # label smoothing
        "sum",
        None,  # soft cap
        False,  # return the z-loss, too
        torch.float32,  # dtype in which the weight's gradient is summed
    )[0]
    return found
