"""Convert torchtitan's sections of a run to a :class:`atom.plan.layout.Layout`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.distributed import pipeline_parallel
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.distributed.fsdp import get_fsdp_reshard_after_forward_policy

from atom.plan.device import DeviceDescription
from atom.plan.execution import COMPILED, CUDNN, EAGER, FLASH2, ROWWISE, TENSORWISE, Execution
from atom.plan.layout import Layout
from atom.plan.model import FULL, NONE, SELECTIVE
from atom.plan.pipeline import Schedule, bubble, in_flight
from atom.titan.planning import schedule


def layout_of(
    parallelism: ParallelismConfig,
    training: TrainingConfig,
    model: Any,
    *,
    checkpointing: str,
    global_batch_size: int,
    of_state: tuple[float, float | None],
    loss_chunks: int = 1,
    z_loss: bool = False,
    averages: int = 0,
    execution: Execution | None = None,
) -> Layout:
    """Return the layout of a run.

    Args:
        parallelism: with every degree resolved.
        training: with its local batch size resolved.
        model: the architecture's model config.
        checkpointing: one of :data:`atom.plan.model.MODES`.
        global_batch_size: in sequences.
        of_state: bytes of optimizer state per element: see :class:`atom.plan.layout.Layout`.
        loss_chunks: chunks that logits are computed in.
        z_loss: whether the loss has a penalty.
        averages: number of callbacks that average the weights.
        execution: how the layout is run.

    Raises:
        ValueError: the pipeline's stages or schedule are impossible.
    """
    pp = parallelism.pipeline_parallel_degree
    dp = parallelism.data_parallel_replicate_degree * parallelism.data_parallel_shard_degree
    stages = stage_parts(parallelism, model)
    name, microbatches = parallelism.pipeline_parallel_schedule, 1
    if pp > 1:
        size = parallelism.pipeline_parallel_microbatch_size
        microbatches = training.local_batch_size // size
    stages_of, flying, idle, order = _pipeline(name, pp, len(stages), microbatches)
    return Layout(
        dp_replicate=parallelism.data_parallel_replicate_degree,
        dp_shard=parallelism.data_parallel_shard_degree,
        tp=parallelism.tensor_parallel_degree,
        pp=pp,
        cp=parallelism.context_parallel_degree,
        ep=parallelism.expert_parallel_degree,
        seq_len=training.seq_len,
        local_batch_size=training.local_batch_size,
        microbatch_size=parallelism.pipeline_parallel_microbatch_size,
        accumulation=global_batch_size // (training.local_batch_size * dp),
        sequence_parallel=parallelism.enable_sequence_parallel,
        reshard=get_fsdp_reshard_after_forward_policy(
            parallelism.fsdp_reshard_after_forward, pp > 1
        ),
        schedule=name,
        stages=stages,
        stages_of=stages_of,
        in_flight=flying,
        bubble=idle,
        checkpointing=checkpointing,
        parameter_dtype=training.dtype,
        compute_dtype=training.mixed_precision_param,
        reduce_dtype=training.mixed_precision_reduce,
        state_bytes=of_state[0],
        matrix_state_bytes=of_state[1],
        loss_chunks=loss_chunks,
        z_loss=z_loss,
        offload=training.enable_cpu_offload,
        averages=averages,
        execution=execution or Execution(),
        order=order,
    )


def execution_of(
    kernels: Iterable[str], compiled: bool, async_tp: bool, dtype: str, device: DeviceDescription
) -> Execution:
    """Return how a run is executed, for its estimate.

    Args:
        kernels: names of the kernels that it asks for.
        compiled: whether torch.compile compiles the model.
        async_tp: whether tensor parallelism's communication is overlapped.
        dtype: the compute dtype.
        device: its device.
    """
    names = " ".join(kernels)
    products = dtype
    for recipe in (TENSORWISE, ROWWISE):
        if recipe in names:
            products = recipe
    blackwell = device.capability is not None and device.capability[0] >= 10
    return Execution(
        products=products,
        fusion=COMPILED if compiled else EAGER,
        attention=CUDNN if blackwell else FLASH2,
        async_tp=async_tp,
        float8_gather=f"{TENSORWISE}_gathered" in names,
    )


def checkpointing_of(policy: Any) -> str:
    """Return the plan's mode for torchtitan's ``policy``.

    For a memory budget, which the compiler spends, the plan assumes that everything is kept.
    """
    if isinstance(policy, FullAC.Config):
        return FULL
    return SELECTIVE if isinstance(policy, SelectiveAC.Config) else NONE


def stage_parts(parallelism: ParallelismConfig, model: Any) -> tuple[tuple[str, ...], ...]:
    """Return the parts of each pipeline stage, as torchtitan splits the model.

    Raises:
        ValueError: the model cannot be split that way.
    """
    if parallelism.pipeline_parallel_degree == 1:
        stages = pipeline_parallel._generate_llm_fqn_per_model_part(1, len(model.layers))
    elif parallelism.module_fqns_per_model_part is not None:
        stages = parallelism.module_fqns_per_model_part
    else:
        stages = pipeline_parallel._generate_llm_fqn_per_model_part(
            *pipeline_parallel._get_pipeline_metadata(
                SimpleNamespace(pp=parallelism.pipeline_parallel_degree),  # its only input
                parallelism,
                model,
            )
        )
    return tuple(tuple(stage) for stage in stages)


@lru_cache(maxsize=256)
def _pipeline(
    name: str, pp: int, stages: int, microbatches: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[dict[int, int], ...], float, Schedule | None]:
    """Return each rank's stages and micro-batches in flight, the idle fraction, the schedule."""
    if pp == 1:
        return ((0,),), ({0: 1},), 0.0, None
    order = schedule.order(name, pp, stages, microbatches)
    flying = tuple(in_flight(actions) for actions in order)
    ordered = Schedule(order)
    return schedule.stages_of(name, pp, stages), flying, bubble(ordered, stages), ordered
