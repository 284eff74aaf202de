"""Compute the reference kernels as functions of tensors, without torchtitan's modules.

Shape suffixes: B sequences, L tokens, R = B L rows, D width of the model, F width of the
feed-forward, N heads, H width of a head, V vocabulary.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim._muon import _zeropower_via_newtonschulz
from torch.optim.adamw import adamw as torch_adamw


def rms_norm(x_RD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x_RD, weight_D.shape, weight_D, eps)


def add_rms_norm(
    x_RD: torch.Tensor, residual_RD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total_RD = x_RD + residual_RD
    return rms_norm(total_RD, weight_D, eps), total_RD


def rope(
    q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, cache: torch.Tensor, positions_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate adjacent pairs by a complex cache of shape (positions, H / 2)."""
    turn = cache[positions_BL][:, :, None]

    def rotated(x_BLNH: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x_BLNH.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).type_as(x_BLNH)

    return rotated(q_BLNH), rotated(k_BLNH)


def rope_halves(
    q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, cache: torch.Tensor, positions_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate halves by a cache of shape (positions, 2 H), cosines before sines."""
    cos, sin = cache[positions_BL][:, :, None].chunk(2, dim=-1)

    def rotated(x_BLNH: torch.Tensor) -> torch.Tensor:
        x = x_BLNH.float()
        first, second = x.chunk(2, dim=-1)
        return (x * cos + torch.cat((-second, first), dim=-1) * sin).type_as(x_BLNH)

    return rotated(q_BLNH), rotated(k_BLNH)


def silu_mul(gate_RF: torch.Tensor, up_RF: torch.Tensor) -> torch.Tensor:
    return F.silu(gate_RF) * up_RF


def feed_forward(
    x_RD: torch.Tensor, w1_FD: torch.Tensor, w2_DF: torch.Tensor, w3_FD: torch.Tensor
) -> torch.Tensor:
    return F.linear(silu_mul(F.linear(x_RD, w1_FD), F.linear(x_RD, w3_FD)), w2_DF)


def grouped_mm(
    x_RD: torch.Tensor,
    w1_EFD: torch.Tensor,
    w2_EDF: torch.Tensor,
    w3_EFD: torch.Tensor,
    rows_E: torch.Tensor,
) -> torch.Tensor:
    ends_E = rows_E.cumsum(dim=0, dtype=torch.int32)
    gate_RF, up_RF = (
        torch._grouped_mm(x_RD, weight_EFD.transpose(-2, -1), offs=ends_E)
        for weight_EFD in (w1_EFD, w3_EFD)
    )
    h_RF = silu_mul(gate_RF, up_RF)
    return torch._grouped_mm(h_RF, w2_EDF.transpose(-2, -1), offs=ends_E)


def linear(x_RD: torch.Tensor, weight_FD: torch.Tensor) -> torch.Tensor:
    return F.linear(x_RD, weight_FD)


def embedding(weight_VD: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
    return F.embedding(ids_BL, weight_VD)


def cross_entropy(logits_RV: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_RV.float(), labels_R, reduction="sum")


def linear_cross_entropy(
    x_RD: torch.Tensor, weight_VD: torch.Tensor, labels_R: torch.Tensor
) -> torch.Tensor:
    """Compute it unchunked: ``loss.num_chunks=1``."""
    return cross_entropy(F.linear(x_RD, weight_VD), labels_R)


def attention(q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, v_BLNH: torch.Tensor) -> torch.Tensor:
    """Attend causally within one document, under a dense mask as the module's."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNH))
    seen_LL = _seen(q.shape[2], q.device)
    enable_gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_LL, enable_gqa=enable_gqa)
    return out.transpose(1, 2)


@lru_cache(maxsize=2)  # a model makes it once for all layers
def _seen(length: int, device: torch.device) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def adamw(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    *,
    foreach: bool = False,
    fused: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Apply step number ``step`` of AdamW to the three in place."""
    # torch increments the count before the step; the fused kernel needs it on the device.
    steps = torch.full((), float(step - 1), device=weight.device if fused else "cpu")
    torch_adamw(
        [weight],
        [gradient],
        [mean],
        [square],
        [],
        [steps],
        foreach=foreach,
        fused=fused,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
    return weight, mean, square


adamw_foreach = partial(adamw, foreach=True)
adamw_fused = partial(adamw, fused=True)


def gradient_clipping(
    parameters: list[torch.nn.Parameter], max_norm: float, *, foreach: bool, **_layout: Any
) -> torch.Tensor:
    """Clip on one rank."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=foreach)


def newton_schulz(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    return _zeropower_via_newtonschulz(matrix, coefficients, steps, eps)
