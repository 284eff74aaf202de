"""Choose learning rate and batch size by published rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """A published rule.

    Attributes:
        name: of the rule.
        source: where it was published, and from which runs.
        lr: (parameters, tokens) -> the peak learning rate of AdamW.
        batch: (parameters, tokens) -> tokens of a global batch.
        most: FLOPs of the largest run that it was checked on.
    """

    name: str
    source: str
    lr: Callable[[float, float], float]
    batch: Callable[[float, float], float]
    most: float


RULES = {
    "deepseek": Rule(
        "deepseek",
        "DeepSeek LLM (2024), https://arxiv.org/abs/2401.02954, equation 1: "
        "0.3118 C^-0.1250, 0.2920 C^0.3271",
        lambda parameters, tokens: 0.3118 * (6 * parameters * tokens) ** -0.1250,
        lambda parameters, tokens: 0.2920 * (6 * parameters * tokens) ** 0.3271,
        8e23,  # fitted from 1e17 to 2e19, checked at 1e20; their model of 67B was trained by it
    ),
    "step": Rule(
        "step",
        "Step Law (2025), https://arxiv.org/abs/2503.04715: 1.79 N^-0.713 D^0.307, 0.58 D^0.571",
        lambda parameters, tokens: 1.79 * parameters**-0.713 * tokens**0.307,
        lambda _, tokens: 0.58 * tokens**0.571,
        6e20,  # 1 B parameters on 100 B tokens
    ),
}
"""Rules by name. N: parameters without embeddings; D: tokens; C = 6 N D."""

DEFAULT = "deepseek"
