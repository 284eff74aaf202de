"""Define the training sections of a run: ATOM's own keys, and engine keys beside them.

A recipe consists of ATOM's own keys. They keep their names and meaning with any engine:
:mod:`atom.titan.translate` is the only module that maps them to torchtitan's names. Further
torchtitan keys stand in the same section under torchtitan's names
(:data:`atom.recipe.defaults.ENGINE`); torchtitan's own dataclasses validate them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from atom import plugin
from atom.plugin.parameters import Component
from atom.recipe.ranges import Range
from atom.recipe.sections import Model, Numbers, Section

_Steps = Annotated[int, Range(1, 10**12)]
_Count = Annotated[int, Range(1)]
_Natural = Annotated[int, Range(0)]
_Share = Annotated[float, Range(0, 1, whole=False)]
_Sequences = Range(1, 10**9, null="for the rank's share of the global batch")
_GlobalBatch = Range(
    1, 10**9, also=((-1, "for local_batch_size sequences per data-parallel rank"),)
)
_Degree = Range(1, 10**6, also=((-1, "for the remaining ranks"),), null="for 1")
_Precision = Literal["bfloat16", "float32"]


class TrainingSection(Numbers):
    """A section with ATOM's own keys as fields and the engine's keys in :attr:`engine`."""

    model_config = ConfigDict(extra="allow")

    @property
    def engine(self) -> Section:
        """The engine keys that are set, under the engine's names."""
        return dict(self.model_extra or {})

    @property
    def said(self) -> Section:
        """The keys of both kinds that are set to something other than null."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: value
            for name, value in own.items()
            if name in self.model_fields_set and value is not None
        } | self.engine

    def updated(self, values: Mapping[str, Any]) -> Self:
        """Return a copy of the section with new values for some keys."""
        return self.model_copy(update=dict(values))


class BatchStage(Model):
    """A stage of the schedule of the global batch: a size, or a ramp to the next one."""

    steps: Annotated[int | None, Range(1, 10**12, null="for a length in tokens")] = Field(
        default=None, description="its length in steps"
    )
    tokens: Annotated[int | None, Range(1, null="for a length in steps")] = Field(
        default=None, description="its length in tokens instead, rounded up to whole steps"
    )
    global_batch_size: Annotated[int, Range(1, 10**9)] = Field(
        description="sequences per step, over all ranks"
    )
    increment: Annotated[int | None, Range(1, 10**9, null="for one size")] = Field(
        default=None,
        description="sequences by which the batch rises, in equal parts of the stage, to the size "
        "after it",
    )


class Training(TrainingSection):
    """Steps, batch, clipping and precision."""

    steps: _Steps = Field(default=10000, description="optimizer steps of the run")
    stop_after: Annotated[int | None, Range(1, 10**12, null="for all steps")] = Field(
        default=None,
        description="stop after this step, with a checkpoint, as on request; the schedules stay "
        "those of training.steps",
    )
    seq_len: Annotated[int, Range(1, 2**30)] = Field(
        default=2048, description="tokens per sequence"
    )
    global_batch_size: Annotated[int, _GlobalBatch] = Field(
        default=-1, description="sequences per step, over all ranks"
    )
    batch_schedule: list[BatchStage] = Field(
        default=[],
        description="stages with smaller batches, before global_batch_size, the largest",
    )
    local_batch_size: Annotated[int | None, _Sequences] = Field(
        default=None,
        description="sequences per forward and backward pass of a data-parallel rank; gradients "
        "are accumulated if it is less than the rank's share of the global batch; "
        "null: the whole share, or with batch_schedule the most that divide the share of each size",
    )
    # 0 would set every gradient to 0.
    max_norm: Annotated[float, Range(0, above=True, whole=False)] = Field(
        default=1.0,
        description="maximum norm of all gradients together; larger ones are clipped to it",
    )
    dtype: _Precision = Field(
        default="float32", description="dtype of parameters, gradients and optimizer state"
    )
    mixed_precision_param: _Precision | None = Field(
        default=None,
        description="dtype of forward and backward passes; null: bfloat16, or float32 on a CPU",
    )


class LRStage(Model):
    """A stage of the learning-rate schedule: from the last rate to another one, along a curve."""

    steps: Annotated[int | None, Range(1, 10**12, null="for the rest of the run")] = Field(
        default=None, description="its length in steps; the last stage can be the rest of the run"
    )
    tokens: Annotated[int | None, Range(1, null="for a length in steps")] = Field(
        default=None, description="its length in tokens instead, rounded up to whole steps"
    )
    to: Annotated[float | None, Range(0, whole=False, null="for the last rate")] = Field(
        default=None, description="the rate at its end, as a fraction of the peak; null: no change"
    )
    curve: Literal["linear", "cosine", "sqrt", "inverse_sqrt", "constant"] = Field(
        default="linear",
        description="`inverse_sqrt` falls with the root of the step; `constant` is `to` at once",
    )


class LRScheduler(TrainingSection):
    """The learning-rate schedule: a linear warm-up, the peak, and a decay; then the rate is
    constant. `stages` describes any other one.
    """

    warmup_steps: _Natural = Field(default=200, description="steps of the warm-up")
    total_steps: Annotated[int | None, Range(1, null="for training.steps")] = Field(
        default=None, description="steps of the schedule; null: training.steps"
    )
    decay_ratio: Annotated[
        float | None, Range(0, 1, whole=False, null="for a decay from the end of the warm-up")
    ] = Field(
        default=None,
        description="length of the decay at the end of the schedule, as a fraction of its steps; "
        "null: all steps after the warm-up",
    )
    decay_type: Literal["linear", "sqrt", "cosine"] = Field(
        default="linear", description="the curve of the decay"
    )
    min_lr_factor: _Share = Field(
        default=0.0, description="the final rate, as a fraction of the peak"
    )
    stages: list[LRStage] = Field(
        default=[],
        description="stages of the schedule, from a rate of 0, instead of the keys above",
    )


RECOMPUTATION = ("full", "memory_budget", "none", "selective")
"""Values of ``activation_checkpoint.mode``, beside ``auto``."""


class ActivationCheckpoint(TrainingSection):
    """Which activations the backward pass recomputes instead of keeping them in memory."""

    mode: str = Field(
        default="selective",
        description="none, selective (every second matrix product), full (all of a layer), "
        "memory_budget (the compiler chooses), or auto with parallelism=auto",
    )


class Checkpoint(TrainingSection):
    """Checkpoints of the run, and its initial weights."""

    enable: bool = Field(default=False, description="save checkpoints, and resume from them")
    interval: _Count = Field(default=500, description="steps from one checkpoint to the next")
    # One checkpoint can be incomplete when the other is needed.
    keep_latest_k: Annotated[int, Range(2, also=((0, "to keep all"),))] = Field(
        default=10, description="number of newest checkpoints to keep; 0: all"
    )
    keep_every: _Natural = Field(
        default=0,
        description="also keep the checkpoints at multiples of this number of steps; 0: none",
    )
    keep_best: _Natural = Field(
        default=0, description="also keep this number of checkpoints with the lowest loss"
    )
    keep_best_of: str | None = Field(
        default=None,
        description="the validation set with this loss; null: the training loss, its mean since "
        "the checkpoint before",
    )
    initial_load: str = Field(
        default="",
        description="initial weights: a checkpoint or a run folder, or hf:FOLDER",
    )


class Compile(TrainingSection):
    """Compilation by torch.compile."""

    enable: bool = Field(default=False, description="compile the parts in compile.components")
    components: list[str] = Field(default=["model", "loss"], description="model, loss, or both")


class Metrics(TrainingSection):
    """Which metrics are logged, and where."""

    log_freq: _Count = Field(default=10, description="steps between logged steps")
    show: list[str] = Field(
        default=[],
        description="further numbers of metrics.jsonl in the line of a step, such as "
        "callbacks.norms.gradient/layers.0; of gradient/*, the highest",
    )


class Debug(TrainingSection):
    """Seed and determinism, and debugging aids."""

    seed: Annotated[int | None, Range(0, null="for 0")] = Field(
        default=None, description="seed of the initial weights and the order of the data; null: 0"
    )
    deterministic: bool = Field(
        default=False, description="use deterministic algorithms only, which may be slower"
    )


class Parallelism(Component[plugin.Parallelism], TrainingSection):
    """A strategy, and the degree of each kind of parallelism."""

    data_parallel_replicate_degree: Annotated[int | None, _Degree] = Field(
        default=None, description="number of copies of the model; null: 1"
    )
    data_parallel_shard_degree: Annotated[
        int | None,
        Range(1, 10**6, also=((-1, "for the remaining ranks"),), null="for the remaining ranks"),
    ] = Field(
        default=None,
        description="ranks that shard the parameters of one copy of the model (FSDP); -1 or null: "
        "the remaining ranks",
    )
    tensor_parallel_degree: Annotated[int | None, _Degree] = Field(
        default=None, description="ranks that shard each matrix; null: 1"
    )
    pipeline_parallel_degree: Annotated[int | None, _Degree] = Field(
        default=None,
        description="ranks that the layers are divided among (pipeline stages); null: 1",
    )
    context_parallel_degree: Annotated[int | None, _Degree] = Field(
        default=None, description="ranks that each sequence is divided among; null: 1"
    )
    expert_parallel_degree: Annotated[int | None, Range(1, 10**6, null="for 1")] = Field(
        default=None,
        description="ranks, among those of the other degrees, that the experts of a layer are "
        "divided among; null: 1",
    )
    pipeline_parallel_schedule: str = Field(
        default="1F1B", description="the pipeline schedule, by torch's name"
    )
    pipeline_parallel_microbatch_size: _Count = Field(
        default=1, description="sequences per micro-batch of the pipeline"
    )

    @property
    def parameters(self) -> Section:
        """The parameters passed to the strategy: the keys that are set."""
        return {name: value for name, value in self.said.items() if name != "name"}

    @model_serializer(mode="wrap")
    def _without_nulls(self, handler: SerializerFunctionWrapHandler) -> Section:
        own = type(self).model_fields
        return {k: v for k, v in handler(self).items() if k not in own or v is not None}


SECTIONS: dict[str, type[TrainingSection]] = {
    "training": Training,
    "lr_scheduler": LRScheduler,
    "activation_checkpoint": ActivationCheckpoint,
    "checkpoint": Checkpoint,
    "compile": Compile,
    "metrics": Metrics,
    "debug": Debug,
    "parallelism": Parallelism,
}
"""Sections with both ATOM's own keys and engine keys."""

ENGINE_SECTIONS = ("comm", "profiler")
"""Sections with engine keys only."""
