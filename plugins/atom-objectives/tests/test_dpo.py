"""The loss of pairs is that of the papers, in pieces too; faults in it are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from atom.data import numbering
from atom.data.lanes import IGNORED
from atom.plugin import Sums
from atom.titan.train.example_loss import SequenceLoss
from atom_objectives.config import Dpo
from atom_objectives.dpo import PreferenceLoss, loss

VOCABULARY, STEPS = 11, 3
PAIRS = (((2, 5), (2, 3)), ((1, 4), (3, 9)), ((4, 6), (1, 2)))
"""Tokens of the prompt and of both together, of the chosen and the rejected answer of each pair."""


def sequences() -> list[tuple[list[int], int]]:
    """Ids of each sequence, and the tokens of its prompt."""
    random = torch.Generator().manual_seed(3)
    return [
        (torch.randint(VOCABULARY, (whole,), generator=random).tolist(), prompt)
        for pair in PAIRS
        for prompt, whole in pair
    ]


def model() -> torch.nn.Parameter:
    """A bigram model: logits of the next id, for each id."""
    random = torch.Generator().manual_seed(4)
    return torch.nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=random))


def summed(table: torch.Tensor, ids: list[int], prompt: int) -> torch.Tensor:
    logprobs = table[ids[:-1]].log_softmax(-1)
    taken = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return taken[max(prompt - 1, 0) :].double().sum()


def expected(config: Dpo) -> list[float]:
    """Losses of a plain loop over all pairs at once, then the norm of the model's change."""
    table = model()
    optimizer = torch.optim.SGD([table], lr=2.0)
    found = []
    with torch.no_grad():
        reference = [summed(table, *each) for each in sequences()]
    start = table.detach().clone()
    for _ in range(STEPS):
        scores = [
            (summed(table, ids, prompt) - before)
            / ((len(ids) - prompt) if _normalized(config) else 1)
            for (ids, prompt), before in zip(sequences(), reference, strict=True)
        ]
        differences = torch.stack(scores[::2]) - torch.stack(scores[1::2])
        if config.loss == "ipo":
            losses = (differences - 1 / (2 * config.beta)) ** 2
        else:
            right = logsigmoid(config.beta * differences)
            wrong = logsigmoid(-config.beta * differences)
            losses = -(1 - config.label_smoothing) * right - config.label_smoothing * wrong
        total = losses.mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        found.append(total.item())
    return [*found, (table.detach() - start).norm().item()]


def _normalized(config: Dpo) -> bool:
    return config.loss == "ipo" if config.length_normalized is None else config.length_normalized


def rows() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels of each micro-batch: two pairs, then one and padding."""
    length = 24
    for pairs in ((0, 1), (2,)):
        inputs = torch.zeros(1, length, dtype=torch.int64)
        labels = torch.full((1, length), IGNORED)
        at = 0
        for number in (2 * pair + side for pair in pairs for side in (0, 1)):
            ids, prompt = sequences()[number]
            count = len(ids) - 1
            inputs[0, at : at + count] = torch.tensor(ids[:-1])
            targets = torch.tensor(ids[1:])
            targets[: prompt - 1] = IGNORED
            labels[0, at : at + count] = numbering.numbered(targets, number + 1)
            at += count + 1  # the last token predicts nothing
        yield inputs, labels


def trained(
    config: Dpo,
    *,
    made: Callable[[Dpo], Any] = loss,
    labelled: Callable[[torch.Tensor], torch.Tensor] = lambda labels: labels,
    referred: Callable[[list[float], list[float]], list[float]] = lambda first, _: first,
    examples: Callable[[torch.Tensor], int] = lambda _: len(PAIRS),
    objective: type[SequenceLoss] = SequenceLoss,
) -> list[float]:
    """Losses of ATOM's loss, in two micro-batches, then the norm of the model's change."""
    table = model()
    optimizer = torch.optim.SGD([table], lr=2.0)
    settings = SequenceLoss.Config(loss=made(config), sequences=2, global_vocab_size=VOCABULARY)
    of_pairs = objective(settings)
    count, device = 2 * len(PAIRS), torch.device("cpu")
    start = table.detach().clone()

    def sums() -> list[float]:
        of_pairs.record(count, device)
        with torch.no_grad():
            for inputs, labels in rows():
                of_pairs(table[inputs], labelled(labels))
        return of_pairs.take_recorded().tolist()

    reference = sums()
    found = []
    for _ in range(STEPS):
        of_pairs.expect(count, referred(reference, sums()), device)
        optimizer.zero_grad()
        total = 0.0
        for inputs, labels in rows():
            labels = labelled(labels)
            part, _ = of_pairs(table[inputs], labels, torch.tensor(examples(labels)))
            part.backward()
            total += part.item()
        optimizer.step()
        found.append(total)
    return [*found, (table.detach() - start).norm().item()]


CONFIGS = {
    "sigmoid": Dpo(),
    "smoothed": Dpo(label_smoothing=0.2, beta=0.5),
    "ipo": Dpo(loss="ipo"),
    "ipo of sums": Dpo(loss="ipo", length_normalized=False, beta=2.0),
    "normalized": Dpo(length_normalized=True, beta=2.0),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_losses_and_gradients_are_those_of_the_papers(config: Dpo) -> None:
    assert trained(config) == pytest.approx(expected(config), rel=1e-5)


def swapped(config: Dpo) -> Any:
    of_pairs = PreferenceLoss(config)

    def of(sums: Sums) -> Any:
        assert sums.reference is not None
        return of_pairs(Sums(sums.logprobs.flip(1), sums.tokens.flip(1), sums.reference.flip(1)))

    return of


def without_prompts_mask(labels: torch.Tensor) -> torch.Tensor:
    """Labels whose prompts are predicted, too: every token before an answer's first."""
    found = labels.clone()
    for inputs, other in rows():
        if not torch.equal(other, labels):
            continue
        at = 0
        for number in sorted(set(numbering.numbers(labels).flatten().tolist()) - {-1}):
            ids, prompt = sequences()[number]
            targets = torch.tensor(ids[1:])
            found[0, at : at + prompt - 1] = numbering.numbered(targets[: prompt - 1], number + 1)
            at += len(ids)
        assert inputs.shape == found.shape
    return found


def of_means(config: Dpo) -> Any:
    return PreferenceLoss(config.model_copy(update={"length_normalized": True}))


def without_reference(config: Dpo) -> Any:
    of_pairs = PreferenceLoss(config)
    return lambda sums: of_pairs(Sums(sums.logprobs, sums.tokens, torch.zeros_like(sums.logprobs)))


def smoothed_the_other_way(config: Dpo) -> Any:
    wrong = SimpleNamespace(**config.model_dump() | {"label_smoothing": 1 - config.label_smoothing})
    return PreferenceLoss(wrong)  # type: ignore[arg-type]


class WithoutLast(SequenceLoss):
    """A loss that leaves out the last sequence of a pass, as an off-by-one of the numbers would."""

    def weighed(self, losses_BL: Any, labels_BL: Any, examples: Any) -> Any:
        last = numbering.numbers(labels_BL) == numbering.numbers(labels_BL).max()
        return super().weighed(losses_BL, torch.where(last, IGNORED, labels_BL), examples)


MUTANTS: dict[str, dict[str, Any]] = {
    "the reference is updated": {"referred": lambda _, now: now},
    "the reference is left out": {"made": without_reference},
    "chosen and rejected are swapped": {"made": swapped},
    "prompts are summed, too": {"labelled": without_prompts_mask},
    "a mean instead of a sum": {"made": of_means},
    "the loss is averaged over micro-batches": {
        "examples": lambda labels: (
            2 * len({number // 2 for number in numbering.numbers(labels).flatten().tolist()} - {-1})
        )
    },
    "labels are smoothed the other way": {"made": smoothed_the_other_way},
    "a sequence is left out": {"objective": WithoutLast},
}


@pytest.mark.parametrize("fault", MUTANTS.values(), ids=MUTANTS.keys())
def test_faults_are_found(fault: dict[str, Any]) -> None:
    config = Dpo(label_smoothing=0.1, beta=0.5)
    assert trained(config, **fault) != pytest.approx(expected(config), rel=1e-5)


def test_values_are_means_over_pairs() -> None:
    """trl's rewards, accuracies and margins."""
    logprobs = torch.tensor([[-1.0, -3.0], [-2.0, -1.0]], dtype=torch.float64)
    reference = torch.tensor([[-2.0, -1.0], [-2.0, -2.0]], dtype=torch.float64)
    _, values = PreferenceLoss(Dpo(beta=0.5))(Sums(logprobs, torch.ones(2, 2), reference))
    assert {name: value.tolist() for name, value in values.items()} == {
        "accuracy": [1.0, 0.0],
        "margin": [1.5, -0.5],
        "chosen_reward": [0.5, 0.0],
        "rejected_reward": [-1.0, 0.5],
    }
