"""Validation tells how a model does on other text, and leaves training alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.data import validation
from atom.data.dealing import dealt
from atom.data.documents import TextEncoder
from atom.data.held_out import Side
from atom.data.lanes import IGNORED, Lane, Reading, Sources
from atom.errors import UserError
from atom.plugin import Document, Mixture, Stage
from atom.run_dir import metrics, validated
from atom.run_dir.kept import Kept
from atom.run_dir.metrics import StepMetrics
from atom.run_dir.validated import SetResult

BOS, EOS = 256, 257
LENGTH = 8


class Bytes:
    """A tokenizer of bytes."""

    bos_id, eos_id = BOS, EOS

    def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]:
        return [BOS] * add_bos + list(text.encode()) + [EOS] * add_eos

    def byte_lengths(self) -> list[int | None]:
        return [1] * 256 + [0, 0]


class Silent(Bytes):
    """A tokenizer that does not tell the bytes of its ids."""

    byte_lengths = None  # type: ignore[assignment]


class Unsure(Bytes):
    """A tokenizer with an id whose bytes depend on the text."""

    def byte_lengths(self) -> list[int | None]:
        return [None if number == ord("?") else 1 for number in range(256)] + [0, 0]


@dataclass(frozen=True)
class Texts:
    texts: tuple[str, ...]

    def check(self) -> str:
        return ""

    def documents(self) -> Texts:
        return self

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Document:
        return Document(self.texts[index], str(index))


@dataclass(frozen=True)
class Mixed:
    """Two sources in a mixture, one of which may be read once."""

    def check(self) -> str:
        return ""

    def lane(self, *_: Any, **__: Any) -> Iterator[Document]:
        raise AssertionError("sequences are mixed, not documents")

    def digests(self) -> dict[str, str]:
        return {}

    def mixture(self, **_: int) -> Mixture:
        sources = {"a": Texts(("a" * 64,)), "b": Texts(("b" * 64,))}
        stage = Stage(name="", step=0, weights={"a": 0.5, "b": 0.5})
        return Mixture(sources=sources, stages=(stage,), max_epochs={"a": 1})


def read(*texts: str, encoder: Any = None, tokens: int = 10**6, **share: int) -> Any:
    source = dealt(Texts(texts))
    return validation.read(source, encoder or Bytes(), tokens=tokens, seq_len=LENGTH, **share)


texts = st.lists(st.text("ab é", max_size=30), min_size=1, max_size=12).filter(any)


@settings(deadline=None)
@given(texts, st.integers(1, 5), st.integers(1, 200))
def test_ranks_share_the_sequences_of_one(words: list[str], ranks: int, tokens: int) -> None:
    """Dealt again, the shares of any number of ranks are the set, and its numbers are the same."""
    whole = read(*words, tokens=tokens)
    shares = [read(*words, tokens=tokens, rank=rank, ranks=ranks) for rank in range(ranks)]
    for share in shares:
        assert (share.sequences, share.tokens, share.bytes, share.digest) == (
            whole.sequences,
            whole.tokens,
            whole.bytes,
            whole.digest,
        )
    for number in range(whole.sequences):
        share = shares[number % ranks]
        for name in ("inputs", "labels", "positions"):
            there, here = getattr(share, name)[number // ranks], getattr(whole, name)[number]
            assert np.array_equal(there, here)
    assert sum(len(share.inputs) for share in shares) == whole.sequences


@settings(deadline=None)
@given(texts)
def test_each_byte_of_the_text_is_predicted_once(words: list[str]) -> None:
    """And BOS and EOS never are: the labels are the bytes of the documents, in some order."""
    found = read(*words)
    labels = found.labels[found.labels != IGNORED]
    assert sorted(labels) == sorted("".join(words).encode())
    assert found.tokens == found.bytes == len(labels)


def test_tokens_are_rounded_up_to_sequences() -> None:
    assert read("a" * 100, tokens=LENGTH + 1).tokens == 2 * LENGTH
    assert read("a" * 100, tokens=LENGTH).tokens == LENGTH


def test_a_set_without_text_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        read("", "")


@pytest.mark.parametrize(("encoder", "known"), [(Silent(), None), (Unsure(), None), (Bytes(), 3)])
def test_bytes_that_are_unknown_are_not_told(encoder: Any, known: int | None) -> None:
    found = read("a?b", encoder=encoder)
    assert (found.tokens, found.bytes) == (3, known)


def test_a_mixture_is_read_by_sequence_until_a_source_ends() -> None:
    found = validation.read(dealt(Mixed()), Bytes(), tokens=96, seq_len=LENGTH)
    letters = found.labels[found.labels != IGNORED]
    assert {ord("a"), ord("b")} == set(letters.tolist())
    assert abs(int((letters == ord("a")).sum()) - int((letters == ord("b")).sum())) <= LENGTH


# ---------------------------------------------------------------------------- held out


def ids(words: list[str], side: Side, *, seed: int = 0, lanes: int = 1) -> set[int]:
    """Return the documents that lanes read on one side, in about three epochs."""
    source = dealt(Texts(tuple(words)))
    reading = Reading(source, seed=seed, lanes=lanes, seq_len=4, side=side)
    found = set()
    for number in range(lanes):
        lane = Lane(number, reading, Sources(reading), TextEncoder(Bytes()))
        with suppress(UserError):  # a lane without a document on this side
            parts = lane.parts()
            while parts[-1].epoch < 3:
                found |= {int(part.document.id) for part in parts}
                parts = lane.parts()
    return found


@settings(deadline=None, max_examples=50)
@given(texts, st.floats(0, 1), st.integers(0, 99), st.integers(1, 4))
def test_no_text_is_on_both_sides(words: list[str], fraction: float, seed: int, lanes: int) -> None:
    """Whatever the seed and the lanes; the same text twice is on one side."""
    held_out = {n for n, text in enumerate(words) if text and share(text) < fraction}
    others = {n for n, text in enumerate(words) if text} - held_out
    assert ids(words, Side(fraction, held_out=True)) == held_out
    assert ids(words, Side(fraction), seed=seed) == others
    assert ids(words, Side(fraction), seed=seed, lanes=lanes) <= others


def share(text: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"held out").digest()
    return int.from_bytes(digest, "little") / 2**64


def test_the_fraction_is_that_of_the_documents() -> None:
    side = Side(0.1, held_out=True)
    found = sum(side.has(Document(f"text {number}", "")) for number in range(10_000))
    assert abs(found - 1000) < 4 * math.sqrt(10_000 * 0.1 * 0.9)


def test_stored_documents_are_split_by_their_tokens_and_parts_are_trained_on() -> None:
    held_out = Side(0.5, held_out=True)
    for number in range(20):
        stored = [
            Document("", str(id_), tokens=np.array([number], dtype))
            for id_, dtype in enumerate(("uint16", "int32"))
        ]
        assert len({held_out.has(each) for each in stored}) == 1
        assert not held_out.has(Document(f"{number}", "", ends=False))


# ---------------------------------------------------------------------------- results


@given(st.floats(), st.integers(0, 2**53), st.none() | st.integers(0, 2**53))
def test_a_result_comes_back_from_a_row(loss: float, tokens: int, size: int | None) -> None:
    before = SetResult(loss=loss, tokens=tokens, bytes=size, data="0" * 16)
    line = StepMetrics(
        step=1,
        loss=1.0,
        grad_norm=1.0,
        lr=1.0,
        tokens_seen=1,
        tokens_per_second=1.0,
        step_seconds=1.0,
        memory_gib=1.0,
        validation={"web": before},
    ).to_json()
    after = (StepMetrics.from_json(line).validation or {})["web"]
    assert (after.tokens, after.bytes, after.data) == (tokens, size, "0" * 16)
    assert after.loss == loss or (math.isnan(after.loss) and not math.isfinite(loss))


@pytest.mark.parametrize(
    "value", [[], {"a": 1}, {"a": {}}, {"a": {"loss": "1", "tokens": 1}}, {"a": {"tokens": -1}}]
)
def test_what_is_no_result_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="validation"):
        validated.read(value)


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    """Text of 12 bytes that costs 6 nats: by bytes, and by tokens of three bytes."""
    by_bytes = SetResult(loss=6 / 12, tokens=12, bytes=12)
    by_words = SetResult(loss=6 / 4, tokens=4, bytes=12)
    assert by_bytes.bits_per_byte == by_bytes.loss / math.log(2)
    assert by_words.bits_per_byte == pytest.approx(by_bytes.bits_per_byte, rel=1e-12)
    assert by_words.perplexity == math.exp(1.5)


def test_the_best_are_kept_by_the_loss_of_a_set(tmp_path: Path) -> None:
    writer = metrics.MetricsWriter(tmp_path / metrics.FILE_NAME)
    losses = {1: 5.0, 2: 3.0, 3: math.nan, 4: 4.0, 5: 6.0, 6: 7.0}
    for step, loss in losses.items():
        row = dict.fromkeys(("grad_norm", "lr", "tokens_per_second", "step_seconds"), 1.0)
        result = {"web": SetResult(loss=loss, tokens=1)} if step != 5 else None
        writer.append(
            StepMetrics(
                step=step, loss=-step, tokens_seen=1, memory_gib=1.0, validation=result, **row
            )
        )
    writer.close()
    steps = [1, 2, 3, 4, 5, 6]
    assert Kept(1, best=2, best_of="web").among(steps, tmp_path) == {2, 4, 6}
    assert Kept(1, best=2).among(steps, tmp_path) == {5, 6}
    assert Kept(2, every=3).among(steps, tmp_path) == {3, 5, 6}
