"""Repair mixtures of experts on a CPU, for torchtitan 0.3.0 and gloo."""

from __future__ import annotations

import types
from typing import Any

import spmd_types
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torchtitan.models.common.moe import GroupedExperts


def exchange_over_gloo() -> None:
    """Let expert parallelism exchange tokens over gloo."""
    spmd_types.set_dist(_GlooCollectives("atom.titan.compat.moe.gloo"))


class _GlooCollectives(types.ModuleType):
    """``torch.distributed`` for ``spmd_types``, with an all-to-all of lists of uneven tensors.

    Expert parallelism sends each rank its routed tokens with the list form of all-to-all. Gloo's
    refuses lists of uneven sizes; its single-tensor form accepts them.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.distributed, name)

    def all_to_all(
        self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], group: Any = None
    ) -> None:
        """Send ``inputs[r]`` to rank r of ``group``, and fill ``outputs[r]`` from it."""
        sent = torch.cat([tensor.flatten() for tensor in inputs])
        sizes = [tensor.numel() for tensor in outputs]
        received = sent.new_empty(sum(sizes))
        torch.distributed.all_to_all_single(
            received, sent, sizes, [tensor.numel() for tensor in inputs], group=group
        )
        for output, part in zip(outputs, received.split(sizes), strict=True):
            output.copy_(part.view_as(output))


def in_dtype_of_tokens(
    self: GroupedExperts, x_RD: torch.Tensor, num_tokens_per_expert_E: torch.Tensor
) -> torch.Tensor:
    """Return the experts' outputs, shaped like ``x_RD``.

    torchtitan's method converts to bfloat16. GPUs need that, but most CPUs emulate it, and it
    rounds a float32 run so that layouts differ in the fifth digit of the loss.
    """
    w1_EFD, w2_EDF, w3_EFD = (
        (weight.to_local() if isinstance(weight, DTensor) else weight).to(x_RD.dtype)
        for weight in (self.w1_EFD, self.w2_EDF, self.w3_EFD)
    )
    ends_E = num_tokens_per_expert_E.cumsum(dim=0, dtype=torch.int32)
    gate_RF = self._grouped_mm(A=x_RD, B_t=w1_EFD.transpose(-2, -1), offs=ends_E)
    linear_RF = self._grouped_mm(A=x_RD, B_t=w3_EFD.transpose(-2, -1), offs=ends_E)
    h_RF = F.silu(gate_RF) * linear_RF
    return self._grouped_mm(A=h_RF, B_t=w2_EDF.transpose(-2, -1), offs=ends_E)
