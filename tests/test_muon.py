"""Muon: as torch's on one rank, and the same training under every layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from optimizer_configs import optimizer_config

from atom.titan.optim.muon import Muon

MUON = ("optimizer.name=Muon", "training.steps=4")
TOLERANCE = 2e-4


def test_it_is_torchs_muon_on_one_rank() -> None:
    shapes = (8, 24), (24, 8), (8, 8)
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    options = {"lr": 0.1, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    pair = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in pair:
            optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_matrices_of_layers_are_muons_and_all_else_is_adamws() -> None:
    layer = torch.nn.ModuleDict({"wq": torch.nn.Linear(8, 8), "norm": torch.nn.RMSNorm(8)})
    embedding = torch.nn.Embedding(16, 8)
    first = torch.nn.ModuleDict({"layers": torch.nn.ModuleDict({"0": layer}), "tok": embedding})
    last = torch.nn.ModuleDict({"norm": torch.nn.RMSNorm(8), "lm_head": torch.nn.Linear(8, 16)})
    config = optimizer_config("Muon", lr=1e-3, weight_decay=0.2, momentum=0.9)
    container = config.build(model_parts=[first, last])
    found = {
        name: (type(optimizer).__name__, group["lr"], group["weight_decay"])
        for optimizer in container
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert found.pop("layers.0.wq.weight") == ("Muon", 1e-3, 0.2)
    assert set(found.values()) == {("AdamW", 1e-3, 0.2)}
    assert {"layers.0.wq.bias", "layers.0.norm.weight", "tok.weight", "lm_head.weight"} <= set(
        found
    )


@pytest.fixture(scope="module")
def alone(
    train: Callable[..., list[dict]], tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    place = tmp_path_factory.mktemp("muon") / "run"
    return [row["loss"] for row in train(place, *MUON, "parallelism=single")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("parallelism=fsdp", "launch.ranks=2"),
        ("parallelism=tp", "parallelism.data_parallel_shard_degree=2", "launch.ranks=4"),
        ("parallelism=pp", "launch.ranks=2"),
    ],
    ids=["fsdp", "fsdp and tp", "pp"],
)
def test_training_does_not_depend_on_the_layout(
    layout: tuple[str, ...],
    train: Callable[..., list[dict]],
    alone: list[float],
    tmp_path: Path,
) -> None:
    """The iterations are in bfloat16, of gradients that layouts add up in another order."""
    losses = [row["loss"] for row in train(tmp_path / "run", *MUON, *layout)]
    assert losses == pytest.approx(alone, abs=TOLERANCE)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_it_goes_on_from_a_checkpoint(
    train: Callable[..., list[dict]], alone: list[float], tmp_path: Path
) -> None:
    """Its momentum is in it: the losses are bitwise those of the run that went on."""
    place = tmp_path / "run"
    train(place, "optimizer.name=Muon", "training.steps=2", "parallelism=single")
    rows = train(place, *MUON, "parallelism=single")
    assert [row["loss"] for row in rows] == alone
