"""Continue a text with a trained model, in one process.

Each token is computed from all tokens before it, without a key-value cache: enough to see what a
model has learnt, and slow for more.

Shape suffixes: B = sequences (one), L = tokens so far, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from atom.errors import UserError
from atom.titan.weights.forward import logits
from atom.titan.weights.loaded import load


class Generator:
    """The model of a run, or of its export, and its tokenizer.

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
        self._device = kind
        self._tokenizer = loaded.trained.tokenizer()
        self._reach = getattr(loaded.trained.parts.model, "max_seq_len", None)
        self._model = loaded.model

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of ``prompt`` as the beginning of a document.

        Raises:
            UserError: the prompt has no ids.
        """
        ids: list[int] = self._tokenizer.encode(prompt, add_bos=True, add_eos=False)
        if not ids:
            raise UserError("the prompt is empty, and this tokenizer has no BOS token")
        return ids

    def text(
        self, prompt: str, *, tokens: int, temperature: float, top_k: int | None, seed: int
    ) -> Iterator[str]:
        """Yield the continuation of ``prompt``, in pieces, up to the document's end or ``tokens``.

        The arguments are those of :meth:`ids`.
        """
        made: list[int] = []
        shown = ""
        for token in self.ids(
            self.encode(prompt), tokens=tokens, temperature=temperature, top_k=top_k, seed=seed
        ):
            made.append(token)
            text = self._tokenizer.decode(made)
            # A character may take several tokens; until the last one it decodes to U+FFFD.
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(shown) :]
                shown = text
        yield self._tokenizer.decode(made)[len(shown) :]

    @torch.no_grad()
    def ids(
        self, ids: list[int], *, tokens: int, temperature: float, top_k: int | None, seed: int
    ) -> Iterator[int]:
        """Yield the ids that follow ``ids``.

        Args:
            ids: ids of the beginning of a document.
            tokens: the maximum number to generate.
            temperature: divides the logits before sampling; 0 takes the likeliest token.
            top_k: sample among this many likeliest tokens; None for all.
            seed: seed of the sampling.

        Raises:
            UserError: the text would exceed the model's positional range.
        """
        if self._reach is not None and len(ids) + tokens > self._reach:
            raise UserError(
                f"--tokens {tokens}: this model reaches {self._reach} tokens, and the prompt has "
                f"{len(ids)}"
            )
        # Sampling on a CPU gives the same result for every device.
        draws = torch.Generator().manual_seed(seed)
        size = self._tokenizer.get_vocab_size()
        for _ in range(tokens):
            ids_BL = torch.tensor([ids], device=self._device)
            # Rows of the embedding beyond the tokenizer's ids are padding.
            positions_BL = torch.arange(len(ids), device=self._device)[None]
            logits_BLV = logits(self._model, ids_BL, positions_BL)
            logits_V = logits_BLV[0, -1, :size].float().cpu()
            token = _drawn(logits_V, temperature, top_k, draws)
            if token == getattr(self._tokenizer, "eos_id", None):
                return
            yield token
            ids = [*ids, token]


def _drawn(
    logits_V: torch.Tensor, temperature: float, top_k: int | None, draws: torch.Generator
) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None:
        least = logits_V.topk(min(top_k, len(logits_V))).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    # In float64: a temperature near zero must not overflow.
    probabilities_V = (logits_V.double() / temperature).softmax(dim=-1)
    return int(torch.multinomial(probabilities_V, 1, generator=draws))
