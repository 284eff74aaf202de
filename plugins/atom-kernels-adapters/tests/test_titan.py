"""torchtitan's own overrides, as far as a CPU goes: the weights under the names that all have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchtitan.models.common.moe import GroupedExperts

from atom.plugin import Kernel
from atom.registry.host import Host, resolve
from atom.titan.contracts.contract import tree
from atom.titan.contracts.operations import FEED_FORWARD
from atom.titan.contracts.sizes import Sizes

NODES = {
    "feed_forward": FEED_FORWARD.node(tree("llama", Sizes())),
    "grouped_mm": GroupedExperts.Config(dim=8, hidden_dim=12, num_experts=4),
}


@pytest.mark.parametrize("operation", NODES)
def test_checkpoints_hold_the_weights_of_the_reference(operation: str) -> None:
    component = Host.load().find("kernel", f"{operation}/titan_fused")
    declaration = component.declaration
    assert isinstance(declaration, Kernel)
    assert declaration.override is not None
    fuse = resolve(declaration.override, component)
    torch.manual_seed(0)
    modules: list[Any] = [node.build() for node in (NODES[operation], fuse(NODES[operation]))]
    for parameter in modules[0].parameters():
        torch.nn.init.normal_(parameter)
    weights = modules[0].state_dict()
    modules[1].load_state_dict(weights)
    found = modules[1].state_dict()
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    # The optimizer knows two of them as one.
    assert "w13" in dict(modules[1].named_parameters())
