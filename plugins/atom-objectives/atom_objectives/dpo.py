"""``dpo``: direct preference optimization, without a reward model and without sampling.

The loss of a pair depends on the ratios of the model's and the reference's probabilities of its two
answers, which are sums of log-probabilities:

- ``sigmoid``: Rafailov et al., 2023, "Direct Preference Optimization" (arXiv 2305.18290); with
  ``label_smoothing``, a probability that a preference is wrong, the conservative form of Mitchell,
  2023, "A note on DPO with noisy preferences & relationship to IPO";
- ``ipo``: Azar et al., 2023, "A General Theoretical Paradigm to Understand Learning from Human
  Preferences" (arXiv 2310.12036), equation 17, by default of means over the answer's tokens, as its
  authors computed it;
- ``length_normalized``: means over the answer's tokens in place of sums, as in Meng et al., 2024,
  "SimPO" (arXiv 2405.14734) and Lambert et al., 2024, "Tülu 3" (arXiv 2411.15124).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atom_objectives.config import Dpo

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from atom.plugin import Sums


def loss(config: Dpo) -> PreferenceLoss:
    """Return the loss of pairs."""
    return PreferenceLoss(config)


class PreferenceLoss:
    """The loss of pairs: of N examples with a chosen and a rejected sequence each."""

    def __init__(self, config: Dpo) -> None:
        self._config = config

    def __call__(self, sums: Sums) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return the loss of each pair, and the values to log.

        ``chosen_reward`` and ``rejected_reward`` are the rewards that the model implies: ``beta``
        times the log-ratio of the answer. ``margin`` is their difference, ``accuracy`` whether it
        is positive.
        """
        from torch.nn.functional import logsigmoid

        config = self._config
        assert sums.reference is not None
        ratios = sums.logprobs - sums.reference
        normalized = config.length_normalized
        if normalized is None:
            normalized = config.loss == "ipo"
        chosen, rejected = (ratios / sums.tokens.clamp(min=1) if normalized else ratios).unbind(1)
        if config.loss == "ipo":
            losses = (chosen - rejected - 1 / (2 * config.beta)) ** 2
        else:
            logits = config.beta * (chosen - rejected)
            wrong = config.label_smoothing
            losses = -(1 - wrong) * logsigmoid(logits) - wrong * logsigmoid(-logits)
        chosen_reward, rejected_reward = (config.beta * ratios.detach()).unbind(1)
        margin = chosen_reward - rejected_reward
        return losses, {
            "accuracy": (margin > 0).double(),
            "margin": margin,
            "chosen_reward": chosen_reward,
            "rejected_reward": rejected_reward,
        }
