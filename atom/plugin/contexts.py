"""Define the arguments and results of plugin code: one context and one result type per kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from atom.plugin.declarations import Declaration
from atom.plugin.evaluators import Scorer
from atom.plugin.sources import Document, DocumentSource

if TYPE_CHECKING:  # listing plugins imports neither pydantic nor numpy
    from atom.plugin.parameters import Component

__all__ = [
    "ArchitectureContext",
    "CallbackContext",
    "Context",
    "DatasetContext",
    "EvaluatorContext",
    "LaunchContext",
    "LaunchJob",
    "LayoutChoice",
    "LayoutContext",
    "ModelParts",
    "ObjectiveContext",
    "Open",
    "Opened",
    "ParallelismContext",
    "PreparedTokenizer",
    "SourceContext",
    "Strategy",
    "Submission",
    "TemplateContext",
    "TokenizerContext",
    "Trained",
]

K = TypeVar("K", bound=Declaration)
K_co = TypeVar("K_co", bound=Declaration, covariant=True)


# ---------------------------------------------------------------------------- what all have


class Opened(Protocol, Generic[K_co]):
    """A component opened by another one: found, trusted, and with validated parameters.

    Attributes:
        declaration: its plugin's declaration.
        config: its parameters, as the model that the declaration references; None if it has none.
        key: where the user wrote it, such as ``dataset.sources.web``.
    """

    @property
    def declaration(self) -> K_co: ...

    @property
    def config(self) -> Any: ...

    @property
    def key(self) -> str: ...

    def call(self, reference: str, *arguments: Any) -> Any:
        """Call code of the component, and return the result.

        Errors name the user's keys.

        Args:
            reference: a declaration field that references code, such as ``build``.
            arguments: the arguments after the component's parameters. A context gets the opened
                component's own ``open`` and ``key``. Code with a parameter ``context`` that is not
                passed one gets a :class:`SourceContext`.
        """
        ...


class Open(Protocol):
    """A callable that opens a component by its name. See :attr:`Context.open`."""

    @overload
    def __call__(
        self, kind: type[K], component: Component[K], *, key: str | None = None
    ) -> Opened[K]: ...

    @overload
    def __call__(
        self, kind: type[K], component: Mapping[str, Any] | str, *, key: str
    ) -> Opened[K]: ...


def _cannot_open(*_: Any, **__: Any) -> Any:
    raise RuntimeError("only a context that ATOM has created can open components")


@dataclass(frozen=True, kw_only=True)
class Context:
    """The services that code of any component can use.

    ``open(Dataset, config.data)`` opens the component of a parameter of type
    :class:`atom.plugin.parameters.Component`, and returns an :class:`Opened`.
    ``open(Dataset, {"name": "local", "path": "texts"}, key="dataset.data")`` opens one from a plain
    section; its parameters are validated then. The user's trust lists apply to both. Ranks load the
    packages of all components of the first form, and of those of the second form that were opened
    before the ranks started.

    ``key`` is where the user wrote the component: the section of its kind, or such a parameter of
    another component. Begin the ``key`` of a :class:`atom.errors.UserError` with it.
    """

    open: Open = field(default=_cannot_open, repr=False, compare=False)
    key: str = field(default="", compare=False)


# ---------------------------------------------------------------------------- what a dataset sees


@dataclass(frozen=True, kw_only=True)
class SourceContext(Context):
    """The services that a dataset can use in addition to its parameters.

    ``open_dataset(name, parameters, key)`` is short for ``open(Dataset, …).call("source")``: it
    returns the source of another installed dataset. ``name`` and ``parameters`` are as in a run,
    ``key`` is where the user wrote them, such as ``dataset.sources.a``.

    ``cache`` is the component's own folder, which outlives the run; create it when needed.

    ``records`` is true if the run's objective reads records: the source should then yield
    documents with their ``record``. The objective refuses documents without one.
    """

    open_dataset: Callable[[str, Mapping[str, Any], str], DocumentSource]
    cache: Path
    records: bool = False


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
    """``files`` are copied into the run's ``tokenizer/`` folder under the names given.

    ``without_added`` is the number of ids without the tokens that the run adds to an existing
    tokenizer, which have the last ids; None if it adds none. Initial weights may lack their rows.
    """

    vocab_size: int
    files: Mapping[str, Path] = field(default_factory=dict)
    without_added: int | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectiveContext(Context):
    """``tokenizer`` is the run's; ``files`` is the folder with its files. ``seq_len`` is the number
    of training pairs of a sequence: a document of N tokens has N - 1."""

    tokenizer: Any
    files: Path
    seq_len: int


@dataclass(frozen=True, kw_only=True)
class TemplateContext(Context):
    """``files`` are the tokenizer's by name."""

    files: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class ArchitectureContext(Context):
    """``vocab_size`` is the tokenizer's; ``seq_len`` is in tokens."""

    vocab_size: int
    seq_len: int


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """The parts of torchtitan's ``ModelSpec`` that an architecture provides.

    ``model`` is a torchtitan ``BaseModel.Config``. A family that torchtitan's generic functions do
    not support provides its own ``parallelize_fn`` and ``pipelining_fn``.

    ``state_dict_adapter`` is a torchtitan ``BaseStateDictAdapter``; its ``to_hf`` accepts any
    subset of the state dict, down to one weight. ``hf_config`` is Hugging Face's ``config.json`` of
    the same model: ``model_type``, ``architectures``, sizes, and everything else that changes the
    computation. Without it a run cannot be exported. ``hf_defaults`` are the defaults of this
    ``model_type`` for fields that affect the computation and that a ``config.json`` omits. With
    both, weights of a model with a different computation are refused.

    ``loss(cross_entropy=…)`` returns a torchtitan ``BaseLoss.Config`` for a model with more outputs
    in training than logits (multi-token prediction), from the config of the run's cross-entropy.
    The loss has the value of the logits' cross-entropy, and an attribute ``further``: this rank's
    share of the mean of the other outputs' losses in its latest call, which is logged as
    ``mtp_loss``. The model's config has ``outputs``, the number of all outputs.
    """

    model: Any
    state_dict_adapter: type | None = None
    hf_config: Mapping[str, Any] | None = None
    hf_defaults: Mapping[str, Any] | None = None
    parallelize_fn: Callable[..., Any] | None = None
    pipelining_fn: Callable[..., Any] | None = None
    post_optimizer_build_fn: Callable[..., None] | None = None
    loss: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ParallelismContext(Context):
    """``parts`` is the model to parallelize over ``world_size`` ranks, ``training`` torchtitan's
    ``TrainingConfig`` (None if nothing is trained)."""

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
    """The information for choosing a layout.

    ``model`` is an :class:`atom.plan.model.ModelDescription`, ``device`` an
    :class:`atom.plan.device.DeviceDescription`. ``parallelism``, ``activation_checkpoint`` and
    ``training`` are the run's sections; values set there are the user's choice.
    ``estimate(choice)`` returns the :class:`atom.plan.estimate.Estimate` of a
    :class:`LayoutChoice`, and raises :class:`atom.errors.UserError` for an invalid one.
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
    """Values that override those in a run's sections. ``explanation`` is for people."""

    parallelism: Mapping[str, Any] = field(default_factory=dict)
    activation_checkpoint: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    explanation: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetContext(Context):
    """``global_batch_size`` is in sequences; ``opening`` is the ``context`` that
    ``source`` gets.
    """

    seed: int
    global_batch_size: int
    opening: SourceContext | None = None


@dataclass(frozen=True, kw_only=True)
class CallbackContext(Context):
    """``name`` is the callback's name in the run; ``steps`` is the last step of the run."""

    name: str
    seed: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class EvaluatorContext(Context):
    """``model`` is the model to evaluate, ``task`` the task.

    ``limit`` is the maximum number of documents of the task, None for all; ``seed`` is for
    everything that is drawn.
    """

    model: Scorer
    task: str
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How far a run has come: ``steps`` of ``tokens_per_step`` tokens."""

    steps: int
    tokens_per_step: int


@dataclass(frozen=True, kw_only=True)
class LaunchJob:
    """One run to submit, composed and checked.

    ``folder`` is its run folder, absolute, and the same on all machines: ``run.yaml`` is written
    there before anything is submitted. ``ranks`` is the total over all nodes. ``command`` is the
    command for each node to run once: ``python -P -m atom.launch.node``. It takes the run folder
    and the options ``--nodes N --node I --endpoint HOST:PORT`` (the number of nodes, the index of
    this node, and the address of the first one) and exits with

    ==  ===========================================================
    0   the last step is done
    75  it stopped on request, with a checkpoint to resume from
    2   it failed, and would fail again
    1   it failed; another attempt may help
    ==  ===========================================================
    """

    folder: Path
    ranks: int
    device: str
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LaunchContext(Context):
    """The jobs to submit; several jobs are those of a sweep.

    ``place`` is the folder for the submission's files. ``resources`` is the run's
    :class:`atom.recipe.sections.Launcher`, which all jobs share. ``max_restarts`` comes from the
    run, ``python`` is this machine's.
    """

    jobs: tuple[LaunchJob, ...]
    place: Path
    resources: Any
    max_restarts: int
    python: str


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The files and commands of a submission.

    ``files`` are written to the context's ``place``, by name; ``commands`` are then run there, one
    after the other. ``advice`` is shown at the end, with the output of the commands.
    ``reason(errors)`` turns the error output of a failed command into one sentence. ``ignored`` are
    keys of the run that have no effect there, such as ``launch.hang_seconds`` if nodes do not run
    the job's ``command``: a user who has set one gets an error.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[tuple[str, ...], ...] = ()
    advice: str = ""
    reason: Callable[[str], str] | None = None
    ignored: tuple[str, ...] = ()
