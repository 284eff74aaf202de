"""Define what is resolved once before the ranks start: the section ``resolved`` of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from atom.recipe.sections import Model


class Read(Model):
    """The size and the labels that a dataset has reported: see ``atom.plugin.Contents``."""

    files: int | None = None
    documents: int | None = None
    left_out: list[str] = Field(default=[], description="content that is present but not read")
    tokens: int | None = None
    licence: str | None = None
    origin: str | None = Field(default=None, description="where it comes from, with its commit")


class MixedSource(Model):
    """A source of the run's mixture."""

    name: str = Field(description="its name; source b of a mixture a is a.b")
    tokens: NonNegativeInt = Field(description="tokens that the run reads from it")
    documents: int | None = Field(default=None, description="documents of an epoch")
    epoch_tokens: int | None = Field(
        default=None,
        description="tokens to predict in an epoch, all but the first of each document",
    )
    max_repetitions: float | None = None

    @property
    def repetitions(self) -> float | None:
        """How often the run reads the source, if it has reported its tokens."""
        return self.tokens / self.epoch_tokens if self.epoch_tokens else None


class MixedStage(Model):
    """A stage of the run's mixture."""

    name: str
    first_step: PositiveInt
    shares: dict[str, float] = Field(description="source -> share of the tokens, without zeros")


class Mixed(Model):
    """The mixture that a run reads."""

    sources: list[MixedSource] = Field(description="in the order of a checkpoint's positions")
    stages: list[MixedStage]

    @property
    def names(self) -> list[str]:
        """The names of the sources, in their order."""
        return [source.name for source in self.sources]

    def read_until(self, step: int) -> frozenset[str]:
        """Return the sources that steps 1 to ``step`` read."""
        begun = (stage for stage in self.stages if stage.first_step <= step)
        return frozenset(name for stage in begun for name in stage.shares)


class Resolved(Model):
    """Values resolved once before the ranks start, so that all ranks use the same."""

    device: Literal["cpu", "cuda"]
    world_size: PositiveInt
    vocab_size: PositiveInt
    vocab_size_before: PositiveInt | None = Field(
        default=None,
        description="ids of the tokenizer without `tokenizer.added_tokens`; initial weights get "
        "rows for the later ones; null: none are added",
    )
    data: Read | None = Field(default=None, description="size of the dataset; null: unknown")
    mixture: Mixed | None = Field(
        default=None, description="the sources that are mixed; null: no mixture"
    )
    data_begins: int | None = Field(
        default=None,
        description="step of the checkpoint after which the data begins anew, because another run "
        "saved it or the position in the data was excluded from loading",
    )
    global_batch_size: PositiveInt = Field(description="in sequences")
    base: str | None = Field(
        default=None, description="SHA-256 of the weights that the run trains adapters of"
    )
    parameters: PositiveInt | None = Field(
        default=None, description="of the model, over all ranks; null: an earlier ATOM"
    )
    degrees: dict[str, int] = Field(description="the parallel degrees, with -1 resolved")
    kernels: dict[str, str] = Field(description="the kernel chosen for each operation")
    kernels_partial: dict[str, str] = Field(
        default={},
        description="number of an operation's nodes that its kernel replaces, if not all",
    )
    kernels_rejected: dict[str, dict[str, str]] = Field(
        default={}, description="the preferred kernels that do not fit, with the reasons"
    )
    kernels_not_tried: dict[str, dict[str, str]] = Field(
        default={},
        description="the other kernels, and why they would not fit or have a lower priority",
    )
    callbacks: list[str] = Field(
        default=[], description="the callbacks of training, in the order of their calls"
    )
    observers: list[str] = Field(
        default=[], description="the names in `callbacks` of those that change no training"
    )
