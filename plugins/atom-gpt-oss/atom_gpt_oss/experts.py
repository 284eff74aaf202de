"""Repair torchtitan's gpt-oss experts (0.3.0).

Shape suffixes: R = tokens routed to this rank's experts, sorted by expert; E = experts; D = model
width; F = expert width; G = gate and linear part, 2 F.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torchtitan.distributed.spmd_types import spmd_mesh_size
from torchtitan.models.gpt_oss.moe import GptOssGroupedExperts, swiglu


class GptOssExperts(GptOssGroupedExperts):
    """Experts with the same result under tensor parallelism, and in float32 on a CPU.

    Three things differ from torchtitan's. Tensor parallelism sums the ranks' outputs, so each rank
    adds its share of the output's bias, not the whole (torchtitan reads the degree from DTensors,
    which parameters are not under its default backend). The output has the input's dtype. And only
    a GPU, where the grouped matrix product supports nothing else, computes in bfloat16.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(GptOssGroupedExperts.Config):
        pass

    def forward(self, x_RD: torch.Tensor, num_tokens_per_expert_E: torch.Tensor) -> torch.Tensor:
        """Return the experts' outputs, shaped like ``x_RD``."""
        dtype = torch.bfloat16 if x_RD.is_cuda else x_RD.dtype
        mlp1_EGD, mlp1_bias_EG, mlp2_EDF, mlp2_bias_ED = (
            (x.to_local() if isinstance(x, DTensor) else x).to(dtype)
            for x in (
                self.mlp1_weight_EGD,
                self.mlp1_bias_EG,
                self.mlp2_weight_EDF,
                self.mlp2_bias_ED,
            )
        )
        counts_E = num_tokens_per_expert_E.long()
        ends_E = counts_E.cumsum(0, dtype=torch.int32)
        h_RG = self._grouped_mm(A=x_RD.to(dtype), B_t=mlp1_EGD.transpose(-2, -1), offs=ends_E)
        h_RG = h_RG + _of_each_token(mlp1_bias_EG, counts_E, len(x_RD))
        h_RF = swiglu(h_RG, limit=self.swiglu_limit)
        out_RD = self._grouped_mm(A=h_RF, B_t=mlp2_EDF.transpose(-2, -1), offs=ends_E)
        # With expert parallelism the mesh is the experts', which has no such axis.
        share_ED = mlp2_bias_ED / spmd_mesh_size("tp")
        return (out_RD + _of_each_token(share_ED, counts_E, len(x_RD))).type_as(x_RD)


def _of_each_token(bias: torch.Tensor, counts_E: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return each token's row of ``bias``, by its expert; padding tokens get zeros."""
    padding = tokens - counts_E.sum(dim=0, keepdim=True)
    rows = F.pad(bias, (0, 0, 0, 1))
    # The number of rows is passed to avoid a device synchronization.
    return rows.repeat_interleave(torch.cat([counts_E, padding]), dim=0, output_size=tokens)
