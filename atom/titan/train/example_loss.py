"""Compute an objective's loss of examples from the log-probabilities of their sequences.

Such a loss is not a sum over tokens: its gradient for a token depends on the whole example. It is
computed in two steps. The log-probabilities of each sequence are summed, over the ranks that share
it too, and give the loss and its derivative for each sum. The derivative then weighs the
cross-entropies of the sequence's tokens: their weighted sum has the gradient of the loss, under
every layout and in chunks, without gradients through communication.

Shape suffixes: B = sequences of one pass, L = their tokens, N = examples of this rank in a step,
K = sequences of an example, P = N * K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import spmd_types as spmd
import torch
import torch.distributed as dist
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss, ChunkedLossWrapper
from torchtitan.config import CompileConfig

from atom.data import numbering
from atom.plugin import ExampleLoss, Sums
from atom.titan.train.token_losses import token_losses

assert IGNORE_INDEX < 0, "the numbers of labels tell ignored ones by their sign"


class SequenceLoss(BaseLoss):
    """The loss of examples, from labels that are numbered by their sequences.

    Call :meth:`expect` before the passes of a step. ``global_valid_tokens`` is the number of
    examples in the global batch.

    Attributes:
        group: the ranks that share sequences (context parallelism); None: there are none.
        values: what the objective logs of each example of the step, until :meth:`take`.
        recorded: the sums of log-probabilities of the step so far: [P]; None: training.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        loss: ExampleLoss
        sequences: int
        global_vocab_size: int

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        self.fn = token_losses
        self._maybe_compile(compile_config)
        self.sequences = config.sequences
        self._loss = config.loss
        self._vocab_size = config.global_vocab_size
        self.group: dist.ProcessGroup | None = None
        self.values: dict[str, torch.Tensor] = {}
        self.recorded: torch.Tensor | None = None
        self._reference_NK: torch.Tensor | None = None
        self._count = 0
        self._parts: list[torch.Tensor] | None = None

    # ------------------------------------------------------------------------ a step

    def expect(self, count: int, reference: Sequence[float] | None, device: torch.device) -> None:
        """Prepare for the passes of a step.

        Args:
            count: P.
            reference: the sum of each sequence under the initial weights, if the loss needs it.
            device: of the labels.
        """
        self._count = count
        self.values = {}  # a step that was computed again has left some
        self._reference_NK = None
        if reference is not None:
            found = torch.tensor(reference, dtype=torch.float64, device=device)
            self._reference_NK = found.view(count // self.sequences, self.sequences)

    def record(self, count: int, device: torch.device) -> None:
        """Record sums instead of computing losses, until :meth:`take_recorded`."""
        self._count = count
        self.recorded = torch.zeros(count, dtype=torch.float64, device=device)

    def take_recorded(self) -> torch.Tensor:
        """Return the recorded sums, and end recording."""
        recorded, self.recorded = self.recorded, None
        assert recorded is not None
        return recorded

    def take(self) -> dict[str, torch.Tensor]:
        """Return the sums of :attr:`values` since the last call."""
        values, self.values = self.values, {}
        return {name: value_N.sum() for name, value_N in values.items()}

    # ------------------------------------------------------------------------ a pass

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        *,
        weights: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return this rank's share of the loss; of a chunk, its weighted cross-entropies."""
        with spmd.no_typecheck():
            losses_BL = self.fn(pred, numbering.ids(labels), global_vocab_size=self._vocab_size)
            if self._parts is not None:
                self._parts.append(losses_BL.detach())
                return losses_BL.detach().sum(), {}
            if weights is not None:
                return (weights * losses_BL).sum(), {}
            weights_BL, loss = self.weighed(losses_BL.detach(), labels, global_valid_tokens)
            if weights_BL is None:
                return loss, {}
            return _with_value((weights_BL * losses_BL).sum(), loss), {}

    def in_parts(self) -> list[torch.Tensor]:
        """Only compute the cross-entropies of chunks, until :meth:`whole`; return where they go."""
        self._parts = []
        return self._parts

    def whole(self) -> None:
        """Compute losses again."""
        self._parts = None

    @torch.no_grad()
    def weighed(
        self, losses_BL: torch.Tensor, labels_BL: torch.Tensor, examples: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the weights of the tokens' cross-entropies, and this rank's share of the loss.

        Args:
            losses_BL: the cross-entropies.
            labels_BL: the labels, with numbers.
            examples: those of the global batch; None: the loss is a sum, and has no weights.
        """
        numbers_BL = numbering.numbers(labels_BL)
        # Ignored labels are added to a sum of their own, the first.
        places = numbers_BL.flatten() + 1
        sums_P = losses_BL.new_zeros(2, self._count + 1, dtype=torch.float64)
        sums_P[0].index_add_(0, places, -losses_BL.flatten().double())
        sums_P[1].index_add_(0, places, torch.ones_like(places, dtype=torch.float64))
        shares = 1
        if self.group is not None:
            dist.all_reduce(sums_P, group=self.group)
            shares = dist.get_world_size(self.group)
        logprobs_P, tokens_P = sums_P[:, 1:]
        if self.recorded is not None:
            # Once: the first pass of a pipeline calls the loss with arbitrary numbers, too.
            self.recorded = torch.where(tokens_P > 0, logprobs_P, self.recorded)
            return None, losses_BL.new_zeros(())
        total, weights_P = self._of_sums(logprobs_P, tokens_P, shares)
        if examples is None:
            return None, total / shares
        weights_P = torch.cat([weights_P.new_zeros(1), weights_P]) / examples
        return -weights_P[places].view(labels_BL.shape).float(), total / shares / examples

    def _of_sums(
        self, logprobs_P: torch.Tensor, tokens_P: torch.Tensor, shares: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the examples' losses, and its derivatives; log the values."""
        shape = (self._count // self.sequences, self.sequences)
        tokens_NK = tokens_P.view(shape)
        here_N = tokens_NK[:, 0] > 0
        with torch.enable_grad():
            logprobs_NK = logprobs_P.view(shape).detach().requires_grad_()
            losses_N, values = self._loss(Sums(logprobs_NK, tokens_NK, self._reference_NK))
            total = torch.where(here_N, losses_N, 0.0).sum()
            (weights_NK,) = torch.autograd.grad(total, logprobs_NK)
        for name, value_N in values.items():
            before_N = self.values.get(name, torch.zeros_like(value_N, dtype=torch.float64))
            self.values[name] = torch.where(here_N, value_N.detach().double() / shares, before_N)
        # The examples of other passes have nothing here.
        weights_NK = torch.where(here_N[:, None], weights_NK, 0.0)
        return total.detach().float(), weights_NK.flatten()


class ChunkedSequenceLoss(ChunkedLossWrapper):
    """A :class:`SequenceLoss` that applies the output layer to chunks of the hidden states.

    It applies the layer twice: the weights of the tokens are known only after all chunks.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        pass

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        inner = self.loss_fn
        assert isinstance(inner, SequenceLoss)
        parts = inner.in_parts()
        try:
            with torch.no_grad():
                super().__call__(pred.detach(), labels)
        finally:
            inner.whole()
        weights_BL, loss = inner.weighed(torch.cat(parts, dim=1), labels, global_valid_tokens)
        if weights_BL is None:
            return loss, {}
        found, _ = super().__call__(pred, labels, weights=weights_BL)
        return _with_value(found, loss), {}


def _with_value(gradient: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the gradient of one and the value of another."""
    return gradient + (value - gradient).detach()


def of(loss: BaseLoss) -> SequenceLoss | None:
    """Return the loss of examples that a trainer's loss computes; None: it is of tokens."""
    inner = loss.loss_fn if isinstance(loss, ChunkedLossWrapper) else loss
    return inner if isinstance(inner, SequenceLoss) else None
