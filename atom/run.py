"""The description of one training run: composed once, written down, read by every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter

from atom.errors import UserError
from atom.validation import validated

COMPONENTS = ("architecture", "tokenizer", "dataset", "parallelism")
"""Sections that name one component of a plugin each."""

TORCHTITAN_SECTIONS = (
    "training",
    "lr_scheduler",
    "activation_checkpoint",
    "checkpoint",
    "compile",
    "comm",
    "metrics",
    "profiler",
    "debug",
)
"""Sections passed through to torchtitan, whose own dataclasses are their schema."""

Section = dict[str, Any]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Folder(_Model):
    """Where a run's results go."""

    dir: Path | None = Field(
        default=None, description="the run folder; null: outputs/DATE/TIME under the current one"
    )


class Launch(_Model):
    """How ranks are started."""

    ranks: PositiveInt | None = Field(
        default=None, description="number of ranks; null: as the layout says, or one a GPU"
    )


class Component(BaseModel):
    """The name of a plugin's component and, beside it, the component's own parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="NAME, or PACKAGE:NAME where two packages offer the same name")

    @property
    def parameters(self) -> Section:
        return dict(self.model_extra or {})


class Optimizer(_Model):
    """One optimizer for all parameters, with torch's names."""

    name: str = Field(default="AdamW", description="an optimizer that torchtitan knows")
    lr: float = Field(default=3e-4, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="decay of the moments")
    eps: float = Field(default=1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled weight decay")
    implementation: Literal["for-loop", "foreach", "fused", "fused_opt_states_bf16"] = Field(
        default="fused", description="torchtitan's choice of optimizer implementation"
    )


class Loss(_Model):
    """Cross-entropy of the next token, averaged over the tokens of the global batch."""

    num_chunks: PositiveInt = Field(
        default=1, description="compute logits and loss in so many pieces of the sequence"
    )


class Resolved(_Model):
    """What was found out before the ranks started, so that no two ranks find different things."""

    device: Literal["cpu", "cuda"]
    world_size: PositiveInt
    vocab_size: PositiveInt
    global_batch_size: PositiveInt = Field(description="in sequences")
    degrees: dict[str, int] = Field(description="parallel degrees, none of them -1")
    kernels: dict[str, str] = Field(description="the kernel chosen for each operation")


class Run(_Model):
    """One training run, whole."""

    run: Folder = Folder()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    launch: Launch = Launch()

    architecture: Component
    tokenizer: Component
    dataset: Component
    parallelism: Component
    kernels: dict[str, str | list[str]] = Field(
        default={"default": "auto"},
        description="of an operation, or by default: a kernel, or kernels in order of preference",
    )

    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    training: Section = {}
    lr_scheduler: Section = {}
    activation_checkpoint: Section = {}
    checkpoint: Section = {}
    compile: Section = {}
    comm: Section = {}
    metrics: Section = {}
    profiler: Section = {}
    debug: Section = {}

    resolved: Resolved | None = Field(default=None, description="written by ATOM, not by users")

    def write(self, path: Path) -> None:
        """Write the run as YAML that holds nothing but data."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


_RUN = TypeAdapter(Run)


def parse(sections: Section) -> Run:
    """Return the run that ``sections`` describe.

    Raises:
        UserError: a section is missing, unknown or of the wrong type.
    """
    return validated(_RUN, sections, key="", fields=Run.model_fields)


def read(path: Path) -> Run:
    """Read the ``run.yaml`` that :meth:`Run.write` wrote.

    Raises:
        UserError: the file cannot be read, or is not a run.
    """
    try:
        sections = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a run: {' '.join(str(error).split())}") from None
    return parse(sections)
