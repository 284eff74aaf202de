"""Trace a block on the meta device to find what it keeps between forward and backward.

Nothing is allocated or computed: torch's autograd and torchtitan's activation checkpointing decide
what stays alive, and the storages that do are counted. The layers that an activation passed through
determine what divides it under parallelism (:class:`atom.plan.model.Activations`).

Three modules do not run on the meta device as on a GPU and are replaced by stand-ins with the same
shapes: the inner attention (as FlashAttention, which keeps q, k, v, its output and one number per
row: Dao et al., 2022, https://arxiv.org/abs/2205.14135), routed experts (with evenly routed
tokens), and RMSNorm (fused, which keeps its input and one number per row).
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from atom.plan.model import Activations

RESIDUAL, TENSOR, GATHERED, WEIGHT = "residual", "tensor", "gathered", "weight"
COLUMN, ROW = 0, 1
"""The dimension of a linear layer's weight that TP shards."""


def trace(
    forward: nn.Module,
    block: nn.Module,
    inputs: torch.Tensor,
    positions: torch.Tensor,
    roles: dict[nn.Module, int],
) -> tuple[Activations, Activations]:
    """Return what ``block`` keeps for backward, and what is live at the peak of backward.

    Args:
        forward: ``block``, or activation checkpointing around it.
        block: on the meta device, its inner attention and experts replaced.
        inputs: (1, L, D), requiring a gradient.
        positions: (1, L).
        roles: linear layers that TP shards -> the dimension of the weight that it shards.

    Returns:
        Both in bytes per token, with the block's input.
    """
    tokens = inputs.shape[1]
    mode = LiveStorages(block, roles)
    handles = [
        handle
        for layer, role in roles.items()
        for handle in (
            layer.register_forward_pre_hook(mode.before(role)),
            layer.register_forward_hook(mode.after(role)),
        )
    ]
    with mode:
        mode.add(inputs, RESIDUAL)
        output = forward(inputs, None, positions)
        kept = output.untyped_storage()._cdata
        saved = mode.live(without=kept)
        mode.in_backward = True
        output.backward(torch.empty_like(output))
    for handle in handles:
        handle.remove()
    return _activations(saved, tokens), _activations(mode.peak, tokens)


def _activations(live: dict[str, int], tokens: int) -> Activations:
    return Activations(**{kind: size / tokens for kind, size in live.items()})


class LiveStorages(TorchDispatchMode):
    """The live storages of all operations, by the kind of parallelism that divides them."""

    def __init__(self, block: nn.Module, roles: dict[nn.Module, int]) -> None:
        super().__init__()
        self._kinds: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._refs: dict[int, weakref.ref[Any]] = {}
        weights = list(block.parameters())
        self._outside = {_key(tensor) for tensor in (*weights, *block.buffers())}
        self._shapes = {tuple(weight.shape) for weight in weights}
        self._shapes |= {shape[::-1] for shape in self._shapes}
        self._roles = {_key(layer.weight): role for layer, role in roles.items()}  # type: ignore[arg-type]
        self.in_backward = False
        self.peak: dict[str, int] = {}

    def before(self, role: int) -> Any:
        """Return a hook that marks a layer's input: gathered for a column-parallel layer."""

        def hook(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._kinds[_key(inputs[0])] = GATHERED if role == COLUMN else TENSOR

        return hook

    def after(self, role: int) -> Any:
        """Return a hook that marks a layer's output: not divided for a row-parallel layer."""

        def hook(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._kinds[_key(output)] = TENSOR if role == COLUMN else GATHERED

        return hook

    def live(self, *, without: int = 0) -> dict[str, int]:
        """Return the live bytes by kind, without gradients of weights."""
        total: dict[str, int] = {}
        for key, size in self._sizes.items():
            kind = self._kinds.get(key, RESIDUAL)
            if kind != WEIGHT and key != without:
                total[kind] = total.get(kind, 0) + size
        return total

    def add(self, tensor: torch.Tensor, kind: str) -> None:
        """Count the storage of ``tensor`` while it is alive."""
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key in self._outside or key in self._sizes:
            return
        self._kinds[key] = kind
        self._sizes[key] = storage.nbytes()

        def forget(_: object) -> None:
            self._sizes.pop(key, None)
            self._kinds.pop(key, None)

        self._refs[key] = weakref.ref(storage, forget)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor, self._kind(func, inputs, tensor))
        if self.in_backward:
            live = self.live()
            if sum(live.values()) > sum(self.peak.values()):
                self.peak = live
        return result

    def _kind(self, func: Any, inputs: list[torch.Tensor], output: torch.Tensor) -> str:
        name = str(func)
        if "attention" in name:
            # Backward produces the gradients of q, k and v; forward the output and one number per
            # row.
            return TENSOR
        if name.startswith("aten.mm") or name.startswith("aten.linear"):
            for tensor in inputs:
                role = self._roles.get(_key(tensor))
                if role is not None:
                    # In backward a column-parallel layer's product is divided as a row-parallel
                    # layer's in forward.
                    return TENSOR if (role == COLUMN) != self.in_backward else GATHERED
            if self.in_backward and tuple(output.shape) in self._shapes:
                return WEIGHT
        kinds = [
            self._kinds.get(_key(tensor), RESIDUAL)
            for tensor in inputs
            if _key(tensor) not in self._outside
        ]
        return next((kind for kind in (TENSOR, RESIDUAL, GATHERED) if kind in kinds), RESIDUAL)


class InnerAttention(nn.Module):
    """A stand-in with FlashAttention's shapes.

    q (B, L, N, H), k (B, L, M, H), v (B, L, M, V) -> (B, L, N, V). ``width`` is the mean of N x H
    and N x V, ``keys_width`` M x H + M x V; both are set by a call.
    """

    width = 0.0
    keys_width = 0

    def forward(
        self, q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, v_BLNH: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        out_BNLV, *_rest = torch.ops.aten._scaled_dot_product_efficient_attention(
            q_BLNH.transpose(1, 2), k_BLNH.transpose(1, 2), v_BLNH.transpose(1, 2), None, True
        )
        out_BLNV = out_BNLV.transpose(1, 2)
        self.width = (q_BLNH[0, 0].numel() + out_BLNV[0, 0].numel()) / 2
        self.keys_width = k_BLNH[0, 0].numel() + v_BLNH[0, 0].numel()
        return out_BLNV


class FusedRMSNorm(nn.Module):
    """A stand-in with the shapes of a fused RMSNorm on a GPU: x (…, D) -> (…, D)."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _FusedNorm.apply(x, self.weight)
        return out


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        inverse_rms = x.new_empty(x.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(x, weight, inverse_rms)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


class EvenExperts(nn.Module):
    """A stand-in with the shapes of a mixture of experts with even load over ``top_k`` experts.

    Routed tokens pass through one expert's weights; all experts have the same size. Shared experts
    are the model's own.
    """

    def __init__(self, moe: Any) -> None:
        super().__init__()
        self._top_k = int(moe.router.top_k)
        self.shared: nn.Module | None = moe.shared_experts
        for number, experts in enumerate(moe.routed_experts.parameters()):
            if experts.dim() == 3:  # (expert, out, in)
                weight = torch.empty(experts.shape[1:], device="meta", dtype=experts.dtype)
                self.register_parameter(f"weight_{number}", nn.Parameter(weight))

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        routed_TD = x_BLD.repeat_interleave(self._top_k, dim=1).flatten(0, 1)
        width = routed_TD.shape[-1]
        weights = list(self.parameters(recurse=False))
        up = [weight for weight in weights if weight.shape[1] == width]
        down = next(weight for weight in weights if weight.shape[0] == width)
        hidden = [piece for w in up for piece in (routed_TD @ w.T).split(down.shape[1], dim=-1)]
        inner_TF = nn.functional.silu(hidden[0])
        for gate_TF in hidden[1:]:
            inner_TF = inner_TF * gate_TF
        out_BLD = (inner_TF @ down.T).view(*x_BLD.shape[:2], self._top_k, width).sum(2)
        return out_BLD if self.shared is None else out_BLD + self.shared(x_BLD)


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
