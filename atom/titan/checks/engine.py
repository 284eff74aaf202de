"""Refuse, before ranks start, what torchtitan would refuse on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

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
from torchtitan.models.common.attention import FlexAttention
from torchtitan.trainer import Trainer

from atom.errors import UserError
from atom.titan import kernels
from atom.titan.checks.division import names_of
from atom.titan.trainer_config import set_sharding

SPLIT_BACKWARD = (ScheduleInterleavedZeroBubble, ScheduleZBVZeroBubble, ScheduleDualPipeV)
"""Schedules that compute the gradients of inputs and of weights separately."""

_GROUPED = 8
"""Row multiple of torch's grouped matrix product: 16 bytes, 8 numbers in bfloat16."""


def check(
    training: TrainingConfig,
    parallelism: ParallelismConfig,
    model: Any,
    architecture: Any = None,
) -> None:
    """Refuse degrees and batch sizes that do not divide evenly.

    Args:
        training: torchtitan's section, its local batch size resolved.
        parallelism: with every degree resolved.
        model: the architecture's model config.
        architecture: its parameters, which hints name.

    Raises:
        UserError: names the key at fault and what would be valid.
    """
    _check_tensor(parallelism, model, architecture)
    _check_experts(parallelism, model, architecture)
    _check_sequence(training, parallelism)
    _check_pipeline(training, parallelism, model)


def check_together(config: Any) -> None:
    """Assemble a ``Trainer.Config`` of ATOM's as torchtitan's trainer does, kernels included.

    Raises:
        UserError: parts of it are incompatible.
        UnfitError: a kernel does not compute its operation in this run.
    """
    with refused():
        config.model_spec.model.update_from_config(config=config)
        config.replaced |= kernels.apply(config, config.overrides)
    _check_compile(config)
    degree = config.parallelism.context_parallel_degree
    attention = getattr(config.model_spec.model, "first_attention", None)
    inner = getattr(attention, "inner_attention", None)
    if degree > 1 and isinstance(inner, FlexAttention.Config):
        block = inner.block_size if isinstance(inner.block_size, int) else inner.block_size[0]
        if config.training.seq_len % (degree * block):
            raise UserError(
                f"must be a multiple of {degree * block}: context_parallel_degree {degree} x the "
                f"attention mask's blocks of {block} tokens",
                key="training.seq_len",
                value=config.training.seq_len,
            )


def sharded(model: Any, training: TrainingConfig, parallelism: ParallelismConfig) -> Any:
    """Return a copy of ``model`` with the sharding that it declares for a layout.

    Raises:
        UserError: the architecture does not support the layout; the message is the architecture's.
    """
    copied = deepcopy(model)
    with refused():
        set_sharding(copied, training, parallelism)
    return copied


@contextmanager
def refused() -> Iterator[None]:
    """Convert configuration errors of torchtitan and architectures into a :class:`UserError`."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raise UserError(" ".join(str(error).split()).rstrip(".")) from None


def _check_compile(config: Trainer.Config) -> None:
    """Refuse to compile a graph that the schedule must split."""
    parallelism, compilation = config.parallelism, config.compile
    name = parallelism.pipeline_parallel_schedule
    if (
        parallelism.pipeline_parallel_degree > 1
        and compilation.enable
        and "model" in compilation.components
        and issubclass(get_schedule_class(name), SPLIT_BACKWARD)
    ):
        raise UserError(
            f"{name} splits the backward pass in two, which a compiled model cannot",
            valid="compile.enable=false, or another schedule",
            key="parallelism.pipeline_parallel_schedule",
            value=name,
        )


def global_batch_size(training: TrainingConfig, dp: int, *, local_given: bool) -> int:
    """Return the sequences of one step.

    Without ``training.local_batch_size`` each rank runs its share of the global batch in one pass;
    with both, gradients are accumulated until the global batch is reached.

    Raises:
        UserError: the global batch does not divide evenly.
    """
    wanted, local = training.global_batch_size, training.local_batch_size
    if wanted == -1:
        return local * dp
    unit = local * dp if local_given else dp
    if wanted % unit:
        what = (
            f"local_batch_size {local} x {dp} data-parallel ranks"
            if local_given
            else f"the {dp} data-parallel ranks"
        )
        raise UserError(
            f"must be a multiple of {unit} ({what})",
            key="training.global_batch_size",
            value=wanted,
        )
    return wanted


def _check_tensor(parallelism: ParallelismConfig, model: Any, architecture: Any) -> None:
    degree = parallelism.tensor_parallel_degree
    if degree == 1:
        return
    for attention in _attentions(model):
        heads = attention.n_heads
        kv_heads = getattr(attention, "n_kv_heads", None) or heads
        for what, number in (("query heads", heads), ("key and value heads", kv_heads)):
            if number % degree:
                raise UserError(
                    f"must divide the model's {number} {what}",
                    key="parallelism.tensor_parallel_degree",
                    value=degree,
                )
    vocab_size = getattr(model, "vocab_size", 0)
    if vocab_size % degree:
        hint = "; valid: a tokenizer with a multiple of it"
        if hasattr(architecture, "vocab_size"):
            hint = "; architecture.vocab_size can be set to a multiple"
        raise UserError(
            f"must divide the vocabulary of {vocab_size}{hint}",
            key="parallelism.tensor_parallel_degree",
            value=degree,
        )


def _attentions(model: Any) -> Iterator[Any]:
    """Yield the attention modules in the layers of ``model``."""
    for layer in getattr(model, "layers", ()):
        attention = getattr(layer, "attention", None)
        if hasattr(attention, "n_heads"):
            yield attention


def _check_experts(parallelism: ParallelismConfig, model: Any, architecture: Any) -> None:
    """Refuse a degree that does not divide a layer's experts, or the width of an expert.

    With expert parallelism each rank holds whole experts; without it, tensor parallelism shards
    each.
    """
    expert, tensor = parallelism.expert_parallel_degree, parallelism.tensor_parallel_degree
    layers = [
        layer.moe
        for layer in getattr(model, "layers", ())
        if getattr(layer, "moe", None) is not None
    ]
    if expert > 1 and not layers:
        raise UserError(
            "this model has no experts to share out",
            valid="1",
            key="parallelism.expert_parallel_degree",
            value=expert,
        )
    for layer in layers:
        width = layer.routed_experts.inner_experts.hidden_dim
        if layer.num_experts % expert:
            raise UserError(
                f"must divide the {layer.num_experts} experts of a layer",
                key="parallelism.expert_parallel_degree",
                value=expert,
            )
        if expert == 1 and width % tensor:
            raise UserError(
                f"must divide the experts' width of {width}; or share whole experts out with "
                "parallelism.expert_parallel_degree",
                key="parallelism.tensor_parallel_degree",
                value=tensor,
            )
        local = width if expert > 1 else width // tensor
        for what, whole, size in (
            ("the model's width", model.dim, model.dim),
            ("the experts' width a rank", width, local),
        ):
            if size % _GROUPED:
                names = names_of(whole, architecture)
                raise UserError(
                    f"{what} is {size} and must be a multiple of {_GROUPED}, for torch's grouped "
                    "matrix product",
                    **({"key": names[0], "value": whole} if names else {}),
                )


def _check_sequence(training: TrainingConfig, parallelism: ParallelismConfig) -> None:
    # Expert parallelism shards tokens along the sequence, with or without sequence parallelism.
    split = parallelism.enable_sequence_parallel or parallelism.expert_parallel_degree > 1
    tensor = parallelism.tensor_parallel_degree if split else 1
    context = parallelism.context_parallel_degree
    divisor = tensor * (2 * context if context > 1 else 1)
    if training.seq_len % divisor:
        raise UserError(
            f"must be a multiple of {divisor} (tensor_parallel_degree {tensor}"
            + (f" x 2 x context_parallel_degree {context})" if context > 1 else ")"),
            key="training.seq_len",
            value=training.seq_len,
        )


def _check_pipeline(training: TrainingConfig, parallelism: ParallelismConfig, model: Any) -> None:
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
            f"the model's {len(model.layers)} layers cannot be split so: "
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
