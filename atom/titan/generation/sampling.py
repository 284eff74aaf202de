"""Draw the next token from logits.

Shape suffixes: V = vocabulary, B = texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among this many most likely tokens; None for all.
        top_p: draw among the most likely tokens that have this probability together, at least
            one; None for all.
        seed: seed of each text: its tokens do not depend on other texts.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


class Sampler:
    """Draws the tokens of some texts; on a CPU, so that devices agree.

    Args:
        sampling: the settings.
        texts: the number of texts.
    """

    def __init__(self, sampling: Sampling, texts: int) -> None:
        self._sampling = sampling
        self._draws = [torch.Generator().manual_seed(sampling.seed) for _ in range(texts)]

    def draw(self, logits_BV: torch.Tensor, texts: list[int]) -> list[int]:
        """Return the next token of each text.

        Args:
            logits_BV: their logits.
            texts: their numbers.
        """
        if self._sampling.temperature == 0:
            greedy: list[int] = logits_BV.argmax(dim=-1).tolist()
            return greedy
        logits_BV = logits_BV.float().cpu()
        return [
            int(
                torch.multinomial(
                    probabilities(logits_V, self._sampling), 1, generator=self._draws[text]
                )
            )
            for logits_V, text in zip(logits_BV, texts, strict=True)
        ]


def probabilities(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the probability of each token, for a temperature above 0."""
    if sampling.top_k is not None:
        least = logits_V.topk(min(sampling.top_k, len(logits_V))).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    # In float64: a temperature near zero must not overflow.
    probabilities_V = (logits_V.double() / sampling.temperature).softmax(dim=-1)
    if sampling.top_p is None:
        return probabilities_V
    likeliest_V, tokens_V = probabilities_V.sort(descending=True)
    before_V = likeliest_V.cumsum(dim=-1) - likeliest_V
    left_out = tokens_V[before_V >= sampling.top_p]
    return probabilities_V.index_fill(0, left_out, 0.0)
