"""Define the contracts of the operations of a mixture of experts.

Shape suffixes: T = B L tokens, D = width of the model, F = width of an expert, E = experts,
K = experts per token, R = T K rows, sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atom.titan.contracts.contract import Contract, Tensors, ids, layer
from atom.titan.contracts.sizes import EXPERTS, TOP_K, Sizes

if TYPE_CHECKING:
    import torch


def rows_per_expert(sizes: Sizes, device: Any) -> torch.Tensor:
    """Return the rows of each expert, of shape (E); with few rows, some experts have none."""
    return ids(sizes, device).flatten().remainder(EXPERTS).bincount(minlength=EXPERTS)


def experts_of_tokens(sizes: Sizes, device: Any) -> torch.Tensor:
    """Return the experts of each token, all different."""
    import torch

    first_T1 = ids(sizes, device).reshape(-1, 1)
    return (first_T1 + torch.arange(TOP_K, device=first_T1.device)).remainder(EXPERTS)


# ---------------------------------------------------------------------------- the experts


def _rows(sizes: Sizes, make: Callable[..., torch.Tensor]) -> Tensors:
    return {"x_RD": make(sizes.rows, sizes.dim)}


def _compute(module: Any, inputs: Tensors, _node: Any, sizes: Sizes) -> torch.Tensor:
    x_RD = inputs["x_RD"]
    output_RD: torch.Tensor = module(x_RD, rows_per_expert(sizes, x_RD.device))
    return output_RD


def grouped_mm(
    x_RD: torch.Tensor,
    w1_EFD: torch.Tensor,
    w2_EDF: torch.Tensor,
    w3_EFD: torch.Tensor,
    rows_E: torch.Tensor,
) -> torch.Tensor:
    """Return (silu(x w1ᵀ) · x w3ᵀ) w2ᵀ, each row with the weights of its expert."""
    import torch

    outputs = []
    for expert, x_rD in enumerate(x_RD.split(rows_E.tolist())):
        gate_rF = x_rD @ w1_EFD[expert].T
        outputs.append((gate_rF * gate_rF.sigmoid() * (x_rD @ w3_EFD[expert].T)) @ w2_EDF[expert].T)
    return torch.cat(outputs)


def _grouped_mm(weights: Tensors, inputs: Tensors, sizes: Sizes) -> torch.Tensor:
    x_RD = inputs["x_RD"]
    rows_E = rows_per_expert(sizes, x_RD.device)
    return grouped_mm(x_RD, weights["w1_EFD"], weights["w2_EDF"], weights["w3_EFD"], rows_E)


# ---------------------------------------------------------------------------- dispatch and combine


def _tokens_and_scores(sizes: Sizes, make: Callable[..., torch.Tensor]) -> Tensors:
    return {"x_TD": make(sizes.rows, sizes.dim), "scores_TK": make(sizes.rows, TOP_K)}


def _dispatch(dispatcher: Any, inputs: Tensors, _node: Any, sizes: Sizes) -> torch.Tensor:
    """Dispatch tokens to experts that multiply by their numbers, and combine the results."""
    import torch

    x_TD, scores_TK = inputs["x_TD"], inputs["scores_TK"].contiguous()
    experts_TK = experts_of_tokens(sizes, x_TD.device)
    rows_E = experts_TK.flatten().bincount(minlength=EXPERTS)
    x_RD, rows_E, sent = dispatcher.dispatch(x_TD, scores_TK, experts_TK, rows_E)
    factors_E = torch.arange(1, EXPERTS + 1, device=x_RD.device)
    factors_R1 = factors_E.repeat_interleave(rows_E.long())[:, None].to(x_RD.dtype)
    combined_TD: torch.Tensor = dispatcher.combine(x_RD * factors_R1, sent, x_TD)
    return combined_TD


def _moe_dispatch(_weights: Tensors, inputs: Tensors, sizes: Sizes) -> torch.Tensor:
    """Sum the results of each token's experts, weighted by their scores."""
    x_TD, scores_TK = inputs.values()
    factors_TK = experts_of_tokens(sizes, x_TD.device) + 1
    return x_TD * (scores_TK * factors_TK).sum(dim=1, keepdim=True)


def _routed(config: Any) -> Any:
    return layer(config).moe.routed_experts


GROUPED_MM = Contract(
    node=lambda config: _routed(config).inner_experts,
    inputs=_rows,
    call=_compute,
    formula=_grouped_mm,
    family="mixture",
    float64=False,
)
MOE_DISPATCH = Contract(
    node=lambda config: _routed(config).token_dispatcher,
    inputs=_tokens_and_scores,
    call=_dispatch,
    formula=_moe_dispatch,
    family="mixture",
    float64=False,
)
