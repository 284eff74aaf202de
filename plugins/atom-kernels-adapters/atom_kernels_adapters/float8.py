"""Override torchtitan's linear layers with torchao's float8 layers.

The result equals that of torchtitan's ``Float8LinearConverter``, layer by layer: the same module,
in the layers of attention, feed-forwards and shared experts with sizes that the hardware supports.
The output layer and the router stay in the run's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchao.float8 import Float8LinearConfig
from torchao.float8.fsdp_utils import WeightWithDynamicFloat8CastTensor
from torchtitan.components.quantization.float8 import Float8Linear
from torchtitan.config.override import derive, override
from torchtitan.models.common import Linear

from atom_kernels_adapters.repairs import PRECISION_CASTS

_LAYERS = ["*.attention.*", "*.feed_forward.*", "*.shared_experts.w[123]"]
_UNIT = 16
"""Float8 products require matrix sizes that are multiples of this."""


class GatheredLinear(Float8Linear):
    """A float8 layer with a weight that FSDP gathers in float8: half the bytes of bfloat16.

    Each rank casts its shard with the scale of the whole weight, from one small all-reduce per
    weight. torchao's ``from_float`` wraps the weight of an existing layer; torchtitan builds the
    layer itself.
    """

    weight: torch.nn.Parameter

    @dataclass(kw_only=True, slots=True)
    class Config(Float8Linear.Config):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = torch.nn.Parameter(
            WeightWithDynamicFloat8CastTensor(
                self.weight.detach(),
                self.linear_mm_config,
                self.config.cast_config_weight.target_dtype,
            )
        )
        self.register_state_dict_post_hook(_unwrap)


def _unwrap(_layer: torch.nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Save the plain weight in a state dict, so that a checkpoint has no trace of the wrapper."""
    weight = state[f"{prefix}weight"]
    if not isinstance(weight, DTensor):
        state[f"{prefix}weight"] = weight._tensor
        return
    local: Any = weight.to_local()
    state[f"{prefix}weight"] = DTensor.from_local(
        local._tensor,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


def _in_float8(
    node: Linear.Config, recipe: str, layer: type[Float8Linear.Config] = Float8Linear.Config
) -> Linear.Config:
    if node.in_features % _UNIT or node.out_features % _UNIT:
        return node
    if recipe == "rowwise":
        PRECISION_CASTS.apply(True)
    config = Float8LinearConfig.from_recipe_name(recipe)
    found: Linear.Config = derive(node, layer, _torchao_config=config)
    return found


# One function per override: torchtitan identifies overrides by function name.
@override(target=Linear.Config, exact=True, fqns=_LAYERS, description="float8, rowwise")
def float8_rowwise(node: Linear.Config) -> Linear.Config:
    return _in_float8(node, "rowwise")


@override(target=Linear.Config, exact=True, fqns=_LAYERS, description="float8, rowwise but dW")
def float8_rowwise_gw_hp(node: Linear.Config) -> Linear.Config:
    return _in_float8(node, "rowwise_with_gw_hp")


@override(target=Linear.Config, exact=True, fqns=_LAYERS, description="float8, tensorwise")
def float8_tensorwise(node: Linear.Config) -> Linear.Config:
    return _in_float8(node, "tensorwise")


@override(target=Linear.Config, exact=True, fqns=_LAYERS, description="float8, gathered so")
def float8_tensorwise_gathered(node: Linear.Config) -> Linear.Config:
    return _in_float8(node, "tensorwise", GatheredLinear.Config)
