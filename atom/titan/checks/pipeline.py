"""Check that torch can split a model and its batch over a pipeline."""

from __future__ import annotations

from types import SimpleNamespace

from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
    _PipelineScheduleRuntime,
    get_schedule_class,
)
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.distributed import pipeline_parallel

from atom.errors import UserError
from atom.titan.checks.plan import LaidOut, Plan

SPLIT_BACKWARD = (ScheduleInterleavedZeroBubble, ScheduleZBVZeroBubble, ScheduleDualPipeV)
"""Schedules that compute the gradients of inputs and of weights separately."""


def check_split(plan: LaidOut) -> None:
    """Refuse a schedule or a degree that torch cannot split the model and the batch by.

    Raises:
        UserError: names the key, and what the schedule needs.
    """
    training, parallelism, model = plan.training, plan.parallelism, plan.model_config
    degree = parallelism.pipeline_parallel_degree
    if degree == 1:
        return
    name = parallelism.pipeline_parallel_schedule
    try:
        schedule: type = get_schedule_class(name)
    except ValueError:
        schedule = PipelineScheduleSingle
    if schedule in (PipelineScheduleSingle, PipelineScheduleMulti, _PipelineScheduleRuntime):
        raise UserError(
            "there is no such pipeline schedule",
            valid=f"{', '.join(schedules())}",
            key="parallelism.pipeline_parallel_schedule",
            value=name,
        )
    if getattr(model, "enable_weight_tying", False):
        raise UserError(
            "this model ties its embeddings, which torchtitan cannot split over a pipeline",
            valid="1, or an architecture with untied embeddings",
            key="parallelism.pipeline_parallel_degree",
            value=degree,
        )
    size = parallelism.pipeline_parallel_microbatch_size
    if training.local_batch_size % size:
        raise UserError(
            f"must divide the local batch of {training.local_batch_size} sequences",
            key="parallelism.pipeline_parallel_microbatch_size",
            value=size,
        )
    try:
        stages, layers, first, last = pipeline_parallel._get_pipeline_metadata(
            SimpleNamespace(pp=degree),  # the only field that it reads
            parallelism,
            model,
        )
        if parallelism.module_fqns_per_model_part is None:
            pipeline_parallel._generate_llm_fqn_per_model_part(stages, layers, first, last)
    except ValueError as error:
        raise UserError(
            f"the model's {len(model.layers)} layers cannot be split in this way: "
            + str(error).rstrip(".").replace(". ", "; "),
            key="parallelism.pipeline_parallel_degree",
            value=degree,
        ) from None
    if parallelism.module_fqns_per_model_part is not None:
        stages = len(parallelism.module_fqns_per_model_part)
    if schedule in (ScheduleZBVZeroBubble, ScheduleDualPipeV) and stages != 2 * degree:
        raise UserError(
            f"{name} needs 2 stages a rank, so {2 * degree}, and the model is split into {stages}",
            key="parallelism.pipeline_parallel_schedule",
            value=name,
        )
    _check_microbatches(schedule, stages, training, parallelism)


def check_compiled(plan: Plan) -> None:
    """Refuse to compile a graph that the schedule must split.

    Raises:
        UserError: names the schedule.
    """
    parallelism, compilation = plan.config.parallelism, plan.config.compile
    name = parallelism.pipeline_parallel_schedule
    if (
        parallelism.pipeline_parallel_degree > 1
        and compilation.enable
        and "model" in compilation.components
        and issubclass(get_schedule_class(name), SPLIT_BACKWARD)
    ):
        raise UserError(
            f"{name} splits the backward pass in two, which a compiled model does not support",
            valid="compile.enable=false, or another schedule",
            key="parallelism.pipeline_parallel_schedule",
            value=name,
        )


def _check_microbatches(
    schedule: type, stages: int, training: TrainingConfig, parallelism: ParallelismConfig
) -> None:
    degree, size = (
        parallelism.pipeline_parallel_degree,
        parallelism.pipeline_parallel_microbatch_size,
    )
    microbatches = training.local_batch_size // size
    rounds = max(microbatches // degree, 1)
    need = None
    if schedule is Schedule1F1B and microbatches < degree:
        need = f"at least {degree} microbatches (the pipeline's degree)"
    elif schedule is ScheduleDualPipeV and microbatches < stages:
        need = f"at least {stages} microbatches (2 a rank of the pipeline)"
    elif (
        schedule in (ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble)
        and microbatches % rounds
    ):
        need = f"a multiple of {degree} microbatches (the pipeline's degree)"
    if need is not None:
        raise UserError(
            f"{parallelism.pipeline_parallel_schedule} needs {need}, and the local batch of "
            f"{training.local_batch_size} sequences gives {microbatches}",
            key="parallelism.pipeline_parallel_microbatch_size",
            value=size,
        )


def schedules() -> list[str]:
    """Return the names of the pipeline schedules that torch offers."""
    found: list[str] = []
    todo: list[type] = [PipelineScheduleSingle, PipelineScheduleMulti]
    while todo:
        subclasses: list[type] = todo.pop().__subclasses__()
        todo += subclasses
        names = [subclass.__name__ for subclass in subclasses]
        found += [name.removeprefix("Schedule") for name in names if not name.startswith("_")]
    return sorted(found)
