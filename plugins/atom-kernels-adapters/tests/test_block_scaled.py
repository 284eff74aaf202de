"""The layers that become MXFP8 or NVFP4, and how near torchao's emulation of MXFP8 comes."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torchtitan.models.common import Linear

from atom.plugin import Kernel
from atom.registry.host import Host
from atom.titan import kernels
from atom.titan.contracts.contract import tree
from atom.titan.contracts.sizes import REGULAR

pytestmark = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")

SIZES = replace(REGULAR[0], head_dim=64, hidden_dim=256)


def declared(name: str) -> Kernel:
    declaration = Host.load().find("kernel", f"linear/{name}").declaration
    assert isinstance(declaration, Kernel)
    return declaration


def layers(name: str, **sizes: int) -> dict[str, Any]:
    """Return the linear layers of a model with the kernel in place, by name."""
    config = tree("llama", replace(SIZES, **sizes))
    kernels.replace(config, [declared(name)])
    return {name: node for name, node, _, _ in config.model_spec.model.traverse(Linear.Config)}


@pytest.mark.parametrize(("name", "odd"), [("mxfp8", 48), ("nvfp4", 192)])
def test_the_output_layer_and_odd_sizes_stay_as_they_are(name: str, odd: int) -> None:
    found = layers(name)
    assert {layer for layer, node in found.items() if type(node) is Linear.Config} == {"lm_head"}
    assert len(found) > 4
    found = layers(name, hidden_dim=odd)
    kept = {layer for layer, node in found.items() if type(node) is Linear.Config}
    assert kept == {"lm_head", *(f"layers.0.feed_forward.w{i}" for i in (1, 2, 3))}
    with torch.device("meta"):
        assert type(layers(name)["layers.0.feed_forward.w1"].build()).__name__ in (
            "MXFP8Linear",
            "NVFP4Linear",
        )


def test_the_emulated_product_is_within_the_tolerance() -> None:
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

    node = layers("mxfp8")["layers.0.feed_forward.w1"]
    module = node.build().to(torch.bfloat16)
    module.kernel_preference = KernelPreference.EMULATED
    torch.manual_seed(0)
    torch.nn.init.normal_(module.weight)
    x = torch.randn(2, 32, node.in_features, dtype=torch.bfloat16, requires_grad=True)
    found = module(x)
    expected = x.double() @ module.weight.double().T
    error = ((found.double() - expected).abs().max() / expected.abs().max()).item()
    assert 1e-3 < error <= declared("mxfp8").tolerance["bfloat16"]
