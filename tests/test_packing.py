"""Packing cuts only what it must, reading ahead changes nothing, and a mixture is read by lane."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.data.dealing import dealt
from atom.data.documents import Encoded, TextEncoder
from atom.data.lanes import IGNORED, Lane, Reading, Sources
from atom.data.packing import best_fit
from atom.errors import UserError
from atom.plugin import Document, Mixture, Stage
from atom.run_dir import mixture
from atom.titan.train.data import DocumentLoader
from atom.titan.train.read_ahead import ReadAhead

LANES = 4


class Numbers:
    """A tokenizer that is never called: documents are tokens."""

    def encode(self, *_: Any, **__: Any) -> list[int]:
        raise AssertionError


@dataclass(frozen=True)
class Stored:
    """Documents of so many tokens; document d has the tokens 1000·d, 1000·d + 1, …"""

    lengths: tuple[int, ...]
    first: int = 0

    def check(self) -> str:
        return ""

    def documents(self) -> Stored:
        return self

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        begin = 1000 * (self.first + index)
        tokens = np.arange(begin, begin + self.lengths[index], dtype=np.uint32)
        return Document("", f"{self.first + index}", tokens=tokens)

    def shard_sizes(self) -> list[int]:
        """Two shards: the first third of the documents, and the others."""
        third = len(self.lengths) // 3
        return [sum(self.lengths[:third]), sum(self.lengths[third:])]

    def between(self, shard: int, begin: int, end: int) -> list[tuple[int, int, Document]]:
        third = len(self.lengths) // 3
        found, first = [], 0
        for index in range(third) if shard == 0 else range(third, len(self.lengths)):
            last = first + self.lengths[index]
            if last > begin and first < end:
                found.append((index, first, self[index]))
            first = last
        return found


def loader(source: Any, *, ranks: int = 1, rank: int = 0, **config: Any) -> DocumentLoader:
    length = config.pop("seq_len", 16)
    made = DocumentLoader.Config(
        source=dealt(source),
        seed=config.pop("seed", 0),
        global_batch_size=LANES,
        vocab_size=1 << 20,
        **config,
    )
    return made.build(
        dp_world_size=ranks,
        dp_rank=rank,
        tokenizer=Numbers(),
        seq_len=length,
        local_batch_size=1,
        snapshot_every_n_steps=None,
    )


def steps(made: DocumentLoader, count: int) -> torch.Tensor:
    """Read whole steps: [count, lanes of the rank, 3, L]."""
    lanes = len(made.state_dict())
    read = [
        torch.stack([inputs["input"][0], labels[0], inputs["positions"][0]])
        for inputs, labels in islice(made, count * lanes)
    ]
    return torch.stack(read).unflatten(0, (count, lanes))


LENGTHS = st.lists(st.integers(0, 45), min_size=8, max_size=40).filter(
    lambda lengths: sum(length > 1 for length in lengths) >= 2 * LANES
)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 40))
def test_best_fit_cuts_only_what_is_longer_than_a_sequence(lengths: list[int], length: int) -> None:
    documents = [Encoded(n, str(n), np.arange(size)) for n, size in enumerate(lengths)]
    packed = best_fit(documents, length)
    parts = [part for each in packed for part in each]
    assert all(0 < sum(part.count for part in each) <= length for each in packed)
    for document in documents:
        own = sorted((part.begin, part.count) for part in parts if part.document is document)
        assert sum(count for _, count in own) == document.pairs
        assert [begin for begin, _ in own] == list(range(0, document.pairs, length))
    # Best fit decreasing needs at most 11/9 of the fewest bins, and 4 more (Johnson, 1973).
    fewest = -(-sum(part.count for part in parts) // length)
    assert len(packed) <= 11 / 9 * max(fewest, sum(part.count * 2 > length for part in parts)) + 4


@pytest.mark.parametrize("packing", ["concat", "best_fit", "none", "windows"])
@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS, seed=st.integers(0, 3))
def test_every_pair_of_an_epoch_is_trained_on_once(
    packing: str, lengths: list[int], seed: int
) -> None:
    source = Stored(tuple(lengths))
    made = loader(source, packing=packing, seed=seed)
    seen: Counter[tuple[int, int]] = Counter()
    epochs: dict[int, int] = dict.fromkeys(range(LANES), 0)
    for _ in range(100):
        inputs, labels, positions = steps(made, 1)[0].unbind(1)
        assert torch.all((positions == 0) | (positions.diff(dim=1, prepend=positions[:, :1]) == 1))
        for lane, spans in made.samples().items():
            epochs[lane] = spans[-1][0] if spans else epochs[lane]
            if spans and spans[0][0] == 0:
                valid = labels[lane] != IGNORED
                trained = zip(
                    inputs[lane][valid].tolist(), labels[lane][valid].tolist(), strict=True
                )
                counted = sum(count for epoch, _, _, count in spans if epoch == 0)
                seen.update(islice(trained, counted))
            rest = int(inputs.shape[1]) - sum(count for *_, count in spans)
            assert int((labels[lane] == IGNORED).sum()) == rest
        if all(epochs.values()):
            break
    expected = {
        (1000 * number + at, 1000 * number + at + 1)
        for number, size in enumerate(lengths)
        for at in range(size - 1)
    }
    assert seen == Counter(expected)


def test_what_was_packed_is_counted() -> None:
    source = Stored((10, 20, 5, 30, 12, 7, 9, 3))
    padded = loader(source, packing="none")
    steps(padded, 2)
    assert padded.packed.sequences == 8
    assert padded.packed.documents == 8
    whole = sum(min(size - 1, 16) for size in source.lengths)
    assert padded.packed.padding <= 8 * 16 - whole + 16
    assert padded.packed.cut >= 1
    assert loader(source).packed.sequences == 0


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["concat", "best_fit", "none", "windows"])
@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 1)])
def test_any_packing_resumes_on_any_layout(packing: str, before: int, after: int) -> None:
    source = Stored(tuple((37 * n * n + 11 * n) % 61 for n in range(50)))
    whole = steps(loader(source, packing=packing), 40)
    for stop in (1, 6, 23):
        state: dict[str, torch.Tensor] = {}
        for rank in range(before):
            made = loader(source, ranks=before, rank=rank, packing=packing, ahead=2)
            steps(made, stop)
            state |= made.state_dict()
            made.close()
        parts = []
        for rank in range(after):
            made = loader(source, ranks=after, rank=rank, packing=packing)
            made.load_state_dict(state)
            parts.append(steps(made, 9))
        assert torch.equal(torch.cat(parts, dim=1), whole[stop : stop + 9])


def test_an_id_beyond_the_vocabulary_is_refused() -> None:
    source = Stored((30,) * 8, first=1 << 20)
    with pytest.raises(UserError, match="has the id") as refused:
        steps(loader(source), 1)
    assert refused.value.key == "dataset"


# ---------------------------------------------------------------------------- reading ahead


def test_reading_ahead_changes_nothing() -> None:
    source = Stored(tuple((37 * n * n + 11 * n) % 61 for n in range(50)))
    here, ahead = loader(source), loader(source, ahead=3)
    for _ in range(12):
        assert torch.equal(steps(here, 1), steps(ahead, 1))
        states = here.state_dict(), ahead.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert here.samples() == ahead.samples()
    back = here.state_dict()
    expected = steps(here, 5)
    steps(ahead, 2)
    ahead.load_state_dict(back)
    assert torch.equal(steps(ahead, 5), expected)
    assert (here.left_out.empty, here.left_out.short) <= (ahead.left_out.empty, 99)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "data"]


def test_results_are_read_before_they_are_wanted() -> None:
    read: list[int] = []
    fourth = threading.Event()

    def result() -> int:
        read.append(len(read))
        if len(read) == 4:
            fourth.set()
        return read[-1]

    ahead = ReadAhead(result, 2)
    assert ahead.next() == 0
    # One is wanted, two are ready, and the next one waits to be put beside them.
    assert fourth.wait(60)
    assert [ahead.next() for _ in range(3)] == [1, 2, 3]
    ahead.restart()


def test_an_error_of_the_thread_is_raised_where_its_step_is_wanted() -> None:
    numbers = iter(range(3))

    def read() -> int:
        return next(numbers)

    ahead = ReadAhead(read, 5)
    assert [ahead.next() for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(StopIteration):
            ahead.next()


# ---------------------------------------------------------------------------- mixtures


@dataclass(frozen=True)
class Mixed:
    sources: Mapping[str, Any] = field(hash=False)
    stages: tuple[Stage, ...]
    most: Mapping[str, float] = field(default_factory=dict, hash=False)

    def check(self) -> str:
        return ""

    def mixture(self, **_: int) -> Mixture:
        return Mixture(sources=self.sources, stages=self.stages, max_epochs=self.most)

    def lane(self, *_: int, **__: int) -> Iterator[Document]:
        raise AssertionError


def stage(step: int = 0, **weights: float) -> Stage:
    return Stage(name=f"from {step}", step=step, weights=weights)


A, B, C = (Stored(tuple((7 * n) % 41 + 2 for n in range(30)), first) for first in (0, 100, 200))
NESTED = Mixed(
    {"a": A, "inner": Mixed({"b": B, "c": C}, (stage(b=3, c=1),))},
    (stage(a=0.5, inner=0.5), stage(10, a=0.1, inner=0.9)),
)


def sources_of(rows: torch.Tensor) -> list[str]:
    """Return the source of each sequence [lanes, 3, L]."""
    return ["abc"[int(row[0, 0]) // 100_000] for row in rows]


def test_a_mixture_has_the_shares_of_its_stage() -> None:
    read = [sources_of(step) for step in steps(loader(NESTED), 50)]
    first, second = (Counter(chain(*part)) for part in (read[:10], read[10:]))
    assert all(step.count("a") == 2 for step in read[:10])
    shares = {"a": Fraction(1, 10), "b": Fraction(27, 40), "c": Fraction(9, 40)}
    for name, share in shares.items():
        assert abs(second[name] - share * 40 * LANES) < 3
    assert abs(first["b"] - 15) < 3


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1), (2, 4)])
@pytest.mark.parametrize("packing", ["concat", "best_fit", "windows"])
def test_a_mixture_resumes_on_any_layout(packing: str, before: int, after: int) -> None:
    whole = steps(loader(NESTED, packing=packing), 30)
    for stop in (3, 10, 14):
        state: dict[str, torch.Tensor] = {}
        for rank in range(before):
            made = loader(NESTED, ranks=before, rank=rank, packing=packing)
            steps(made, stop)
            state |= made.state_dict()
        parts = []
        for rank in range(after):
            made = loader(NESTED, ranks=after, rank=rank, packing=packing, ahead=1)
            made.load_state_dict(state)
            parts.append(steps(made, 8))
            made.close()
        assert torch.equal(torch.cat(parts, dim=1), whole[stop : stop + 8])


def test_a_source_alone_in_a_mixture_is_read_as_without_one() -> None:
    mixed = Mixed({"a": A, "b": B}, (stage(a=1),))
    assert torch.equal(steps(loader(mixed), 20), steps(loader(A), 20))


def test_a_source_is_not_read_more_often_than_allowed() -> None:
    made = loader(Mixed({"a": A, "b": B}, (stage(a=1, b=1),), {"b": 2}))
    with pytest.raises(UserError, match="more often") as refused:
        steps(made, 100)
    assert refused.value.key == "dataset.sources.b.max_repetitions"
    assert refused.value.value == 2


@pytest.mark.parametrize(
    ("packing", "times", "expected"), [("concat", 3, 2), ("best_fit", 2.5, 2), ("windows", 3, 3)]
)
def test_no_document_is_read_more_often_than_allowed(
    packing: Any, times: float, expected: int
) -> None:
    """Of three documents, two sequences of a step read the same one."""
    mixed = Mixed({"a": A, "b": Stored((40, 50, 60), 100)}, (stage(a=1, b=1),), {"b": times})
    reading = Reading(dealt(mixed), 0, LANES, 16, packing)
    sources = Sources(reading)
    lanes = [Lane(number, reading, sources, TextEncoder(Numbers())) for number in range(LANES)]
    read: Counter[tuple[str, int]] = Counter()

    def step() -> None:
        for lane in lanes:
            for _, name, begin, count in (part.span for part in lane.parts()):
                read.update((name, pair) for pair in range(begin, begin + count))

    with pytest.raises(UserError, match="more often"):
        repeat(step)
    assert max(count for (name, _), count in read.items() if name.startswith("b")) == expected


def repeat(step: Callable[[], None]) -> None:
    for _ in range(100):
        step()


# ---------------------------------------------------------------------------- positions


@pytest.mark.parametrize("source", [A, NESTED], ids=["one source", "mixture"])
@pytest.mark.parametrize("packing", ["concat", "windows"])
def test_a_position_far_away_is_that_of_reading_up_to_it(packing: str, source: Any) -> None:
    reading = Reading(dealt(source), 0, LANES, 16, packing)
    sources = Sources(reading)
    for number in range(LANES):
        near, far = (Lane(number, reading, sources, TextEncoder(Numbers())) for _ in range(2))
        read = [[part.span for part in near.parts()] for _ in range(60)]
        far.skip(57)
        assert [[part.span for part in far.parts()] for _ in range(3)] == read[57:]


def test_a_mixture_that_begins_late_reads_all_windows_of_a_source_once() -> None:
    """A run from a checkpoint of another begins each source, and not where it would stand by then.

    Its sequences are those of a run that begins with it, but for the lanes that read a source.
    """
    begun: list[list[Any]] = []
    reading = Reading(dealt(Mixed({"a": A, "b": B}, (stage(a=1, b=1),))), 0, LANES, 16, "windows")
    sources = Sources(reading)
    for step in (0, 1001):
        lanes = [Lane(number, reading, sources, TextEncoder(Numbers())) for number in range(LANES)]
        for lane in lanes:
            lane.begin(step)
        spans = [part.span for _ in range(20) for lane in lanes for part in lane.parts()]
        begun.append([span for span in spans if not span[0]])
        for lane in lanes:
            state = lane.state
            read = [part.span for part in lane.parts()]
            lane.go_to(state)
            assert [part.span for part in lane.parts()] == read
    assert len(set(begun[1])) == len(begun[1]) > 60
    assert sorted(begun[1]) == sorted(begun[0])


def test_windows_of_text_are_refused() -> None:
    class Text(Stored):
        between = None

    with pytest.raises(UserError, match="stored tokens") as refused:
        steps(loader(Text((30,) * 8), packing="windows"), 1)
    assert refused.value.key == "data.packing"
    mixed = Mixed({"a": A, "b": Text((30,) * 8)}, (stage(a=1, b=1),))
    with pytest.raises(UserError, match=r"dataset\.sources\.b has text"):
        mixture.resolve(mixed, lanes=LANES, seq_len=16, steps=10, packing="windows")


def test_ids_beyond_the_tokenizer_are_refused_before_a_run() -> None:
    """By the source that has them: document 29 of the first one ends with the id 29,0xx."""
    mixed = Mixed({"a": A}, (stage(a=1),))
    mixture.resolve(mixed, lanes=LANES, seq_len=16, steps=10, vocab_size=30_000)
    with pytest.raises(UserError, match=r"29 has the id 290\d\d, and the tokenizer") as refused:
        mixture.resolve(mixed, lanes=LANES, seq_len=16, steps=10, vocab_size=29_000)
    assert refused.value.key == "dataset.sources.a"
