"""Define what an evaluator of a plugin is called with, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = ["Likelihood", "Measured", "Scorer"]


class Likelihood(NamedTuple):
    """The log-likelihood of a continuation.

    Attributes:
        logprob: sum of the log-probabilities of its tokens, in nats.
        is_greedy: whether each of its tokens is the most likely one.
    """

    logprob: float
    is_greedy: bool


class Scorer(Protocol):
    """A trained model and its tokenizer, for evaluators. It needs no torch.

    Requests can come in any order: they are sorted by length and computed in batches. Ask for many
    at once.
    """

    @property
    def max_length(self) -> int:
        """The longest sequence in tokens; longer ones lose their beginning, which is counted and
        reported."""

    @property
    def bos_id(self) -> int | None:
        """The id that begins a document, if there is one."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, if there is one."""

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Return the ids of a text, after BOS if ``bos`` and the tokenizer has one."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context, which begins with BOS, and of its continuation.

        Both are encoded as one text. Spaces at the end of the context count to the continuation. An
        empty context is BOS, or EOS for a tokenizer without BOS.
        """

    def loglikelihood(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[Likelihood]:
        """Return the log-likelihood of each continuation after its context; no context is empty."""

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """Return the log-likelihood of each text, after BOS or EOS.

        A text of more than :attr:`max_length` tokens is computed in windows, each of which predicts
        the tokens that follow those before it.
        """

    def generate_until(
        self, prompts: Sequence[Sequence[int]], *, until: Sequence[str], tokens: int
    ) -> list[str]:
        """Return the most likely continuation of each prompt.

        Args:
            prompts: ids.
            until: texts that end a continuation, and are not part of it.
            tokens: the maximum number to generate.
        """


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number of a task.

    Attributes:
        metric: its name, such as ``acc``.
        value: the number.
        samples: number of documents that it is the mean of, or another function.
        stderr: standard error of ``value``; None if it is not known.
        higher_is_better: None if neither is.
        task: the part of a task that it belongs to; None for the task itself.
        version: version of the task.
        few_shot: examples in each prompt; None if it is not known.
    """

    metric: str
    value: float
    samples: int
    stderr: float | None = None
    higher_is_better: bool | None = True
    task: str | None = None
    version: str | None = None
    few_shot: int | None = None
