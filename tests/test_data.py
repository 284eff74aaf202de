"""The loader's promise: a step trains on what the seed and the step say, in every layout."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import BOS, EOS, Bytes, Documents, documents
from torchtitan.components.tokenizer import BaseTokenizer

from atom.errors import UserError
from atom.plugin import Document
from atom.titan.train.data import DocumentLoader

LANES = 8
SEQ_LEN = 16


SOURCE = documents(*((37 * n * n + 11 * n) % 97 for n in range(60)))


def loader(
    source: Documents = SOURCE,
    *,
    ranks: int = 1,
    rank: int = 0,
    batch: int = LANES,
    lanes: int = LANES,
    seq_len: int = SEQ_LEN,
    seed: int = 0,
    tokenizer: BaseTokenizer | None = None,
) -> DocumentLoader:
    config = DocumentLoader.Config(source=source, seed=seed, global_batch_size=lanes)
    return config.build(
        dp_world_size=ranks,
        dp_rank=rank,
        tokenizer=tokenizer or Bytes(),
        seq_len=seq_len,
        local_batch_size=batch,
        snapshot_every_n_steps=None,
    )


def steps(made: DocumentLoader, count: int) -> torch.Tensor:
    """Read whole steps; return inputs, labels and positions [count, lanes of the rank, 3, L]."""
    owned = len(made.state_dict())
    rows: list[torch.Tensor] = []
    for inputs, labels in made:
        assert set(inputs) == {"input", "positions"}
        rows.extend(torch.stack([inputs["input"], labels, inputs["positions"]], dim=1))
        if len(rows) >= count * owned:
            break
    return torch.stack(rows).unflatten(0, (count, owned))


def together(ranks: int, batch: int, count: int, **arguments: Any) -> torch.Tensor:
    """Read whole steps on all ranks: [count, lanes, 3, L]."""
    made = [loader(ranks=ranks, rank=rank, batch=batch, **arguments) for rank in range(ranks)]
    return torch.cat([steps(one, count) for one in made], dim=1)


def pairs(source: Documents, lane: int, lanes: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """All training pairs of a lane, with their position in the document, one pass after another."""
    for epoch in range(1000):
        for document in source.of(lane, lanes, seed, epoch):
            if document.text:
                ids = Bytes().encode(document.text, add_bos=document.starts, add_eos=document.ends)
                yield from zip(ids, ids[1:], range(len(ids)), strict=False)


# Every way to read 8 sequences a step: (ranks, sequences a call).
LAYOUTS = [(1, 8), (1, 4), (1, 1), (2, 4), (2, 2), (2, 1), (4, 2), (4, 1), (8, 1)]


@pytest.mark.parametrize(("ranks", "batch"), LAYOUTS)
def test_every_lane_holds_the_same_sequences_in_every_layout(ranks: int, batch: int) -> None:
    count = 60  # several passes
    assert torch.equal(together(ranks, batch, count), together(1, LANES, count))


def test_a_rank_opens_its_own_lanes_and_no_others() -> None:
    opened = []

    @dataclass(frozen=True)
    class Watched(Documents):
        def lane(self, lane: int, lanes: int, **rest: int) -> Iterator[Document]:
            opened.append((lane, lanes))
            return super().lane(lane, lanes, **rest)

    steps(loader(Watched(SOURCE.documents), ranks=4, rank=2, batch=1), 1)
    assert opened == [(4, LANES), (5, LANES)]


TEXTS = st.text(st.characters(codec="utf-8"), max_size=70)
PARTS = st.builds(Document, text=TEXTS, id=st.just(""), starts=st.booleans(), ends=st.booleans())


@settings(deadline=None)
@given(
    parts=st.lists(PARTS, min_size=1, max_size=12),
    lanes=st.sampled_from([1, 2, 3]),
    seq_len=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_a_lane_is_its_documents_with_nothing_lost_or_repeated(
    parts: list[Document], lanes: int, seq_len: int, seed: int
) -> None:
    # However they are turned, so many in a row leave no lane without text.
    texts = [Document("text for every lane", "")] * (2 * lanes)
    source = Documents((*parts, *texts))
    count = 8
    read = together(1, 1, count, source=source, lanes=lanes, seq_len=seq_len, seed=seed)
    for lane in range(lanes):
        expected = list(islice(pairs(source, lane, lanes, seed), count * seq_len))
        inputs, labels, _ = read[:, lane].transpose(0, 1).flatten(1).tolist()
        assert inputs == [pair[0] for pair in expected]
        assert labels == [pair[1] for pair in expected]
        # A position counts from the later one of two beginnings: the document's and the sequence's.
        in_sequence = [index % seq_len for index in range(count * seq_len)]
        positions = read[:, lane, 2].flatten().tolist()
        assert positions == [min(p[2], i) for p, i in zip(expected, in_sequence, strict=True)]


def test_documents_do_not_leak_into_each_other() -> None:
    inputs, labels, positions = together(1, LANES, 60).permute(2, 0, 1, 3)
    follows = positions[..., 1:] > 0
    assert torch.equal(inputs[..., 1:][follows], labels[..., :-1][follows])
    assert torch.all(positions[..., 0] == 0)
    assert positions.max() < SEQ_LEN
    last = ~follows
    assert last.any()
    assert torch.all(labels[..., :-1][last] == EOS)
    assert torch.all(inputs[..., 1:][last] == BOS)
    assert not torch.any(labels == BOS)
    assert not torch.any(inputs == EOS)


def test_parts_of_a_document_begin_and_end_it_once() -> None:
    parts = Documents(
        (
            Document("ab", "a#0", ends=False),
            Document("cd", "a#1", starts=False, ends=False),
            Document("ef", "a#2", starts=False),
        )
    )
    inputs, labels, positions = steps(loader(parts, lanes=1, batch=1, seq_len=5), 1)[0, 0]
    assert inputs.tolist() == [BOS, *b"a", *b"c", *b"e", *b"f"]
    assert labels.tolist() == [*b"a", *b"b", *b"d", *b"f", EOS]
    assert positions.tolist() == [0, 1, 0, 0, 1]


def test_documents_without_a_training_pair_are_skipped() -> None:
    source = Documents(
        (
            Document("", "empty"),
            Document("x", "one token", starts=False, ends=False),
            Document("y", "three tokens"),
        )
    )
    read = loader(source, lanes=1, batch=1, seq_len=4)
    inputs, _, _ = steps(read, 1)[0, 0]
    assert inputs.tolist() == [BOS, *b"y", BOS, *b"y"]
    # The order of the second pass has the empty one after the last that is read.
    assert (read.left_out.empty, read.left_out.short) == (1, 2)


def test_a_document_is_encoded_once_however_many_sequences_it_fills() -> None:
    tokenizer = Bytes()
    made = loader(documents(4000), lanes=1, batch=1, tokenizer=tokenizer)
    steps(made, 4000 // SEQ_LEN)
    assert tokenizer.encoded == 1


def test_seeds_and_passes_give_other_orders() -> None:
    assert not torch.equal(together(1, LANES, 3, seed=0), together(1, LANES, 3, seed=1))
    one = documents(30, 40)
    first_pass, second_pass = steps(loader(one, lanes=1, batch=1, seq_len=72), 2)
    assert not torch.equal(first_pass, second_pass)


# ---------------------------------------------------------------------------- state


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (4, 2), (2, 8), (8, 2), (1, 1)])
@pytest.mark.parametrize("stop", [1, 7, 25])  # 25: past the end of the first pass
def test_a_loaded_state_goes_on_exactly(before: int, after: int, stop: int) -> None:
    whole = together(1, LANES, stop + 9)
    state: dict[str, torch.Tensor] = {}
    for rank in range(before):
        made = loader(ranks=before, rank=rank, batch=1)
        steps(made, stop)
        state |= made.state_dict()
    assert sorted(state) == [f"lane.{lane}" for lane in range(LANES)]
    assert all(position.dtype == torch.int64 for position in state.values())
    assert all(position.shape == (3,) for position in state.values())
    parts = []
    for rank in range(after):
        made = loader(ranks=after, rank=rank, batch=1)
        made.load_state_dict(state)
        assert made.state_dict().keys() <= state.keys()
        parts.append(steps(made, 9))
    assert torch.equal(torch.cat(parts, dim=1), whole[stop:])


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 50), min_size=2, max_size=9),
    seq_len=st.integers(1, 30),
    stop=st.integers(0, 12),
)
def test_a_lane_goes_on_from_any_boundary(lengths: list[int], seq_len: int, stop: int) -> None:
    source = documents(9, 9, *lengths)
    made = loader(source, lanes=2, batch=2, seq_len=seq_len)
    if stop:
        steps(made, stop)
    state = made.state_dict()
    fresh = loader(source, lanes=2, batch=2, seq_len=seq_len)
    fresh.load_state_dict(state)
    assert torch.equal(steps(fresh, 4), steps(made, 4))
    assert torch.equal(torch.stack([*fresh.state_dict().values()]), _positions(made))


def test_state_is_taken_as_often_as_one_likes() -> None:
    made, other = loader(), loader()
    steps(made, 3)
    steps(other, 3)
    state = made.state_dict()
    kept = {name: position.clone() for name, position in state.items()}
    for position in made.state_dict().values():
        position.fill_(10**6)  # dcp.load writes into what it was given
    assert torch.equal(steps(made, 5), steps(other, 5))
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    made.load_state_dict(state)
    other.load_state_dict(kept)
    assert torch.equal(steps(made, 5), steps(other, 5))


def test_a_loader_that_is_being_read_can_be_sent_back() -> None:
    made = loader(batch=2)
    batches = iter(made)
    start = made.state_dict()
    first = next(batches)
    with pytest.raises(AssertionError, match="between two steps"):
        made.state_dict()
    made.load_state_dict(start)
    again = next(batches)
    assert torch.equal(first[0]["input"], again[0]["input"])


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_through_a_distributed_checkpoint(ranks: int, tmp_path: Path) -> None:
    saved: dict[str, Any] = {}
    for rank in range(4):
        made = loader(ranks=4, rank=rank, batch=1)
        steps(made, 5)
        saved |= made.state_dict()
    dcp.save({"dataloader": saved}, checkpoint_id=tmp_path)
    parts = []
    for rank in range(ranks):
        made = loader(ranks=ranks, rank=rank, batch=2)
        dcp.load({"dataloader": made}, checkpoint_id=tmp_path)
        parts.append(steps(made, 4))
    assert torch.equal(torch.cat(parts, dim=1), together(1, LANES, 9)[5:])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_loader_saves_itself(tmp_path: Path) -> None:
    made = loader()
    steps(made, 5)
    dcp.save({"dataloader": made}, checkpoint_id=tmp_path)
    fresh = loader()
    dcp.load({"dataloader": fresh}, checkpoint_id=tmp_path)
    assert torch.equal(steps(fresh, 4), steps(made, 4))


@pytest.mark.slow
def test_the_same_in_another_process() -> None:
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_data; "
        "print(test_data.together(2, 1, 9).flatten().tolist())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == f"{together(2, 1, 9).flatten().tolist()}\n", done.stderr


def test_the_config_can_be_sent_to_another_process() -> None:
    config = DocumentLoader.Config(source=SOURCE, seed=3, global_batch_size=LANES)
    assert pickle.loads(pickle.dumps(config)) == config


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("ranks", "batch", "lanes"), [(3, 1, 8), (2, 8, 8), (1, 3, 8), (1, 1, 0)])
def test_a_global_batch_that_cannot_be_dealt_out(ranks: int, batch: int, lanes: int) -> None:
    with pytest.raises(UserError, match=f"multiple of {ranks * batch}") as error:
        loader(ranks=ranks, batch=batch, lanes=lanes)
    assert (error.value.key, error.value.value) == ("training.global_batch_size", lanes)


@pytest.mark.parametrize("lanes", [4, 16])
def test_a_state_of_another_global_batch_size(lanes: int) -> None:
    state = loader(lanes=lanes, batch=lanes).state_dict()
    with pytest.raises(UserError) as error:
        loader().load_state_dict(state)
    assert (error.value.key, error.value.value) == ("training.global_batch_size", LANES)


ONE_TOKEN = Document("x", "", starts=False, ends=False)


@pytest.mark.parametrize(
    "source", [Documents(()), documents(0, 0), documents(5), Documents((ONE_TOKEN,) * LANES)]
)
def test_a_lane_with_nothing_to_read(source: Documents) -> None:
    with pytest.raises(UserError, match="nothing to train on") as error:
        steps(loader(source), 1)
    assert error.value.key == "dataset"


def test_a_pass_with_nothing_to_read_is_passed_over() -> None:
    source = documents(30, 0)  # of two lanes, each has the text in every other pass
    inputs = steps(loader(source, lanes=2, batch=2), 20)[:, :, 0]
    assert torch.equal(inputs[:, 0], inputs[:, 1])


def test_data_that_has_changed_since_the_checkpoint() -> None:
    made = loader(documents(100), lanes=1, batch=1)
    steps(made, 3)
    for changed in (documents(20), Documents(())):
        fresh = loader(changed, lanes=1, batch=1)
        fresh.load_state_dict(made.state_dict())
        with pytest.raises(UserError, match="not what it was") as error:
            steps(fresh, 1)
        assert error.value.key == "dataset"


def _positions(made: DocumentLoader) -> torch.Tensor:
    return torch.stack(list(made.state_dict().values()))
