"""Each override is an RMSNorm with one fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torchtitan.config.override import derive, override
from torchtitan.models.common.nn_modules import RMSNorm

from atom.kernels.sharded import local, local_weight, placed


class _Norm(torch.autograd.Function):
    """y = x / rms(x) * weight, with the fault named by the last argument."""

    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, fault: str
    ) -> torch.Tensor:
        if fault == "strides":
            contiguous = [1]
            for size in reversed(x.shape[1:]):
                contiguous.insert(0, contiguous[0] * size)
            x = torch.as_strided(x, x.shape, contiguous)
        if fault == "rounding":
            x = x.half().float()
        counted = x[..., : x.shape[-1] // 4 * 4] if fault == "odd" else x
        mean = counted.square().sum(dim=-1, keepdim=True) / x.shape[-1]
        scale = (mean + eps).rsqrt()
        context.save_for_backward(x, weight, scale)
        context.fault = fault
        return x * scale * weight

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> Any:
        x, weight, scale = context.saved_tensors
        if context.fault == "strides of gradients":
            gradient = torch.as_strided(gradient, gradient.shape, x.stride())
        normed = x * scale
        weight_gradient = (gradient * normed).flatten(0, -2).sum(dim=0)
        inner = gradient * weight
        projected = (inner * normed).mean(dim=-1, keepdim=True)
        if context.fault == "gradient":
            projected = torch.zeros_like(projected)
        return scale * (inner - normed * projected), weight_gradient, None, None


def function(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _Norm.apply(x, weight, eps, "")


def wrong_function(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _Norm.apply(x, weight, eps, "gradient")


class _FaultyNorm(RMSNorm):
    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        fault: str = ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.fault = config.fault

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        assert self.fault != "cuda" or input.is_cuda, "this kernel is for CUDA"
        return _Norm.apply(input, self.weight, self.eps, self.fault)


@override(target=RMSNorm.Config, exact=True)
def twin(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _FaultyNorm.Config)


@override(target=RMSNorm.Config, exact=True)
def wrong_gradient(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _FaultyNorm.Config, fault="gradient")


@override(target=RMSNorm.Config, exact=True)
def wrong_for_odd_sizes(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _FaultyNorm.Config, fault="odd")


@override(target=RMSNorm.Config, exact=True)
def ignores_strides(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _FaultyNorm.Config, fault="strides")


@override(target=RMSNorm.Config, exact=True)
def ignores_strides_of_gradients(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _FaultyNorm.Config, fault="strides of gradients")


@override(target=RMSNorm.Config, exact=True)
def rounds_too_much(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _FaultyNorm.Config, fault="rounding")


@override(target=RMSNorm.Config, exact=True)
def cuda_only(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _FaultyNorm.Config, fault="cuda")


@override(target=RMSNorm.Config, exact=True, fqns=["blocks.*"])
def leaves_the_node(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _FaultyNorm.Config)


@override(target=RMSNorm.Config, exact=True)
def loses_the_sharding(node: RMSNorm.Config) -> RMSNorm.Config:
    return _FaultyNorm.Config(
        normalized_shape=node.normalized_shape, eps=node.eps, param_init=node.param_init
    )


# ---------------------------------------------------------------------------- Triton


@triton.jit
def _rms_norm_kernel(
    x, weight, y, row_stride, width, eps, masked: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0)
    columns = tl.arange(0, block)
    inside = columns < width
    # The fault: without it, what lies after a row is counted as if it were of the row.
    counted = inside if masked else columns < block
    values = tl.load(x + row * row_stride + columns, mask=counted, other=0.0)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, axis=0) / width + eps)
    weights = tl.load(weight + columns, mask=inside, other=0.0)
    tl.store(y + row * width + columns, values * scale * weights, mask=inside)


@triton.jit
def _changes_type_kernel(x, weight, y, row_stride, width, eps, block: tl.constexpr):
    row = tl.program_id(0)
    # The fault: a compiler wants one type for all rounds of a loop, and 0 is an integer.
    total = 0
    for start in range(0, width, block):
        columns = start + tl.arange(0, block)
        values = tl.load(x + row * row_stride + columns, mask=columns < width, other=0.0)
        total += tl.sum(values * values, axis=0)
    scale = 1.0 / tl.sqrt(total / width + eps)
    for start in range(0, width, block):
        columns = start + tl.arange(0, block)
        inside = columns < width
        values = tl.load(x + row * row_stride + columns, mask=inside, other=0.0)
        weights = tl.load(weight + columns, mask=inside, other=0.0)
        tl.store(y + row * width + columns, values * scale * weights, mask=inside)


class _ChangesTypeFunction(_Norm):
    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, _fault: str
    ) -> torch.Tensor:
        rows, y = x.reshape(-1, x.shape[-1]), x.new_empty(x.shape)
        width = x.shape[-1]
        _changes_type_kernel[(rows.shape[0],)](rows, weight, y, width, width, eps, 16)
        scale = (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
        context.save_for_backward(x, weight, scale)
        context.fault = ""
        return y


class _ChangesType(RMSNorm):
    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        pass

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ChangesTypeFunction.apply(input, self.weight, self.eps, "")


@override(target=RMSNorm.Config, exact=True)
def triton_changes_type(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _ChangesType.Config)


class _TritonFunction(_Norm):
    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, masked: bool
    ) -> torch.Tensor:
        width, block = x.shape[-1], triton.next_power_of_2(x.shape[-1])
        # Room after the last row, so that the fault reads other numbers and not beyond memory.
        rows = torch.cat([x.reshape(-1, width), x.new_ones(block // width + 1, width)])
        y = x.new_empty(x.shape)
        _rms_norm_kernel[(rows.shape[0] - block // width - 1,)](
            rows, weight, y, width, width, eps, masked, block
        )
        scale = (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
        context.save_for_backward(x, weight, scale)
        context.fault = ""
        return y


class _TritonNorm(RMSNorm):
    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        masked: bool = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.masked = config.masked

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _TritonFunction.apply(input, self.weight, self.eps, self.masked)


@override(target=RMSNorm.Config, exact=True)
def triton_without_mask(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _TritonNorm.Config, masked=False)


class _OfParts(_TritonNorm):
    """Takes this rank's part of what it is given, whatever holds that."""

    @dataclass(kw_only=True, slots=True)
    class Config(_TritonNorm.Config):
        whole: bool = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.whole = config.whole

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # The fault: a weight's gradient of one part of the rows is taken for that of all.
        weight = local_weight(self.weight, input) if self.whole else local(self.weight)
        return placed(_TritonFunction.apply(local(input), weight, self.eps, True), input)


@override(target=RMSNorm.Config, exact=True)
def triton_of_parts_twin(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _OfParts.Config)


@override(target=RMSNorm.Config, exact=True)
def triton_takes_a_part_for_the_whole(node: RMSNorm.Config) -> RMSNorm.Config:
    return derive(node, _OfParts.Config, whole=False)
