"""Score texts with a trained model, for evaluators: an :class:`atom.plugin.Scorer`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from atom.errors import UserError
from atom.plugin import Likelihood
from atom.titan.evaluation.passes import Passes

Pair = tuple[Sequence[int], Sequence[int]]


class ModelScorer:
    """An :class:`atom.plugin.Scorer` of a model and its tokenizer.

    Args:
        passes: computes what the model is asked for.
        tokenizer: a torchtitan tokenizer, with ``bos_id`` and ``eos_id``, each an id or None.
        max_length: the longest sequence in tokens.

    Attributes:
        truncated: number of requests since :meth:`new_digest` that lost their beginning.
    """

    def __init__(self, passes: Passes, tokenizer: Any, *, max_length: int) -> None:
        self._passes = passes
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.bos_id: int | None = getattr(tokenizer, "bos_id", None)
        self.eos_id: int | None = getattr(tokenizer, "eos_id", None)
        self.new_digest()

    def new_digest(self) -> None:
        """Begin the digest of texts, and the count of truncated requests, anew."""
        self._texts = hashlib.blake2b(digest_size=8)
        self.truncated = 0

    @property
    def digest(self) -> str:
        """Digest of all texts since :meth:`new_digest`, 16 hexadecimal digits."""
        return self._texts.hexdigest()

    # ------------------------------------------------------------------------ the tokenizer

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        data = text.encode(errors="surrogatepass")
        self._texts.update(len(data).to_bytes(8, "little") + data)
        return self._ids(text, bos=bos)

    def _ids(self, text: str, *, bos: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_bos=bos, add_eos=False))

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids))
        return text

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            ids = self.encode(continuation)
            first = self._first()
            return ([first], ids) if ids[:1] != [first] else (ids[:1], ids[1:])
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        before = self._ids(stripped, bos=True)
        whole = self.encode(stripped + continuation, bos=True)
        return before, whole[len(before) :]

    def _first(self) -> int:
        """Return the id that a text without context begins after."""
        for found in (self.bos_id, self.eos_id):
            if found is not None:
                return found
        raise UserError(
            "the tokenizer has neither BOS nor EOS, so the first token of a text has no probability"
        )

    # ------------------------------------------------------------------------ likelihoods

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        whole = []
        for context, continuation in pairs:
            if not context:
                raise ValueError("a context has no tokens")
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation):,} tokens is longer than the model's "
                    f"sequences of {self.max_length:,} tokens"
                )
            ids = [*context, *continuation]
            if len(ids) > self.max_length + 1:
                self.truncated += 1
                ids = ids[-(self.max_length + 1) :]
            whole.append((ids, len(continuation)))
        return self._passes.likelihoods(whole)

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        windows, owners = [], []
        for number, text in enumerate(texts):
            ids = [self._first(), *self.encode(text)]
            for begin in range(1, len(ids), self.max_length):
                end = min(begin + self.max_length, len(ids))
                windows.append((ids[max(0, end - self.max_length - 1) : end], end - begin))
                owners.append(number)
        totals = [0.0] * len(texts)
        for number, result in zip(owners, self._passes.likelihoods(windows), strict=True):
            totals[number] += result.logprob
        return totals

    # ------------------------------------------------------------------------ generation

    def generate_until(
        self, prompts: Sequence[Sequence[int]], *, until: Sequence[str], tokens: int
    ) -> list[str]:
        room = self.max_length - tokens
        if room < 1:
            raise UserError(
                f"the task generates up to {tokens:,} tokens, and the model's sequences have "
                f"{self.max_length:,}"
            )
        kept = []
        for prompt in prompts:
            self.truncated += len(prompt) > room
            kept.append(list(prompt[-room:]))
        made = self._passes.continued(kept, tokens=tokens, until=until)
        return [_cut(self.decode(ids), until) for ids in made]


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text
