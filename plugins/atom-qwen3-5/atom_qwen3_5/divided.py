"""Divide the sequences of linear layers among ranks (context parallelism).

A linear layer reads a sequence from its beginning. Between ranks that each have a part of the
tokens, its convolutions and its delta rule therefore exchange tokens for heads: each rank gets the
whole sequence of some channels or heads, in order, computes them, and sends the results back. No
rank waits for the state of another one.

Shape suffixes: B = sequences, L = tokens of a sequence, P = tokens of a rank's part, R = ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.context_parallel import apply_cp_to_forward
from torchtitan.models.common.attention import (
    VarlenMetadata,
    create_varlen_metadata_for_document,
)
from torchtitan.models.qwen3_5.parallelize import parallelize_qwen3_5


class Parts:
    """The ranks that have the parts of a sequence.

    Args:
        group: the ranks.
        balanced: whether each has a part of the head and of the tail of a sequence, as torchtitan's
            ``headtail`` divides it.

    Attributes:
        count: the number of ranks.
        rank: the number of this one.
    """

    def __init__(self, group: dist.ProcessGroup, *, balanced: bool) -> None:
        self.count, self.rank = group.size(), group.rank()
        self._group = group
        self._balanced = balanced
        self._part = 0

    def documents(self, positions_BP: torch.Tensor) -> VarlenMetadata:
        """Return the documents of the whole sequences, from the positions of this rank's tokens."""
        self._part = positions_BP.shape[1]
        gathered = funcol.all_gather_tensor(positions_BP.contiguous(), 0, self._group)
        positions_BL = self._in_order(gathered.unflatten(0, (self.count, -1)))
        return create_varlen_metadata_for_document(positions_BL, include_host_offsets=True)

    def gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Return all tokens of this rank's share of ``dim``.

        Args:
            x: of shape (1, B P, …).
            dim: a dimension after the second, which the ranks divide.
        """
        sent = torch.stack(x.chunk(self.count, dim=dim))  # R, 1, B P, …
        received = self._exchange(sent).squeeze(1).unflatten(1, (-1, self._part))
        return self._in_order(received).flatten(0, 1)[None]

    def scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Return this rank's tokens of all shares of ``dim``: what :meth:`gather` undoes."""
        length = self._part * self.count
        ordered = x[0].unflatten(0, (-1, length))
        if self._balanced:
            ordered = ordered.index_select(1, self._order(length, x.device))
        sent = ordered.unflatten(1, (self.count, -1)).movedim(1, 0)  # R, B, P, …
        received = self._exchange(sent.flatten(1, 2).unsqueeze(1))
        return torch.cat(received.unbind(), dim=dim)

    def share(self, weight: torch.Tensor) -> torch.Tensor:
        """Return this rank's share of a weight's first dimension."""
        return weight.chunk(self.count)[self.rank]

    def _exchange(self, x: torch.Tensor) -> torch.Tensor:
        sizes = [1] * self.count
        return funcol.all_to_all_single_autograd(x.contiguous(), sizes, sizes, self._group)

    def _in_order(self, x_RBP: torch.Tensor) -> torch.Tensor:
        """Return the tokens of all ranks in the order of the sequence: (B, L, …)."""
        x_BL = x_RBP.movedim(0, 1).flatten(1, 2)
        if not self._balanced:
            return x_BL
        return x_BL.index_select(1, self._order(x_BL.shape[1], x_BL.device).argsort())

    def _order(self, length: int, device: torch.device) -> torch.Tensor:
        """Return the token at each place of the ranks' parts, one after another."""
        pieces = torch.arange(length, device=device).chunk(2 * self.count)
        pairs = ((pieces[r], pieces[2 * self.count - 1 - r]) for r in range(self.count))
        return torch.cat([piece for pair in pairs for piece in pair])


class _OthersOnly:
    """The dimensions of a mesh, for code that refuses context parallelism, which is in place."""

    cp_enabled = False

    def __init__(self, dims: ParallelDims) -> None:
        self._dims = dims

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dims, name)


def parallelize(model: Any, *, parallel_dims: ParallelDims, **arguments: Any) -> Any:
    """Parallelize a model as torchtitan does, and divide its sequences among ranks."""
    if not parallel_dims.cp_enabled:
        return parallelize_qwen3_5(model, parallel_dims=parallel_dims, **arguments)
    mesh = parallel_dims.get_mesh("cp")
    balancer = arguments["parallelism"].context_parallel_load_balancer
    parts = Parts(mesh.get_group(), balanced=balancer is not None)
    model.parts = parts
    attending = []
    for block in model.layers.values():
        if block.full_attn:
            attending.append(block.attn.inner_attention)
        else:
            block.attn.parts = block.attn.kernel.parts = parts
    # Other backends divide attention by what the model's config declares.
    if attending and arguments["parallelism"].spmd_backend == "partial_dtensor":
        apply_cp_to_forward(attending, mesh)
    return parallelize_qwen3_5(model, parallel_dims=_OthersOnly(parallel_dims), **arguments)
