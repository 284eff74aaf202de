"""Provide a model for evaluators that needs no torch: a fixed distribution of bytes.

The probability of a byte depends on the byte before it, by a hash. Every prompt has a likelihood,
and no two continuations have the same one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache

from atom.plugin import Likelihood

BOS, EOS = 256, 257


@cache
def _logprobs(before: int) -> list[float]:
    """Return the log-probability of each id after an id."""
    digests = (hashlib.blake2b(bytes([before % 256, i % 256, i // 256])) for i in range(EOS + 1))
    weights = [1 + int.from_bytes(found.digest()[:4], "little") for found in digests]
    total = sum(weights)
    return [math.log(weight / total) for weight in weights]


class Bigrams:
    """An :class:`atom.plugin.Scorer`.

    Attributes:
        requests: all requests so far.
    """

    max_length = 1 << 20
    bos_id: int | None = BOS
    eos_id: int | None = EOS

    def __init__(self) -> None:
        self.requests: list[object] = []

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [BOS] * bos + list(text.encode(errors="replace"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(index for index in ids if index < BOS).decode(errors="replace")

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        stripped = context.rstrip()
        after = context[len(stripped) :] + continuation
        return self.encode(stripped, bos=True), self.encode(after)

    def loglikelihood(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[Likelihood]:
        found = []
        for context, continuation in pairs:
            assert context, "a context has no tokens"
            self.requests.append((tuple(context), tuple(continuation)))
            total, greedy, before = 0.0, True, context[-1]
            for token in continuation:
                logprobs = _logprobs(before)
                total += logprobs[token]
                greedy &= logprobs[token] == max(logprobs)
                before = token
            found.append(Likelihood(total, greedy))
        return found

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        return [
            each.logprob for each in self.loglikelihood([([BOS], self.encode(t)) for t in texts])
        ]

    def generate_until(
        self, prompts: Sequence[Sequence[int]], *, until: Sequence[str], tokens: int
    ) -> list[str]:
        found = []
        for prompt in prompts:
            self.requests.append((tuple(prompt), tuple(until), tokens))
            made = [prompt[-1]]
            for _ in range(tokens):
                logprobs = _logprobs(made[-1])
                made.append(logprobs.index(max(logprobs)))
            text = self.decode(made[1:])
            for stop in until:
                text = text.split(stop)[0] if stop else text
            found.append(text)
        return found
