"""The whole interface between ATOM and a plugin.

A plugin is a Python package with an entry point in the group ``atom`` that names a module::

    [project.entry-points.atom]
    my_plugin = "my_plugin"

The module implements one or more of the hooks below. Each yields *declarations*: names, one
line of summary, and where the code is (``"package.module:attribute"``). ATOM imports the declaring
module whenever it lists plugins, so it must be cheap: no torch at its top level. The code that a
declaration points to is imported only by a run that uses it, and may import anything.

A package's own ``conf/`` folder holds its Hydra config groups: ``conf/architecture/my_net.yaml``
makes ``architecture=my_net`` exist as soon as the package is installed. Such a file names a
component (``name: my_net``) and sets its parameters beside it::

    import atom.plugin

    @atom.plugin.hookimpl
    def atom_architectures():
        yield atom.plugin.Architecture(
            name="my_net",
            summary="My decoder",
            config="my_plugin.config:MyNet",
            build="my_plugin.build:my_net",
        )
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pluggy

INTERFACE = 1
"""Version of this interface. A plugin module may set ``ATOM_INTERFACE`` to the one it was written
for; one that this ATOM does not understand is listed as broken rather than called. What a version
promises is in ``docs/stability.md``."""

OLDEST_INTERFACE = 1
"""The oldest version that is understood. An older one than :data:`INTERFACE` is deprecated."""

ENTRY_POINT_GROUP = "atom"

hookspec = pluggy.HookspecMarker("atom")
hookimpl = pluggy.HookimplMarker("atom")

_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


# ---------------------------------------------------------------------------- declarations


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What every kind of component says of itself.

    ``config`` points to a pydantic model of the component's parameters; a component without
    parameters leaves it out. A wrong name or reference raises :class:`ValueError`, which ATOM shows
    as the reason why the plugin is broken.
    """

    kind: ClassVar[str]
    references: ClassVar[tuple[str, ...]] = ("config",)

    name: str
    summary: str
    config: str | None = None

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

    plan: str


KINDS: tuple[type[Declaration], ...] = (
    Tokenizer,
    Architecture,
    Parallelism,
    Kernel,
    Dataset,
    Launcher,
)


# ---------------------------------------------------------------------------- hooks


class Hooks(Protocol):
    """The hook specifications: one a kind, each yielding declarations of it."""

    @hookspec
    def atom_tokenizers(self) -> Iterable[Tokenizer]:
        """Yield the tokenizers of this plugin."""

    @hookspec
    def atom_architectures(self) -> Iterable[Architecture]:
        """Yield the architectures of this plugin."""

    @hookspec
    def atom_parallelisms(self) -> Iterable[Parallelism]:
        """Yield the parallelism strategies of this plugin."""

    @hookspec
    def atom_kernels(self) -> Iterable[Kernel]:
        """Yield the kernels of this plugin."""

    @hookspec
    def atom_datasets(self) -> Iterable[Dataset]:
        """Yield the datasets of this plugin."""

    @hookspec
    def atom_launchers(self) -> Iterable[Launcher]:
        """Yield the launchers of this plugin."""


HOOKS: dict[str, type[Declaration]] = {
    "atom_tokenizers": Tokenizer,
    "atom_architectures": Architecture,
    "atom_parallelisms": Parallelism,
    "atom_kernels": Kernel,
    "atom_datasets": Dataset,
    "atom_launchers": Launcher,
}


# ---------------------------------------------------------------------------- what goes


@dataclass(frozen=True, kw_only=True)
class Deprecation:
    """Since which release of ATOM, until which interface version, and what to use instead."""

    since: str
    until: int
    instead: str


DEPRECATED: dict[str, Deprecation] = {}
"""Hooks (``atom_kernels``) and fields of declarations (``Kernel.priority``) that go. A plugin that
uses one works, and is named in a warning of ``atom plugins`` and ``atom train``."""


# ---------------------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of text. ``id`` names it to a person (a path, a row). A long text may come in parts:
    ``starts`` and ``ends`` say whether this one is the first and the last. ``problem`` says why a
    document that a source puts up with could not be read; it has no text then."""

    text: str
    id: str
    starts: bool = True
    ends: bool = True
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a source reads, for people: numbers of files and of documents of a pass, None where not
    known without reading it all. ``left_out`` has a phrase for each kind of thing that is there and
    not read, or not read as it stands: ``"hidden files: 2 (.a, .b)"``."""

    files: int | None = None
    documents: int | None = None
    left_out: tuple[str, ...] = ()


class DocumentSource(Protocol):
    """Documents, dealt out to lanes.

    A batch of G sequences is G *lanes*, each reading its own documents, so that a rank reads the
    lanes it trains on and no others, and a checkpoint holds a position a lane and no tokens.

    A source may also have a method ``contents() -> Contents``, which is called after :meth:`check`;
    what it says is shown as the run starts. And ``parts() -> Mapping[str, str]``, called after
    :meth:`check`: the digest of each of its files by name, so that a person is told which have
    changed since a checkpoint.
    """

    def check(self) -> str:
        """Raise :class:`atom.errors.UserError` if there is nothing to read; return a digest of
        what will be read, the same as long as the documents and their order are: wherever they
        are, and whenever they were written. A run goes on from a checkpoint only with the digest
        that it had when that was saved."""
        ...

    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        """Yield documents ``start``, ``start + 1``, … of ``lane`` in one pass over the data.

        A pass is a list of documents: each once or, in a weighted one, as often as ``seed`` and
        ``epoch`` alone decide. The lanes share the list out, whatever their number: each entry is
        in exactly one of them, as long as there are at least as many entries as lanes. The order
        within a lane depends on ``seed``, ``epoch``, ``lane``, ``lanes`` and on nothing else.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SourceContext:
    """What a dataset may use beside its parameters.

    ``open_dataset(name, parameters, key)`` returns the source of another installed dataset:
    ``name`` and ``parameters`` as a run would give them, ``key`` where the user wrote them, such as
    ``dataset.sources.a``, by which its mistakes are told. The user's trust lists hold. Open what is
    needed in ``source``: ranks load no packages but those that were opened before they started.

    ``cache`` is a folder of the dataset's own that outlives the run; make it when it is needed.
    """

    open_dataset: Callable[[str, Mapping[str, Any], str], DocumentSource]
    cache: Path


# ---------------------------------------------------------------------------- what build sees


@dataclass(frozen=True, kw_only=True)
class TokenizerContext:
    """``documents()`` opens the run's own dataset; ``digest`` identifies its content; ``cache`` is
    a folder that outlives the run."""

    documents: Callable[[], Iterator[Document]]
    digest: str
    cache: Path


@dataclass(frozen=True, kw_only=True)
class PreparedTokenizer:
    """``files`` are copied into the run's ``tokenizer/`` folder under the names given."""

    vocab_size: int
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ArchitectureContext:
    """``vocab_size`` is the tokenizer's; ``seq_len`` is in tokens."""

    vocab_size: int
    seq_len: int


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """The parts of torchtitan's ``ModelSpec`` that an architecture decides.

    ``model`` is a torchtitan ``BaseModel.Config``. A family that torchtitan's generic functions do
    not fit brings its own ``parallelize_fn`` and ``pipelining_fn``.

    ``state_dict_adapter`` is a torchtitan ``BaseStateDictAdapter``; its ``to_hf`` takes any part of
    the state dict, down to one weight. ``hf_config`` is ``config.json`` of the same model there:
    ``model_type``, ``architectures``, sizes, and all else that changes what the model computes.
    Without it a run cannot be exported. ``hf_defaults`` is what it means there when a
    ``config.json`` of this ``model_type`` leaves a field out, for the fields with an effect: by
    both, weights of a model that computes something else are refused.
    """

    model: Any
    state_dict_adapter: type | None = None
    hf_config: Mapping[str, Any] | None = None
    hf_defaults: Mapping[str, Any] | None = None
    parallelize_fn: Callable[..., Any] | None = None
    pipelining_fn: Callable[..., Any] | None = None
    post_optimizer_build_fn: Callable[..., None] | None = None


@dataclass(frozen=True, kw_only=True)
class ParallelismContext:
    """``parts`` is the model to lay out over ``world_size`` ranks, ``training`` torchtitan's
    ``TrainingConfig`` (None where nothing is trained)."""

    world_size: int
    parts: ModelParts
    training: Any = None


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """``parallelism`` is a torchtitan ``ParallelismConfig``; the functions have the signatures of
    ``torchtitan.models.llama3.parallelize_llama`` and
    ``torchtitan.distributed.pipeline_parallel.pipeline_llm``."""

    parallelism: Any
    parallelize_fn: Callable[..., Any]
    pipelining_fn: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True)
class LayoutContext:
    """What a layout is chosen for.

    ``model`` is an :class:`atom.plan.model.ModelDescription`, ``device`` an
    :class:`atom.plan.device.DeviceDescription`. ``parallelism``, ``activation_checkpoint`` and
    ``training`` are the run's sections: what they say is the user's wish. ``estimate(choice)``
    returns the :class:`atom.plan.estimate.Estimate` of a :class:`LayoutChoice`, and raises
    :class:`atom.errors.UserError` for one that cannot be.
    """

    ranks: int
    global_batch_size: int
    model: Any
    device: Any
    parallelism: Mapping[str, Any]
    activation_checkpoint: Mapping[str, Any]
    training: Mapping[str, Any]
    estimate: Callable[[LayoutChoice], Any]


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """What goes into a run's sections, over what stands there. ``explanation`` is for people."""

    parallelism: Mapping[str, Any] = field(default_factory=dict)
    activation_checkpoint: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    explanation: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetContext:
    """``global_batch_size`` is in sequences; ``opening`` is what ``source`` gets as ``context``."""

    seed: int
    global_batch_size: int
    opening: SourceContext | None = None


@dataclass(frozen=True, kw_only=True)
class LaunchJob:
    """One run to submit, composed and checked.

    ``folder`` is its run folder, absolute, and the same on all machines: ``run.yaml`` is written
    there before anything is submitted. ``ranks`` are those of all nodes together. ``command`` is
    what each node is to run, once: ``python -P -m atom.launch.node``. It takes the run folder
    and the options ``--nodes N --node I --endpoint HOST:PORT`` (the number of nodes, which one this
    is, and where the first one is reached) and ends with

    ==  ===========================================================
    0   the last step is done
    75  it stopped on request, with a checkpoint to go on from
    2   it failed, and would fail again
    1   it failed; another try may help
    ==  ===========================================================
    """

    folder: Path
    ranks: int
    device: str
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LaunchContext:
    """What is to be submitted: several jobs are those of a sweep.

    ``place`` is the folder that the submission's files are written to. ``resources`` is the run's
    :class:`atom.recipe.sections.Launcher`, which all jobs share.
    ``max_restarts`` and ``python`` are the run's and this machine's.
    """

    jobs: tuple[LaunchJob, ...]
    place: Path
    resources: Any
    max_restarts: int
    python: str


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a launcher would do.

    ``files`` are written to the context's ``place``, by their names; ``commands`` are then run
    there, one after the other. ``advice`` is told at the end, with the output of the commands.
    ``reason(errors)`` makes one sentence of what a command that failed has printed. ``ignored`` are
    keys of the run that nobody looks at there, such as ``launch.hang_seconds`` where nodes do not
    run the job's ``command``: a user who has set one is refused.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[tuple[str, ...], ...] = ()
    advice: str = ""
    reason: Callable[[str], str] | None = None
    ignored: tuple[str, ...] = ()
