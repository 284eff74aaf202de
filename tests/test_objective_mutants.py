"""Faults of fine-tuning are found: of an objective by its suite, of a step by a plain sum.

The suite's tests are called on an encoder with one fault. Steps are computed in this process, over
a small model: packed, in micro-batches, and on two ranks that are computed one after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from atom.data.dealing import dealt
from atom.plugin import Document, DocumentEncoder, Example
from atom.registry.host import Host
from atom.testing import models
from atom.testing.conformance import conformance
from atom.testing.partners import data, tokenizer
from atom.titan.train import trainer as trainer_module
from atom.titan.train.data import DocumentLoader
from atom.titan.train.trainer import AtomTrainer
from atom.titan.weights import forward

pytestmark = pytest.mark.slow

TURNS = [("a?", "one"), ("bb?", "2"), ("c?", "three"), ("dd?", "4"), ("e?", "five")]
CONVERSATIONS = [TURNS[:2], TURNS[2:3], TURNS[1:4], TURNS[4:], TURNS[:1], TURNS[2:], TURNS[3:4]]
CONVERSATIONS += [TURNS[4:] + TURNS[:2]]
RECORDS = [
    {
        "messages": [
            {"role": role, "content": text}
            for turn in each
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
    }
    for each in CONVERSATIONS
]
TEMPLATE = Path(__file__).parents[1] / "plugins/atom-objectives/tests/short.jinja"
Suite = conformance("objective:sft", template=str(TEMPLATE)).having(
    records=RECORDS,
    answers=[[f"{answer}|" for _, answer in each] for each in CONVERSATIONS],
    bad_record={"messages": RECORDS[0]["messages"][:1]},
)

# ---------------------------------------------------------------------------- of an objective


CALLS = itertools.count()


class Faulty:
    """An encoder that changes what another one returns."""

    def __init__(self, encoder: DocumentEncoder, seq_len: int, fault: Callable[..., Any]) -> None:
        self.encoder, self.seq_len, self.fault = encoder, seq_len, fault

    def encode(self, document: Document) -> Example | None:
        found: Example | None = self.fault(self, document)
        return found

    def right(self, document: Document) -> Example:
        found = self.encoder.encode(document)
        assert found is not None
        return found


def masked(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Faulty, Document], Any]:
    def fault(self: Faulty, document: Document) -> Example | None:
        found = self.encoder.encode(document)
        return found and replace(found, trained=change(found.trained))

    return fault


def without_ends(trained: np.ndarray) -> np.ndarray:
    """Leave out the last token of each run."""
    return trained & np.append(trained[1:], False)


def last_alone(trained: np.ndarray) -> np.ndarray:
    begin = np.flatnonzero(trained & ~np.append(False, trained[:-1]))[-1]
    return trained & (np.arange(len(trained)) >= begin)


def too_long(self: Faulty, document: Document) -> Example:
    self.encoder._most = 1 << 20  # type: ignore[attr-defined]
    return self.right(document)


def cut_anywhere(self: Faulty, document: Document) -> Example:
    found, most = too_long(self, document), self.seq_len + 1
    assert found.trained is not None
    return Example(found.tokens[:most], found.trained[:most])


def shuffled(self: Faulty, document: Document) -> Example:
    found = self.right(document)
    return replace(found, tokens=np.roll(found.tokens, next(CALLS) // len(RECORDS)))


def forgiving(self: Faulty, document: Document) -> Example | None:
    try:
        return self.encoder.encode(document)
    except Exception:
        return None


OF_AN_OBJECTIVE = {
    "mask off by one": (masked(lambda m: np.roll(m, 1)), "test_trains_on_the_answers"),
    "mask off by one, before": (masked(lambda m: np.roll(m, -1)), "test_trains_on_the_answers"),
    "ends of turns dropped": (masked(without_ends), "test_trains_on_the_answers"),
    "questions trained on": (masked(np.ones_like), "test_trains_on_the_answers"),
    "the last answer alone": (masked(last_alone), "test_trains_on_the_answers"),
    "nothing trained on": (masked(np.zeros_like), "test_documents_become_tokens"),
    "a turn cut": (cut_anywhere, "test_fits_a_sequence"),
    "longer than a sequence": (too_long, "test_fits_a_sequence"),
    "other tokens each time": (shuffled, "test_is_the_same_again"),
    "bad records left out": (forgiving, "test_bad_documents_are_named"),
}


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load()


def run(suite: Any, test: str, host: Host, tmp_path: Path) -> None:
    component = host.find("objective", "sft")
    config = component_config(suite, component)
    getattr(suite, test)(component, config, tmp_path)


def component_config(suite: Any, component: Any) -> Any:
    from atom.registry.configured import configured

    return configured(component, suite.parameters)


@pytest.mark.parametrize(("fault", "test"), OF_AN_OBJECTIVE.values(), ids=OF_AN_OBJECTIVE.keys())
def test_faults_of_an_objective_are_found(
    fault: Callable[..., Any], test: str, host: Host, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    suite = Suite()
    run(suite, test, host, tmp_path)  # the twin without it passes
    right = suite._encoder
    monkeypatch.setattr(
        suite,
        "_encoder",
        lambda component, config, folder, seq_len=64: Faulty(
            right(component, config, folder, seq_len), seq_len, fault
        ),
    )
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run(suite, test, host, tmp_path)


# ---------------------------------------------------------------------------- of a step


@dataclass
class Way:
    """How a step is computed."""

    packing: str = "none"
    sequences: int = len(RECORDS)
    local: int = len(RECORDS)
    ranks: int = 1


WAYS = {
    "packed": Way("best_fit", 4, 4),
    "micro-batches": Way(local=2),
    "packed, in micro-batches": Way("best_fit", 4, 1),
    "two ranks": Way(ranks=2, local=4),
    "packed, two ranks, in micro-batches": Way("best_fit", 4, 1, 2),
}


class Rank(AtomTrainer):
    """The trainer's computation of gradients on a rank, without what surrounds it in a run."""

    def __init__(self, model: Any, loader: DocumentLoader, passes: int, ranks: int) -> None:
        self.model, self.loader, self.dataloader = model, loader, None
        self.callbacks = []
        self.stream = None
        self.step = 1
        self.device = torch.device("cpu")
        self.gradient_accumulation_steps, self.num_pipeline_parallel_microbatches = passes, 1
        self.parallel_dims = SimpleNamespace(
            dp_enabled=ranks > 1, pp_enabled=False, get_mesh=lambda _: None
        )
        self.metrics_processor = SimpleNamespace(should_log=lambda _: True)
        self.loss_fn = None

    def _tokens_here(self) -> torch.Tensor:
        return torch.tensor(0)

    def computed(self, *, input_dict: Any, labels: Any, global_valid_tokens: Any) -> torch.Tensor:
        logits = forward.logits(self.model, input_dict["input"], input_dict["positions"])
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        loss = loss / global_valid_tokens
        loss.backward()
        return loss


def step(
    host: Host, way: Way, folder: Path, patch: pytest.MonkeyPatch, *, shared: bool = True
) -> tuple[float, torch.Tensor]:
    """Return the loss and the gradients of the first step, summed over ranks."""
    model = models.subject(host, dict(Suite.architecture)).model()
    made = Suite()
    component = host.find("objective", "sft")
    encoder = made._encoder(component, component_config(made, component), folder)
    config = DocumentLoader.Config(
        source=dealt(data.Records(RECORDS)), encoder=lambda _: encoder, seed=0, packing=way.packing,
        global_batch_size=way.sequences,
    )  # fmt: skip
    share = way.sequences // way.ranks

    def rank(number: int) -> Rank:
        loader = DocumentLoader(
            config, dp_world_size=way.ranks, dp_rank=number, local_batch_size=way.local,
            tokenizer=tokenizer.build(None).build(tokenizer_path=""), seq_len=64,
        )  # fmt: skip
        return Rank(model, loader, share // way.local, way.ranks)

    def valid(number: int) -> torch.Tensor:
        _, found = rank(number)._read_batch(iter(rank(number).loader))
        return found

    if shared:
        total = sum(valid(number) for number in range(way.ranks))
        patch.setattr(
            trainer_module.dist_utils,
            "dist_sum_tensor",
            lambda sums, _mesh: torch.stack([torch.as_tensor(total), sums[1]]),
        )
    else:
        patch.setattr(trainer_module.dist_utils, "dist_sum_tensor", lambda sums, _mesh: sums)
    loss = 0.0
    for number in range(way.ranks):
        here = rank(number)
        found = here._compute_gradients(iter(here.loader))
        assert found.loss is not None
        loss += found.loss.item()
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def plain(host: Host) -> tuple[float, torch.Tensor]:
    """Each conversation alone, one after another, by torch."""
    model = models.subject(host, dict(Suite.architecture)).model()
    text = tokenizer.build(None).build(tokenizer_path="")
    pairs = []
    for each in CONVERSATIONS:
        ids: list[int] = []
        labels: list[int] = []
        for question, answer in each:
            for piece, learnt in ((f"u:{question}>", False), (f"{answer}|", True)):
                new = text.encode(piece, add_bos=False, add_eos=False)
                ids += new
                labels += new if learnt else [-100] * len(new)
        pairs.append((torch.tensor([ids]), torch.tensor(labels)))
    count = sum(int((labels[1:] != -100).sum()) for _, labels in pairs)
    total = 0.0
    for ids_BL, labels in pairs:
        logits = models.logits(model, ids_BL)[0, :-1]
        loss = cross_entropy(logits, labels[1:], reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def differs(found: tuple[float, torch.Tensor], plain: tuple[float, torch.Tensor]) -> bool:
    loss = abs(found[0] - plain[0]) > 1e-6 * abs(plain[0])
    return loss or not torch.allclose(found[1], plain[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_step_is_that_of_a_plain_sum(
    way: Way, host: Host, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the mean over the answers' tokens of the global batch."""
    assert not differs(step(host, way, tmp_path, monkeypatch), plain)


def averaged_over_passes(self: AtomTrainer, **inputs: Any) -> torch.Tensor:
    inputs["global_valid_tokens"] = (inputs["labels"] != -100).sum()
    inputs["global_valid_tokens"] *= self.gradient_accumulation_steps
    return self.computed(**inputs)


def read_through(loader: DocumentLoader) -> Iterator[Any]:
    while True:
        inputs, labels = loader._batch()
        length = inputs["positions"].shape[1]
        inputs["positions"] = torch.arange(length).expand_as(inputs["positions"]).contiguous()
        yield inputs, labels


def padding_trained(loader: DocumentLoader) -> Iterator[Any]:
    while True:
        inputs, labels = loader._batch()
        yield inputs, labels.clamp(min=0)


OF_A_STEP = {
    "averaged over micro-batches": (
        WAYS["micro-batches"], AtomTrainer, "forward_backward_step", averaged_over_passes,
    ),
    "attention across conversations": (WAYS["packed"], DocumentLoader, "__iter__", read_through),
    "padding trained on": (WAYS["packed"], DocumentLoader, "__iter__", padding_trained),
    "denominators of each rank": (WAYS["two ranks"], None, "", None),
}  # fmt: skip


@pytest.mark.parametrize(
    ("way", "owner", "name", "fault"), OF_A_STEP.values(), ids=OF_A_STEP.keys()
)
def test_faults_of_a_step_are_found(
    way: Way, owner: Any, name: str, fault: Any, host: Host, plain: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if owner is not None:
        monkeypatch.setattr(owner, name, fault)
    assert differs(step(host, way, tmp_path, monkeypatch, shared=owner is not None), plain)
