"""Token shards: every document as it was, and every fault of a folder found."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atom.data import manifest as manifests
from atom.data.manifest import SUFFIXES, MadeBy, TokenizerOf, content_digest, tokenizer_digest
from atom.data.shards import DOCUMENT, TokenShards
from atom.data.splitting import Recipe
from atom.data.verifying import check, verify
from atom.data.writing import Encoder, write_shard
from atom.errors import UserError
from atom.io.files import sha256
from atom.plugin import Document
from atom.testing.token_shards import Letters, describe, write


def check_between(
    shards: TokenShards, parts: list[list[Document]], tokens: list[np.ndarray]
) -> None:
    """The documents of any range of a shard's tokens are those that a plain search finds."""
    assert shards.shard_sizes().tolist() == [shard.tokens for shard in shards.manifest.shards]
    index = 0
    for number, part in enumerate(parts):
        places, first = [], 0
        for _ in part:
            places.append((index, first, len(tokens[index])))
            first, index = first + len(tokens[index]), index + 1
        for begin in {0, first // 3, max(first - 1, 0)}:
            for end in {begin, begin + 1, first // 2, first}:
                found = shards.between(number, begin, end)
                assert [(i, start) for i, start, _ in found] == [
                    (i, start)
                    for i, start, size in places
                    if size and start < end and start + size > begin
                ]
                assert all(each.tokens.tolist() == tokens[i].tolist() for i, _, each in found)


DOCUMENTS = st.lists(
    st.builds(
        Document,
        text=st.one_of(st.just(""), st.text(max_size=40), st.just("long " * 5000)),
        id=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        starts=st.booleans(),
        ends=st.booleans(),
    ),
    max_size=8,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(DOCUMENTS, max_size=4), st.sampled_from([2, 257, 65536, 65537, 1 << 21]))
@example([[], [Document("a", "", False, False)], [], [Document("", "語 🙂\x1b\n")]], 300)
def test_documents_are_as_they_were(parts: list[list[Document]], vocab_size: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        manifest = write(folder, parts, vocab_size)
        shards = TokenShards(folder)
        assert manifests.read(folder) == manifest
        check(shards)
        list(verify(shards))
        oracle, every = Letters(vocab_size), [each for part in parts for each in part]
        assert len(shards) == len(every)
        for index, document in enumerate(every):
            flags = {"add_bos": document.starts, "add_eos": document.ends}
            expected = oracle.encode(document.text, **flags) if document.text else []
            assert shards[index].tokens.tolist() == expected
            assert shards[index].id == document.id
            assert shards[index].tokens.dtype.itemsize == (2 if vocab_size <= 65536 else 4)
        check_between(shards, parts, [shards[index].tokens for index in range(len(every))])
        assert manifest.bytes == sum(len(each.text.encode()) for each in every)


def test_a_long_id_is_cut_at_a_character(tmp_path: Path) -> None:
    write(tmp_path, [[Document("text", "語" * 3000), Document("text", "\ud800")]])
    shards = TokenShards(tmp_path)
    assert [shards[0].id, shards[1].id] == ["語" * 1365, "\\ud800"]
    list(verify(shards))


@given(st.integers(0, 10**10))
def test_shards_are_ranges_that_depend_on_the_count_alone(count: int) -> None:
    made, by = MadeBy(name="x", digest="x"), tokenizer_digest(2, {})
    tokenizer = TokenizerOf(name="x", digest=by, vocab_size=2, files={})
    recipe = Recipe(made, tokenizer, documents=count, lanes=None)
    assert recipe.shards * recipe.shard_documents >= count
    assert (recipe.shards - 1) * recipe.shard_documents < max(count, 1)
    assert recipe.shards < 50_000


def test_the_specification(tmp_path: Path) -> None:
    """The example and the digests of docs/data_format.md, written down again."""

    class Bytes:
        def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]:
            return [*([256] * add_bos), *text.encode(), *([257] * add_eos)]

    state = tmp_path / "unfinished"
    state.mkdir()
    documents = [Document("hi", "a"), Document("", "b")]
    shard, left_out = write_shard(
        tmp_path, state, 0, documents, Encoder(Bytes(), 258), lambda _: None
    )
    page = (Path(__file__).parents[1] / "docs" / "data_format.md").read_text()
    for kind in SUFFIXES:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `00000.{kind}` | `"))
        expected = bytes.fromhex(row.split("|")[2].replace("`", " "))
        assert (tmp_path / f"00000.{kind}").read_bytes() == expected
    assert left_out.empty == 1
    files = {"b": "1" * 64, "a": "2" * 64}
    text = f'[258, {{"a": "{"2" * 64}", "b": "{"1" * 64}"}}]'
    tokenizer = hashlib.sha256(text.encode()).hexdigest()
    assert tokenizer_digest(258, files) == tokenizer
    digests = [sha256(tmp_path / f"00000.{kind}") for kind in SUFFIXES]
    lines = f"atom tokens 1 uint16 {tokenizer}\n2 4 {' '.join(digests)}\n"
    found = content_digest("uint16", tokenizer, [shard])
    assert found == hashlib.sha256(lines.encode()).hexdigest()


# ---------------------------------------------------------------------------- what is wrong


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def altered(**changes: Any) -> Callable[[Path], object]:
    """Change keys of a manifest."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


MANIFESTS: list[tuple[Callable[[Path], object], str]] = [
    (Path.unlink, "has no manifest.json; valid: a folder that `atom data prepare` has finished"),
    (altered(schema=2), "has the schema 2, which a later ATOM writes; valid: up to 1"),
    (altered(schema=0), "there is no schema 0"),
    (altered(schema=True), "schema"),
    (altered(format="x"), "format"),
    (altered(documents=1), "documents is 1, and its shards have 640"),
    (altered(tokens=float("nan")), "NaN is no JSON"),
    (altered(tokens=-1), "tokens"),
    (altered(tokens=1.5), "tokens"),
    (altered(tokens="12"), "tokens"),
    (altered(more=1), "more"),
    (altered(documents=2**64 - 1), "its shards have 640"),
    (altered(documents=2**64), "it has a number of more than 64 bits"),
    (altered(shards=[]), "its shards have 0"),
    (altered(shards=None), "shards"),
    (altered(digest="0" * 64), "digest is not that of its shards"),
    (altered(dtype="uint32"), "dtype is uint32, and the vocabulary 320"),
    (lambda path: path.write_text("[]"), "it holds no JSON object"),
    (lambda path: path.write_text("[" * 5000), "no manifest of token shards"),
    (lambda path: path.write_bytes(b"\xff"), "no manifest of token shards"),
    (lambda path: path.write_text(""), "no manifest of token shards"),
    (lambda path: os.truncate(path, manifests.MOST + 1), "it has more than 256 MiB"),
    (link, "is no regular file"),
]


@pytest.mark.parametrize(("change", "problem"), MANIFESTS)
def test_a_bad_manifest_is_a_sentence(change: Callable, problem: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write(folder, [[Document("text", str(n)) for n in range(320)]] * 2, vocab_size=320)
    change(folder / "manifest.json")
    with pytest.raises(UserError) as error:
        TokenShards(folder)
    assert problem in error.value.sentence()
    assert str(folder) in error.value.sentence()
    assert "\n" not in error.value.sentence()


def test_an_altered_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "folder", [[Document("text", "a")]])
    manifest = json.loads((tmp_path / "folder" / "manifest.json").read_text())
    for change, problem in (
        ({"vocab_size": 299}, "the digest of the tokenizer is not that of its files"),
        *(
            ({"files": {name: "0" * 64}}, "a file of the tokenizer lies outside of the folder")
            for name in ("../x", "/x", "", "a\0b", "\ud800")
        ),
    ):
        tokenizer = manifest["tokenizer"] | change
        text = json.dumps(manifest | {"tokenizer": tokenizer})
        (tmp_path / "folder" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=problem):
            TokenShards(tmp_path / "folder")


def ids_beyond(tokens: np.ndarray, _records: np.ndarray, _ids: bytearray) -> None:
    tokens[3] = 300


def backwards(_tokens: np.ndarray, records: np.ndarray, _ids: bytearray) -> None:
    records["tokens"][1] = 0


def beyond(_tokens: np.ndarray, records: np.ndarray, _ids: bytearray) -> None:
    records["tokens"][-1] += 1


def short(_tokens: np.ndarray, records: np.ndarray, _ids: bytearray) -> None:
    records["tokens"][-1] -= 1


def between(_tokens: np.ndarray, records: np.ndarray, _ids: bytearray) -> None:
    records["ids"][1] += 1


def not_text(_tokens: np.ndarray, _records: np.ndarray, ids: bytearray) -> None:
    ids[0] = 0xFF


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (ids_beyond, "00001.tokens: it has the id 300 of a vocabulary of 300"),
        (backwards, "00001.documents: document 1 ends where it cannot"),
        (beyond, "00001.documents: document 3 ends where it cannot"),
        (short, "00001.documents: its last document does not end at the end"),
        (between, "00001.ids: an id in it ends within a character"),
        (not_text, "00001.ids: an id in it is not UTF-8"),
    ],
)
def test_shards_that_another_program_wrote_wrongly(
    change: Callable, problem: str, tmp_path: Path
) -> None:
    """Sizes and digests agree with the manifest, and the content breaks the format."""
    documents = [Document("text", f"é{n}") for n in range(4)]
    shards = write(tmp_path, [documents, documents]).shards
    paths = [tmp_path / f"00001.{kind}" for kind in SUFFIXES]
    tokens = np.fromfile(paths[0], dtype="<u2")
    records = np.fromfile(paths[1], dtype=DOCUMENT)
    ids = bytearray(paths[2].read_bytes())
    change(tokens, records, ids)
    for path, content in zip(paths, (tokens.tobytes(), records.tobytes(), ids), strict=True):
        path.write_bytes(content)
    second = shards[1].model_copy(update={"sha256": [sha256(path) for path in paths]})
    describe(tmp_path, [shards[0], second], 300)
    with pytest.raises(UserError) as error:
        list(verify(TokenShards(tmp_path)))
    assert problem in error.value.sentence()
    with pytest.raises(UserError) as error:  # as before a run
        check(TokenShards(tmp_path))
    assert problem in error.value.sentence()
    with suppress(UserError):  # a sentence, or what stands there: never another exception
        for index in range(8):
            TokenShards(tmp_path)[index]
