"""List the checks of a run, in the order in which their errors are reported.

A check is a function of the plan that raises a ``UserError``. Parts of a plan are computed when a
check first reads them, and may refuse the run, too; so the order of checks is the order of errors.
"""

from __future__ import annotations

from collections.abc import Callable

from atom.errors import UserError
from atom.recipe import batches, effects, lengths, schedules
from atom.recipe.effect_rules import Situation
from atom.titan import windows
from atom.titan.checks import (
    adapters,
    compilation,
    context_parallel,
    data,
    device,
    division,
    experts,
    faults,
    layout,
    objective,
    output_layers,
    pipeline,
    pretend,
    recomputation,
    sequence,
    shardings,
)
from atom.titan.checks.candidate import LAYOUT_CHECKS
from atom.titan.lora.adapt import trained
from atom.titan.optim import optimizer
from atom.titan.preflight.run_plan import RunPlan
from atom.titan.saved_model import on_meta


def check_effects(plan: RunPlan) -> None:
    """Refuse settings without effect on this layout and device."""
    effects.check(plan.laid_out, Situation(plan.degrees, plan.kind), plan.laid_out.given)


def check_lengths(plan: RunPlan) -> None:
    """Refuse intervals and pieces that do not fit into steps and sequences."""
    lengths.check(plan.laid_out, plan.parallelism.context_parallel_degree)


def check_adapters(plan: RunPlan) -> None:
    """Refuse adapters of layers that the model does not have, and of a vocabulary that grows."""
    _ = plan.parts  # computing a part refuses what it cannot be computed from
    if plan.laid_out.lora.rank and plan.tokenizer.without_added is not None:
        raise UserError(
            "adds rows to the embeddings, which stay as they are with lora.rank",
            valid="[], or lora.rank=0",
            key="tokenizer.added_tokens",
        )


def check_initial_weights(plan: RunPlan) -> None:
    """Refuse initial weights that are missing, of another model, or not those of the adapters."""
    _ = plan.base_digest


def check_mixture(plan: RunPlan) -> None:
    """Refuse a mixture that does not fit the run's steps."""
    _ = plan.mixture


def check_optimizer(plan: RunPlan) -> None:
    """Refuse an optimizer that does not fit the device, the dtypes or the parameters."""
    model = on_meta(plan.model_config)
    shapes = {name: tuple(parameter.shape) for name, parameter in trained(model)}
    optimizer.check(plan.optimizer, shapes)


def check_schedule(plan: RunPlan) -> None:
    """Refuse stages of the learning rate that do not fit into the run."""
    if plan.laid_out.lr_scheduler.stages:
        of = batches.batches(plan.laid_out, plan.global_batch_size)
        schedules.check_stages(plan.laid_out, of)


def check_kernels(plan: RunPlan) -> None:
    """Refuse a run with an operation that no kernel fits."""
    _ = plan.first_choices


def check_assembly(plan: RunPlan) -> None:
    """Refuse sections that torchtitan, a plugin or a kernel refuses together."""
    _ = plan.assembly


def check_windows(plan: RunPlan) -> None:
    """Refuse a model that has lost an attention window of its config."""
    windows.check(plan.config.model_spec.model, plan.model)


def check_disk(plan: RunPlan) -> None:
    """Refuse a disk without space for the checkpoints that must exist at the same time."""
    if not plan.run.dry_run:
        _ = plan.disk_warning


CHECKS: tuple[Callable[[RunPlan], None], ...] = (
    check_adapters,
    check_effects,
    check_lengths,
    layout.check_gpus,
    check_initial_weights,
    *LAYOUT_CHECKS,
    check_mixture,
    division.check,
    check_kernels,
    recomputation.check_budget,
    compilation.check_async,
    compilation.check_backend,
    device.check_offload,
    check_optimizer,
    check_schedule,
    context_parallel.check_name,
    faults.check_replicas,
    faults.check_replay,
    objective.check_loader,
    data.check_trace,
    data.check_packing,
    data.check_schedule,
    data.check_unused,
    objective.check_packing,
    objective.check_loss,
    faults.check_rollback,
    check_assembly,
    adapters.check_stages,
    pipeline.check_compiled,
    sequence.check_mask_blocks,
    output_layers.check,
    context_parallel.check_masks,
    experts.check_load_balance,
    recomputation.check_modules,
    check_windows,
    objective.check_documents,
    shardings.check,
    pretend.check,
    check_disk,
)
