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


_PYTHON = Field(
    default="python", description="the Python interpreter on the machines, with ATOM installed"
)
_PORT = Field(default=29500, gt=0, lt=65536, description="a free port of the first machine")
_RESTARTS = Field(
    default=100, description="maximum restarts for any reason; ATOM ends a crash loop earlier"
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
        default=None, description="nodes to exclude", json_schema_extra=FROM_FILES
    )
    exclusive: bool = Field(default=True, description="do not share the nodes with other jobs")
    arguments: list[Line] = Field(default=[], description="additional options of sbatch")
    srun: list[Line] = Field(default=[], description="additional options of srun")
    signal_seconds: PositiveInt = Field(
        default=120,
        description="seconds before the time limit at which the run saves a checkpoint and stops",
    )
    spares: NonNegativeInt = Field(
        default=0, description="spare nodes of each job, which replace nodes that fail"
    )
    parallel_jobs: PositiveInt | None = Field(
        default=None,
        description="maximum number of jobs of a sweep that run at the same time; null: all",
    )
    container: Literal["pyxis", "apptainer"] = Field(
        default="pyxis", description="the program that runs launcher.image"
    )
    check_nodes: bool = Field(default=True, description="check every node before the ranks start")
    check_links: Annotated[bool | None, Idle("check_nodes", False)] = Field(
        default=None,
        description="also run an all-reduce between neighbouring nodes in check_nodes; null: on "
        "nodes with GPUs",
    )
    min_link_gb_per_second: NonNegativeFloat = Field(
        default=0.0, description="minimum bus bandwidth of each GPU in check_links"
    )
    min_disk_gib: Annotated[PositiveFloat, Idle("check_nodes", False)] = Field(
        default=1.0, description="minimum free space in the run folder and in /tmp"
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
        description="namespace of the JobSet; null: that of kubectl's context",
        json_schema_extra=FROM_FILES,
    )
    python: Line = _PYTHON
    port: int = _PORT
    memory: Quantity | None = Field(
        default=None, description="memory of a pod; null: no limit", json_schema_extra=FROM_FILES
    )
    shared_memory: Quantity | None = Field(
        default=None,
        description="maximum size of /dev/shm; null: that of the node",
        json_schema_extra=FROM_FILES,
    )
    extended_resources: dict[Word, PositiveInt] = Field(
        default={},
        description="devices of a pod other than GPUs, such as rdma/ib: 1",
        json_schema_extra=FROM_FILES,
    )
    restarts: NonNegativeInt = _RESTARTS
    grace_seconds: PositiveInt = Field(
        default=120,
        description="seconds from SIGTERM to SIGKILL, enough for a step and a checkpoint",
    )
    pod: dict[str, Any] = Field(default={}, description="additional fields of the pods' spec")
    container: dict[str, Any] = Field(default={}, description="additional fields of the container")
    arguments: list[Line] = Field(default=[], description="additional options of kubectl create")


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
    use_spot: bool = Field(default=False, description="use spot machines, which can be preempted")
    memory: Word | None = Field(
        default=None,
        description="memory of a machine in GiB: 64, or 64+ for at least 64",
        json_schema_extra=FROM_FILES,
    )
    python: Line = _PYTHON
    port: int = _PORT
    setup: list[Line] = Field(default=[], description="shell commands that set up a machine")
    bucket: _Name | None = Field(
        default=None,
        min_length=3,
        max_length=54,
        description="the bucket that keeps the run folder, for one machine; null: a volume of "
        "launcher.mounts keeps it",
    )
    store: Annotated[Line | None, Idle("bucket", None)] = Field(
        default=None, description="kind of the bucket: s3, gcs, azure, r2, …; null: the cloud's own"
    )
    restarts: NonNegativeInt = _RESTARTS
    resources: dict[str, Any] = Field(default={}, description="additional fields of resources")
    arguments: list[Line] = Field(default=[], description="additional options of sky jobs launch")
