"""torchao's linear layers in float8, as overrides of torchtitan's.

It is what torchtitan's ``Float8LinearConverter`` makes of a model, layer by layer: the same module,
in the layers of attention, feed-forwards and shared experts whose sizes the hardware can take. The
output layer and what routes tokens to experts stay in the run's own dtype.
"""

from __future__ import annotations

import torch._inductor.config
from torchao.float8 import Float8LinearConfig
from torchtitan.components.quantization.float8 import Float8Linear
from torchtitan.config.override import derive, override
from torchtitan.models.common import Linear

_LAYERS = ["*.attention.*", "*.feed_forward.*", "*.shared_experts.w[123]"]
_UNIT = 16
"""Float8 products take matrices whose sizes are multiples of this."""


def _in_float8(node: Linear.Config, recipe: str) -> Linear.Config:
    if node.in_features % _UNIT or node.out_features % _UNIT:
        return node
    if recipe == "rowwise":
        # As torchtitan's converter has it: torch's issue 150859.
        torch._inductor.config.emulate_precision_casts = True
    config = Float8LinearConfig.from_recipe_name(recipe)
    found: Linear.Config = derive(node, Float8Linear.Config, _torchao_config=config)
    return found


# One function an override: torchtitan knows them by their names.
@override(target=Linear.Config, exact=True, fqns=_LAYERS, description="float8, rowwise")
def float8_rowwise(node: Linear.Config) -> Linear.Config:
    return _in_float8(node, "rowwise")


@override(target=Linear.Config, exact=True, fqns=_LAYERS, description="float8, rowwise but dW")
def float8_rowwise_gw_hp(node: Linear.Config) -> Linear.Config:
    return _in_float8(node, "rowwise_with_gw_hp")


@override(target=Linear.Config, exact=True, fqns=_LAYERS, description="float8, tensorwise")
def float8_tensorwise(node: Linear.Config) -> Linear.Config:
    return _in_float8(node, "tensorwise")
