"""When DeepEP is chosen, and what its dispatchers are given. What refuses it is in test_needs."""

from __future__ import annotations

import pytest
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.models.common import token_dispatcher

from atom.kernels.choose import Situation, choose
from atom.plan.device import named
from atom.registry.host import Host
from atom.titan import kernels
from atom.titan.contracts.contract import tree
from atom.titan.contracts.sizes import REGULAR
from atom.titan.train.trainer import AtomTrainer
from atom.titan.trainer_config import set_sharding


def test_none_but_a_name_chooses_it() -> None:
    supposed: dict[str, str | None] = {"deep_ep": "2.0.0"}
    where = Situation(named("h100"), "bfloat16", expert_parallel=8, supposed=supposed)
    for preferences, expected in ({}, "reference"), ({"moe_dispatch": "deepep"}, "deepep"):
        found = {c.operation: c.name for c in choose(preferences, Host.load(), where)}
        assert found["moe_dispatch"] == expected


@pytest.mark.parametrize("name", ["deepep", "hybridep"])
def test_torchtitan_fills_in_the_sizes_of_its_buffers(name: str) -> None:
    """Those of a rank's tokens in one forward pass: of its sequences and its part of each."""
    spec = tree("mixture", REGULAR[0]).model_spec
    run = AtomTrainer.Config(model_spec=spec)
    kernels.put(run, [Host.load().find("kernel", f"moe_dispatch/{name}")])
    assert run.override.imports == []
    model = spec.model
    training = TrainingConfig(seq_len=128, local_batch_size=3)
    layout = {"context_parallel_degree": 2, "tensor_parallel_degree": 2}
    set_sharding(model, training, ParallelismConfig(**layout, expert_parallel_degree=4))
    config = token_dispatcher.LocalTokenDispatcher.Config
    (node,) = (node for _, node, _, _ in model.traverse(config, recurse=True))
    assert type(node).__qualname__.lower() == f"{name}tokendispatcher.config"
    assert (node.hidden_dim, node.num_max_tokens_per_rank) == (model.dim, 3 * 128 // 4)
    assert getattr(node, "non_blocking_capacity_factor", None) is None, "it would drop tokens"
