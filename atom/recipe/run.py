"""Describe one training run: composed once, written to its folder, read by every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import (
    Field,
    PositiveInt,
    PrivateAttr,
    TypeAdapter,
    create_model,
)

from atom.errors import UserError
from atom.io import yaml_data
from atom.io.files import read_text, write_text
from atom.plugin import Callback, Declaration
from atom.plugin.parameters import Component, components, kind_of
from atom.recipe import checks, lora, migrations, ranges
from atom.recipe.components import fields
from atom.recipe.evaluation import Evaluation, check_evaluation
from atom.recipe.lora import Lora
from atom.recipe.optimizers import Optimizer
from atom.recipe.resolved import Resolved
from atom.recipe.sections import (
    Batch,
    Data,
    Faults,
    Folder,
    Launch,
    Launcher,
    Loss,
    Model,
    Plugins,
    Profile,
    Provenance,
    Resume,
    Section,
    Sweep,
)
from atom.recipe.training_sections import (
    ENGINE_SECTIONS,
    SECTIONS,
    ActivationCheckpoint,
    Checkpoint,
    Compile,
    Debug,
    LRScheduler,
    Metrics,
    Parallelism,
    Training,
)
from atom.recipe.validation import validated
from atom.recipe.validation_sets import Validation, check_best, check_fraction

DEGREES = (
    "data_parallel_replicate_degree",
    "data_parallel_shard_degree",
    "tensor_parallel_degree",
    "pipeline_parallel_degree",
    "context_parallel_degree",
)
"""Mesh dimensions with degrees that multiply to the world size; expert parallelism shares their
ranks.
"""

COMMAND_LINE = "command line"
"""Origin of a typed setting; the origin of others is a file."""


def nowhere(_key: str) -> None:
    """Return None: the origin of keys is unknown."""


if TYPE_CHECKING:

    class _Components(Model):
        def __getattr__(self, name: str) -> Component[Any]: ...

else:
    # Sections that have keys of ATOM's own, too, are declared by Run.
    _Components = create_model(
        "_Components", __base__=Model, **fields(but=("launcher", "optimizer", "parallelism"))
    )
    """The sections of the kinds: ``run.architecture``, ``run.dataset``, …"""


class Run(_Components):
    """One complete training run."""

    run: Folder = Folder()
    device: Literal["auto", "cpu", "cuda"] | str = "auto"
    launch: Launch = Launch()
    launcher: Launcher = Launcher()
    resume: Resume = Resume()
    faults: Faults = Faults()
    data: Data = Data()
    validation: Validation = Validation()
    evaluation: Evaluation = Evaluation()
    sweep: Sweep = Sweep()
    profile: Profile = Profile()
    provenance: Provenance = Provenance()
    dry_run: bool = Field(
        default=False,
        description="check the run and report its memory and step time, without starting ranks",
    )
    world_size: PositiveInt | None = Field(
        default=None,
        description="number of ranks of a dry run; `device` can then be a device "
        "that this machine does not have",
    )
    plugins: Plugins = Plugins()

    parallelism: Parallelism
    kernels: dict[str, str | list[str]] = Field(
        default={"default": "auto"},
        description="for an operation, or `default` for all: a kernel, or kernels in order of "
        "preference",
    )

    optimizer: Optimizer
    lora: Lora = Lora()
    loss: Loss = Loss()
    batch: Batch = Batch()
    training: Training = Training()
    lr_scheduler: LRScheduler = LRScheduler()
    activation_checkpoint: ActivationCheckpoint = ActivationCheckpoint()
    checkpoint: Checkpoint = Checkpoint()
    compile: Compile = Compile()
    comm: Section = {}
    metrics: Metrics = Metrics()
    profiler: Section = {}
    debug: Debug = Debug()

    resolved: Resolved | None = Field(default=None, description="set by ATOM")

    _origins: Callable[[], dict[str, str]] = PrivateAttr(default=dict)
    # A function as the default would become a method of the run and shadow the assigned value.
    _given: Callable[[str], str | None] = PrivateAttr(default_factory=lambda: nowhere)

    @property
    def origins(self) -> dict[str, str]:
        """The origin of each setting by key: ``command line``, a file, or ``default``.

        Only the job that composed the run knows them; they are not part of ``run.yaml``.
        """
        return self._origins()

    def given(self, key: str) -> str | None:
        """Return where the user has set ``key``, as far as :attr:`origins` are known, or None."""
        return self._given(key)

    def with_origins(
        self, origins: Callable[[], dict[str, str]], given: Callable[[str], str | None]
    ) -> Run:
        """Return a copy of the run that can look up the origins of its settings."""
        run = self.model_copy()
        run._origins, run._given = origins, given
        return run

    def components(self) -> Iterator[tuple[type[Declaration], str, Component[Any]]]:
        """Yield the components that the run names: kind, key, and section."""
        for key, section in components(self, ""):
            kind = kind_of(type(section))
            # Launcher.name may be null.
            if kind is not None and section.name is not None:
                yield kind, key, section

    @property
    def callback_names(self) -> list[str]:
        """The names of the run's callbacks."""
        keys = (key for kind, key, _ in self.components() if kind is Callback)
        return [key.partition(".")[2] for key in keys]

    def using(self, packages: Iterable[str]) -> Run:
        """Return a copy of the run with additional packages for its ranks to load."""
        if self.plugins.used is None:
            return self
        used = sorted({*self.plugins.used, *packages})
        return self.model_copy(update={"plugins": self.plugins.model_copy(update={"used": used})})

    def write(self, path: Path) -> None:
        """Write the run as plain YAML data, atomically."""
        whole = {migrations.KEY: migrations.SCHEMA} | self.model_dump(mode="json")
        write_text(path, yaml.safe_dump(whole, sort_keys=False))


_RUN = TypeAdapter(Run)


def parse(sections: Section) -> Run:
    """Return the run that ``sections`` describe.

    Raises:
        UserError: a section is missing, unknown or of the wrong type, or is not plain data.
    """
    yaml_data.refuse_objects(sections)
    for section in (*SECTIONS, *ENGINE_SECTIONS):
        checks.engine_keys(section, sections.get(section))
        checks.places(section, sections.get(section))
    sections = ranges.check(checks.counted_in_tokens(sections))
    run = validated(_RUN, sections, key="", fields=Run.model_fields)
    checks.dry_run(run)
    checks.launcher(run.launcher)
    checks.best(run)
    check_best(run)
    check_fraction(run)
    check_evaluation(run)
    lora.check(run)
    if run.batch.tokens is None:
        return run
    return run.model_copy(update={"training": checks.in_sequences(run.batch.tokens, run.training)})


def read(path: Path, *, below: Path | None = None) -> Run:
    """Read a ``run.yaml`` written by :meth:`Run.write`.

    Args:
        path: the file.
        below: as for :func:`atom.io.files.opened`.

    Raises:
        UserError: the file is unreadable, or is not a run.
    """
    try:
        text = read_text(path, most=yaml_data.BYTES, below=below).removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path} cannot be read as a run: {reason}") from None
    sections = yaml_data.load(text, str(path))
    if not isinstance(sections, dict):
        raise UserError(f"{path} cannot be read as a run: it holds no sections")
    return parse(migrations.migrated(sections, str(path)))
