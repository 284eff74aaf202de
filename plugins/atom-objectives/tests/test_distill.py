"""Distillation is that of a plain loop over K + 1 outcomes, at once and in micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from atom.data import numbering
from atom.data.lanes import IGNORED
from atom.plugin import Predictions
from atom.titan.train.teacher_loss import TeacherLoss
from atom_objectives.config import Distill
from atom_objectives.distill import loss

VOCABULARY, TOKENS, TOP, STEPS = 13, 12, 4, 10


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids() -> torch.Tensor:
    return (drawn(1, TOKENS + 1).abs() * 5).long() % VOCABULARY


PREDICTED = torch.tensor([True, False, True, True] * (TOKENS // 4))


def expected(config: Distill, *, tail: bool = True) -> list[float]:
    """Losses of ten steps of a bigram model, from the definition."""
    table = torch.nn.Parameter(drawn(2, VOCABULARY, VOCABULARY))
    optimizer = torch.optim.SGD([table], lr=1.0)
    teacher = drawn(3, VOCABULARY, VOCABULARY)
    inputs, labels = ids()[:-1][PREDICTED], ids()[1:][PREDICTED]
    theirs = (teacher[inputs] / config.temperature).softmax(-1)
    top, chosen = theirs.topk(TOP, dim=-1)
    found = []
    for _ in range(STEPS):
        ours = (table[inputs] / config.temperature).softmax(-1)
        mine = ours.gather(1, chosen)
        outcomes, others = [top], [mine]
        if tail:
            outcomes.append(1 - top.sum(-1, keepdim=True))
            others.append(1 - mine.sum(-1, keepdim=True))
        p, q = torch.cat(outcomes, 1), torch.cat(others, 1)
        soft = config.temperature**2 * (p * (p / q).log()).sum(-1)
        hard = cross_entropy(table[inputs], labels, reduction="none")
        total = ((1 - config.hard_weight) * soft + config.hard_weight * hard).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        found.append(total.item())
    return found


def trained(config: Distill) -> list[float]:
    """Losses of ATOM's loss, in two micro-batches, with a table of the step."""
    table = torch.nn.Parameter(drawn(2, VOCABULARY, VOCABULARY))
    optimizer = torch.optim.SGD([table], lr=1.0)
    teacher = drawn(3, VOCABULARY, VOCABULARY)
    taught = TeacherLoss(TeacherLoss.Config(loss=loss(config)))
    inputs, labels = ids()[:-1], ids()[1:].clone()
    labels[~PREDICTED] = IGNORED
    labels = numbering.numbered(labels, PREDICTED.cumsum(0))
    logprobs = (teacher[inputs[PREDICTED]] / config.temperature).log_softmax(-1)
    top = logprobs.topk(TOP, dim=-1)
    found = []
    for _ in range(STEPS):
        taught.expect(top.indices, top.values)
        optimizer.zero_grad()
        total = 0.0
        for here in (slice(0, 5), slice(5, None)):
            part, _ = taught(table[inputs[here]][None], labels[here][None], PREDICTED.sum())
            part.backward()
            total += part.item()
        optimizer.step()
        found.append(total)
    return found


CONFIGS = {
    "the teacher alone": Distill(teacher="x"),
    "at a temperature": Distill(teacher="x", temperature=2.5),
    "mixed": Distill(teacher="x", temperature=2.0, hard_weight=0.4),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_ten_steps_are_those_of_a_plain_loop(config: Distill) -> None:
    assert trained(config) == pytest.approx(expected(config), rel=1e-5)
    assert trained(config) != pytest.approx(expected(config, tail=False), rel=1e-3)


def test_labels_without_a_number_have_cross_entropy() -> None:
    """As in validation, which has no teacher."""
    taught = TeacherLoss(TeacherLoss.Config(loss=loss(Distill(teacher="x"))))
    logits, labels = drawn(4, 1, 3, VOCABULARY), torch.tensor([[2, IGNORED, 5]])
    found, _ = taught(logits, labels)
    assert found.item() == pytest.approx(
        cross_entropy(logits[0], labels[0], reduction="sum").item(), rel=1e-6
    )


def test_a_teacher_that_is_sure_has_a_finite_loss() -> None:
    """Its K ids have all of the probability, and so have the model's."""
    sure: Any = torch.tensor([[0.0, -40.0]])
    predictions = Predictions(
        logits=torch.tensor([[50.0, 0.0, -60.0]], requires_grad=True),
        labels=torch.tensor([0]),
        teacher_ids=torch.tensor([[0, 1]]),
        teacher_logprobs=sure,
    )
    found = loss(Distill(teacher="x"))(predictions).sum()
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-5)
    assert predictions.logits.grad is not None
    assert predictions.logits.grad.isfinite().all()
