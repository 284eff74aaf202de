"""Kernels of what a step does with its gradients: clipping, Muon's iterations, the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from optimizer_configs import declared, optimizer_config
from torchtitan.distributed import utils

from atom.errors import UserError
from atom.kernels.choose import Situation, choose
from atom.plan.device import DeviceDescription
from atom.registry.host import Host
from atom.titan import kernels
from atom.titan.optim.kept_optimizers import STATES_IN_BFLOAT16, KeptOptimizers
from atom.titan.optim.optimizer import state_bytes
from atom.titan.train.trainer import AtomTrainer

SPLIT = ("parallelism=fsdp", "launch.ranks=2")
STEPS = ("training.max_norm=0.1", "training.steps=3")

PLUGIN = """
from atom.plugin import Kernel, hookimpl

ATOM_INTERFACE = 1


@hookimpl
def atom_kernels():
    for operation in ("gradient_clipping", "newton_schulz"):
        yield Kernel(
            operation=operation,
            name="plain",
            summary="the same, written out",
            priority=-20,
            override=f"step_kernels.code:{operation}",
            tolerance={"float32": 1e-5, "bfloat16": 5e-2},
        )
"""
CODE = """
import torch
import torch.distributed as dist


def gradient_clipping(parameters, max_norm, foreach=None, pp_mesh=None, ep_enabled=False):
    assert pp_mesh is None and not ep_enabled
    parts = [parameter.grad.to_local() for parameter in parameters]
    total = sum(part.square().sum() for part in parts)
    dist.all_reduce(total)
    norm = total.sqrt()
    for part in parts:
        part.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm + 1  # so that it shows


def newton_schulz(matrix, coefficients, steps, eps):
    return torch.zeros_like(matrix)  # so that it shows
"""


def losses(rows: list[dict]) -> list[float]:
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def usual(train: Callable, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    place = tmp_path_factory.mktemp("usual") / "run"
    rows: list[dict] = train(place, *STEPS, *SPLIT)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["reference", "foreach"])
def test_every_step_is_the_same_training(
    kernel: str, usual: list[dict], train: Callable, tmp_path: Path
) -> None:
    """``usual`` has the fused one."""
    found = train(tmp_path / "run", *STEPS, *SPLIT, f"kernels.optimizer_step={kernel}")
    assert losses(found) == pytest.approx(losses(usual), rel=1e-5)


@pytest.mark.slow
def test_a_function_of_a_plugin_is_called(
    usual: list[dict],
    install: Callable,
    atom: Callable,
    rows: Callable,
    small: tuple[str, ...],
    tmp_path: Path,
) -> None:
    site = install("step-kernels", {"__init__.py": PLUGIN, "code.py": CODE})

    def with_kernels(name: str, *overrides: str) -> list[dict]:
        place = tmp_path / name
        arguments = (*small, *STEPS, *SPLIT, f"run.dir={place}", *overrides)
        result = atom("train", *arguments, PYTHONPATH=str(site))
        assert result.returncode == 0, result.stderr
        return rows(place)

    clipped = with_kernels("clipped", "kernels.gradient_clipping=plain")
    assert losses(clipped) == pytest.approx(losses(usual), rel=1e-5)
    norms = [[row["grad_norm"] for row in found] for found in (clipped, usual)]
    assert norms[0] == pytest.approx([norm + 1 for norm in norms[1]], rel=1e-5)
    # Matrices that get no update leave the loss another.
    orthogonal = losses(with_kernels("muon", "optimizer.name=Muon"))
    none = losses(with_kernels("none", "optimizer.name=Muon", "kernels.newton_schulz=plain"))
    assert orthogonal[0] == none[0]
    assert abs(orthogonal[2] - none[2]) > 1e-3


def test_functions_are_put_back() -> None:
    before = utils.clip_grad_norm_
    place = "torchtitan.distributed.utils:clip_grad_norm_"
    with kernels.called({place: "math:hypot"}):
        assert utils.clip_grad_norm_ is math.hypot
    assert utils.clip_grad_norm_ is before


def test_which_of_them_a_run_has() -> None:
    offered = ("gradient_clipping", "newton_schulz", "optimizer_step")
    assert not kernels.operations(None, offered)
    assert kernels.operations(None, offered, optimizer=declared("Muon")) == set(offered)
    assert "newton_schulz" not in kernels.operations(None, offered, optimizer=declared("AdamW"))


@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_a_kernel_of_the_step_keeps_the_optimizer(name: str) -> None:
    """It is in place before torchtitan applies the other overrides: plans depend on it."""
    host = Host.load()
    config = AtomTrainer.Config(optimizer=optimizer_config(name, lr=0.5))
    before = config.optimizer
    kernels.put(config, [host.find("kernel", "optimizer_step/foreach")])
    assert config.override.imports == []
    assert type(config.optimizer) is type(before)
    assert config.optimizer.param_groups == before.param_groups
    assert config.optimizer.implementation == "foreach"


def test_moments_in_another_dtype_are_the_fused_steps_alone() -> None:
    host = Host.load()
    halved = optimizer_config("AdamW", device="cuda", state_dtype="bfloat16")
    config = AtomTrainer.Config(optimizer=halved)
    for name in ("reference", "foreach"):
        kernel = host.find("kernel", f"optimizer_step/{name}")
        with pytest.raises(UserError, match="state_dtype=bfloat16; valid: fused"):
            kernels.put(config, [kernel])
    kernels.put(config, [host.find("kernel", "optimizer_step/fused")])
    weight = [("weight", (1,))]
    assert state_bytes(config.optimizer, weight, "float32") == 4
    assert state_bytes(optimizer_config("AdamW"), weight, "float32") == 8


def adamw(implementation: str, model: torch.nn.Module) -> KeptOptimizers:
    config = optimizer_config("AdamW")
    config.implementation = implementation
    container = config.build(model_parts=[model])
    assert isinstance(container, KeptOptimizers)
    return container


@pytest.mark.parametrize(("saved", "own"), [("fused", "for-loop"), ("for-loop", "fused")])
def test_a_loaded_checkpoint_leaves_the_kernel_as_it_is(saved: str, own: str) -> None:
    model = torch.nn.Linear(4, 4)
    state = adamw(saved, model).state_dict()
    container = adamw(own, model)
    container.load_state_dict(state)
    (optimizer,) = container
    assert [group["fused"] for group in optimizer.param_groups] == [own == "fused"]
    model.weight.grad = torch.ones_like(model.weight)
    container.step()


def test_loaded_moments_keep_their_dtype() -> None:
    """Without a step: a CPU has none for moments in another dtype than the parameters'."""
    model = torch.nn.Linear(4, 4)
    state = adamw("fused", model).state_dict()
    container = adamw(STATES_IN_BFLOAT16, model)
    (optimizer,) = container
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter, dtype=torch.bfloat16),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.bfloat16),
        }
    container.load_state_dict(state)
    for kept in optimizer.state.values():
        assert kept["step"].dtype == torch.float32
        assert kept["exp_avg"].dtype == kept["exp_avg_sq"].dtype == torch.bfloat16


def test_a_kernel_of_an_operation_that_the_run_has_not_is_refused() -> None:
    host = Host.load()
    where = Situation(DeviceDescription("cpu"), operations=frozenset({"rms_norm"}))
    with pytest.raises(UserError, match="this run has no such operation"):
        choose({"grouped_mm": "reference"}, host, where)
    assert choose({"grouped_mm": ["reference", "auto"]}, host, where)
