"""Compute the likelihoods and continuations that a scorer asks for, in batches.

Sequences are sorted by length and padded at their end: attention is causal, so padding changes
nothing before it.

Shape suffixes: B = sequences of a batch, L = tokens of the longest, C = tokens of a continuation,
V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from atom.plugin import Likelihood
from atom.titan.weights.laid_out import Ranks

TOKENS = 4096
"""Tokens of one pass, padding included; at least one sequence."""

Scored = tuple[Sequence[int], int]
"""A sequence, and the number of its last tokens that are scored."""

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(ids_BL, positions_BL) -> logits_BLV"""


class Passes(Protocol):
    """What a scorer asks for."""

    def likelihoods(self, sequences: Sequence[Scored]) -> list[Likelihood]:
        """Return the likelihood of the last tokens of each sequence."""

    def continued(
        self, prompts: Sequence[Sequence[int]], *, tokens: int, until: Sequence[str]
    ) -> list[list[int]]:
        """Return the most likely ids that follow each prompt.

        Args:
            prompts: ids.
            tokens: the maximum number of ids to generate.
            until: texts that end a continuation.
        """


class OwnPasses:
    """The passes of a model in this process.

    Args:
        forward: computes the logits.
        generate: returns the most likely ids that follow prompts, as
            :func:`atom.titan.generation.generate.generate` does.
        decode: returns the text of ids.
        device: the device of the ids.
        tokens: tokens of one pass.
    """

    def __init__(
        self,
        forward: Forward,
        generate: Callable[..., list[list[int]]],
        decode: Callable[[list[int]], str],
        *,
        device: str,
        tokens: int | None = None,
    ) -> None:
        self._forward, self._generate, self._decode = forward, generate, decode
        self._device = device
        self._tokens = tokens or TOKENS

    def likelihoods(self, sequences: Sequence[Scored]) -> list[Likelihood]:
        found: dict[int, Likelihood] = {}
        for batch in self.batches([len(ids) - 1 for ids, _ in sequences]):
            found |= zip(batch, self.scored([sequences[i] for i in batch]), strict=True)
        return [found[number] for number in range(len(sequences))]

    def continued(
        self, prompts: Sequence[Sequence[int]], *, tokens: int, until: Sequence[str]
    ) -> list[list[int]]:
        found: dict[int, list[int]] = {}

        def finished(_number: int, ids: list[int]) -> bool:
            text = self._decode(ids)
            return any(stop and stop in text for stop in until)

        for batch in self.batches([len(ids) + tokens for ids in prompts]):
            made = self._generate([prompts[i] for i in batch], tokens=tokens, finished=finished)
            found |= zip(batch, made, strict=True)
        return [found[number] for number in range(len(prompts))]

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
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
    def scored(self, batch: Sequence[Scored]) -> list[Likelihood]:
        """Return the likelihoods of sequences that are computed in one pass."""
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


class SharedPasses:
    """The passes of a model that several ranks share.

    The first rank asks (it has the interface of :class:`Passes`); the others :meth:`serve`. Batches
    of likelihoods are divided among the ranks with different sequences; all ranks compute the same
    continuations.

    Args:
        own: the passes of this rank's part of the model.
        ranks: the ranks.
    """

    def __init__(self, own: OwnPasses, ranks: Ranks) -> None:
        self._own, self._ranks = own, ranks

    def likelihoods(self, sequences: Sequence[Scored]) -> list[Likelihood]:
        self._ranks.tell(("likelihoods", sequences))
        return self._likelihoods(sequences)

    def continued(
        self, prompts: Sequence[Sequence[int]], *, tokens: int, until: Sequence[str]
    ) -> list[list[int]]:
        self._ranks.tell(("continued", prompts, tokens, until))
        return self._own.continued(prompts, tokens=tokens, until=until)

    def serve(self) -> None:
        """Compute what the first rank asks for, until it ends."""
        while (asked := self._ranks.hear()) is not None:
            match asked:
                case ("likelihoods", sequences):
                    self._likelihoods(sequences)
                case ("continued", prompts, tokens, until):
                    self._own.continued(prompts, tokens=tokens, until=until)

    def end(self) -> None:
        """Let the other ranks end."""
        self._ranks.tell(None)

    def _likelihoods(self, sequences: Sequence[Scored]) -> list[Likelihood]:
        rank, ranks = self._ranks.share
        batches = list(self._own.batches([len(ids) - 1 for ids, _ in sequences]))
        here: dict[int, Likelihood] = {}
        for first in range(0, len(batches), ranks):
            # Each rank takes part in each pass: without a batch of its own, with the first one's.
            own = first + rank < len(batches)
            batch = batches[first + rank if own else first]
            found = self._own.scored([sequences[i] for i in batch])
            if own:
                here |= zip(batch, found, strict=True)
        whole: dict[int, Likelihood] = {}
        for part in self._ranks.gathered(here):
            whole |= part
        return [whole[number] for number in range(len(sequences))]
