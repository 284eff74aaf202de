"""Override torchtitan's linear layers with torchao's MXFP8 and NVFP4 layers.

The result equals that of torchtitan's converters, layer by layer, in the layers of attention,
feed-forwards and shared experts with sizes that the hardware supports. The output layer and the
router stay in the run's dtype.
"""

from __future__ import annotations

from torchtitan.components.quantization.mx import MXFP8Linear
from torchtitan.components.quantization.nvfp4 import _NVFP4_BLOCK, NVFP4Linear
from torchtitan.config.override import derive, override
from torchtitan.models.common import Linear

_LAYERS = ["*.attention.*", "*.feed_forward.*", "*.shared_experts.w[123]"]
_MX_BLOCK = 32
"""Elements that share a scale in MXFP8."""


def _in_blocks(node: Linear.Config, layer: type[Linear.Config], unit: int) -> Linear.Config:
    if node.in_features % unit or node.out_features % unit:
        return node
    found: Linear.Config = derive(node, layer)
    return found


@override(target=Linear.Config, exact=True, fqns=_LAYERS, description="MXFP8")
def mxfp8(node: Linear.Config) -> Linear.Config:
    return _in_blocks(node, MXFP8Linear.Config, _MX_BLOCK)


@override(target=Linear.Config, exact=True, fqns=_LAYERS, description="NVFP4")
def nvfp4(node: Linear.Config) -> Linear.Config:
    return _in_blocks(node, NVFP4Linear.Config, _NVFP4_BLOCK)
