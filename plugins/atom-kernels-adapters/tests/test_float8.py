"""The layers that become float8, and how near torchao's emulation of them comes on a CPU."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torchtitan.config.override import OverrideConfig, apply_overrides
from torchtitan.models.common import Linear

from atom.host import Host
from atom.plugin import Kernel
from atom.testing.operation import REGULAR, Sizes, tree

pytestmark = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")

each = pytest.mark.parametrize(
    "name", ["float8_rowwise", "float8_rowwise_gw_hp", "float8_tensorwise"]
)


def replaced(kernel: Kernel, sizes: Sizes) -> tuple[Any, dict[str, Any]]:
    """Return the model's config with the kernel in place, and its linear layers by name."""
    assert kernel.override is not None
    config = tree("llama", sizes)
    apply_overrides(OverrideConfig(imports=[kernel.override.replace(":", ".")]), config)
    model = config.model_spec.model
    return model, {name: node for name, node, _, _ in model.traverse(Linear.Config)}


def declared(name: str) -> Kernel:
    declaration = Host.load().find("kernel", f"linear/{name}").declaration
    assert isinstance(declaration, Kernel)
    return declaration


@each
def test_the_output_layer_and_odd_sizes_stay_as_they_are(name: str) -> None:
    kernel = declared(name)
    _, layers = replaced(kernel, REGULAR[0])
    kept = {layer for layer, node in layers.items() if type(node) is Linear.Config}
    assert kept == {"lm_head"}
    assert len(layers) > 4
    _, layers = replaced(kernel, replace(REGULAR[0], hidden_dim=72))
    kept = {layer for layer, node in layers.items() if type(node) is Linear.Config}
    assert kept == {"lm_head", *(f"layers.0.feed_forward.w{i}" for i in (1, 2, 3))}


@each
def test_the_emulated_product_is_within_the_tolerance(name: str) -> None:
    kernel = declared(name)
    tolerance = kernel.tolerance["bfloat16"]
    _, layers = replaced(kernel, REGULAR[0])
    node = layers["layers.0.feed_forward.w1"]
    node._torchao_config = replace(node._torchao_config, emulate=True)
    module = node.build().to(torch.bfloat16)
    torch.manual_seed(0)
    torch.nn.init.normal_(module.weight)
    x = torch.randn(2, 32, node.in_features, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(2, 32, node.out_features, dtype=torch.bfloat16)

    found = module(x)
    exact = x.double(), module.weight.double()
    expected = exact[0] @ exact[1].T
    pairs = [(found, expected)]
    leaves = (x, module.weight)
    pairs += zip(
        torch.autograd.grad(found, leaves, gradient),
        torch.autograd.grad(expected, leaves, gradient.double()),
        strict=True,
    )
    errors = [
        ((one.double() - other).abs().max() / other.abs().max()).item() for one, other in pairs
    ]
    assert max(errors) <= tolerance
    assert errors[0] > 1e-3  # it is float8, and not what it replaces
