"""Parameters of the launchers, beside the resources that all launchers share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

Line = Annotated[str, Field(pattern=r"^[^\r\n]+$")]
"""What becomes a line of a script."""


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Torchrun(_Parameters):
    """Commands to be started by hand, one a machine."""

    host: Line = Field(default="HOST", description="name or address of the first machine")
    port: int = Field(default=29500, gt=0, lt=65536, description="a free port there")


class Slurm(_Parameters):
    """A batch job of Slurm."""

    qos: Line | None = Field(default=None, description="quality of service")
    constraint: Line | None = Field(default=None, description="features that nodes must have")
    exclude: Line | None = Field(default=None, description="nodes not to be given")
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
    min_disk_gib: PositiveFloat = Field(
        default=1.0, description="free space that the check wants in the run folder and in /tmp"
    )
