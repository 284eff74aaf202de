"""The layers that become float8, and how near torchao's emulation of them comes on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torchtitan.models.common import Linear

from atom.plugin import Kernel
from atom.registry.host import Host
from atom.testing import ranks, runs
from atom.testing.installing import describe
from atom.titan import kernels
from atom.titan.contracts.contract import tree
from atom.titan.contracts.sizes import REGULAR, Sizes

pytestmark = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")

each = pytest.mark.parametrize(
    "name", ["float8_rowwise", "float8_rowwise_gw_hp", "float8_tensorwise"]
)

PLUGIN = """
from atom.plugin import Kernel, hookimpl

ATOM_INTERFACE = 1

@hookimpl
def atom_kernels():
    for name in ("plain", "gathered"):
        override, tolerance = f"emulated_overrides:{name}", {"float32": 0.2}
        yield Kernel(
            operation="linear", name=name, summary="emulated", override=override,
            tolerance=tolerance, priority=-100,
        )
"""
OVERRIDES = """
from dataclasses import replace

from torchtitan.config.override import override
from torchtitan.models.common import Linear

from atom_kernels_adapters import float8

def emulated(node):
    if hasattr(node, "_torchao_config"):
        node._torchao_config = replace(node._torchao_config, emulate=True)
    return node

@override(target=Linear.Config, exact=True, fqns=float8._LAYERS, description="")
def plain(node):
    return emulated(float8.float8_tensorwise(node))

@override(target=Linear.Config, exact=True, fqns=float8._LAYERS, description="")
def gathered(node):
    return emulated(float8.float8_tensorwise_gathered(node))
"""
"""The two tensorwise kernels for a CPU, where torchao emulates them."""

LLAMA = {"name": "llama3", "dim": 64, "n_layers": 2, "n_heads": 4, "multiple_of": 64}
"""Of the package atom-llama."""

LAYOUTS = {"fsdp": runs.LAYOUTS["fsdp"], "single": runs.SINGLE}


def replaced(kernel: Kernel, sizes: Sizes) -> tuple[Any, dict[str, Any]]:
    """Return the model's config with the kernel in place, and its linear layers by name."""
    config = tree("llama", sizes)
    kernels.replace(config, [kernel])
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


@pytest.fixture
def emulating(tmp_path: Path) -> Iterator[ranks.Ranks]:
    """Ranks that have the emulated kernels installed."""
    (tmp_path / "emulated.py").write_text(PLUGIN)
    (tmp_path / "emulated_overrides.py").write_text(OVERRIDES)
    describe(tmp_path, "emulated")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    started = ranks.Ranks({"PYTHONPATH": path})
    yield started
    started.close()


def sections(linear: str, steps: int, layout: str = "fsdp") -> runs.Sections:
    """Return a run with a kernel of the linear layers."""
    return runs.sections(LLAMA, LAYOUTS[layout], steps=steps, kernels={"linear": linear})


@pytest.mark.slow
def test_weights_gathered_in_float8_train_alike(emulating: ranks.Ranks) -> None:
    """The scale is that of the whole weight either way; and checkpoints hold weights, no more."""

    def losses(run: runs.Sections, after: runs.Sections | None = None) -> list[float]:
        return [row.loss for row in emulating.train(run, after=after)]

    plain = losses(sections("plain", 8))
    gathered = losses(sections("gathered", 8), after=sections("gathered", 5))
    assert gathered == pytest.approx(plain, abs=1e-5)
    reference = losses(sections("auto", 8))
    assert plain != pytest.approx(reference, abs=1e-5), "float8 makes no difference"
    moved = losses(sections("gathered", 9, "single"), after=sections("gathered", 8))
    assert len(moved) == 9
