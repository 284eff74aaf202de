"""Lay out a ladder: small runs that check a scaling law and its rules before the large run.

Four sizes, each about twice the last, are trained on 1, 2, 5 and 10 times their best number of
tokens, as in Bhagia et al. (2024, https://arxiv.org/abs/2412.04403), whose ladder costs 1 % of the
runs that it predicts. Four more runs of the smallest size halve and double the rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import yaml

from atom.errors import UserError
from atom.plan.hyperparameters import Rule
from atom.plan.scaling import FLOPS, Law

SHARE = 0.01
"""Share of the budget that a ladder may cost (Bhagia et al.)."""

MULTIPLES = (1, 2, 5, 10)
SIZES = 4
LEAST_SIZES = 3

WIDTH = 128
"""Width for each layer: Llama 3 has 128 at 8B and 130 at 405B
(https://arxiv.org/abs/2407.21783, table 3). Heads are 128 wide, as in all its sizes."""

_MOST_LAYERS = 1000
_LEAST_LAYERS = 2
_VARIED = {
    "lr_half": (0.5, 1.0),
    "lr_double": (2.0, 1.0),
    "batch_half": (1.0, 0.5),
    "batch_double": (1.0, 2.0),
}


@dataclass(frozen=True, slots=True)
class Rung:
    """A run of the ladder.

    Attributes:
        name: of the experiment.
        layers: blocks, and heads.
        parameters: with embeddings, by arithmetic; a finished run records its own.
        multiple: tokens, as a multiple of the law's.
        batch: sequences of a global batch.
        steps: optimizer steps.
        seq_len: tokens of a sequence.
        lr: peak learning rate.
        warmup: steps.
    """

    name: str
    layers: int
    parameters: int
    multiple: float
    batch: int
    steps: int
    seq_len: int
    lr: float
    warmup: int

    @property
    def tokens(self) -> int:
        return self.batch * self.steps * self.seq_len

    @property
    def flops(self) -> float:
        return FLOPS * self.parameters * self.tokens

    def to_yaml(self) -> str:
        """Return the experiment as a file of Hydra's group ``experiment``."""
        settings = {
            "architecture": {
                "dim": WIDTH * self.layers,
                "n_layers": self.layers,
                "n_heads": self.layers,
                "n_kv_heads": self.layers,
            },
            "training": {
                "seq_len": self.seq_len,
                "global_batch_size": self.batch,
                "steps": self.steps,
            },
            "optimizer": {"lr": self.lr},
            "lr_scheduler": {"warmup_steps": self.warmup},
        }
        head = (
            "# @package _global_\n"
            f"# About {self.parameters:,} parameters on {self.tokens:,} tokens, {self.flops:.3g} "
            "FLOPs.\n"
        )
        return head + yaml.safe_dump(settings, sort_keys=False)


def parameters(layers: int, vocab_size: int) -> tuple[int, int]:
    """Return the parameters of a dense decoder without and with embeddings.

    4 d² of attention and 8 d² of a feed-forward layer of 8/3 d with a gate, in each layer.
    """
    width = WIDTH * layers
    own = 12 * layers * width**2
    return own, own + 2 * vocab_size * width


def ladder(
    budget: float,
    law: Law,
    rule: Rule,
    *,
    vocab_size: int,
    seq_len: int,
    share: float = SHARE,
) -> list[Rung]:
    """Return the largest ladder that costs at most ``share`` of ``budget`` FLOPs.

    Raises:
        UserError: no ladder is cheap enough.
    """
    found: list[Rung] = []
    for layers in range(_LEAST_LAYERS, _MOST_LAYERS):
        sizes = sorted({round(layers * 2 ** (-k / 3)) for k in range(SIZES)})
        sizes = [size for size in sizes if size >= _LEAST_LAYERS]
        if len(sizes) < LEAST_SIZES:
            continue
        tried = _rungs(sizes, law, rule, vocab_size, seq_len)
        if (cost := sum(rung.flops for rung in tried)) > share * budget:
            if found:
                break
            raise UserError(
                f"the smallest ladder costs {cost:.2g} FLOPs, {cost / budget:.2g} of the budget",
                key="plan.ladder_share",
                value=share,
                valid=f"a budget of at least {cost / share:.2g} FLOPs, or a larger share",
            )
        found = tried
    return found


def _rungs(sizes: list[int], law: Law, rule: Rule, vocab_size: int, seq_len: int) -> list[Rung]:
    rungs = [
        _rung(layers, multiple, f"{multiple}x", 1.0, 1.0, law, rule, vocab_size, seq_len)
        for layers in sizes
        for multiple in MULTIPLES
    ]
    for name, (lr, batch) in _VARIED.items():
        rungs.append(_rung(sizes[0], 1, name, lr, batch, law, rule, vocab_size, seq_len))
    return rungs


def _rung(
    layers: int,
    multiple: float,
    name: str,
    lr: float,
    larger: float,
    law: Law,
    rule: Rule,
    vocab_size: int,
    seq_len: int,
) -> Rung:
    own, total = parameters(layers, vocab_size)
    tokens = law.tokens_for(total) * multiple
    batch = sequences(rule.batch(own, tokens) * larger, seq_len)
    steps = max(math.ceil(tokens / batch / seq_len), 1)
    # As many tokens as parameters (Porian et al., 2024), at most a tenth of the run.
    warmup = min(round(total / batch / seq_len), steps // 10)
    return Rung(
        f"ladder_{layers:02}_layers_{name}",
        layers,
        total,
        multiple,
        batch,
        steps,
        seq_len,
        float(f"{rule.lr(own, tokens) * lr:.3g}"),
        warmup,
    )


def sequences(tokens: float, seq_len: int) -> int:
    """Return a global batch of about ``tokens``; from 8 sequences on, a multiple of 8 for eight
    ranks."""
    count = tokens / seq_len
    return max(round(count), 1) if count < 8 else 8 * round(count / 8)
