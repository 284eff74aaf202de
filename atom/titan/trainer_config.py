"""Convert a resolved run to torchtitan's ``Trainer.Config``, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import BaseLoss, ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.validate import Validator
from torchtitan.config import DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

from atom.data.held_out import Side
from atom.errors import UserError
from atom.plugin import (
    Architecture,
    ArchitectureContext,
    Callback,
    CallbackContext,
    Dataset,
    DatasetContext,
    DocumentEncoder,
    ModelParts,
    Objective,
    ObjectiveContext,
    Optimizer,
    Parallelism,
    ParallelismContext,
    Tokenizer,
    TrainerCallback,
)
from atom.recipe import batches, schedules
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.select import Selection
from atom.run_dir import sets
from atom.run_dir.folder import TOKENIZER
from atom.titan import kernels, translate
from atom.titan.checkpoint import adapters
from atom.titan.checkpoint.new_rows import Added
from atom.titan.compat.device import mend_fsdp
from atom.titan.compat.pipeline import send_contiguous
from atom.titan.lora.adapt import adapt, freeze
from atom.titan.optim import optimizer
from atom.titan.shards import changed, parameters_of
from atom.titan.train import profiling
from atom.titan.train.data import DocumentLoader, EncoderOf
from atom.titan.train.example_loss import ChunkedSequenceLoss, SequenceLoss
from atom.titan.train.initial_weights import seed_parameters
from atom.titan.train.plugin_callbacks import Opened
from atom.titan.train.references import ReferenceConfig
from atom.titan.train.teacher_loss import TeacherLoss
from atom.titan.train.teaching import TeachingConfig
from atom.titan.train.trainer import AtomTrainer
from atom.titan.train.validation import ValidationConfig
from atom.titan.train.z_loss import ChunkedLossWithZLoss, CrossEntropyWithZLoss


def trainer_config(
    run: Run, selection: Selection, host: Host, folder: Path, parts: ModelParts | None = None
) -> Trainer.Config:
    """Return the config of the whole job, for ``build().train()``.

    Args:
        run: a run with ``resolved`` filled in.
        selection: its components.
        host: the plugins, for the kernels.
        folder: the run folder, which contains the prepared tokenizer.
        parts: the model's, which the config then owns; None to describe the model here.
    """
    resolved = run.resolved
    assert resolved is not None
    training = translate.training(run.training, resolved.device)
    parts = parts or adapt(model_parts(selection, resolved.vocab_size, training.seq_len), run.lora)
    parallelism = translate.parallelism(run.parallelism.updated(resolved.degrees))
    strategy = selection[Parallelism].call(
        "build",
        ParallelismContext(world_size=resolved.world_size, parts=parts, training=training),
        config=parallelism,
    )
    seed = run.debug.seed or 0
    degree = parallelism.data_parallel_replicate_degree * parallelism.data_parallel_shard_degree
    if run.training.local_batch_size is None:
        local = batches.batches(run, resolved.global_batch_size).unit // degree
        training = translate.changed(training, "training", local_batch_size=local)
    chosen = [
        host.find("kernel", f"{operation}/{name}") for operation, name in resolved.kernels.items()
    ]
    fused = kernels.replaces_loss(component.declaration for component in chosen)
    profiler = profiling.config(
        run, translate.profiler(run.profiler), steps=training.steps, device=resolved.device
    )
    config = AtomTrainer.Config(
        model_spec=ModelSpec(
            name=run.architecture.name,
            flavor=f"dim{getattr(parts.model, 'dim', '')}",
            model=parts.model,
            parallelize_fn=_finished(
                strategy.parallelize_fn, seed, resolved.device, frozen=bool(run.lora.rank)
            ),
            pipelining_fn=strategy.pipelining_fn,
            post_optimizer_build_fn=parts.post_optimizer_build_fn,
            state_dict_adapter=parts.state_dict_adapter,
        ),
        hf_assets_path=str(folder / TOKENIZER),
        dump_folder=str(folder),
        tokenizer=selection[Tokenizer].call("build"),
        dataloader=data_loader(selection, run, folder / TOKENIZER),
        loss=_loss(run, selection, parts, fused=fused),
        optimizer=optimizer.config(
            selection[Optimizer],
            run.optimizer,
            device=resolved.device,
            parameter_dtype=training.dtype,
        ),
        parallelism=strategy.parallelism,
        training=translate.changed(
            training, "training", global_batch_size=resolved.global_batch_size
        ),
        lr_scheduler=translate.lr_scheduler(
            run.lr_scheduler,
            schedules.phases(run, batches.batches(run, resolved.global_batch_size))
            if run.lr_scheduler.stages
            else (),
        ),
        activation_checkpoint=translate.activation_checkpoint(run.activation_checkpoint),
        checkpoint=adapters.config(translate.checkpoint(run.checkpoint), run.lora),
        compile=translate.compilation(run.compile),
        comm=translate.comm(run.comm, resolved.device),
        metrics=translate.metrics(run.metrics),
        profiler=profiler,
        debug=translate.debug(run.debug),
        faults=run.faults,
        callbacks=_callbacks(selection, run),
        validation=validation_config(run, selection, folder / TOKENIZER),
        references=_references(run, selection),
        teaching=_teaching(run, selection),
        trace_samples=run.data.trace,
        tensor_digest=run.provenance.tensor_digest,
        token_digest=run.provenance.token_digest,
        stop_after=run.training.stop_after,
        branch=run.resume.origin,
        data_begins=resolved.data_begins,
        added=None
        if resolved.vocab_size_before is None
        else Added(resolved.vocab_size_before, resolved.vocab_size),
        # Its default loader imports Hugging Face's datasets, and it is not used.
        validator=Validator.Config(dataloader=BaseDataLoader.Config()),
    )
    kernels.put(config, chosen)
    return config


def set_sharding(model: Any, training: TrainingConfig, parallelism: ParallelismConfig) -> None:
    """Set the sharding that a model's config declares for a layout, without a trainer."""
    runtime = SimpleNamespace(parallelism=parallelism, training=training, debug=DebugConfig())
    model.update_from_config(config=runtime)


def model_parts(selection: Selection, vocab_size: int, seq_len: int) -> ModelParts:
    """Call the architecture's ``build`` to describe its model."""
    parts: ModelParts = selection[Architecture].call(
        "build", ArchitectureContext(vocab_size=vocab_size, seq_len=seq_len)
    )
    return parts


def copied(parts: ModelParts) -> ModelParts:
    """Return ``parts`` with a copy of its model config, for code that changes the config."""
    return replace(parts, model=deepcopy(parts.model))


def _finished(
    parallelize: Callable[..., Any], seed: int, device: str, *, frozen: bool
) -> Callable[..., Any]:
    """Wrap a strategy's parallelize function with the steps common to all strategies."""

    def parallelize_and_finish(model: Any, **arguments: Any) -> Any:
        before = parameters_of(model)
        model = parallelize(model, **arguments)
        if problem := changed(before, parameters_of(model)):
            raise UserError(
                f"this layout trains another model than on one rank: {problem}", key="parallelism"
            )
        if frozen:
            freeze(model)  # parallelized parameters are new ones
        seed_parameters(model, seed)
        if arguments["parallel_dims"].pp_enabled:
            send_contiguous(model)
        if device == "cpu":
            mend_fsdp(model)
        return model

    return parallelize_and_finish


def _callbacks(selection: Selection, run: Run) -> tuple[Opened, ...]:
    """Open the callbacks of plugins, in the order of the run."""
    opened = []
    for name, chosen in selection.many(Callback).items():
        context = CallbackContext(name=name, seed=run.debug.seed or 0, steps=run.training.steps)
        made = chosen.call("callback", context)
        if not isinstance(made, TrainerCallback):
            raise UserError(
                f"{chosen.declaration.callback} of {chosen.component.plugin.package} returns a "
                f"{type(made).__name__}, and must return an atom.plugin.TrainerCallback",
                key=chosen.key,
            )
        opened.append(Opened(name, made, chosen.declaration.averages))
    return tuple(opened)


def data_loader(selection: Selection, run: Run, files: Path) -> Any:
    """Return the config of a run's data loader: the dataset's own, or ATOM's.

    ``files`` is the folder of the tokenizer.
    """
    chosen = selection[Dataset]
    resolved = run.resolved
    assert resolved is not None
    seed = run.debug.seed or 0
    if chosen.declaration.build is not None:
        context = DatasetContext(
            seed=seed, global_batch_size=resolved.global_batch_size, opening=chosen.context()
        )
        return chosen.call("build", context)
    mixed = resolved.mixture.sources if resolved.mixture is not None else []
    scheduled = batches.batches(run, resolved.global_batch_size)
    return DocumentLoader.Config(
        source=chosen.call("source"),
        encoder=encoder_of(selection, run, files),
        sources=tuple(source.name for source in mixed),
        measured=frozenset(source.name for source in mixed if source.epoch_tokens),
        seed=seed,
        global_batch_size=resolved.global_batch_size,
        batches=scheduled if run.training.batch_schedule else None,
        packing=run.data.packing,
        ahead=run.data.ahead,
        steps=run.training.steps,
        begin=resolved.data_begins or 0,
        vocab_size=resolved.vocab_size,
        side=Side(run.validation.fraction) if run.validation.fraction else None,
        digests=run.provenance.token_digest,
        sequences=1 if _taught(selection) else _sequences(selection),
        each_token=_taught(selection),
    )


def _sequences(selection: Selection) -> int | None:
    """Return the sequences of an example; None if the loss is of tokens."""
    objective = selection.optional(Objective)
    if objective is None or objective.declaration.loss is None or _taught(selection):
        return None
    return objective.declaration.sequences


def _taught(selection: Selection) -> bool:
    """Return whether the objective has a teacher."""
    objective = selection.optional(Objective)
    return objective is not None and objective.declaration.teacher is not None


def _teaching(run: Run, selection: Selection) -> TeachingConfig | None:
    """Return the teacher; None if the objective has none."""
    objective = selection.optional(Objective)
    if objective is None or not _taught(selection):
        return None
    assert run.resolved is not None
    training = translate.training(run.training, run.resolved.device)
    return TeachingConfig(
        teacher=objective.call("teacher"),
        vocab_size=run.resolved.vocab_size,
        dtype=str(training.mixed_precision_param),
        data=_data(run),
    )


def _data(run: Run) -> dict[str, Any]:
    """Return the settings that change which examples a run reads, as plain data."""
    assert run.resolved is not None
    said = run.model_dump(mode="json")
    return {
        "seed": run.debug.seed or 0,
        "seq_len": run.training.seq_len,
        "global_batch_size": run.resolved.global_batch_size,
        "batches": said["training"].get("batch_schedule"),
        **{name: said[name] for name in ("dataset", "data", "objective", "validation")},
    }


def _references(run: Run, selection: Selection) -> ReferenceConfig | None:
    """Return what references depend on; None if the objective needs none."""
    objective = selection.optional(Objective)
    if objective is None or not objective.declaration.reference:
        return None
    assert run.resolved is not None
    said = run.model_dump(mode="json")
    training = translate.training(run.training, run.resolved.device)
    return ReferenceConfig(
        model={
            "architecture": said["architecture"],
            "dtypes": [training.dtype, training.mixed_precision_param],
        },
        data=_data(run),
    )


def encoder_of(selection: Selection, run: Run, files: Path) -> EncoderOf | None:
    """Return what makes the encoder of the run's objective; None if it has no objective."""
    objective = selection.optional(Objective)
    if objective is None:
        return None

    def encoder(tokenizer: Any) -> DocumentEncoder:
        context = ObjectiveContext(tokenizer=tokenizer, files=files, seq_len=run.training.seq_len)
        made: DocumentEncoder = objective.call("encoder", context)
        return made

    return encoder


def validation_config(run: Run, selection: Selection, files: Path) -> ValidationConfig:
    """Return what the run validates, and when."""
    assert run.resolved is not None
    return ValidationConfig(
        sets=sets.of(run, selection),
        encoder=encoder_of(selection, run, files),
        interval=run.validation.interval,
        tokens=run.validation.tokens,
        vocab_size=run.resolved.vocab_size,
        sequences=_sequences(selection),
    )


def _loss(run: Run, selection: Selection, parts: ModelParts, *, fused: bool) -> BaseLoss.Config:
    """Return the loss; ``fused`` if a kernel replaces the output layer and the loss."""
    assert run.resolved is not None
    size = getattr(parts.model, "vocab_size", run.resolved.vocab_size)
    objective = selection.optional(Objective)
    if objective is not None and objective.declaration.loss is not None:
        if parts.loss is not None:
            raise UserError(
                "has its own loss, and the model predicts several tokens with another",
                valid="architecture.mtp_depth=0",
                key="objective.name",
                value=objective.component.name,
            )
        chunks = run.loss.num_chunks
        if _taught(selection):
            taught = TeacherLoss.Config(loss=objective.call("loss"))
            if chunks == 1:
                return taught
            return ChunkedLossWrapper.Config(num_chunks=chunks, loss_fn=taught)
        of_examples = SequenceLoss.Config(
            loss=objective.call("loss"),
            sequences=objective.declaration.sequences,
            global_vocab_size=size,
        )
        if chunks == 1:
            return of_examples
        return ChunkedSequenceLoss.Config(num_chunks=chunks, loss_fn=of_examples)
    chunks, weight = run.loss.num_chunks, run.loss.z_loss
    cross_entropy = CrossEntropyLoss.Config(global_vocab_size=size)
    chunked = ChunkedLossWrapper.Config
    if weight:
        cross_entropy = CrossEntropyWithZLoss.Config(global_vocab_size=size, z_loss=weight)
        chunked = ChunkedLossWithZLoss.Config
    if parts.loss is not None:
        return _of_several_outputs(parts.loss, cross_entropy, chunks, weight)
    if chunks == 1 and not fused:
        return cross_entropy
    return chunked(num_chunks=chunks, loss_fn=cross_entropy)


def _of_several_outputs(
    loss: Callable[..., Any], cross_entropy: BaseLoss.Config, chunks: int, z_loss: float
) -> Any:
    """Return the loss of a model with several outputs in training.

    Raises:
        UserError: the loss is to be computed in chunks, or with a penalty.
    """
    for name, value, valid in (("num_chunks", chunks, 1), ("z_loss", z_loss, 0)):
        if value != valid:
            raise UserError(
                "is not possible for a model that predicts several tokens",
                valid=f"{valid}, or architecture.mtp_depth=0",
                key=f"loss.{name}",
                value=value,
            )
    return loss(cross_entropy=cross_entropy)
