"""Parameters of the launchers, in addition to the resources that all launchers share."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from atom.io.lines import FROM_FILES, Line, Word
from atom.recipe.idle import Idle


def _written(pattern: str, words: str) -> AfterValidator:
    """Return a validator of text that matches ``pattern``; errors describe it with ``words``."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"must be {words}")
        return text

    return AfterValidator(check)


_PYTHON = Field(default="python", description="the interpreter there, which has ATOM")
_PORT = Field(default=29500, gt=0, lt=65536, description="a free port of the first machine")
_RESTARTS = Field(
    default=100, description="starts after the first, whatever for; ATOM ends a crash loop sooner"
)


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Torchrun(_Parameters):
    """Commands to start by hand, one per machine."""

    host: Line = Field(default="HOST", description="name or address of the first machine")
    port: int = _PORT


class Slurm(_Parameters):
    """A Slurm batch job."""

    qos: Word | None = Field(
        default=None, description="quality of service", json_schema_extra=FROM_FILES
    )
    constraint: Word | None = Field(
        default=None, description="features that nodes must have", json_schema_extra=FROM_FILES
    )
    exclude: Word | None = Field(
        default=None, description="nodes not to be given", json_schema_extra=FROM_FILES
    )
    exclusive: bool = Field(default=True, description="share the nodes with nobody")
    arguments: list[Line] = Field(default=[], description="further options of sbatch")
    srun: list[Line] = Field(default=[], description="further options of srun")
    signal_seconds: PositiveInt = Field(
        default=120, description="seconds before the time limit to stop at, with a checkpoint"
    )
    spares: NonNegativeInt = Field(
        default=0, description="more nodes in each job, which take the place of ones that fail"
    )
    parallel_jobs: PositiveInt | None = Field(
        default=None, description="jobs of a sweep that may run at the same time; null: all"
    )
    container: Literal["pyxis", "apptainer"] = Field(
        default="pyxis", description="what runs launcher.image"
    )
    check_nodes: bool = Field(default=True, description="check every node before the ranks start")
    check_links: Annotated[bool | None, Idle("check_nodes", False)] = Field(
        default=None,
        description="check_nodes computes an all-reduce between neighbours too; null: with GPUs",
    )
    min_link_gb_per_second: NonNegativeFloat = Field(
        default=0.0, description="bus bandwidth that check_links wants of each GPU"
    )
    min_disk_gib: Annotated[PositiveFloat, Idle("check_nodes", False)] = Field(
        default=1.0, description="free space that the check wants in the run folder and in /tmp"
    )


_Name = Annotated[
    str,
    _written(
        r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", "lower-case letters, digits and hyphens between them"
    ),
]
Quantity = Annotated[
    str,
    Field(coerce_numbers_to_str=True),
    _written(r"[0-9]+(\.[0-9]+)?([KMGTP]i|[kMGTP])?", "an amount, such as 64Gi"),
]
"""A quantity in Kubernetes' notation: ``64Gi``."""


class Kubernetes(_Parameters):
    """A JobSet."""

    namespace: _Name | None = Field(
        default=None,
        max_length=63,
        description="null: that of kubectl's context",
        json_schema_extra=FROM_FILES,
    )
    python: Line = _PYTHON
    port: int = _PORT
    memory: Quantity | None = Field(
        default=None, description="of a pod; null: no limit", json_schema_extra=FROM_FILES
    )
    shared_memory: Quantity | None = Field(
        default=None,
        description="the most that /dev/shm may hold; null: as much as the node's",
        json_schema_extra=FROM_FILES,
    )
    extended_resources: dict[Word, PositiveInt] = Field(
        default={},
        description="devices of a pod beside GPUs, such as rdma/ib: 1",
        json_schema_extra=FROM_FILES,
    )
    restarts: NonNegativeInt = _RESTARTS
    grace_seconds: PositiveInt = Field(
        default=120, description="from SIGTERM to SIGKILL: for a step and a checkpoint"
    )
    pod: dict[str, Any] = Field(default={}, description="further fields of the pods' spec")
    container: dict[str, Any] = Field(default={}, description="further fields of the container")
    arguments: list[Line] = Field(default=[], description="further options of kubectl create")


class SkyPilot(_Parameters):
    """A managed job."""

    infra: Line | None = Field(
        default=None, description="CLOUD, CLOUD/REGION or CLOUD/REGION/ZONE; null: the cheapest"
    )
    accelerator: Word | None = Field(
        default=None,
        description="SkyPilot's name of the GPU; null: that of launcher.gpu",
        json_schema_extra=FROM_FILES,
    )
    use_spot: bool = Field(default=False, description="machines that may be taken away")
    memory: Word | None = Field(
        default=None,
        description="GiB of a machine: 64, or 64+ for more",
        json_schema_extra=FROM_FILES,
    )
    python: Line = _PYTHON
    port: int = _PORT
    setup: list[Line] = Field(default=[], description="shell commands that make a machine ready")
    bucket: _Name | None = Field(
        default=None,
        min_length=3,
        max_length=54,
        description="keeps the run, one machine's alone; null: a volume of launcher.mounts does",
    )
    store: Annotated[Line | None, Idle("bucket", None)] = Field(
        default=None, description="kind of the bucket: s3, gcs, azure, r2, …; null: the cloud's own"
    )
    restarts: NonNegativeInt = _RESTARTS
    resources: dict[str, Any] = Field(default={}, description="further fields of resources")
    arguments: list[Line] = Field(default=[], description="further options of sky jobs launch")
