"""The plan of a run: every check refuses a run, and the model is described once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchtitan.config import ParallelismConfig

from atom.errors import UserError
from atom.plan.device import named
from atom.plugin import (
    Architecture,
    ArchitectureContext,
    Dataset,
    ModelParts,
    Parallelism,
    ParallelismContext,
    PreparedTokenizer,
    Strategy,
)
from atom.recipe.run import parse
from atom.registry.host import Component, Host, Plugin
from atom.registry.select import select
from atom.testing.partners import model as partners
from atom.titan import windows
from atom.titan.preflight import checks, preflight
from atom.titan.preflight.run_plan import RunPlan

# ---------------------------------------------------------------------------- components


def counted(_config: None, context: ArchitectureContext) -> ModelParts:
    DESCRIBED.append(context)
    return partners.llama(None, context)


DESCRIBED: list[ArchitectureContext] = []
"""A context for each description of the model ``counted``."""


def widens(config: ParallelismConfig, _context: ParallelismContext) -> Strategy:
    """Train another model than on one rank."""

    def parallelize(model: Any, **_layout: Any) -> Any:
        model.norm.weight = torch.nn.Parameter(torch.empty(7, device="meta"))
        return model

    return Strategy(parallelism=config, parallelize_fn=parallelize)


@pytest.fixture(scope="module")
def host() -> Host:
    """The installed plugins, and one with components that runs are refused for."""
    found, plugin = Host.load(), Plugin("faults", "faults", "0", __name__, "atom")
    models = "mutants_model.models"
    source = "atom.testing.partners.data:source"
    declared = (
        Architecture(name="counted", summary="a model", build="test_run_plan:counted"),
        Architecture(name="unsharded", summary="a model", build=f"{models}:forgets_a_sharding"),
        Architecture(name="own_forward", summary="a model", build=f"{models}:climbs_the_gradient"),
        Parallelism(name="widens", summary="a strategy", build="test_run_plan:widens"),
        Dataset(name="own_loader", summary="a dataset", source=source, build="nowhere:loader"),
    )
    components = (*found.components, *(Component(plugin, each) for each in declared))
    return Host((*found.plugins, plugin), components)


# ---------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Refused:
    """A run that a check refuses.

    Attributes:
        key: the key at fault.
        says: words of the sentence.
        changed: keys of the run with their values, beside those of the small run.
        ranks: number of ranks.
        kind: of the device.
    """

    key: str
    says: str
    changed: dict[str, Any] = field(default_factory=dict)
    ranks: int | None = None
    kind: str = "cpu"


TP = "parallelism.tensor_parallel_degree"
CP = "parallelism.context_parallel_degree"
PP = "parallelism.pipeline_parallel_degree"
EP = "parallelism.expert_parallel_degree"
SHARD = "parallelism.data_parallel_shard_degree"
REPLICATE = "parallelism.data_parallel_replicate_degree"
SCHEDULE = "parallelism.pipeline_parallel_schedule"
MICROBATCH = "parallelism.pipeline_parallel_microbatch_size"
BALANCER = "parallelism.context_parallel_load_balancer"
MASK = "parallelism.context_parallel_ptrr_mask_key"
ASYNC = "compile.enable_async_tensor_parallel"
BACKEND = "compile.backend"
OFFLOAD = "training.enable_cpu_offload"
LENGTH = "training.seq_len"
PACKING = "data.packing"
SFT = {"objective.name": "sft", "objective.template": "chatml", PACKING: "best_fit"}
DPO = SFT | {"objective.name": "dpo"}
GRAPHS = "training.disable_cuda_graphs"
MODE = "activation_checkpoint.mode"
PRINTED = "debug.print_config"
RECOMPUTED = "activation_checkpoint.force_recompute_mm_shapes_by_fqns"
CHUNKS = "loss.num_chunks"
WEIGHTS = "checkpoint.initial_load"
REPLICAS = "faults.replica_check_interval"
REPLAY = "faults.replay_check_interval"
BALANCE = "debug.moe_force_load_balance"
MODEL, STRATEGY, DATASET = "architecture.name", "parallelism.name", "dataset.name"
COMPILED, SAVES = {"compile.enable": True}, {"checkpoint.enable": True}
PLAIN = {GRAPHS: True}
ZBV = {PP: 2, SCHEDULE: "ZBVZeroBubble", "architecture.n_layers": 6} | COMPILED | PLAIN
MIXED = {
    DATASET: "mixture",
    "dataset.sources": {"a": {"name": "stdlib", "weight": 1}},
    "dataset.stages": {"late": {"from_step": 10**9, "weights": {"a": 1}}},
}
UNEVEN = {"architecture.multiple_of": 1, "architecture.ffn_dim_multiplier": 1.01}

STAGES = [{"tokens": 10**9, "to": 1.0}, {"to": 0.1}]

REFUSED = {
    "adapters": Refused(
        "lora.targets.0",
        "matches no linear layer",
        SAVES | {WEIGHTS: "nowhere", "lora.rank": 4, "lora.targets": ["q_proj"]},
    ),
    "effects": Refused(MICROBATCH, "has no effect", {MICROBATCH: 2}),
    "lengths": Refused(CHUNKS, "must divide training.seq_len", {CHUNKS: 3}),
    "gpus": Refused("launch.ranks", "this machine has 1 GPUs", {TP: 2}, kind="cuda"),
    "initial_weights": Refused(WEIGHTS, "holds no checkpoint", SAVES | {WEIGHTS: "nowhere"}),
    "mixture": Refused("dataset.stages.late.from_step", "the stage never begins", MIXED),
    "batch": Refused("training.global_batch_size", "a multiple of 3", {REPLICATE: 3}, ranks=3),
    "tensor_parallel": Refused(TP, "divide the model's 4 query heads", {TP: 3}, ranks=3),
    "experts.check_division": Refused(EP, "has no experts", {SHARD: 2, EP: 2}, ranks=2),
    "sequence.check_division": Refused(LENGTH, "a multiple of 4", {TP: 4, LENGTH: 62}, ranks=4),
    "pipeline.check_split": Refused(
        SCHEDULE, "there is no such pipeline schedule", {PP: 2, SCHEDULE: "2F2B"}, ranks=2
    ),
    "division": Refused(TP, "must divide", {TP: 4} | UNEVEN, ranks=4),
    "kernels": Refused("kernels.attention", "flash", {"kernels.attention": "flash4"}),
    "recomputation.check_budget": Refused(MODE, "is not compiled", {MODE: "memory_budget"}),
    "compilation.check_async": Refused(ASYNC, "is on the CPU", COMPILED | {ASYNC: True}),
    "compilation.check_backend": Refused(
        BACKEND, "did you mean inductor", COMPILED | {BACKEND: "inducter"}
    ),
    "device.check_offload": Refused(OFFLOAD, "on the CPU already", {OFFLOAD: True}),
    "schedule": Refused("lr_scheduler.stages.1", "has no steps", {"lr_scheduler.stages": STAGES}),
    "optimizer": Refused(
        "optimizer.state_dtype", "only a GPU has", {"optimizer.state_dtype": "bfloat16"}
    ),
    "context_parallel.check_name": Refused(
        BALANCER, "valid: headtail, ptrr, null", {CP: 2, BALANCER: "ptr"}, ranks=2
    ),
    "faults.check_replicas": Refused(REPLICAS, "hold copies", {REPLICAS: 1}),
    "faults.check_replay": Refused(REPLAY, "CUDA graph", {REPLAY: 1}),
    "data.check_trace": Refused(
        "data.trace", "does not report which", {DATASET: "faults:own_loader", "data.trace": True}
    ),
    "data.check_unused": Refused(
        "data.ahead", "has no effect", {DATASET: "faults:own_loader", "data.ahead": 3}
    ),
    "data.check_packing": Refused(
        "data.packing",
        "packs its data itself",
        {DATASET: "faults:own_loader", "data.packing": "none"},
    ),
    "data.check_schedule": Refused(
        "training.batch_schedule",
        "reads batches of one size",
        {
            DATASET: "faults:own_loader",
            "training.batch_schedule": [{"steps": 1, "global_batch_size": 2}],
        },
    ),
    "objective.check_loader": Refused(
        "objective.name", "has its own data loader", {DATASET: "faults:own_loader"} | SFT
    ),
    "objective.check_packing": Refused(
        "data.packing", "best_fit or none", SFT | {PACKING: "concat"}
    ),
    "objective.check_loss": Refused(GRAPHS, "a CUDA graph computes the same", DPO, kind="cuda"),
    "objective.check_documents": Refused("dataset", "reads records with messages", SFT),
    "faults.check_rollback": Refused(
        "faults.spike", "to roll back to", {"faults.spike": "rollback", "checkpoint.enable": False}
    ),
    "assembly": Refused(PRINTED, "must be true or false", {PRINTED: "perhaps"}),
    "adapters.check_stages": Refused(
        "lora.targets",
        "no layer of pipeline stage 1 (layers.1, norm, lm_head)",
        {PP: 2, "dry_run": True, "lora.rank": 4, "lora.targets": ["layers.0.*"]} | PLAIN,
        ranks=2,
    ),
    "pipeline.check_compiled": Refused(SCHEDULE, "splits the backward pass in two", ZBV, ranks=2),
    "sequence.check_mask_blocks": Refused(
        LENGTH, "the attention mask's blocks of", {CP: 2, "kernels.attention": "flex"}, 2, "cuda"
    ),
    "output_layers": Refused(CHUNKS, "in pieces", {MODEL: "faults:own_forward", CHUNKS: 2}),
    "context_parallel.check_masks": Refused(
        MASK, "no effect on a model with one", {CP: 2, BALANCER: "ptrr", MASK: "basic"}, ranks=2
    ),
    "experts.check_load_balance": Refused(BALANCE, "without experts", {BALANCE: True}),
    "recomputation.check_modules": Refused(
        RECOMPUTED, "is in the name of no layer", {MODE: "selective", RECOMPUTED: ["nothing"]}
    ),
    "shardings": Refused(
        MODEL, "cannot be laid out", {MODEL: "faults:unsharded", SHARD: 2}, ranks=2
    ),
    "pretend": Refused(
        "parallelism", "another model", {STRATEGY: "faults:widens", REPLICATE: 2}, ranks=2
    ),
    "disk": Refused("run.dir", "must fit", SAVES),
}
"""Check -> a run that it refuses."""

BY_HAND = {"windows"}
"""A check of models that no kernel is chosen for."""


def plan(
    host: Host, folder: Path, changed: dict[str, Any], ranks: int | None = None, kind: str = "cpu"
) -> RunPlan:
    """Return the plan of a small run with ``changed`` keys."""
    sections: dict[str, Any] = {
        "architecture": {"name": "llama3", "dim": 64, "n_layers": 2, "n_heads": 4},
        "tokenizer": {"name": "bytes"},
        "optimizer": {"name": "AdamW"},
        "dataset": {"name": "stdlib"},
        "parallelism": {"name": "mesh"},
        "training": {"seq_len": 64, "global_batch_size": 4},
    }
    for key, value in changed.items():
        section, _, name = key.partition(".")
        if not name:
            sections[section] = value
            continue
        if name == "name" and ":" in value:
            sections[section] = {}
        sections.setdefault(section, {})[name] = value
    given = dict.fromkeys(changed, "command line")
    run = parse({"device": "cpu"} | sections).with_origins(lambda: given, given.get)
    if kind == "cuda":
        return RunPlan(
            composed=run,
            selection=select(run, host),
            host=host,
            folder=folder,
            kind=kind,
            device=named("h100"),
            available=1,
            tokenizer=PreparedTokenizer(vocab_size=320),
            joined=ranks,
        )
    return preflight.plan(
        run,
        select(run, host),
        host,
        folder,
        tokenizer=PreparedTokenizer(vocab_size=320),
        joined=ranks,
    )


# ---------------------------------------------------------------------------- the list


def name_of(check: Callable[[RunPlan], None]) -> str:
    """Return the name of a check, with its file if that has several."""
    file, function = check.__module__.rpartition(".")[2], check.__name__
    if file in ("checks", "layout"):
        return function.removeprefix("check_")
    return file if function == "check" else f"{file}.{function}"


CHECKS = {name_of(check): check for check in checks.CHECKS}


def test_every_check_has_a_case() -> None:
    assert len(CHECKS) == len(checks.CHECKS)
    assert set(CHECKS) == set(REFUSED) | BY_HAND


@pytest.mark.parametrize("name", REFUSED)
def test_a_check_refuses(
    name: str, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No check before it refuses the run, so the user reads its sentence."""
    if name == "disk":
        usage = shutil.disk_usage(tmp_path)._replace(free=1)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    case = REFUSED[name]
    found = plan(host, tmp_path, case.changed, case.ranks, case.kind)
    for before in list(CHECKS)[: list(CHECKS).index(name)]:
        CHECKS[before](found)
    with pytest.raises(UserError) as error:
        CHECKS[name](found)
    assert case.says in error.value.sentence()
    assert error.value.key == case.key
    assert not list(tmp_path.iterdir())


def test_a_lost_window_is_refused() -> None:
    attention = SimpleNamespace(sliding_window_size=8, inner_attention=None)
    config = SimpleNamespace(layers=[SimpleNamespace(attention=attention)])
    lost = windows._Bare(windows._Bare.Config())
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([lost])})
    spec = SimpleNamespace(model=config)
    found: Any = SimpleNamespace(config=SimpleNamespace(model_spec=spec), model=model)
    with pytest.raises(UserError, match="layer 0 of the model has a window of 8 tokens"):
        checks.check_windows(found)
    lost.window_size = (7, 0)
    checks.check_windows(found)


# ---------------------------------------------------------------------------- the plan


@pytest.mark.parametrize("strategy", [{STRATEGY: "mesh", SHARD: 2}, {STRATEGY: "auto"}])
def test_the_model_is_described_once(strategy: dict, host: Host, tmp_path: Path) -> None:
    """torchtitan changes a copy of it."""
    from test_run_plan import DESCRIBED  # the module that the component is imported from

    DESCRIBED.clear()
    found = plan(host, tmp_path, {MODEL: "faults:counted"} | strategy, ranks=2)
    described = repr(found.model_config)
    ready = preflight.checked(found)
    assert ready.resolved.world_size == found.estimate.layout.ranks == 2
    assert len(DESCRIBED) == 1
    assert repr(found.model_config) == described
    assert repr(found.config.model_spec.model) != described, "the ranks' model has a sharding"


def test_a_plan_is_frozen(host: Host, tmp_path: Path) -> None:
    found = plan(host, tmp_path, {})
    with pytest.raises(FrozenInstanceError):
        found.kind = "cuda"  # type: ignore[misc]
    config = found.config
    preflight.checked(found)
    assert found.config is config


def test_a_frozen_base_has_no_gradients(host: Host, tmp_path: Path) -> None:
    """The estimate counts the gradients and the state of adapters, as do the ranks of a dry run."""
    from atom.titan.preflight.dry_run import _built

    changed = {SHARD: 2, "dry_run": True, "lora.rank": 4, "lora.targets": ["wq"]} | PLAIN
    found = plan(host, tmp_path, changed, ranks=2)
    adapters = 2 * 2 * 4 * 64 // 2 * 4  # A and B of two layers, half of them on a rank, in float32
    rank = _built(found.config, found.estimate, found.description, found.device, 0, 0)
    for memory in (found.estimate.memory, rank.memory):
        assert memory.gradients == adapters
        assert memory.optimizer == pytest.approx(2 * adapters, abs=20)
        assert memory.parameters > 20 * adapters
