"""What torchtitan and torch would refuse on every rank is refused before there are ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torchtitan.config import ParallelismConfig, TrainingConfig

from atom.errors import UserError
from atom.plugin import ArchitectureContext
from atom.recipe.run import Run
from atom.titan.checks import layout, pipeline
from atom.titan.checks.candidate import Candidate
from atom.titan.planning import schedule
from atom_llama.build import llama3
from atom_llama.config import Llama3
from atom_qwen3.build import qwen3_moe
from atom_qwen3.config import Qwen3MoE

CONTEXT = ArchitectureContext(vocab_size=256, seq_len=64)
DENSE = llama3(Llama3(dim=64, n_layers=30, n_heads=4), CONTEXT).model
SHAPE: dict[str, Any] = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16}
EXPERTS: dict[str, Any] = {"moe_hidden_dim": 48, "num_experts": 6, "top_k": 2}


def mixture(**changed: Any) -> Any:
    return qwen3_moe(Qwen3MoE(**SHAPE | EXPERTS | changed), CONTEXT).model


def check(model: Any, local_batch_size: int = 4, seq_len: int = 64, **parallelism: Any) -> None:
    Candidate(
        training=TrainingConfig(local_batch_size=local_batch_size, seq_len=seq_len),
        parallelism=ParallelismConfig(**parallelism),
        model_config=model,
    ).check()


@pytest.mark.parametrize("name", pipeline.schedules())
@pytest.mark.parametrize("degree", [2, 3, 4])
def test_a_schedule_is_refused_where_torch_refuses_it(name: str, degree: int) -> None:
    stages = degree * (1 if name in ("1F1B", "GPipe") else 2)
    refused = []
    for microbatches in range(1, 17):
        try:
            schedule.order(name, degree, stages, microbatches)
            torch_takes_it = True
        except ValueError:
            torch_takes_it = False
        arguments = {
            "pipeline_parallel_degree": degree,
            "pipeline_parallel_schedule": name,
        }
        if torch_takes_it:
            check(DENSE, local_batch_size=microbatches, **arguments)
        else:
            refused.append(microbatches)
            with pytest.raises(UserError, match="microbatches") as error:
                check(DENSE, local_batch_size=microbatches, **arguments)
            assert "\n" not in error.value.sentence()
    assert refused or name in ("GPipe", "LoopedBFS", "ZBVZeroBubble")


@pytest.mark.parametrize("name", ["ZBVZeroBubble", "DualPipeV"])
def test_a_v_has_two_stages_a_rank(name: str) -> None:
    with pytest.raises(UserError, match="needs 2 stages a rank, so 4, and the model is split into"):
        check(
            DENSE,
            local_batch_size=16,
            pipeline_parallel_degree=2,
            pipeline_parallel_schedule=name,
            pipeline_parallel_layers_per_stage=4,
        )


@pytest.mark.parametrize("name", ["ZBVZeroBubble", "DualPipeV", "InterleavedZeroBubble"])
def test_a_backward_pass_in_two_parts_is_not_compiled(name: str) -> None:
    parallelism = ParallelismConfig(pipeline_parallel_degree=2, pipeline_parallel_schedule=name)
    compilation = SimpleNamespace(enable=True, components=["model", "loss"])
    plan: Any = SimpleNamespace(
        config=SimpleNamespace(parallelism=parallelism, compile=compilation)
    )
    with pytest.raises(UserError, match=r"compile\.enable=false"):
        pipeline.check_compiled(plan)
    compilation.components = ["loss"]
    pipeline.check_compiled(plan)


@pytest.mark.parametrize(
    ("model", "parallelism", "says"),
    [
        (DENSE, {"expert_parallel_degree": 2}, "has no experts to share out; valid: 1"),
        (mixture(), {"expert_parallel_degree": 4}, "must divide the 6 experts of a layer"),
        (
            mixture(moe_hidden_dim=50),
            {"tensor_parallel_degree": 4},
            "must divide the experts' width of 50; or distribute whole experts",
        ),
        (mixture(), {"tensor_parallel_degree": 4}, "the experts' width a rank is 12 and must be"),
        (
            mixture(),
            {
                "expert_parallel_degree": 2,
                "tensor_parallel_degree": 4,
                "enable_sequence_parallel": False,
                "seq_len": 66,
            },
            "must be a multiple of 4",
        ),
    ],
)
def test_experts_that_cannot_be_shared_out_are_told(
    model: Any, parallelism: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as error:
        check(model, **parallelism)
    assert "\n" not in error.value.sentence()


def test_experts_shared_out_need_not_be_split() -> None:
    check(mixture(moe_hidden_dim=8), tensor_parallel_degree=4, expert_parallel_degree=2)


@pytest.mark.parametrize("degree", [3, 8])
def test_expert_parallelism_divides_the_ranks_that_it_borrows(degree: int) -> None:
    sections = {
        name: {"name": "any"} for name in ("architecture", "tokenizer", "dataset", "optimizer")
    }
    run = Run.model_validate(
        sections
        | {
            "parallelism": {
                "name": "mesh",
                "data_parallel_replicate_degree": 2,
                "data_parallel_shard_degree": 2,
                "tensor_parallel_degree": 2,
                "expert_parallel_degree": degree,
            }
        }
    )
    with pytest.raises(UserError, match="must divide the 4 ranks that share the experts"):
        layout.resolve(run, available=1)


def test_a_hint_names_parameters_that_the_architecture_has() -> None:
    config = Llama3(dim=60, n_layers=2, n_heads=6, n_kv_heads=3)
    model = llama3(config, CONTEXT).model
    thirds = ParallelismConfig(tensor_parallel_degree=3)
    for architecture, valid in (
        (config, "architecture.vocab_size can be set to a multiple"),
        (None, "valid: a tokenizer with a multiple of it"),
    ):
        with pytest.raises(UserError, match="must divide the vocabulary of 256; ") as refused:
            Candidate(
                training=TrainingConfig(seq_len=63),
                parallelism=thirds,
                model_config=model,
                architecture=architecture,
            ).check()
        assert refused.value.told.endswith(valid)
