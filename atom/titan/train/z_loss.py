"""Cross-entropy with z-loss (``loss.z_loss``; Chowdhery et al., 2022, section 5,
https://arxiv.org/abs/2204.02311).

The penalty of a token is the square of log(sum(exp(logits))). It reaches the gradients and not the
value of the loss, so that losses of runs with and without it are comparable.

Shape suffixes: B = sequences, L = tokens per sequence, R = B L rows, V = vocabulary of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import spmd_types as spmd
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.distributed.tensor import DTensor, Shard
from torchtitan.components.loss import (
    IGNORE_INDEX,
    BaseLoss,
    ChunkedLossWrapper,
    CrossEntropyLoss,
)
from torchtitan.config import CompileConfig
from torchtitan.distributed.spmd_types import current_spmd_mesh, spmd_mesh_size
from torchtitan.distributed.utils import get_spmd_backend

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


class CrossEntropyWithZLoss(CrossEntropyLoss):
    """Cross-entropy whose gradient is that of cross-entropy and penalty.

    Kernels that replace :class:`CrossEntropyLoss` do not fit: it computes more.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CrossEntropyLoss.Config):
        z_loss: float

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        super().__init__(config, compile_config=compile_config)
        self.coefficient = config.z_loss
        self.parts: list[torch.Tensor] = []
        """Penalties of this rank's latest calls, each as its share of the mean over tokens."""
        self._squares = _squares
        if (
            compile_config is not None
            and compile_config.enable
            and "loss" in compile_config.components
        ):
            self._squares = torch.compile(_squares, backend=compile_config.backend)

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **arguments: Any,
    ) -> Loss:
        loss, metrics = super().__call__(pred, labels, global_valid_tokens, **arguments)
        if not pred.requires_grad:  # a validation, which compares models by cross-entropy
            return loss, metrics
        checking = spmd.is_type_checking()
        with spmd.no_typecheck():
            penalty = self.coefficient * self._squares(
                _local(pred), _local(labels).flatten() != IGNORE_INDEX, _sharers(pred)
            )
            if global_valid_tokens is not None:
                penalty = penalty / global_valid_tokens
            self.parts.append(penalty.detach())
            without_value = penalty - penalty.detach()
            if isinstance(loss, DTensor):
                without_value = DTensor.from_local(
                    without_value, loss.device_mesh, loss.placements, run_check=False
                )
            loss = loss + without_value
            if checking:
                spmd.assert_type(loss, {"dp": spmd.P, "cp": spmd.P, "tp": spmd.I})
        return loss, metrics


class ChunkedLossWithZLoss(ChunkedLossWrapper):
    """A chunked loss of :class:`CrossEntropyWithZLoss`.

    Kernels that replace :class:`ChunkedLossWrapper` do not fit: it computes more.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        pass


def of(loss: BaseLoss, microbatches: int) -> torch.Tensor | None:
    """Return this rank's penalties of the latest pass; None if the loss has none.

    A pipeline's first pass also calls the loss with arbitrary numbers, before the micro-batches.

    Args:
        loss: of a run.
        microbatches: that the pass consisted of.
    """
    calls, inner = microbatches, loss
    if isinstance(loss, ChunkedLossWrapper):
        calls, inner = microbatches * loss.num_chunks, loss.loss_fn
    if not isinstance(inner, CrossEntropyWithZLoss):
        return None
    inner.parts = inner.parts[-calls:]  # a CUDA graph writes into those that it has made
    return torch.stack(inner.parts).sum() if inner.parts else torch.zeros(())


def _squares(
    logits_BLV: torch.Tensor, counted_R: torch.Tensor, sharers: dist.ProcessGroup | None
) -> torch.Tensor:
    """Return the sum of the squared log-normalizers of the rows that count.

    Args:
        logits_BLV: this rank's logits.
        counted_R: the rows that have a label.
        sharers: the ranks that hold shards of the vocabulary; None if this rank holds it whole.
    """
    squares: torch.Tensor = _SquaredNormalizers.apply(logits_BLV.flatten(0, 1), counted_R, sharers)
    return squares


class _SquaredNormalizers(torch.autograd.Function):
    """It keeps the logits in their own dtype for the backward pass, and one number per row."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_RV: torch.Tensor,
        counted_R: torch.Tensor,
        sharers: dist.ProcessGroup | None,
    ) -> torch.Tensor:
        wide_RV = logits_RV.float()
        top_R = wide_RV.amax(dim=-1)
        if sharers is not None:
            top_R = funcol.all_reduce(top_R, dist.ReduceOp.MAX.name, sharers)
        sum_R = (wide_RV - top_R.unsqueeze(-1)).exp_().sum(dim=-1)
        if sharers is not None:
            sum_R = funcol.all_reduce(sum_R, dist.ReduceOp.SUM.name, sharers)
        normalizer_R = top_R + sum_R.log()
        ctx.save_for_backward(logits_RV, normalizer_R, counted_R)
        return torch.where(counted_R, normalizer_R.square(), 0).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits_RV, normalizer_R, counted_R = ctx.saved_tensors
        scale_R = torch.where(counted_R, 2 * gradients[0] * normalizer_R, 0)
        shares_RV = (logits_RV.float() - normalizer_R.unsqueeze(-1)).exp_()
        return shares_RV.mul_(scale_R.unsqueeze(-1)).to(logits_RV.dtype), None, None


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard; its gradient has the placements of the tensor."""
    if not isinstance(tensor, DTensor):
        return tensor
    part: torch.Tensor = tensor.to_local(grad_placements=tensor.placements)
    return part


def _sharers(logits: torch.Tensor) -> dist.ProcessGroup | None:
    """Return the ranks that hold shards of the vocabulary, or None."""
    if isinstance(logits, DTensor):
        last = logits.ndim - 1
        if any(isinstance(each, Shard) and each.dim == last for each in logits.placements):
            return logits.device_mesh.get_group("tp")
        return None
    if get_spmd_backend() == "spmd_types" and spmd_mesh_size("tp") > 1:
        mesh = current_spmd_mesh()
        assert mesh is not None
        return mesh.get_group("tp")
    return None
