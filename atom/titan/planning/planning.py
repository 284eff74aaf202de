"""Estimate runs, and apply the layout that a strategy chooses by estimates."""

from __future__ import annotations

from typing import Any

from torchtitan.config import ParallelismConfig, TrainingConfig

from atom.errors import UserError
from atom.plan.device import DeviceDescription, named
from atom.plan.estimate import Estimate, estimate
from atom.plan.model import MODES, ModelDescription
from atom.plugin import (
    Architecture,
    LayoutChoice,
    LayoutContext,
    ModelParts,
    Optimizer,
    Parallelism,
)
from atom.recipe import batches, lengths
from atom.recipe.run import Run
from atom.registry.select import Selection
from atom.titan import translate
from atom.titan.checks import batch, engine, layout, sequence
from atom.titan.checks.candidate import Candidate
from atom.titan.checks.division import Division, division, shapes_of
from atom.titan.compat import device
from atom.titan.optim import optimizer
from atom.titan.planning.describe import describe
from atom.titan.planning.plan_layout import checkpointing_of, execution_of, layout_of
from atom.titan.saved_model import on_meta
from atom.titan.trainer_config import copied, set_sharding

AUTO = "auto"


def described(run: Run) -> DeviceDescription:
    """Return the device of ``run``: the named one, or this machine's."""
    if run.device in ("auto", "cuda", "cpu"):
        return device.describe(device.pick(run.device))
    return named(run.device)


def description(
    parts: ModelParts, training: TrainingConfig, **parallelism: Any
) -> ModelDescription:
    """Describe the model of ``parts``, with the sharding that it declares."""
    model = copied(parts).model
    set_sharding(model, training, translate.config("parallelism", **parallelism))
    return describe(model, compute_dtype=training.mixed_precision_param)


def estimate_of(
    run: Run,
    selection: Selection,
    model: ModelDescription,
    config: Any,
    target: DeviceDescription,
    parallelism: ParallelismConfig,
    training: TrainingConfig,
    *,
    global_batch_size: int,
    averages: int = 0,
    checkpointing: str | None = None,
) -> Estimate:
    """Return the estimate of a run.

    Args:
        run: for its optimizer, loss and checkpointing.
        selection: its components.
        model: the description of ``config``.
        config: the architecture's model config.
        target: the device of the run.
        parallelism: its degrees resolved.
        training: its local batch size resolved.
        global_batch_size: in sequences.
        averages: number of callbacks that average the weights.
        checkpointing: a mode that replaces the run's.
    """
    if checkpointing is None:
        checkpointing = checkpointing_of(translate.activation_checkpoint(run.activation_checkpoint))
    of_state = optimizer.state_rates(
        optimizer.config(
            selection[Optimizer],
            run.optimizer,
            device=target.kind,
            parameter_dtype=training.dtype,
        ),
        {each.name: each.shape for each in model.parameters if each.trained},
        training.dtype,
    )
    found = layout_of(
        parallelism,
        training,
        config,
        checkpointing=checkpointing,
        global_batch_size=global_batch_size,
        of_state=of_state,
        loss_chunks=run.loss.num_chunks,
        z_loss=run.loss.z_loss > 0,
        averages=averages,
        execution=execution_of(
            _kernels(run),
            run.compile.enable and "model" in run.compile.components,
            bool(run.compile.said.get("enable_async_tensor_parallel", False)),
            training.mixed_precision_param,
            target,
        ),
    )
    return estimate(model, found, target)


def _kernels(run: Run) -> list[str]:
    """Return the names of all kernels that ``run`` asks for."""
    return [
        name
        for names in run.kernels.values()
        for name in ([names] if isinstance(names, str) else names)
    ]


def choose(
    run: Run,
    selection: Selection,
    parts: ModelParts,
    training: TrainingConfig,
    target: DeviceDescription,
    *,
    ranks: int,
) -> tuple[Run, str]:
    """Return ``run`` with the layout chosen by its strategy, and the strategy's explanation.

    A strategy that chooses nothing leaves the run unchanged.

    Args:
        run: as composed.
        selection: its components.
        parts: the model's.
        training: the section.
        target: the device of the run.
        ranks: the number of ranks.

    Raises:
        UserError: nothing fits.
    """
    if selection[Parallelism].declaration.choose is None:
        if run.activation_checkpoint.mode == AUTO:
            raise UserError(
                "only a strategy that chooses its own layout, such as parallelism=auto, can "
                "choose this",
                valid=f"{', '.join(MODES)}, memory_budget",
                key="activation_checkpoint.mode",
                value=AUTO,
            )
        return run, ""
    model = description(parts, training)
    sequences = training.global_batch_size
    if sequences < 1:
        raise UserError(
            "must be known to choose a layout",
            valid="a positive number",
            key="training.global_batch_size",
            value=sequences,
        )

    of_steps = batches.batches(run)
    known: dict[tuple[Any, ...], Division] = {}
    shapes = shapes_of(on_meta(parts.model))

    def check_division(parallelism: ParallelismConfig) -> None:
        """Check a layout with the architecture, once for all layouts that are equal to it."""
        given = (
            parallelism.tensor_parallel_degree,
            parallelism.context_parallel_degree,
            parallelism.expert_parallel_degree,
            parallelism.enable_sequence_parallel,
        )
        if given not in known:
            known[given] = division(engine.sharded(parts.model, training, parallelism), shapes)
        known[given].check(parallelism, selection[Architecture].config)

    def estimated(choice: LayoutChoice) -> Estimate:
        tried = applied(run, choice)
        parallelism, _ = layout.resolve(tried, available=ranks, joined=ranks)
        section = translate.training(tried.training, target.kind)
        given = tried.training.local_batch_size is not None
        if not given:
            section = batch.shared(section, parallelism, of_steps)
        Candidate(
            training=section,
            parallelism=parallelism,
            model_config=parts.model,
            architecture=selection[Architecture].config,
            local_given=given,
            batches=of_steps,
        ).check()
        check_division(parallelism)
        # As the model is before kernels replace its attention.
        degree = parallelism.context_parallel_degree
        sequence.check_blocks(parts.model, degree, section.seq_len)
        lengths.check(tried, degree)
        mode = tried.activation_checkpoint.mode
        return estimate_of(
            tried,
            selection,
            model,
            parts.model,
            target,
            parallelism,
            section,
            global_batch_size=sequences,
            averages=len(selection.averages()),
            checkpointing=mode if mode in MODES else None,
        )

    strategy = selection[Parallelism]
    context = LayoutContext(
        ranks=ranks,
        global_batch_size=of_steps.unit,  # what divides it divides each batch of a schedule
        model=model,
        device=target,
        parallelism=run.parallelism.parameters,
        activation_checkpoint=run.activation_checkpoint.said,
        training=run.training.said,
        estimate=estimated,
    )
    chosen: LayoutChoice = strategy.code("choose")(strategy.completed(context))
    return applied(run, chosen), chosen.explanation


def applied(run: Run, choice: LayoutChoice) -> Run:
    """Return ``run`` with the values of ``choice`` in its sections."""
    return run.model_copy(
        update={
            "parallelism": run.parallelism.updated(choice.parallelism),
            "activation_checkpoint": run.activation_checkpoint.updated(
                choice.activation_checkpoint
            ),
            "training": run.training.updated(choice.training),
        }
    )
