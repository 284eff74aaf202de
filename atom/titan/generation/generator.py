"""Continue texts with a trained model: prompts in, pieces of text out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.titan.generation.generate import generate, longest, stream
from atom.titan.generation.sampling import Sampling
from atom.titan.weights.loaded import load

_CONTEXT = 8
"""Earlier tokens that are decoded with a new one: spaces may depend on them."""


class Generator:
    """The model of a run, or of its export, and its tokenizer.

    Attributes:
        model: the model, for evaluation.
        tokenizer: the run's, a torchtitan tokenizer.
        reach: the maximum number of tokens of a text; None if the model has none.

    Args:
        folder: the folder of the run or the export.
        step: the checkpoint's step, for a run; None for the newest.
        kind: the device that torchtitan is set up for, ``cpu`` or ``cuda``.
        average: the callback whose averaged weights to use; None: the weights.

    Raises:
        UserError: there are no readable weights.
    """

    def __init__(
        self, folder: Path, *, step: int | None, kind: str, average: str | None = None
    ) -> None:
        loaded = load(folder, step=step, kind=kind, average=average)
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.trained.tokenizer()
        self.reach = longest(loaded.trained.parts)
        self._trained_on = loaded.trained.run.training.seq_len

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of ``prompt`` as the beginning of a document.

        Raises:
            UserError: the prompt has no ids.
        """
        ids: list[int] = self.tokenizer.encode(prompt, add_bos=True, add_eos=False)
        if not ids:
            raise UserError("the prompt is empty, and this tokenizer has no BOS token")
        return ids

    def text(self, prompt: str, *, tokens: int, sampling: Sampling) -> Iterator[str]:
        """Yield the continuation of ``prompt``, in pieces, up to the document's end or ``tokens``.

        The arguments are those of :meth:`ids`.
        """
        ids = self.encode(prompt)
        return pieces(self.tokenizer, ids, self.ids(ids, tokens=tokens, sampling=sampling))

    def texts(
        self, prompts: Sequence[str], *, tokens: int, sampling: Sampling, batch: int
    ) -> list[str]:
        """Return the continuation of each prompt.

        Args:
            prompts: the beginnings of documents.
            tokens: the maximum number to generate for each.
            sampling: how they are drawn.
            batch: the number of texts that are computed together.

        Raises:
            UserError: a text would exceed the model's positional range.
        """
        ids = [self.encode(prompt) for prompt in prompts]
        self._check(max(map(len, ids)), tokens)
        made = generate(
            self.model, ids, batch=batch, tokens=tokens, sampling=sampling, **self._options()
        )
        return [
            "".join(pieces(self.tokenizer, prompt, iter(new)))
            for prompt, new in zip(ids, made, strict=True)
        ]

    def ids(
        self,
        ids: Sequence[int],
        *,
        tokens: int,
        sampling: Sampling,
    ) -> Iterator[int]:
        """Yield the ids that follow ``ids``.

        Args:
            ids: ids of the beginning of a document.
            tokens: the maximum number to generate.
            sampling: how they are drawn.

        Raises:
            UserError: the text would exceed the model's positional range.
        """
        self._check(len(ids), tokens)
        made = stream(self.model, [ids], tokens=tokens, sampling=sampling, **self._options())
        return (token for _, token in made)

    def _options(self) -> dict[str, Any]:
        eos = getattr(self.tokenizer, "eos_id", None)
        return {
            "ends": () if eos is None else (eos,),
            "size": self.tokenizer.get_vocab_size(),
            "reach": self.reach,
        }

    def _check(self, prompt: int, tokens: int) -> None:
        if self.reach is not None and prompt + tokens > self.reach:
            raise UserError(
                f"--tokens {tokens}: this model reaches {self.reach} tokens, and the prompt has "
                f"{prompt}"
            )
        if prompt + tokens > self._trained_on:
            print(
                f"atom: the model was trained on {self._trained_on} tokens at a time; this text "
                f"may get {prompt + tokens}",
                file=sys.stderr,
            )


def pieces(tokenizer: Any, prompt: Sequence[int], ids: Iterator[int]) -> Iterator[str]:
    """Yield the text of ``ids`` as they come, in whole characters.

    Args:
        tokenizer: a torchtitan tokenizer.
        prompt: the ids before them.
        ids: the ids.
    """
    decode: Callable[[list[int]], str] = tokenizer.decode
    context = list(prompt[-_CONTEXT:])
    held: list[int] = []
    for token in ids:
        held.append(token)
        piece = decode([*context, *held])[len(decode(context)) :]
        # A character may take several tokens; until the last one it decodes to U+FFFD.
        if not piece.endswith("\N{REPLACEMENT CHARACTER}"):
            yield piece
            context, held = [*context, *held][-_CONTEXT:], []
    yield decode([*context, *held])[len(decode(context)) :]
