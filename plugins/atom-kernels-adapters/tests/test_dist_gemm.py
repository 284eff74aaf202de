"""torchtitan's fused products of TP: which nodes they take, and what these are given.

They compute in symmetric memory, which only GPUs have.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.models.common.dist_gemm import (
    AllGatherFusedFeedForward,
    AllGatherFusedQKVLinear,
    RowParallelLinear,
)

from atom.kernels.choose import Situation, choose
from atom.plan.device import named
from atom.registry.host import Host
from atom.titan import kernels
from atom.titan.contracts.contract import tree
from atom.titan.contracts.sizes import REGULAR
from atom.titan.train.trainer import AtomTrainer
from atom.titan.trainer_config import set_sharding

OPERATIONS = ("attention_projections", "feed_forward")


def replaced() -> Any:
    """Return the kit's model with the kernels in place, before it has shardings."""
    spec = tree("llama", REGULAR[0]).model_spec
    run = AtomTrainer.Config(model_spec=spec)
    kernels.put(run, [Host.load().find("kernel", f"{name}/dist_gemm") for name in OPERATIONS])
    assert run.override.imports == []
    return spec.model


def test_projections_and_feed_forwards_are_torchtitans_fused_ones() -> None:
    plain, model = tree("llama", REGULAR[0]).model_spec.model, replaced()
    layout = ParallelismConfig(tensor_parallel_degree=2)
    set_sharding(model, TrainingConfig(seq_len=64), layout)
    layer = model.layers[0]
    assert isinstance(layer.attention.qkv_linear, AllGatherFusedQKVLinear.Config)
    assert isinstance(layer.attention.wo, RowParallelLinear.Config)
    assert isinstance(layer.feed_forward, AllGatherFusedFeedForward.Config)
    # They gather and reduce themselves: nothing is left to do around them.
    assert layer.attention.sharding_config is None
    assert layer.feed_forward.sharding_config is None
    assert layer.attention.wo.sharding_config.state_shardings
    with torch.device("meta"):
        names, fused = ([n for n, _ in each.build().named_parameters()] for each in (plain, model))
    assert names == fused


def test_without_sequence_parallelism_there_is_nothing_to_fuse() -> None:
    layout = ParallelismConfig(tensor_parallel_degree=2, enable_sequence_parallel=False)
    with pytest.raises(ValueError, match="enable_sequence_parallel"):
        set_sharding(replaced(), TrainingConfig(seq_len=64), layout)


def test_they_are_for_tensor_parallelism_and_beside_no_kernel_of_linear() -> None:
    named_ones: dict[str, str | list[str]] = dict.fromkeys(OPERATIONS, "dist_gemm")
    where = Situation(named("h100"), "bfloat16", tensor_parallel=8)
    found = {c.operation: c for c in choose(named_ones, Host.load(), where)}
    assert all(found[name].name == "dist_gemm" for name in OPERATIONS)
    reasons = dict(found["linear"].passed_over)
    assert "the kernel of attention_projections" in reasons["float8_rowwise"]
