"""Every option is a valid section of torchtitan's ParallelismConfig and lays out its ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from torchtitan.config import ParallelismConfig, TrainingConfig

from atom.errors import UserError
from atom.recipe.run import Run
from atom.titan.checks import layout
from atom_parallelism.unsharded import unsharded

CONF = Path(__file__).parents[1] / "atom_parallelism/conf/parallelism"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "auto")
"""Those that give degrees; ``auto`` chooses them."""


def run(option: str, ranks: int | None = None, **overrides: object) -> Run:
    section = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    return Run.model_validate(
        {name: {"name": "any"} for name in ("architecture", "tokenizer", "dataset", "optimizer")}
        | {"parallelism": section | overrides, "launch": {"ranks": ranks}}
    )


@pytest.mark.parametrize("option", OPTIONS)
def test_ranks_follow_from_the_layout(option: str) -> None:
    expected = {"single": 1, "fsdp": 8, "ddp": 8, "hsdp": 8, "tp": 2, "pp": 2, "cp": 2, "4d": 16}
    expected |= {"ep": 2, "ep_tp": 4, "5d": 16, "unsharded": 1}
    config, ranks = layout.resolve(run(option), available=8)
    assert ranks == expected[option]
    product = 1
    for name in layout.DEGREES:
        assert getattr(config, name) >= 1
        product *= getattr(config, name)
    assert product == ranks


@pytest.mark.parametrize(
    ("ranks", "spmd_backend", "training", "says"),
    [
        (2, "spmd_types", {}, "one rank, and this run has 2"),
        (1, "full_dtensor", {}, "full_dtensor"),
        (1, "spmd_types", {"mixed_precision_param": "bfloat16"}, "training.dtype=float32"),
        (1, "spmd_types", {"enable_cpu_offload": True}, "belongs to FSDP"),
    ],
)
def test_what_unsharded_leaves_out_is_refused(
    ranks: int, spmd_backend: Any, training: dict[str, Any], says: str
) -> None:
    section = TrainingConfig(**{"mixed_precision_param": "float32"} | training)
    context: Any = SimpleNamespace(world_size=ranks, training=section)
    with pytest.raises(UserError, match=says):
        unsharded(ParallelismConfig(spmd_backend=spmd_backend), context)


def test_unsharded_has_no_sharding_to_choose() -> None:
    config = ParallelismConfig(fsdp_reshard_after_forward="never")
    context: Any = SimpleNamespace(world_size=1, training=None)
    with pytest.raises(UserError, match="belongs to FSDP, which unsharded does not use"):
        unsharded(config, context)


def test_any_degree_can_be_what_is_left() -> None:
    config, ranks = layout.resolve(run("4d", ranks=32, tensor_parallel_degree=-1), available=1)
    assert (ranks, config.tensor_parallel_degree) == (32, 4)


@pytest.mark.parametrize(
    ("option", "ranks", "overrides", "says"),
    [
        ("tp", None, {"tensor_parallel_degre": 2}, "tensor_parallel_degree"),
        ("fsdp", None, {"context_parallel_degree": -1}, "only one degree"),
        ("ep", None, {"expert_parallel_degree": 4}, "must divide the 2 ranks"),
    ],
)
def test_impossible_layouts_are_told(
    option: str, ranks: int | None, overrides: dict[str, int], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        layout.resolve(run(option, ranks, **overrides), available=1)
