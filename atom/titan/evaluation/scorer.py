"""Score texts with a trained model, for evaluators: an :class:`atom.plugin.Scorer`.

Sequences are sorted by length and computed in batches, padded at their end: attention is causal, so
padding changes nothing before it.

Shape suffixes: B = sequences of a batch, L = tokens of the longest, C = tokens of a continuation,
V = vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from atom.errors import UserError
from atom.plugin import Likelihood

TOKENS = 4096
"""Tokens of one pass, padding included; at least one sequence."""

Pair = tuple[Sequence[int], Sequence[int]]
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(ids_BL, positions_BL) -> logits_BLV"""


class ModelScorer:
    """An :class:`atom.plugin.Scorer` of a model in this process.

    Args:
        forward: computes the logits.
        tokenizer: a torchtitan tokenizer, with ``bos_id`` and ``eos_id``, each an id or None.
        max_length: the longest sequence in tokens.
        device: the device of the ids.
        tokens: tokens of one pass.
        generate: returns the likeliest ids that follow prompts, as :meth:`_recomputed` does, which
            is the default.

    Attributes:
        truncated: number of requests since :meth:`new_digest` that lost their beginning.
    """

    def __init__(
        self,
        forward: Forward,
        tokenizer: Any,
        *,
        max_length: int,
        device: str,
        tokens: int | None = None,
        generate: Callable[..., list[list[int]]] | None = None,
    ) -> None:
        self._forward = forward
        self._generate = generate or self._recomputed
        self._device = device
        self._tokens = tokens or TOKENS
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.bos_id: int | None = getattr(tokenizer, "bos_id", None)
        self.eos_id: int | None = getattr(tokenizer, "eos_id", None)
        self._size: int = tokenizer.get_vocab_size()
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
        return self._scored(whole)

    def _scored(self, whole: Sequence[tuple[Sequence[int], int]]) -> list[Likelihood]:
        """Return the likelihood of the last tokens of sequences, given their number."""
        found: list[Likelihood | None] = [None] * len(whole)
        for batch in self._batches([len(ids) - 1 for ids, _ in whole]):
            for number, result in zip(batch, self._pass([whole[i] for i in batch]), strict=True):
                found[number] = result
        return [result for result in found if result is not None]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield indices of sequences of similar length, the longest first."""
        batch: list[int] = []
        for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            if batch and (len(batch) + 1) * lengths[batch[0]] > self._tokens:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    @torch.no_grad()
    def _pass(self, batch: Sequence[tuple[Sequence[int], int]]) -> list[Likelihood]:
        logits_BLV = self._logits([ids[:-1] for ids, _ in batch])
        found = []
        for (ids, count), logits_LV in zip(batch, logits_BLV, strict=True):
            if count == 0:
                found.append(Likelihood(0.0, is_greedy=True))
                continue
            end = len(ids) - 1
            logprobs_CV = logits_LV[end - count : end].float().log_softmax(dim=-1)
            targets_C = torch.tensor(ids[-count:], device=logprobs_CV.device)
            taken_C = logprobs_CV.gather(1, targets_C[:, None])[:, 0]
            greedy = bool((logprobs_CV.argmax(dim=-1) == targets_C).all())
            found.append(Likelihood(taken_C.double().sum().item(), greedy))
        return found

    def _logits(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the logits of sequences, padded at their end: (B, L, V)."""
        longest = max(map(len, sequences))
        padded = [[*ids, *[0] * (longest - len(ids))] for ids in sequences]
        ids_BL = torch.tensor(padded, device=self._device)
        positions_BL = torch.arange(longest, device=self._device).expand(len(padded), -1)
        return self._forward(ids_BL, positions_BL.contiguous())

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        windows, owners = [], []
        for number, text in enumerate(texts):
            ids = [self._first(), *self.encode(text)]
            for begin in range(1, len(ids), self.max_length):
                end = min(begin + self.max_length, len(ids))
                windows.append((ids[max(0, end - self.max_length - 1) : end], end - begin))
                owners.append(number)
        totals = [0.0] * len(texts)
        for number, result in zip(owners, self._scored(windows), strict=True):
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
        found = [""] * len(prompts)
        for batch in self._batches([len(ids) + tokens for ids in kept]):
            texts = self._continued([kept[i] for i in batch], until, tokens)
            for number, text in zip(batch, texts, strict=True):
                found[number] = text
        return found

    def _continued(
        self, prompts: Sequence[list[int]], until: Sequence[str], tokens: int
    ) -> list[str]:
        def finished(_number: int, ids: list[int]) -> bool:
            text = self.decode(ids)
            return any(stop and stop in text for stop in until)

        made = self._generate(prompts, tokens=tokens, finished=finished)
        return [_cut(self.decode(ids), until) for ids in made]

    @torch.no_grad()
    def _recomputed(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        tokens: int,
        finished: Callable[[int, list[int]], bool],
    ) -> list[list[int]]:
        """Return the ids that follow prompts, each computed from all before it."""
        made: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        for _ in range(tokens):
            logits_BLV = self._logits([[*prompts[i], *made[i]] for i in going])
            still = []
            for row, number in enumerate(going):
                end = len(prompts[number]) + len(made[number])
                # Rows of the embedding beyond the tokenizer's ids are padding.
                token = int(logits_BLV[row, end - 1, : self._size].argmax())
                if token == self.eos_id:
                    continue
                made[number].append(token)
                if not finished(number, made[number]):
                    still.append(number)
            if not (going := still):
                break
        return made


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text
