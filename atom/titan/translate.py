"""Translate the sections of a run into torchtitan's configs.

This is the only module that maps ATOM's own keys (:mod:`atom.recipe.training_sections`) to
torchtitan's names. torchtitan's other keys pass through unchanged, validated by its dataclasses.
Other modules read the configs under ATOM's names, and change them by :func:`changed`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar

import pydantic
from pydantic import ConfigDict, TypeAdapter
from torchtitan.config import (
    CommConfig,
    CompileConfig,
    DebugConfig,
    ParallelismConfig,
    TrainingConfig,
)
from torchtitan.distributed.activation_checkpoint import FullAC, MemoryBudgetAC, SelectiveAC
from torchtitan.tools.profiler import Profiler

from atom.errors import UserError, nearest
from atom.recipe.schedules import Phase
from atom.recipe.sections import Section
from atom.recipe.training_sections import (
    ActivationCheckpoint,
    Checkpoint,
    Compile,
    Debug,
    LRScheduler,
    Metrics,
    Parallelism,
    Training,
)
from atom.recipe.validation import validated
from atom.titan.checkpoint.checkpointer import VerifiedCheckpointManager
from atom.titan.optim.rates import EndingLRSchedulers
from atom.titan.train.metrics import StepMetricsProcessor

T = TypeVar("T")

RENAMED: dict[str, dict[str, str]] = {}
"""Section -> ATOM's key -> torchtitan's field, where their names differ.

As in ``{"training": {"seq_len": "max_context_length"}}``.
"""

_CONFIGS: dict[str, type] = {
    "training": TrainingConfig,
    "parallelism": ParallelismConfig,
    "lr_scheduler": EndingLRSchedulers.Config,
    "checkpoint": VerifiedCheckpointManager.Config,
    "compile": CompileConfig,
    "comm": CommConfig,
    "metrics": StepMetricsProcessor.Config,
    "profiler": Profiler.Config,
    "debug": DebugConfig,
}


def readable(config: type[T], renamed: Mapping[str, str]) -> type[T]:
    """Return a subclass of ``config`` whose renamed fields can be read under ATOM's keys, too."""
    if not renamed:
        return config
    named = {key: property(attrgetter(field)) for key, field in renamed.items()}
    return type(config.__name__, (config,), {"__qualname__": config.__qualname__} | named)


CONFIGS: dict[str, type] = {
    name: readable(config, RENAMED.get(name, {})) for name, config in _CONFIGS.items()
}
"""Section -> torchtitan's dataclass; those of ``activation_checkpoint`` follow."""

ACTIVATION_CHECKPOINT: dict[str, type | None] = {
    "none": None,
    "selective": SelectiveAC.Config,
    "full": FullAC.Config,
    "memory_budget": MemoryBudgetAC.Config,
}


NOT_IN_A_RUN = {
    "model_spec": "made from the section architecture, by its plugin",
    "hf_assets_path": "the tokenizer that is prepared in the run folder",
    "dump_folder": "run.dir",
    "tokenizer": "made from the section tokenizer, by its plugin",
    "dataloader": "made from the section dataset, by its plugin",
    "optimizer": "made from the section optimizer: atom.titan.optim.optimizer",
    "loss": "made from the section loss, and of the kernel that is chosen for it",
    "override": "the kernels that are chosen",
    "validator": "left out: ATOM validates by a callback of its own (validation.sets)",
    "lr_scheduler.phases": "made from lr_scheduler.stages: atom.recipe.schedules",
    "profiler.trace_post_processor": "left out: a function, which is no data",
}
"""Field of torchtitan's ``Trainer.Config`` without a key in a run -> why."""


def training(section: Training, device: str) -> TrainingConfig:
    """Return the config of the step; the local batch size defaults to torchtitan's."""
    precision = "float32" if device == "cpu" else "bfloat16"  # most CPUs emulate bfloat16
    own = {
        "steps": section.steps,
        "seq_len": section.seq_len,
        "global_batch_size": section.global_batch_size,
        "local_batch_size": section.local_batch_size,
        "max_norm": section.max_norm,
        "dtype": section.dtype,
        "mixed_precision_param": section.mixed_precision_param or precision,
    }
    return _config("training", _given(own) | section.engine)


def parallelism(section: Parallelism) -> ParallelismConfig:
    """Return the config of the mesh; degrees default to torchtitan's."""
    own = {
        "data_parallel_replicate_degree": section.data_parallel_replicate_degree,
        "data_parallel_shard_degree": section.data_parallel_shard_degree,
        "tensor_parallel_degree": section.tensor_parallel_degree,
        "pipeline_parallel_degree": section.pipeline_parallel_degree,
        "context_parallel_degree": section.context_parallel_degree,
        "expert_parallel_degree": section.expert_parallel_degree,
        "pipeline_parallel_schedule": section.pipeline_parallel_schedule,
        "pipeline_parallel_microbatch_size": section.pipeline_parallel_microbatch_size,
    }
    return _config("parallelism", _given(own) | section.engine)


def config(section: str, **values: Any) -> Any:
    """Return a config of ``section`` with ``values`` under ATOM's keys, and defaults."""
    return CONFIGS[section](**_named(section, values))


def changed(config: T, section: str, **values: Any) -> T:
    """Return ``config``, of ``section``, with ``values`` under ATOM's keys."""
    return dataclasses.replace(config, **_named(section, values))  # type: ignore[type-var]


def lr_scheduler(section: LRScheduler, phases: tuple[Phase, ...] = ()) -> EndingLRSchedulers.Config:
    """Return the config of the learning-rate schedule; ``phases`` are those of its stages."""
    own = {
        "warmup_steps": section.warmup_steps,
        "total_steps": section.total_steps,
        "decay_ratio": section.decay_ratio,
        "decay_type": section.decay_type,
        "min_lr_factor": section.min_lr_factor,
    }
    found: EndingLRSchedulers.Config = _config("lr_scheduler", own | section.engine)
    found.phases = phases
    return found


def checkpoint(section: Checkpoint) -> VerifiedCheckpointManager.Config:
    """Return the config of checkpoints."""
    own = {
        "enable": section.enable,
        "interval": section.interval,
        "keep_latest_k": section.keep_latest_k,
        "keep_every": section.keep_every,
        "keep_best": section.keep_best,
        "keep_best_of": section.keep_best_of,
        "initial_load": section.initial_load,
    }
    return _config("checkpoint", own | section.engine)


def compilation(section: Compile) -> CompileConfig:
    """Return the config of torch.compile."""
    own = {"enable": section.enable, "components": section.components}
    return _config("compile", own | section.engine)


def metrics(section: Metrics) -> StepMetricsProcessor.Config:
    """Return the config of metrics."""
    own = {"log_freq": section.log_freq}
    return _config("metrics", own | section.engine)


def debug(section: Debug) -> DebugConfig:
    """Return the config of determinism and debugging."""
    own = {"seed": section.seed, "deterministic": section.deterministic}
    return _config("debug", own | section.engine)


def comm(section: Section, device: str) -> CommConfig:
    """Return the config of communication."""
    # The flight recorder stores a stack per collective, and hangs on a CPU are rare.
    usual = {"trace_buf_size": 0} if device == "cpu" else {}
    return _config("comm", usual | section)


def profiler(section: Section) -> Profiler.Config:
    """Return the config of torchtitan's profiler."""
    return _config("profiler", section)


def activation_checkpoint(section: ActivationCheckpoint) -> Any:
    """Return the policy named by ``activation_checkpoint.mode``, with its options, or None."""
    mode, options = section.mode, section.engine
    if mode not in ACTIVATION_CHECKPOINT:
        raise UserError(
            f"there is no such mode; {nearest(mode, ACTIVATION_CHECKPOINT)}",
            key="activation_checkpoint.mode",
            value=mode,
        )
    schema = ACTIVATION_CHECKPOINT[mode]
    return None if schema is None else build(schema, options, "activation_checkpoint")


def _given(own: Section) -> Section:
    """Return the keys that are not null; torchtitan's defaults stand for the others."""
    return {name: value for name, value in own.items() if value is not None}


def _config(name: str, section: Section) -> Any:
    """Return the config of the section ``name``, given under ATOM's keys."""
    return build(CONFIGS[name], _named(name, section), name)


def _named(name: str, section: Section) -> Section:
    """Return ``section`` under torchtitan's names."""
    renamed = RENAMED.get(name, {})
    return {renamed.get(key, key): value for key, value in section.items()}


def build(schema: type[T], section: Section, key: str) -> T:
    """Return ``section``, with the engine's names, as an instance of its dataclass ``schema``.

    Raises:
        UserError: an unknown key, a wrong type, or a value that the dataclass refuses.
    """
    names = [field.name for field in dataclasses.fields(schema) if field.init]  # type: ignore[arg-type]
    checked: Any = validated(_strict(schema), section, key=key, fields=names)  # type: ignore[arg-type]
    # pydantic's dataclass is a subclass; torchtitan needs exactly its own type.
    return schema(**{name: getattr(checked, name) for name in names})


@lru_cache
def _strict(schema: Any) -> TypeAdapter[Any]:
    """Return the validator of a dataclass, with unknown keys refused."""
    return TypeAdapter(pydantic.dataclasses.dataclass(schema, config=ConfigDict(extra="forbid")))
