"""``bytes``: nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from atom.plugin import TokenizerContext
from atom_tokenizers.byte_level import prepare
from atom_tokenizers.config import Bytes
from atom_tokenizers.ranks import ByteTokenizer, byte_level

STRINGS = st.lists(st.text() | st.integers(0xD800, 0xDFFF).map(chr)).map("".join)
"""Text of every plane, and lone surrogates, which Hypothesis leaves out of its own."""


@pytest.fixture(scope="module")
def tokenizer() -> ByteTokenizer:
    return byte_level(Bytes()).build(tokenizer_path="")


@given(text=STRINGS, add_bos=st.booleans(), add_eos=st.booleans())
def test_every_string_comes_back(
    tokenizer: ByteTokenizer, text: str, add_bos: bool, add_eos: bool
) -> None:
    ids = tokenizer.encode(text, add_bos=add_bos, add_eos=add_eos)
    assert tokenizer.decode(ids) == text
    body = ids[add_bos : len(ids) - add_eos]
    assert all(0 <= token_id < 256 for token_id in body)
    assert ids == [256] * add_bos + body + [257] * add_eos


def test_bytes_that_are_not_utf8_are_marked(tokenizer: ByteTokenizer) -> None:
    assert tokenizer.decode([*b"a\xffb", 257, *b"c", 300]) == "a\N{REPLACEMENT CHARACTER}bc"


@pytest.mark.parametrize(
    ("pad_to", "size"), [(1, 258), (2, 258), (64, 320), (128, 384), (258, 258), (1000, 1000)]
)
def test_the_vocabulary_is_padded(pad_to: int, size: int) -> None:
    config = Bytes(pad_to=pad_to)
    assert config.vocab_size == size
    assert byte_level(config).build(tokenizer_path="").get_vocab_size() == size


@pytest.mark.parametrize("parameters", [{"pad_to": 0}, {"padto": 64}])
def test_bad_parameters_are_refused(parameters: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Bytes(**parameters)


def test_bos_and_eos_are_named(tokenizer: ByteTokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id) == (256, 257)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer as ``transformers`` loads it from the prepared files alone."""
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("bytes")
    context = TokenizerContext(documents=lambda: iter(()), digest="", cache=place / "cache")
    prepared = prepare(Bytes(), context)
    for name, path in prepared.files.items():
        Path(place, name).write_bytes(path.read_bytes())
    return transformers.AutoTokenizer.from_pretrained(place)


@given(text=st.text())
def test_transformers_makes_the_same_ids(
    tokenizer: ByteTokenizer, elsewhere: Any, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert elsewhere.encode(text, add_special_tokens=False) == ids
    assert elsewhere.decode(ids) == text


@given(ids=st.lists(st.integers(0, 257)))
def test_transformers_makes_the_same_text(
    tokenizer: ByteTokenizer, elsewhere: Any, ids: list[int]
) -> None:
    text = tokenizer.decode(ids)
    if text.isprintable():  # half a surrogate pair is nothing that UTF-8 can be
        assert elsewhere.decode(ids, skip_special_tokens=True) == text


def test_bos_and_eos_are_the_same_elsewhere(elsewhere: Any) -> None:
    assert (elsewhere.bos_token_id, elsewhere.eos_token_id) == (256, 257)
    assert len(elsewhere) == 258
