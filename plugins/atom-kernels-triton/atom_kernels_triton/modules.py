"""Wrap the kernels in torchtitan's modules, and override the nodes of a model with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchtitan.config.override import derive, override
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, FeedForward, RMSNorm

from atom.kernels.sharded import local, local_weight, placed
from atom_kernels_triton.feed_forward import silu_mul
from atom_kernels_triton.rms_norm import rms_norm
from atom_kernels_triton.rope import rope


class TritonRMSNorm(RMSNorm):
    """torchtitan's RMSNorm with the kernel in its forward."""

    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        eps = self.eps if self.eps is not None else torch.finfo(x.dtype).eps
        weight = local_weight(self.weight, x) if self.weight is not None else None
        return placed(rms_norm(local(x), weight, eps), x)


@override(target=RMSNorm.Config, exact=True, description="RMSNorm in one Triton kernel")
def triton_rms_norm(node: RMSNorm.Config) -> TritonRMSNorm.Config:
    return derive(node, TritonRMSNorm.Config)


class TritonRoPE(ComplexRoPE):
    """torchtitan's rotary embedding of adjacent pairs, with the kernel."""

    @dataclass(kw_only=True, slots=True)
    class Config(ComplexRoPE.Config):
        pass

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _placed_rope(self.cache, query, key, positions, halves=False)


class TritonRoPEHalves(CosSinRoPE):
    """torchtitan's rotary embedding of halves, with the kernel."""

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        pass

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _placed_rope(self.cache, query, key, positions, halves=True)


def _placed_rope(
    cache: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    positions: torch.Tensor | None,
    *,
    halves: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    where = local(positions) if positions is not None else None
    q, k = rope(local(query), local(key), local(cache), where, halves=halves)
    return placed(q, query), placed(k, key)


@override(target=ComplexRoPE.Config, exact=True, description="RoPE of pairs in one Triton kernel")
def triton_rope(node: ComplexRoPE.Config) -> TritonRoPE.Config:
    return derive(node, TritonRoPE.Config)


@override(target=CosSinRoPE.Config, exact=True, description="RoPE of halves in one Triton kernel")
def triton_rope_halves(node: CosSinRoPE.Config) -> TritonRoPEHalves.Config:
    return derive(node, TritonRoPEHalves.Config)


class TritonFeedForward(FeedForward):
    """torchtitan's SwiGLU with one kernel between the products."""

    @dataclass(kw_only=True, slots=True)
    class Config(FeedForward.Config):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.w1(x), self.w3(x)
        out: torch.Tensor = self.w2(placed(silu_mul(local(gate), local(up)), gate))
        return out


@override(target=FeedForward.Config, exact=True, description="silu(gate) · up in one Triton kernel")
def triton_feed_forward(node: FeedForward.Config) -> TritonFeedForward.Config:
    return derive(node, TritonFeedForward.Config)
