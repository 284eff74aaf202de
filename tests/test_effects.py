"""For every key of torchtitan's and of ATOM's it is decided when it is without effect."""

from __future__ import annotations

import dataclasses

import pytest
from pydantic import BaseModel

from atom.recipe import defaults
from atom.recipe.effect_rules import RULES, Seen, Situation
from atom.recipe.effects import composed
from atom.recipe.run import Run
from atom.recipe.sections import Component
from atom.recipe.training_sections import Parallelism
from atom.titan.translate import ACTIVATION_CHECKPOINT, CONFIGS

RULED = {key for keys, _ in RULES for key in keys}

ELSEWHERE = {
    "checkpoint.create_seed_checkpoint": "refused: atom.recipe.effects",
    "comm.mode": "what sends nothing is refused: atom.recipe.effects",
    "compile.enable": "with no components it is refused: atom.recipe.effects",
    "compile.enable_async_tensor_parallel": "atom.titan.checks.compilation",
    "debug.batch_invariant": "refused: atom.recipe.effects",
    "debug.moe_force_load_balance": "atom.titan.checks.experts",
    "data.ahead": "atom.titan.checks.data",
    "data.order": "atom.titan.checks.data; of streams: atom.run_dir.prepare",
    "data.packing": "atom.titan.checks.data; windows of text: atom.run_dir.prepare",
    "data.trace": "atom.titan.checks.data",
    "launch.hang_seconds": "atom.cli.train, under torchrun",
    "launch.max_restarts": "atom.cli.train, under torchrun",
    "launch.start_seconds": "atom.cli.train, under torchrun",
    "lr_scheduler.phases": "made from lr_scheduler.stages",
    "optimizer.groups": "without parameters: atom.titan.optim.optimizer",
    "parallelism.expert_parallel_degree": "atom.titan.checks.experts",
    "parallelism.fsdp_reshard_after_forward": "without FSDP: atom_parallelism.unsharded",
    "profiler.enable_profiling": "of which nothing would be written: atom.recipe.lengths",
    "training.enable_cpu_offload": "atom.titan.checks.device",
}
"""Keys that are looked at by other code, and by which."""

ALWAYS = {
    "evaluation.interval",
    "optimizer.no_decay",  # a model may have no such parameters
    "validation.fraction",
    "validation.sets",
    "activation_checkpoint.mode",
    "checkpoint.enable",
    "comm.init_timeout_seconds",
    "comm.trace_buf_size",
    "comm.train_timeout_seconds",
    "debug.detect_anomaly",
    "debug.deterministic",
    "debug.print_config",
    "debug.save_config_file",
    "debug.seed",
    "faults.non_finite",
    "launch.ranks",
    "lora.rank",
    "loss.num_chunks",
    "loss.z_loss",
    "metrics.disable_color_printing",
    "metrics.enable_tensorboard",
    "metrics.enable_trackio",
    "metrics.enable_wandb",
    "metrics.log_freq",
    "optimizer.name",
    "parallelism.context_parallel_degree",
    "parallelism.data_parallel_replicate_degree",
    "parallelism.data_parallel_shard_degree",
    "parallelism.pipeline_parallel_degree",
    "parallelism.spmd_backend",
    "parallelism.tensor_parallel_degree",
    "profile.steps",
    "provenance.patch",
    "provenance.tensor_digest",
    "provenance.token_digest",
    "profiler.trace_post_processor",  # a function, which no configuration can give
    "training.disable_cuda_graphs",
    "training.dtype",
    "training.gc_debug",
    "training.global_batch_size",
    "training.local_batch_size",
    "training.max_norm",
    "training.mixed_precision_param",
    "training.mixed_precision_reduce",  # it can be float32 only
    "training.seq_len",
    "training.steps",
}
"""Keys that always have an effect."""


NAMED = ("architecture", "tokenizer", "dataset", "optimizer")


def every_key() -> set[str]:
    schemas = list(CONFIGS.items())
    schemas += [("activation_checkpoint", mode) for mode in ACTIVATION_CHECKPOINT.values() if mode]
    keys = {
        f"{name}.{field.name}" for name, schema in schemas for field in dataclasses.fields(schema)
    }
    # Those of components and launchers are their plugins' own; the rest is the command's.
    names = ("optimizer", "data", "faults", "launch", "loss", "lora", "profile", "validation")
    names += ("evaluation", "provenance")
    for name in names:
        model = Run.model_fields[name].annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        keys |= {f"{name}.{field}" for field in model.model_fields}
    return keys | {"activation_checkpoint.mode"}


def test_of_every_key_it_is_decided() -> None:
    assert RULED | set(ELSEWHERE) | ALWAYS == every_key()


def test_rules_know_the_defaults() -> None:
    named = {name: Component(name="x") for name in NAMED}
    run = Run(**named, parallelism=Parallelism(name="x"))
    for key in RULED:
        section, _, name = key.partition(".")
        own = key not in defaults.ENGINE
        assert not own or name in type(getattr(run, section)).model_fields, key


@pytest.mark.parametrize(
    ("parallelism", "chooses", "known"),
    [
        ({}, False, {"tensor_parallel_degree": 1}),
        ({"tensor_parallel_degree": -1}, False, {"tensor_parallel_degree": None}),
        ({}, True, {"tensor_parallel_degree": None}),
        ({"tensor_parallel_degree": 2}, True, {"tensor_parallel_degree": 2}),
        ({}, False, {"data_parallel_shard_degree": None}),
    ],
)
def test_degrees_that_are_known(
    parallelism: dict[str, int], chooses: bool, known: dict[str, int | None]
) -> None:
    sections = {name: Component(name="x") for name in NAMED}
    run = Run(**sections, parallelism=Parallelism(name="x", **parallelism))
    found = composed(run, chooses=chooses)
    assert {name: found.degrees.get(name) for name in known} == known
    degree = found.degrees.get("tensor_parallel_degree")
    assert (Seen(run, found).one("tensor_parallel") is not None) == (degree == 1)
    assert Seen(run, Situation()).one("tensor_parallel") is None
