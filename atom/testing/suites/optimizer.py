"""The suite of an optimizer: every layout trains as one rank does, and a resumed run as if never
interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from atom.plugin import Optimizer, OptimizerContext, OptimizerPart
from atom.registry.host import Component
from atom.testing import partners, runs
from atom.testing.applicable import where
from atom.testing.opened import opened
from atom.testing.options import Options
from atom.testing.suites.component import ComponentSuite

STEPS = 4
LAYOUTS = ("fsdp", "tp")
SHAPES = {
    "tok_embeddings.weight": (16, 8),
    "layers.0.wide.weight": (6, 24),
    "layers.0.tall.weight": (24, 6),
    "layers.0.norm.weight": (8,),
    "layers.0.experts.w1": (3, 6, 8),
    "scale": (),
}
"""Parameters of the small model that a step is tested on."""

Tensors = dict[str, Any]


class OptimizerSuite(Options, ComponentSuite):
    """The contract of an optimizer.

    Options, given by ``conformance(…).having(…)``:

    Attributes:
        reference: ``reference(weights, gradients, config) -> weights``: the weights after a step
            for each of the gradients, which are dictionaries like the weights. It is a published
            implementation, or the formulas of the paper in a plain loop.
        tolerance: largest difference from the reference, relative to the largest change.
        unsupported: layout (``fsdp``, ``tp``) -> why the optimizer refuses it, or trains otherwise.
            The test of that layout is skipped with the reason.
        architecture: the section of a run that it is tested on; by default a small dense decoder.
    """

    kind = "optimizer"
    options = ("reference", "tolerance", "unsupported", "architecture")
    reference: ClassVar[Callable[[Tensors, Sequence[Tensors], Any], Tensors] | None] = None
    tolerance: ClassVar[float] = 1e-5
    unsupported: ClassVar[Mapping[str, str]] = {}
    architecture: ClassVar[Mapping[str, Any]] = {
        "name": f"{partners.PACKAGE}:{partners.ARCHITECTURES[0]}"
    }

    # ------------------------------------------------------------------------ one process

    def test_describes_its_parts(self, component: Component, config: BaseModel | None) -> None:
        """``build`` returns parts with ``lr`` and ``weight_decay``; one updates each parameter."""
        parts = _parts(component, config)
        assert parts
        for part in parts:
            assert isinstance(part, OptimizerPart), "build returns no atom.plugin.OptimizerPart"
            assert {"lr", "weight_decay"} <= part.options.keys()
        for name, shape in SHAPES.items():
            assert any(part.updates(name, shape) for part in parts), f"no part updates {name}"

    def test_keeps_the_state_that_it_declares(
        self, component: Component, config: BaseModel | None
    ) -> None:
        """The state has the declared names, the elements that ``state`` returns, and the dtype."""
        weights = _weights()
        container = _container(component, config, weights)
        _step(container, weights, _gradients(1)[0])
        found: set[str] = set()
        parts = _parts(component, config)
        for optimizer in container:
            for group in optimizer.param_groups:
                for name, parameter in zip(group["param_names"], group["params"], strict=True):
                    state = dict(optimizer.state[parameter])
                    found |= state.keys()
                    part = next(p for p in parts if p.updates(name, SHAPES[name]))
                    held = sum(value.numel() for key, value in state.items() if key != "step")
                    assert held == part.state(SHAPES[name]), f"{name}: another size of its state"
        declaration = component.declaration
        assert isinstance(declaration, Optimizer)
        assert found == set(declaration.state), "another state than is declared"

    @where(lambda suite, _: suite.reference is not None)
    def test_matches_its_reference(self, component: Component, config: BaseModel | None) -> None:
        """A few steps change the weights as the reference does, in float32."""
        reference = type(self).reference
        assert reference is not None
        weights, gradients = _weights(), _gradients(STEPS)
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        container = _container(component, config, weights)
        for gradient in gradients:
            _step(container, weights, gradient)
        copies = {name: weight.clone() for name, weight in before.items()}
        for name, expected in reference(copies, gradients, config).items():
            change = (expected - before[name]).abs().max().item()
            error = (weights[name].detach() - expected).abs().max().item()
            assert change > 0, f"{name}: the reference changes nothing"
            assert error <= self.tolerance * change, f"{name}: another step than the reference's"

    def test_a_rate_of_zero_changes_nothing(
        self, component: Component, config: BaseModel | None
    ) -> None:
        """With a learning rate of 0, a step with zero gradients creates the state and changes no
        weight: before a checkpoint is loaded, a run takes such a step."""
        weights = _weights()
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        container = _container(component, config, weights)
        container.state_dict()
        for name, weight in weights.items():
            assert weight.detach().equal(before[name]), f"{name}: changed without a step"

    def test_groups_have_their_own_options(
        self, component: Component, config: BaseModel | None
    ) -> None:
        """A parameter without a gradient changes by its decay alone, and not without decay."""
        weights = _weights()
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        groups = [
            {"match": "*norm*", "weight_decay": 0.0},
            {"match": "*", "weight_decay": 0.5},
        ]
        container = _container(component, config, weights, groups=groups)
        _step(container, weights, {name: weight * 0 for name, weight in before.items()})
        for name, weight in weights.items():
            decayed = not weight.detach().equal(before[name])
            assert decayed is ("norm" not in name), f"{name}: the decay of its group is ignored"

    # ------------------------------------------------------------------------ real runs

    @pytest.mark.slow
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_layout_trains_like_one_rank(self, layout: str) -> None:
        """Losses and gradient norms on real ranks equal those of one rank."""
        if layout in self.unsupported:
            pytest.skip(self.unsupported[layout])
        runs.assert_same(runs.train(self._run(runs.LAYOUTS[layout])), runs.train(self._run()))

    @pytest.mark.slow
    def test_resumes_as_if_uninterrupted(self) -> None:
        """A resumed run has the bits of one that was never interrupted."""
        rows = runs.train(self._run(), after=self._run(steps=STEPS // 2))
        expected = runs.train(self._run())
        assert [(row.loss, row.grad_norm) for row in rows] == [
            (row.loss, row.grad_norm) for row in expected
        ], "state that the checkpoint does not have"

    def _run(self, parallelism: dict[str, Any] | None = None, *, steps: int = STEPS) -> Any:
        section = {"name": self.name} | self.parameters
        return runs.sections(dict(self.architecture), parallelism, steps=steps, optimizer=section)


# ---------------------------------------------------------------------------- the small model


def _parts(component: Component, config: BaseModel | None) -> Sequence[OptimizerPart]:
    context = OptimizerContext(device="cpu", parameter_dtype="float32")
    parts: Sequence[OptimizerPart] = opened(component, config).call("build", context)
    return parts


def _container(
    component: Component,
    config: BaseModel | None,
    weights: Tensors,
    *,
    groups: Sequence[Mapping[str, Any]] = (),
) -> Any:
    from atom.recipe import optimizers
    from atom.titan.optim import optimizer

    section = optimizers.Optimizer.model_validate({"name": component.name, "groups": list(groups)})
    found = optimizer.config(
        opened(component, config), section, device="cpu", parameter_dtype="float32"
    )
    found.implementation = "for-loop"
    return found.build(model_parts=[_model(weights)])


def _model(weights: Tensors) -> Any:
    import torch

    model = torch.nn.Module()
    for name, weight in weights.items():
        *above, last = name.split(".")
        module = model
        for part in above:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, weight)
    return model


def _weights() -> Tensors:
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator) + 0.1)
        for name, shape in SHAPES.items()
    }


def _gradients(steps: int) -> list[Tensors]:
    """Return gradients of several sizes, as those of a training."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return [
        {
            name: torch.randn(shape, generator=generator) * 2.0 ** (step - 2)
            for name, shape in SHAPES.items()
        }
        for step in range(steps)
    ]


def _step(container: Any, weights: Tensors, gradients: Tensors) -> None:
    for name, weight in weights.items():
        weight.grad = gradients[name].clone()
    container.step()


CONFORMANCE = OptimizerSuite
