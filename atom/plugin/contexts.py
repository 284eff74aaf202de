"""Name what the code of a plugin is given, and what it returns: a context and a result a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from atom.plugin.declarations import Declaration

if TYPE_CHECKING:  # it imports pydantic, and listing plugins does not
    from atom.plugin.parameters import Component

__all__ = [
    "ArchitectureContext",
    "Contents",
    "Context",
    "DatasetContext",
    "Document",
    "DocumentSource",
    "LaunchContext",
    "LaunchJob",
    "LayoutChoice",
    "LayoutContext",
    "ModelParts",
    "Open",
    "Opened",
    "ParallelismContext",
    "PreparedTokenizer",
    "SourceContext",
    "Strategy",
    "Submission",
    "TokenizerContext",
]

K = TypeVar("K", bound=Declaration)
K_co = TypeVar("K_co", bound=Declaration, covariant=True)


# ---------------------------------------------------------------------------- what all have


class Opened(Protocol, Generic[K_co]):
    """A component that another one has opened: found, trusted, and its parameters validated.

    Attributes:
        declaration: what its plugin declares.
        config: its parameters, as the model that the declaration points to; None if it has none.
        key: where the user wrote it, such as ``dataset.sources.web``.
    """

    @property
    def declaration(self) -> K_co: ...

    @property
    def config(self) -> Any: ...

    @property
    def key(self) -> str: ...

    def call(self, reference: str, *arguments: Any) -> Any:
        """Run code of the component, and return what it returns.

        Its mistakes name the user's keys.

        Args:
            reference: a field of the declaration that points to code, such as ``build``.
            arguments: what the code is called with after its parameters. A context gets the
                opened component's own ``open`` and ``key``. Code with an argument ``context``
                that is given none gets a :class:`SourceContext`.
        """
        ...


class Open(Protocol):
    """Open a component by its name. See :attr:`Context.open`."""

    @overload
    def __call__(
        self, kind: type[K], component: Component[K], *, key: str | None = None
    ) -> Opened[K]: ...

    @overload
    def __call__(
        self, kind: type[K], component: Mapping[str, Any] | str, *, key: str
    ) -> Opened[K]: ...


def _cannot_open(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this context was made by hand: it opens components where ATOM makes it")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the code of any component may use.

    ``open(Dataset, config.data)`` opens the component of a parameter that is a
    :class:`atom.plugin.parameters.Component`, and returns an :class:`Opened`.
    ``open(Dataset, {"name": "local", "path": "texts"}, key="dataset.data")`` opens one that is
    written otherwise; its parameters are validated then. The user's trust lists apply to both.
    Ranks load the packages of the first, and of the second those that were opened before they
    started.

    ``key`` is where the user has written the component: its kind's section, or such a parameter of
    another one. Begin the ``key`` of a :class:`atom.errors.UserError` with it.
    """

    open: Open = field(default=_cannot_open, repr=False, compare=False)
    key: str = field(default="", compare=False)


# ---------------------------------------------------------------------------- documents


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
class SourceContext(Context):
    """What a dataset may use beside its parameters.

    ``open_dataset(name, parameters, key)`` is short for ``open(Dataset, …).call("source")``: it
    returns the source of another installed dataset. ``name`` and ``parameters`` are as a run would
    give them, ``key`` is where the user wrote them, such as ``dataset.sources.a``.

    ``cache`` is a folder of the component's own that outlives the run; make it when it is needed.
    """

    open_dataset: Callable[[str, Mapping[str, Any], str], DocumentSource]
    cache: Path


# ---------------------------------------------------------------------------- what build sees


@dataclass(frozen=True, kw_only=True)
class TokenizerContext(Context):
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
class ArchitectureContext(Context):
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
class ParallelismContext(Context):
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
class LayoutContext(Context):
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
class DatasetContext(Context):
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
class LaunchContext(Context):
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
