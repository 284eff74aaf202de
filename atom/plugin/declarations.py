"""Define what a plugin can offer: one declaration class per kind.

The class is all that ATOM's core knows of a kind. Its hook, its section in a run, its config group,
and its place in `atom plugins`, `atom new`, the conformance kit and the documentation follow from
it. In addition, a kind has a suite, `atom/testing/suites/KIND.py`, a template,
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
    "Callback",
    "Dataset",
    "Declaration",
    "Evaluator",
    "Kernel",
    "Launcher",
    "Needs",
    "Objective",
    "Optimizer",
    "Parallelism",
    "Tokenizer",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """The fields that declarations of every kind share.

    ``config`` references a pydantic model of the component's parameters; a component without
    parameters leaves it out. ``not_run_on`` names where it has never run, such as ``a GPU``; lists
    show it, so a summary need not. A wrong name or reference raises
    :class:`ValueError`, which ATOM shows as the reason why the plugin is broken.

    A kind is a direct subclass with these attributes:

    Attributes:
        kind: its name. Its hook is ``atom_KINDs``.
        section: the section of a run that names components of the kind, and the config group that
            selects them; by default the kind's name.
        chosen: how many components a run has: ``one``, with its parameters beside its ``name``;
            ``optional``, the same or null; ``many``, one section per component under a name that
            the user gives; ``otherwise``, if the section has another form.
        references: the fields that reference code.
        in_ranks: True if ranks load the component; False if only the process that starts them does.
        trains: True if only training uses it: a trained model loads without its package.
        users_alone: True if its parameters run code or send data, so that a file from someone else
            must not set them for another component.
        engine_parameters: True if the parameters are torchtitan's, which validates them.
        change: effect of another component or parameter on a resumed run
            (:mod:`atom.run_dir.changes`).
        written_out: True if ``run.yaml`` records the defaults of its parameters, too.
        alike: True if components share parameters, so that the error for a parameter that one lacks
            names those that have it.
        names: pattern of a component's name.
    """

    kind: ClassVar[str]
    section: ClassVar[str]
    chosen: ClassVar[Literal["one", "optional", "many", "otherwise"]] = "one"
    references: ClassVar[tuple[str, ...]] = ("config",)
    in_ranks: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    users_alone: ClassVar[bool] = False
    engine_parameters: ClassVar[bool] = False
    change: ClassVar[Literal["harmless", "matters", "refused"]] = "matters"
    written_out: ClassVar[bool] = False
    alike: ClassVar[bool] = False
    names: ClassVar[re.Pattern[str]] = _NAME

    name: str
    summary: str
    config: str | None = None
    not_run_on: str | None = None

    @property
    def described(self) -> str:
        """The summary, followed by where the component has never run."""
        return f"{self.summary} (not run on {self.not_run_on})" if self.not_run_on else self.summary

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in vars(cls) and "section" not in vars(cls):
            cls.section = cls.kind

    def __post_init__(self) -> None:
        if not self.names.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} must match {self.names.pattern}")
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
    """A tokenizer: text to ids and back.

    ``prepare(config, context: TokenizerContext) -> PreparedTokenizer`` runs once, before ranks
    start; it can train, and must be safe when several runs start at once. It imports no torch.

    ``build(config) -> torchtitan BaseTokenizer.Config`` runs on every rank. torchtitan then calls
    that config's ``build(tokenizer_path=…)`` with the folder of the prepared files.
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
    the model, and torchtitan builds it (on the meta device first).
    """

    kind = "architecture"
    references = ("config", "build")
    change = "refused"

    build: str


@dataclass(frozen=True, kw_only=True)
class Parallelism(Declaration):
    """A strategy that parallelizes a model over many ranks.

    Its parameters are torchtitan's ``ParallelismConfig``, under torchtitan's names; every degree
    of -1 has been resolved before ``build`` is called.

    ``build(config: ParallelismConfig, context: ParallelismContext) -> Strategy``

    ``choose(context: LayoutContext) -> LayoutChoice`` is for a strategy that chooses its own
    degrees. It runs once, before ranks start, and needs no torch; its choice is written to
    ``run.yaml`` as if the user had set it.
    """

    kind = "parallelism"
    references = ("config", "build", "choose")
    engine_parameters = True
    change = "harmless"

    build: str
    choose: str | None = None


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The requirements of a kernel. A field that is left out requires nothing.

    ``capability`` is the lowest CUDA compute capability, ``capability_below`` the first one that is
    too new. ``triton=True`` marks a Triton kernel: a CPU runs it only in Triton's interpreter, and
    only if the user names it. ``packages`` are requirement strings such as ``"liger-kernel>=0.8"``.

    ``smallest``, ``largest`` and ``multiples`` apply to the sizes of the model: ``head_dim``,
    ``dim`` (its width), ``hidden_dim`` (of a feed-forward, on one rank), ``vocab_size``, ``window``
    (of attention), ``masked_window`` (a window that is only in the masks, which variable-length
    attention does not get) and ``sinks`` (heads with an attention sink), 0 for a model without. The
    dtypes are those of :attr:`Kernel.tolerance`.

    ``context_parallel=False`` and ``tensor_parallel=False`` mean that it does not work under CP,
    TP; ``tensor_parallel_only=True`` and ``expert_parallel=True`` that it works only under TP, EP;
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

    ``override`` references a factory marked with ``torchtitan.config.override``, which replaces the
    operation's node in the model's config tree; ``None`` keeps torchtitan's own node. For an
    operation that is a function (:mod:`atom.kernels.operations`), ``override`` references a
    function with the same arguments. ``kernels=auto`` tries the kernels of an operation by
    descending ``priority``.

    ``tolerance`` maps each supported dtype to the largest error, of the output and of every
    gradient, relative to the largest value of the operation's reference.

    ``functions`` provide the kernel as functions of tensors, for tests and benchmarks without
    torchtitan: name in :data:`atom.titan.contracts.functions.FUNCTIONS` ->
    ``"package.module:attribute"``, in a module that does not import torchtitan.

    ``before_sharding`` applies the override before the model's shardings are set, for a node that
    needs different ones.
    """

    kind = "kernel"
    references = ("config", "override")
    section = "kernels"
    chosen = "otherwise"
    change = "harmless"  # within the tolerance that each kernel declares

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
    """A dataset of text to train on.

    ``source(config) -> DocumentSource``, or ``source(config, context: SourceContext)`` if it has a
    parameter of that name; without torch. ATOM's own loader tokenizes and packs its documents, in
    an order that depends on the seed and the step but not on the layout.

    ``build(config, context: DatasetContext) -> torchtitan BaseDataLoader.Config`` replaces that
    loader, for data that is not text; it must then ensure the same order itself.

    ``changed(key, before, after, trained: Trained) -> str`` returns the effect of a changed
    parameter on a run that resumes: ``"harmless"``, ``"matters"`` or ``"refused"``. ``key`` is the
    parameter's, such as ``stages.anneal.from_step``; ``before`` and ``after`` are both sections as
    plain data. Without it, every change is refused.
    """

    kind = "dataset"
    references = ("config", "source", "build", "changed")
    change = "refused"

    source: str
    build: str | None = None
    changed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Objective(Declaration):
    """What a run learns from a document. Without one, a run predicts each next token of text.

    ``encoder(config, context: ObjectiveContext) -> DocumentEncoder`` returns the conversion of
    documents to tokens, and which of them are trained on. It runs once before ranks start, on the
    first document, and then on every rank; it imports no torch.

    ``template(config, context: TemplateContext) -> str | None`` returns the chat template of the
    trained model, which is kept with its tokenizer; None: the tokenizer's own.

    ``reads`` is what it needs a dataset to yield: ``text``, or ``records``.

    ``packings`` are the values of ``data.packing`` that it supports; the first is the default.

    ``loss(config) -> ExampleLoss`` returns the loss of examples of ``sequences`` sequences each,
    from the sums of their log-probabilities. Left out: cross-entropy of each predicted token.
    ``reference=True``: it needs those of the initial weights, too, which ATOM computes before
    training.

    ``teacher(config) -> Teacher`` returns a model whose predictions ATOM computes before training;
    ``loss(config) -> TokenLoss`` is then the loss of each token against them.
    """

    kind = "objective"
    references = ("config", "encoder", "template", "loss", "teacher")
    chosen = "optional"
    change = "refused"

    encoder: str
    template: str | None = None
    reads: Literal["text", "records"] = "text"
    packings: tuple[Literal["concat", "best_fit", "none"], ...] = ("concat", "best_fit", "none")
    loss: str | None = None
    sequences: int = 1
    reference: bool = False
    teacher: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequences < 1 or (self.loss is None and (self.sequences > 1 or self.reference)):
            raise ValueError(f"sequences and reference of {self.name!r} are for one with a loss")
        if self.teacher is not None and (self.loss is None or self.sequences > 1 or self.reference):
            raise ValueError(f"teacher of {self.name!r} is for one with a loss of tokens")
        if self.loss is not None and "concat" in self.packings:
            raise ValueError(f"packings of {self.name!r}: concat cuts examples, and it has a loss")


@dataclass(frozen=True, kw_only=True)
class Launcher(Declaration):
    """A launcher that starts a run's ranks on other machines.

    ``plan(config, context: LaunchContext) -> Submission`` returns the submission as text. It writes
    and starts nothing: ATOM shows the submission (``launcher.dry_run=true``), or writes its files
    and runs its commands. It needs no torch.

    ``evaluate(config, context: LaunchContext) -> Submission`` returns the job that evaluates one
    checkpoint, on one machine, for runs with ``evaluation.interval``. A job's ``command``, to which
    the run folder and the step are appended, evaluates it, on ``ranks`` ranks of ``device``. The
    files are written with those of the run; the first machine of the run runs the only command, to
    which the run folder and the step are appended, when a checkpoint is complete. Without
    ``evaluate``, the first machine evaluates in a process of low priority.
    """

    kind = "launcher"
    references = ("config", "plan", "evaluate")
    chosen = "optional"
    in_ranks = False
    users_alone = True
    change = "harmless"

    plan: str
    evaluate: str | None = None


@dataclass(frozen=True, kw_only=True)
class Callback(Declaration):
    """Code that training calls at named points, such as a measurement.

    ``callback(config, context: CallbackContext) -> TrainerCallback``. It runs once before ranks
    start, as a check, and then on every rank; it must be cheap, and have no side effects.

    ``observes=False`` is for a callback that changes the training: gradients, weights or random
    numbers. A resumed run then reports its parameters as changes with an effect on the losses.

    ``averages=True`` is for a callback that averages the weights
    (:meth:`atom.plugin.TrainerCallback.averages`).

    ``check(config, context: CallbackContext) -> None`` is optional. It refuses parameters that do
    not fit the run, with a :class:`atom.errors.UserError`, before torch is imported; its module
    must not import torch.
    """

    kind = "callback"
    section = "callbacks"
    chosen = "many"
    references = ("config", "callback", "check")

    callback: str
    check: str | None = None
    observes: bool = True
    averages: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluator(Declaration):
    """A collection of tasks that score a trained model: ``atom eval``.

    ``tasks(config) -> Collection[str]`` returns the names of the tasks, without torch and without a
    network.

    ``evaluate(config, context: EvaluatorContext) -> Iterable[Measured]`` scores the model of the
    context on one task. Its requests to the model are deterministic.
    """

    kind = "evaluator"
    section = "evaluators"
    chosen = "many"
    references = ("config", "tasks", "evaluate")
    change = "harmless"

    tasks: str
    evaluate: str


@dataclass(frozen=True, kw_only=True)
class Optimizer(Declaration):
    """An optimizer of the model's parameters. Its name may have capital letters, as in ``AdamW``.

    ``build(config, context: OptimizerContext) -> Sequence[OptimizerPart]``. It must be cheap: it
    describes which torch optimizer updates which parameters, and every rank builds them.

    ``state`` names the tensors that it keeps for a parameter. A run resumes with another optimizer
    only if both have the same names. A tensor of a parameter's shape must have the parameter's
    placements, so that it is sharded like the parameter; others are DTensors, too, or equal on
    every rank.

    ``operations`` are the operations with kernels that it executes: ``optimizer_step`` if a part is
    torch's Adam or AdamW, ``newton_schulz`` for ATOM's Muon.
    """

    kind = "optimizer"
    references = ("config", "build")
    trains = True
    written_out = True
    alike = True
    names = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*")

    build: str
    state: tuple[str, ...]
    operations: tuple[str, ...] = ()


KINDS: tuple[type[Declaration], ...] = tuple(Declaration.__subclasses__())
"""The kinds of components, in the order of the classes above."""
