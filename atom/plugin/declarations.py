"""Declare what a plugin offers: one class a kind.

A class is all that ATOM's core needs to know of a kind. From it follow its hook, its section in a
run, its config group, its place in `atom plugins`, `atom new`, the conformance kit and the
documentation. Beside it a kind has a suite, `atom/testing/suites/KIND.py`, a template,
`atom/templates/KIND/`, and a page, `docs/plugins/KIND.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

__all__ = [
    "KINDS",
    "Architecture",
    "Dataset",
    "Declaration",
    "Kernel",
    "Launcher",
    "Needs",
    "Parallelism",
    "Tokenizer",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What every kind of component says of itself.

    ``config`` points to a pydantic model of the component's parameters; a component without
    parameters leaves it out. ``not_run_on`` names where it has never run, such as ``a GPU``; lists
    show it, so that a summary need not say it. A wrong name or reference raises
    :class:`ValueError`, which ATOM shows as the reason why the plugin is broken.

    A kind is a direct subclass, which says of itself:

    Attributes:
        kind: its name. Its hook is ``atom_KINDs``.
        section: the section of a run that names components of the kind, and the config group that
            chooses them; by default the name.
        chosen: how many components a run has: ``one``, whose parameters stand beside its ``name``;
            ``optional``, the same or null; ``many``, a section a component, under names that the
            user gives; ``otherwise``, where the section is another one.
        references: the fields that point to code.
        in_ranks: whether ranks load the component, and not the process alone that starts them.
        users_alone: whether its parameters are run or sent somewhere, so that no file of others
            may give them to another component.
        engine_parameters: whether the parameters are torchtitan's, which validates them.
        change: what another component, or another parameter of it, is to a run that goes on from a
            checkpoint (:mod:`atom.run_dir.changes`).
    """

    kind: ClassVar[str]
    section: ClassVar[str]
    chosen: ClassVar[Literal["one", "optional", "many", "otherwise"]] = "one"
    references: ClassVar[tuple[str, ...]] = ("config",)
    in_ranks: ClassVar[bool] = True
    users_alone: ClassVar[bool] = False
    engine_parameters: ClassVar[bool] = False
    change: ClassVar[Literal["harmless", "matters", "refused"]] = "matters"

    name: str
    summary: str
    config: str | None = None
    not_run_on: str | None = None

    @property
    def described(self) -> str:
        """The summary, with where the component has never run."""
        return f"{self.summary} (not run on {self.not_run_on})" if self.not_run_on else self.summary

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in vars(cls) and "section" not in vars(cls):
            cls.section = cls.kind

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} must match {_NAME.pattern}")
        if not self.summary.strip() or "\n" in self.summary:
            raise ValueError(f"summary of {self.name!r} must be one line")
        for attribute in self.references:
            reference = getattr(self, attribute)
            if reference is not None and not _REFERENCE.fullmatch(reference):
                raise ValueError(
                    f"{attribute} of {self.name!r} is {reference!r}, not 'package.module:attribute'"
                )


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Declaration):
    """Text to ids and back.

    ``prepare(config, context: TokenizerContext) -> PreparedTokenizer`` runs once, before ranks
    start; it may train, and must be safe when several runs start at once. It imports no torch.

    ``build(config) -> torchtitan BaseTokenizer.Config`` runs on every rank. torchtitan then calls
    that config's ``build(tokenizer_path=…)`` with the folder that holds the prepared files.
    """

    kind = "tokenizer"
    references = ("config", "prepare", "build")
    change = "refused"

    prepare: str
    build: str


@dataclass(frozen=True, kw_only=True)
class Architecture(Declaration):
    """A model family.

    ``build(config, context: ArchitectureContext) -> ModelParts``. It must be cheap: it describes
    the model, torchtitan builds it (on the meta device first).
    """

    kind = "architecture"
    references = ("config", "build")
    change = "refused"

    build: str


@dataclass(frozen=True, kw_only=True)
class Parallelism(Declaration):
    """A way to lay a model over many ranks.

    Its parameters are torchtitan's ``ParallelismConfig``, under torchtitan's names; every degree
    of -1 has been resolved before ``build`` sees it.

    ``build(config: ParallelismConfig, context: ParallelismContext) -> Strategy``

    ``choose(context: LayoutContext) -> LayoutChoice`` is for a strategy that finds its own degrees.
    It runs once, before ranks start, and needs no torch; what it chooses is written down in
    ``run.yaml`` as if the user had.
    """

    kind = "parallelism"
    references = ("config", "build", "choose")
    engine_parameters = True
    change = "harmless"

    build: str
    choose: str | None = None


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a kernel cannot do without. What is left out is not needed.

    ``capability`` is the lowest CUDA compute capability, ``capability_below`` the first one that is
    too new. ``triton=True`` says that it is a Triton kernel: a CPU runs it in Triton's interpreter
    only, and only where it is named. ``packages`` are requirement strings such as
    ``"liger-kernel>=0.8"``.

    ``smallest``, ``largest`` and ``multiples`` hold for the sizes of the model: ``head_dim``,
    ``dim`` (its width), ``hidden_dim`` (of a feed-forward, on one rank), ``vocab_size``, ``window``
    (of attention), ``masked_window`` (one that is in the masks alone, which variable-length
    attention does not get) and ``sinks`` (heads that have one), 0 for a model without. The dtypes
    are those of :attr:`Kernel.tolerance`.

    ``context_parallel=False`` and ``tensor_parallel=False`` say that it does not work under CP, TP;
    ``tensor_parallel_only=True`` and ``expert_parallel=True`` that it works under TP, EP only;
    ``deterministic=False`` that it does not work with ``debug.deterministic=true``.
    """

    devices: tuple[str, ...] = ("cpu", "cuda")
    capability: tuple[int, int] | None = None
    capability_below: tuple[int, int] | None = None
    triton: bool = False
    packages: tuple[str, ...] = ()
    smallest: Mapping[str, int] = field(default_factory=dict, hash=False)
    largest: Mapping[str, int] = field(default_factory=dict, hash=False)
    multiples: Mapping[str, int] = field(default_factory=dict, hash=False)
    context_parallel: bool = True
    tensor_parallel: bool = True
    tensor_parallel_only: bool = False
    expert_parallel: bool = False
    deterministic: bool = True


@dataclass(frozen=True, kw_only=True)
class Kernel(Declaration):
    """One implementation of one operation (``attention``, ``rms_norm``, ``rope``, …).

    ``override`` points to a factory marked with ``torchtitan.config.override``, which replaces the
    operation's node of the model's config tree; ``None`` leaves torchtitan's own node in place. For
    an operation that is a function (:mod:`atom.kernels.operations`) it takes the same arguments.
    ``kernels=auto`` tries the kernels of an operation by descending ``priority``.

    ``tolerance`` names the dtypes that the kernel takes and for each the largest error, of its
    output and of every gradient, relative to the largest value of the operation's reference.

    ``functions`` are the kernel as functions of tensors, for tests and benches where there is no
    torchtitan: name in :data:`atom.titan.contracts.functions.FUNCTIONS` ->
    ``"package.module:attribute"``, a module that imports no torchtitan.

    ``before_sharding`` has the override applied before the model's shardings are set, for a node
    that is to have others.
    """

    kind = "kernel"
    references = ("config", "override")
    section = "kernels"
    chosen = "otherwise"
    change = "harmless"  # within the tolerance that each declares

    operation: str
    override: str | None = None
    needs: Needs = field(default_factory=Needs)
    priority: int = 0
    tolerance: Mapping[str, float] = field(
        default_factory=lambda: {"float32": 1e-5, "bfloat16": 3e-2}, hash=False
    )
    functions: Mapping[str, str] = field(default_factory=dict, hash=False)
    before_sharding: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _NAME.fullmatch(self.operation):
            raise ValueError(f"operation {self.operation!r} of kernel {self.name!r} is not a name")
        for name, reference in self.functions.items():
            if not _REFERENCE.fullmatch(reference):
                raise ValueError(
                    f"function {name} of {self.name!r} is {reference!r}, "
                    "not 'package.module:attribute'"
                )


@dataclass(frozen=True, kw_only=True)
class Dataset(Declaration):
    """Text to train on.

    ``source(config) -> DocumentSource``, or ``source(config, context: SourceContext)`` where it has
    a parameter of that name; without torch. ATOM's own loader tokenizes and packs its documents, in
    an order that depends on the seed and the step and not on the layout.

    ``build(config, context: DatasetContext) -> torchtitan BaseDataLoader.Config`` replaces that
    loader, for data that is not text; it then has to keep the same promise by itself.
    """

    kind = "dataset"
    references = ("config", "source", "build")
    change = "refused"

    source: str
    build: str | None = None


@dataclass(frozen=True, kw_only=True)
class Launcher(Declaration):
    """A way to have a run's ranks started on other machines.

    ``plan(config, context: LaunchContext) -> Submission`` says what would be submitted, as text. It
    writes and starts nothing: ATOM shows a submission (``launcher.dry_run=true``), or writes its
    files and runs its commands. It needs no torch.
    """

    kind = "launcher"
    references = ("config", "plan")
    chosen = "optional"
    in_ranks = False
    users_alone = True
    change = "harmless"

    plan: str


KINDS: tuple[type[Declaration], ...] = tuple(Declaration.__subclasses__())
"""The kinds of components, in the order of their classes. A class is in it by standing above."""
