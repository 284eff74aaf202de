"""Define ATOM's own sections of a run: their keys, types and defaults, one model each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
)

from atom import plugin
from atom.io.lines import FROM_FILES, Line, Value, Variable, Word
from atom.io.urls import is_url
from atom.plugin.parameters import Component
from atom.recipe import ranges
from atom.redaction import redacted

Section = dict[str, Any]
"""A section as plain data, by key."""


def _on_disk(value: object) -> object:
    """Refuse a URL: as a path it would name a folder ``s3:`` here."""
    if isinstance(value, str) and is_url(value):
        raise ValueError("is a URL, and runs are on a disk; valid: a path")
    return value


class Numbers(BaseModel):
    """A base model that accepts only finite numbers in numeric fields."""

    model_config = ConfigDict(frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _are_finite(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields.get(str(info.field_name))
        if field is None or any(isinstance(each, ranges.Range) for each in field.metadata):
            return value  # the range reports what is valid
        if ranges.is_numeric(field.annotation):
            ranges.refuse_odd(value)
        return value


class Model(Numbers):
    model_config = ConfigDict(extra="forbid")


class Folder(Model):
    """The folder of a run's results."""

    dir: Path | None = Field(
        default=None, description="the run folder; null: outputs/DATE/TIME in the current folder"
    )

    @field_validator("dir", mode="before")
    @classmethod
    def _is_on_disk(cls, value: object) -> object:
        return _on_disk(value)


class Launch(Model):
    """How ranks are started."""

    ranks: PositiveInt | None = Field(
        default=None,
        le=10**6,
        description="number of ranks; null: as the layout needs, or one per GPU",
    )
    max_restarts: NonNegativeInt = Field(
        default=3,
        description="maximum restarts of the ranks after failures; each checkpoint resets the "
        "count",
    )
    start_seconds: PositiveFloat = Field(
        default=1800,
        description="maximum seconds until the first step is complete; after that, the ranks "
        "count as hung",
    )
    hang_seconds: PositiveFloat = Field(
        default=1800,
        description="maximum seconds from one step to the next; after that, the ranks count as "
        "hung",
    )


# `from` is no name of an attribute in a class.
_From: Any = create_model(  # type: ignore[call-overload]
    "_From",
    __base__=Model,
    **{
        "from": (
            str | None,
            Field(
                default=None,
                description="RUN@STEP: begin with everything in a checkpoint of another run, "
                "optimizer and data position included; null: with nothing",
            ),
        )
    },
)


class Resume(_From):
    """How a run resumes from the checkpoints in its folder, or begins from one of another run."""

    force: bool = Field(
        default=False, description="resume even if settings differ that the checkpoint depends on"
    )

    @field_validator("from", mode="before")
    @classmethod
    def _is_on_disk(cls, value: object) -> object:
        return _on_disk(value)

    @property
    def origin(self) -> str | None:
        """The value of ``from``."""
        origin: str | None = getattr(self, "from")
        return origin


class Faults(Model):
    """Responses to numerical faults and silent data corruption: see docs/faults.md."""

    non_finite: Literal["skip", "rollback", "stop"] = Field(
        default="stop", description="action if the loss or the gradient norm is not finite"
    )
    spike: Literal["none", "skip", "rollback", "stop"] = Field(
        default="none",
        description="action if the loss or the gradient norm is far above recent values",
    )
    spike_threshold: PositiveFloat = Field(
        default=10,
        description="distance above the median that is a spike, in robust standard deviations",
    )
    window: PositiveInt = Field(
        default=100,
        description="number of recent steps that spikes are compared with, and to "
        "which the budget applies",
    )
    budget: NonNegativeInt = Field(
        default=3,
        description="faults per window that are skipped or rolled back; the next one stops the run",
    )
    replica_check_interval: NonNegativeInt = Field(
        default=0, description="steps between comparisons of the bits of replicas; 0: none"
    )
    replay_check_interval: NonNegativeInt = Field(
        default=0, description="steps between steps that are computed twice and compared; 0: none"
    )


class Profile(Model):
    """A profile of a few steps, written to ``profile/`` of the run folder: see docs/watch.md."""

    steps: int | str | None = Field(
        default=None, description="a step, or FIRST-LAST: the steps to profile; null: none"
    )

    @field_validator("steps")
    @classmethod
    def _are_steps(cls, steps: int | str | None) -> int | str | None:
        first, last = cls._ends(steps) or (1, 1)
        if not 1 <= first <= last:
            raise ValueError("must be a step, such as 10, or FIRST-LAST, such as 10-12")
        return steps

    @property
    def window(self) -> tuple[int, int] | None:
        """The first and the last step to profile; None if there is no profile."""
        return self._ends(self.steps)

    @staticmethod
    def _ends(steps: int | str | None) -> tuple[int, int] | None:
        if steps is None:
            return None
        match = re.fullmatch(r"(\d{1,15})(?:-(\d{1,15}))?", str(steps))
        return (int(match[1]), int(match[2] or match[1])) if match else (0, 0)


class Sweep(Model):
    """The objective by which the runs of a sweep are compared."""

    objective: str = Field(
        default="loss",
        description="a number in metrics.jsonl, such as loss, validation.NAME.bits_per_byte or "
        "callbacks.NAME.VALUE, or evaluation.TASK.METRIC; its last value is the objective",
    )
    direction: Literal["minimize", "maximize"] = Field(
        default="minimize", description="whether the lowest or the highest objective is the best"
    )


class Data(Model):
    """How the documents of the dataset are read."""

    trace: bool = Field(
        default=False, description="record every sample in logs/samples_rank_N.jsonl"
    )
    order: Literal[1, 2] | None = Field(
        default=None,
        description="version of the order of documents; 1: that of ATOM 0.1, sorted in memory; "
        "null: the newest, or that of the resumed run",
    )
    packing: Literal["concat", "best_fit", "none", "windows"] = Field(
        default="concat",
        description="how documents become sequences: concat cuts them where a sequence ends; "
        "best_fit cuts only those longer than a sequence, and pads; none gives each its own; "
        "windows shuffles pieces of stored tokens (dataset=prepared), so that any step is found at "
        "once",
    )
    ahead: int = Field(
        default=2,
        ge=0,
        le=1000,
        description="steps whose data is read and tokenized while earlier ones are trained; "
        "0: the training thread reads",
    )


class Launcher(Numbers, Component[plugin.Launcher]):
    """The system that starts the ranks, and the resources that it gives them: see
    docs/clusters.md.
    """

    # YAML reads `launcher.time=60` and `launcher.environment.LEVEL=1` as numbers.
    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str | None = Field(  # type: ignore[assignment]
        default=None, description="the launcher; null: this machine"
    )
    dry_run: bool = Field(default=False, description="print the submission and write nothing")
    nodes: PositiveInt = Field(default=1, le=10**6, description="number of machines of one job")
    gpus_per_node: PositiveInt | None = Field(
        default=None, le=10**4, description="GPUs, and ranks, per node; null: ranks on CPUs"
    )
    gpu: Word | None = Field(
        default=None,
        description="the GPU of the nodes, as in device=h100; null: as on this machine",
        json_schema_extra=FROM_FILES,
    )
    cpus_per_node: PositiveInt | None = Field(default=None, description="CPU cores per node")
    time: str | None = Field(
        default=None,
        json_schema_extra=FROM_FILES,
        description="time limit of one job: MINUTES, HOURS:MM:SS or DAYS-HH:MM:SS",
    )
    queue: Word | None = Field(
        default=None, description="partition or queue", json_schema_extra=FROM_FILES
    )
    account: Word | None = Field(
        default=None, description="account to charge", json_schema_extra=FROM_FILES
    )
    image: Word | None = Field(default=None, description="container image; null: no container")
    environment: dict[Variable, Value] = Field(
        default={}, description="environment variables of the ranks"
    )
    pass_environment: list[Variable] = Field(
        default=[],
        description="names of variables that the ranks get from the submitting shell; no value is "
        "written",
    )
    mounts: list[Line] = Field(
        default=[], description="mounts of containers and pods: SOURCE:TARGET"
    )
    before: list[Line] = Field(
        default=[], description="shell commands on every node, before the ranks"
    )

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, time: str | None) -> str | None:
        if time is not None and re.fullmatch(r"([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}", time) is None:
            raise ValueError("must be MINUTES, HOURS:MM:SS or DAYS-HH:MM:SS")
        return time

    @model_serializer(mode="wrap")
    def _without_secrets(self, handler: SerializerFunctionWrapHandler) -> Section:
        section: Section = redacted(handler(self), "launcher")
        return section


class Batch(Model):
    """The batch of one step, if it is not counted in sequences."""

    tokens: PositiveInt | None = Field(
        default=None,
        description="tokens of one step; training.global_batch_size is this divided by "
        "training.seq_len",
    )


class Loss(Model):
    """Cross-entropy of the next token, averaged over the tokens of the global batch."""

    num_chunks: PositiveInt = Field(
        default=1,
        le=2**20,
        description="number of chunks of the sequence in which logits and "
        "loss are computed; more need less memory",
    )
    z_loss: Annotated[float, ranges.Range(0, 1, whole=False)] = Field(
        default=0.0,
        description="factor of z-loss, the square of log(sum(exp(logits))) of each token "
        "(https://arxiv.org/abs/2204.02311, section 5), such as 1e-4. The metric `z_loss` has it, "
        "and `loss` stays the cross-entropy; 0: none",
    )


class Provenance(Model):
    """What is recorded so that others can check and repeat the run: see docs/openness.md."""

    token_digest: bool = Field(
        default=True,
        description="digest the tokens of each step: `data` and `stream` of metrics.jsonl",
    )
    tensor_digest: bool = Field(
        default=True,
        description="digest weights and optimizer state at each checkpoint, independent of the "
        "layout",
    )
    patch: bool = Field(
        default=True,
        description="keep a patch of code that differs from its commit, in starts/ of the run "
        "folder",
    )


class Plugins(Model):
    """The installed packages that a run loads: see :mod:`atom.registry.trust`."""

    allow: list[str] | None = Field(
        default=None, description="patterns of the packages that may be loaded; null: all"
    )
    block: list[str] = Field(default=[], description="patterns of packages that are never loaded")
    locked: Path | None = Field(
        default=None,
        description="a lock, written by `atom plugins lock`, that the packages must match",
    )
    used: list[str] | None = Field(
        default=None, description="the packages that ranks load; set by ATOM"
    )
