"""Train a plain model on one rank, without FSDP, which copies parameters even for one rank."""

from __future__ import annotations

from typing import Any

from torchtitan.config import CompileConfig, ParallelismConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.compile import apply_compile
from torchtitan.distributed.pipeline_parallel import pipeline_llm

from atom.errors import UserError
from atom.plugin import ParallelismContext, Strategy


def unsharded(config: ParallelismConfig, context: ParallelismContext) -> Strategy:
    """Return the strategy.

    The compute dtype is that of the parameters: only FSDP converts them.

    Raises:
        UserError: there are more ranks, or two dtypes.
    """
    if context.world_size != 1:
        raise UserError(
            f"unsharded is for one rank, and this run has {context.world_size}",
            valid="launch.ranks=1, or another parallelism",
            key="parallelism.name",
            value="unsharded",
        )
    training = context.training
    if training is not None and training.dtype != training.mixed_precision_param:
        raise UserError(
            f"unsharded computes in the dtype of the parameters, training.dtype={training.dtype}",
            valid=f"{training.dtype}, or training.dtype={training.mixed_precision_param}",
            key="training.mixed_precision_param",
            value=training.mixed_precision_param,
        )
    if training is not None and training.enable_cpu_offload:
        raise UserError(
            "belongs to FSDP, which unsharded does not use",
            valid="false, or parallelism=single",
            key="training.enable_cpu_offload",
            value=True,
        )
    for name, usual in (("fsdp_reshard_after_forward", "default"), ("enable_fsdp_symm_mem", False)):
        if getattr(config, name) != usual:
            raise UserError(
                "belongs to FSDP, which unsharded does not use",
                valid="leave it out, or parallelism=single",
                key=f"parallelism.{name}",
                value=getattr(config, name),
            )
    if config.spmd_backend == "full_dtensor":
        raise UserError(
            "applies only to sharded parameters",
            valid="spmd_types, partial_dtensor",
            key="parallelism.spmd_backend",
            value=config.spmd_backend,
        )
    return Strategy(parallelism=config, parallelize_fn=_prepare, pipelining_fn=pipeline_llm)


def _prepare(
    model: Any,
    *,
    parallel_dims: ParallelDims,
    compile_config: CompileConfig,
    ac_config: Any,
    dump_folder: str,
    **_layout: Any,
) -> Any:
    """Prepare the model like torchtitan's ``parallelize_llama``, without its multi-rank parts.

    An architecture's own function would include these parts.
    """
    if ac_config is not None:
        ac_config.build(dump_folder=dump_folder).apply(model)
    if compile_config.enable and "model" in compile_config.components:
        apply_compile(model, compile_config=compile_config, parallel_dims=parallel_dims)
    return model
