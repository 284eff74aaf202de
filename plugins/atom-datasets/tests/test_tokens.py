"""``tokens``: files of token ids that others have written are read as they are, or refused."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from token_data import (
    DOCUMENTS,
    EOS,
    WRITERS,
    index,
    made,
    mistake,
    read,
    write_lists,
    write_megatron,
    write_npy,
)

from atom.errors import UserError

WRITTEN_BY_MEGATRON = {
    "uint16": (
        "0100020003002c01040005000600",
        "4d4d4944494458000001000000000000000805000000000000000500000000000000030000000000"
        "00000200000001000000010000000000000000000000060000000000000006000000000000000a00"
        "0000000000000c000000000000000000000000000000010000000000000002000000000000000400"
        "0000000000000500000000000000",
    ),
    "int32": (
        "07000000701101000800000009000000",
        "4d4d4944494458000001000000000000000402000000000000000300000000000000020000000200"
        "00000000000000000000080000000000000000000000000000000100000000000000020000000000"
        "0000",
    ),
}
"""Bytes that IndexedDatasetBuilder of megatron-core 0.16.1 has written."""


# ---------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_documents_are_as_they_were(format: str, dtype: str, cache: Path, tmp_path: Path) -> None:
    """Each format, by its path and as a folder of several files; each part of a file is found."""
    for name, documents in (("a", DOCUMENTS), ("b", [[7, 8]]), ("c", [])):
        parameters = WRITERS[format](tmp_path, documents, dtype, name)
        if documents:
            assert read(made(cache, **parameters)) == documents
    source = made(cache, **parameters | {"path": str(tmp_path)})
    assert read(source) == [*DOCUMENTS, [7, 8]]
    documents = source.documents()
    assert documents[1].id.endswith("#1")
    assert documents[4].id.endswith("#0")
    assert documents.shard_sizes() == [11, 2, 0]
    assert source.contents().files == 3
    assert source.contents().documents == 5
    assert source.tokenizer() is None
    assert "the check of the tokenizer" in source.contents().left_out[0]
    found = documents.between(0, 3, 6)
    assert [(number, first) for number, first, _ in found] == [(0, 0), (1, 4), (2, 5)]
    assert documents.between(1, 1, 2)[0][:2] == (4, 0)
    assert documents.between(0, 4, 5)[0][2].tokens.tolist() == [EOS]
    with pytest.raises(IndexError):
        documents[5]


@pytest.mark.parametrize("dtype", WRITTEN_BY_MEGATRON)
def test_what_megatron_has_written(dtype: str, cache: Path, tmp_path: Path) -> None:
    ids, index = map(bytes.fromhex, WRITTEN_BY_MEGATRON[dtype])
    (tmp_path / "a.bin").write_bytes(ids)
    (tmp_path / "a.idx").write_bytes(index)
    expected = {"uint16": [[1, 2, 3], [], [300, 4, 5], [6]], "int32": [[7, 70000], [8, 9]]}
    assert read(made(cache, path=str(tmp_path / "a"))) == expected[dtype]


def test_sequences_of_a_document_are_one(cache: Path, tmp_path: Path) -> None:
    """As ``preprocess_data.py --split-sentences`` writes them; empty documents have a number."""
    write_megatron(tmp_path, DOCUMENTS)
    (tmp_path / "a.idx").write_bytes(index([4, 1, 4, 2], 2, entries=[0, 2, 2, 3, 4]))
    joined = [[*DOCUMENTS[0], *DOCUMENTS[1]], [], DOCUMENTS[2], DOCUMENTS[3]]
    source = made(cache, path=str(tmp_path / "a.bin"))
    assert read(source) == joined
    assert [each[:2] for each in source.documents().between(0, 4, 6)] == [(0, 0), (2, 5)]


def test_flat_ids_are_cut_at_an_id(cache: Path, tmp_path: Path) -> None:
    """A rest without the id is a document, too."""
    parameters = write_npy(tmp_path, [*DOCUMENTS, [7, 8]])
    (tmp_path / "a.csv.gz").unlink()
    assert read(made(cache, **parameters, eos_id=EOS)) == [*DOCUMENTS, [7, 8]]


def test_flat_ids_with_numpys_header(cache: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1, 2, EOS, 3, EOS], np.int32))
    source = made(cache, path=str(tmp_path / "a.npy"), eos_id=EOS)
    assert read(source) == [[1, 2, EOS], [3, EOS]]


def test_a_flat_file_of_any_name(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(np.array([1, EOS, 2, EOS], "<u2").tobytes())
    parameters = {"path": str(tmp_path / "train.bin"), "dtype": "uint16", "eos_id": EOS}
    assert read(made(cache, format="npy", **parameters)) == [[1, EOS], [2, EOS]]
    assert "train.idx is missing" in mistake(made(cache, **parameters)).told


def test_lists_of_any_type(cache: Path, tmp_path: Path) -> None:
    for kind in (pa.large_list(pa.uint64()), pa.list_(pa.int8(), 2), pa.list_(pa.uint32())):
        pq.write_table(pa.table({"ids": pa.array([[1, 2], [3, 4]], kind)}), tmp_path / "a.parquet")
        source = made(cache, path=str(tmp_path / "a.parquet"), column="ids")
        assert read(source) == [[1, 2], [3, 4]]
    assert read(made(cache, **write_lists(tmp_path, [[1], None, [], [2]]))) == [[1], [], [], [2]]
    told = made(cache, path=str(tmp_path / "a.parquet")).contents().left_out
    assert any("other columns, not read: 1 (a.parquet: attention_mask)" in each for each in told)


def test_tokens_after_the_last_document_are_reported(cache: Path, tmp_path: Path) -> None:
    parameters = write_npy(tmp_path, DOCUMENTS)
    with (tmp_path / "a.npy").open("ab") as file:
        file.write(b"\1\0")
    source = made(cache, **parameters)
    assert read(source) == DOCUMENTS
    assert source.documents().shard_sizes() == [11]
    assert any("after their last document, not read: 1" in e for e in source.contents().left_out)


def test_the_digest_is_that_of_all_files(cache: Path, tmp_path: Path) -> None:
    """Another boundary of documents is another content, though the tokens are the same."""
    found = set()
    for documents in (DOCUMENTS, [DOCUMENTS[0][:2], DOCUMENTS[0][2:], *DOCUMENTS[1:]]):
        for format, write in WRITERS.items():
            folder = tmp_path / f"{format}-{len(documents)}"
            folder.mkdir()
            source = made(cache, **write(folder, documents))
            found.add(source.check())
            assert len(source.parts()) == (1 if format == "parquet" else 2)
    assert len(found) == 6


# ---------------------------------------------------------------------------- what is refused


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def indexed(**changes: Any) -> Callable[[Path], None]:
    written = index([4, 1, 4, 2], 2, **changes)
    return lambda folder: (folder / "a.idx").write_bytes(written) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def described(text: str) -> Callable[[Path], None]:
    return rewrite("a.csv.gz", lambda _: gzip.compress(text.encode()))


def saved(array: Any, **options: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        stream = io.BytesIO()
        np.save(stream, array, **options)
        (folder / "a.npy").write_bytes(stream.getvalue())

    return write


def lists(column: Any, name: str = "input_ids") -> Callable[[Path], None]:
    return lambda folder: pq.write_table(pa.table({name: column}), folder / "a.parquet")


HUGE = 1 << 60
DAMAGED: list[tuple[str, Callable[[Path], None], str]] = [
    ("megatron", rewrite("a.bin", lambda data: data[:-2]), "a.bin: is truncated: it has 10 tokens"),
    ("megatron", rewrite("a.bin", lambda data: data[:-1]), "a.bin: it has 21 bytes, no multiple"),
    ("megatron", rewrite("a.bin", lambda data: data + b"\0\0"), "a.bin: is too long"),
    ("megatron", remove("a.bin"), "a.bin is missing"),
    ("megatron", remove("a.idx"), "there is no such file"),
    ("megatron", rewrite("a.idx", lambda data: data[:-1]), "a.idx: is truncated"),
    ("megatron", rewrite("a.idx", lambda data: data[:20]), "a.idx: is truncated: its header"),
    ("megatron", rewrite("a.idx", lambda data: data + b"\0"), "a.idx: is too long"),
    ("megatron", rewrite("a.idx", lambda _: b""), "a.idx: it is no index of Megatron"),
    ("megatron", indexed(magic=b"TNTIDX\0\0\0"), "a.idx: it is no index of Megatron"),
    ("megatron", indexed(version=2), "a.idx has version 2; valid: version 1"),
    ("megatron", indexed(code=7), "a.idx: it says that token ids are float32"),
    ("megatron", indexed(code=99), "a.idx: it says that token ids are the unknown type 99"),
    ("megatron", indexed(code=4), "a.bin: it has 22 bytes, no multiple of the 4"),
    ("megatron", indexed(count=HUGE), "a.idx: is truncated"),
    ("megatron", indexed(entries=[]), "a.idx: it has no entries of documents"),
    # microsoft/LMOps#321: the index of another file
    ("megatron", lambda f: (f / "a.idx").write_bytes(index([4, 1, 4, 9], 2)) and None,
     "a.bin: is truncated: it has 11 tokens, and a.idx says 18"),
    ("megatron", lambda f: (f / "a.idx").write_bytes(index([4, -1, 6, 2], 2)) and None,
     "a.idx: sequence 1 has a negative length"),
    # NVIDIA/Megatron-LM#1672: pointers that overflowed as files were merged
    ("megatron", indexed(pointers=[0, 8, -(2**31), 18]), "a.idx: sequence 2 begins at byte -2,147"),
    ("megatron", indexed(pointers=[0, 8, 10, HUGE]), "a.idx: sequence 3 begins at byte 1,152"),
    # NVIDIA/Megatron-LM#81: documents of only one of the files that were merged
    ("megatron", indexed(entries=[0, 1, 2]), "a.idx: its documents have 2 of its 4 sequences"),
    ("megatron", indexed(entries=[0, 3, 1, 4]), "a.idx: document 1 begins where it cannot"),
    ("megatron", indexed(entries=[1, 4]), "a.idx: document 0 begins where it cannot"),
    ("megatron", indexed(entries=[0, 2**62, -(2**63), 4]), "begins where it cannot"),
    ("megatron", indexed(modes=[0, 1, 0, 0]), "a.idx: it has sequences that are not text"),
    ("npy", rewrite("a.npy", lambda data: data[:-2]), "csv.gz: line 4: the document ends at 11"),
    # allenai/dolma#152
    ("npy", rewrite("a.npy", lambda data: data[:-1]), "a.npy has 21 bytes of ids, no multiple"),
    ("npy", remove("a.csv.gz"), "a.npy has no a.csv.gz beside it"),
    ("npy", rewrite("a.csv.gz", lambda data: data[:-9]), "a.csv.gz cannot be decompressed"),
    ("npy", described("0,4\n5,11\n"), "line 2: the document begins at 5, and the one before it"),
    ("npy", described("0,4\n3,11\n"), "line 2: the document begins at 3"),
    ("npy", described("0,4\n4,3\n"), "line 2: the document ends at 3"),
    ("npy", described("0,99999999999999999999999\n"), "line 1: the document ends at 99,999"),
    ("npy", described("start,end\n0,4\n"), "line 1 does not begin with the two positions"),
    ("npy", described("-1,4\n"), "line 1 does not begin with the two positions"),
    ("npy", described("11"), "line 1 does not begin with the two positions"),
    ("npy", described(""), "a.csv.gz: it describes no document with tokens"),
    ("npy", saved(np.zeros(3)), "a.npy: it is an array of float64"),
    ("npy", saved(np.zeros((2, 2), "<u2")), "of shape (2, 2), not a list of ids"),
    ("npy", saved(np.array([{}], object), allow_pickle=True), "a.npy: it is an array of object"),
    ("npy", saved(np.zeros(3, "<u4")), "dataset.dtype=uint16: "),
    ("npy", rewrite("a.npy", lambda _: b"\x93NUMPY\x07\0"), "its header of numpy is damaged"),
    ("npy", rewrite("a.npy", lambda _: b"\x93NUMPY\1\0\xff\xff" + b"(" * 9999), "is damaged"),
    ("parquet", rewrite("a.parquet", lambda data: data[:-1]), "a.parquet is no Parquet file"),
    ("parquet", lists([[1]], "ids"), "dataset.column=input_ids: "),
    ("parquet", lists(["text"]), "dataset.column=input_ids: holds string and no lists"),
    ("parquet", lists([[0.5]]), "holds list<element: double> and no lists of token ids"),
    ("parquet", lists([[1], [2, None]]), "a.parquet: row 2 has an id that is null"),
    ("parquet", lists([[1], [], [2, -1]]), "a.parquet: row 3 has the id -1"),
    ("parquet", lists([[1, 2**32]]), "a.parquet: row 1 has the id 4294967296"),
    ("parquet", lists(pa.array([[]], pa.list_(pa.int32()))), "has no tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "damage", "says"), DAMAGED)
def test_damaged_files(
    format: str, damage: Callable[[Path], None], says: str, cache: Path, tmp_path: Path
) -> None:
    parameters = WRITERS[format](tmp_path, DOCUMENTS)
    assert read(made(cache, **parameters)) == DOCUMENTS
    damage(tmp_path)
    error = mistake(made(cache, **parameters))
    assert says in error.sentence()
    assert not list(cache.glob("tmp*")), "an unfinished copy is left"


def test_what_compressed_files_may_become(cache: Path, tmp_path: Path) -> None:
    many = [[1] * 300, [2] * 300]
    for format, size in (("npy", 70), ("parquet", 2399)):
        parameters = WRITERS[format](tmp_path, many)
        error = mistake(made(cache, **parameters, max_bytes=size))
        assert (error.key, error.value) == ("dataset.max_bytes", size)
        assert read(made(cache, **parameters, max_bytes=2400)) == many


@pytest.mark.parametrize(
    ("stored", "read_as", "right"),
    [
        # allenai/dolma#142, princeton-nlp/LLM-Shearing#65
        ("uint32", "uint16", "uint32"),
        ("uint16", "uint32", "uint16"),
        ("uint64", "uint32", "uint64"),
        ("uint32", "uint64", "uint32"),
        ("uint16", "uint8", "uint16"),
    ],
)
def test_another_type_of_ids(
    stored: str, read_as: str, right: str, cache: Path, tmp_path: Path
) -> None:
    ids = np.random.default_rng(0).integers(20, 3000, size=(10, 20)).tolist()
    parameters = write_npy(tmp_path, ids, stored)
    (tmp_path / "a.csv.gz").unlink()
    error = mistake(made(cache, **parameters | {"dtype": read_as, "eos_id": 0}))
    assert (error.key, error.value) == ("dataset.dtype", read_as)
    assert f"valid: {right}, if the file was written with it" in error.told
    assert read(made(cache, **parameters | {"eos_id": ids[0][0]}))


@pytest.mark.parametrize(
    ("format", "changes", "says"),
    [
        ("npy", {"dtype": None}, "a.npy does not say the type of its ids; valid: dataset.dtype="),
        ("npy", {"eos_id": 3}, "dataset.eos_id=3: has no effect: a.csv.gz says"),
        ("npy", {"column": "ids"}, "dataset.column=ids: has no effect on files of the format npy"),
        ("megatron", {"dtype": "uint16"}, "dataset.dtype=uint16: has no effect on files of"),
        ("parquet", {"eos_id": 3}, "dataset.eos_id=3: has no effect on files of the format"),
        ("megatron", {"format": "parquet"}, "is no Parquet file"),
        ("npy", {"format": "megatron"}, "dataset.dtype=uint16: has no effect"),
    ],
)
def test_parameters_that_do_not_fit(
    format: str, changes: dict[str, Any], says: str, cache: Path, tmp_path: Path
) -> None:
    parameters = WRITERS[format](tmp_path, DOCUMENTS) | changes
    assert says in mistake(made(cache, **parameters)).sentence()


def test_files_that_are_found(cache: Path, tmp_path: Path) -> None:
    write_megatron(tmp_path, DOCUMENTS)
    (tmp_path / "README.md").write_text("text")
    source = made(cache, path=str(tmp_path))
    assert read(source) == DOCUMENTS
    assert source.contents().left_out[1:] == ("files that are not token files: 1 (README.md)",)
    assert "README.md says no format" in mistake(made(cache, path=str(tmp_path / "README.md"))).told
    parameters = write_npy(tmp_path, DOCUMENTS)
    several = mistake(made(cache, path=str(tmp_path)))
    assert "of the formats megatron (a.bin) and npy (a.csv.gz)" in several.told
    assert read(made(cache, **parameters | {"path": str(tmp_path), "format": "npy"})) == DOCUMENTS
    (tmp_path / "a.npy").unlink()
    orphan = mistake(made(cache, path=str(tmp_path), format="npy", dtype="uint16"))
    assert "a.npy is missing, which belongs to a.csv.gz" in orphan.told
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "a.idx").write_bytes(pointer)
    assert "Git LFS" in mistake(made(cache, path=str(tmp_path / "a"))).told


def test_links_out_of_the_folder_are_data(cache: Path, tmp_path: Path) -> None:
    """A published folder must not make a run read a private file, beside an index neither."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    write_megatron(inside, DOCUMENTS)
    (inside / "a.bin").rename(outside / ".secret")
    (inside / "a.bin").symlink_to(outside / ".secret")
    for path in (inside, inside / "a.idx", inside / "*.idx"):
        assert "leads out of its folder" in mistake(made(cache, path=str(path))).told
    assert read(made(cache, path=str(inside), links="follow")) == DOCUMENTS
    (outside / ".secret").rename(outside / "a.bin")
    (inside / "a.bin").unlink()
    (inside / "a.bin").symlink_to(outside / "a.bin")
    assert read(made(cache, path=str(inside / "a"))) == DOCUMENTS
    assert mistake(made(cache, path=str(inside / "a"), links="refuse")).key == "dataset.links"


@pytest.mark.parametrize("format", ["megatron", "npy"])
def test_a_file_that_changes_under_the_run(format: str, cache: Path, tmp_path: Path) -> None:
    parameters = WRITERS[format](tmp_path, DOCUMENTS)
    source = made(cache, **parameters)
    source.check()
    documents = source.documents()
    path = next(path for path in tmp_path.iterdir() if path.suffix in (".bin", ".npy"))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="has changed under the run"):
        documents[0]


def test_an_index_that_is_altered_later_reads_nothing_else(cache: Path, tmp_path: Path) -> None:
    """Ranks do not check the whole index again: each document is checked as it is read."""
    source = made(cache, **write_megatron(tmp_path, DOCUMENTS))
    source.check()
    for name, values in (("entries", [0, 3, 99, 3, 4]), ("pointers", [0, 8, HUGE, 18])):
        (tmp_path / "a.idx").write_bytes(index([4, 1, 4, 2], 2, **{name: values}))
        rank = made(cache / name, path=str(tmp_path / "a"))  # as in another process
        with pytest.raises(UserError, match="document 1 ends where it cannot"):
            rank.documents()[1]


def test_positions_are_kept(cache: Path, tmp_path: Path) -> None:
    """They are computed once for a file, and again when it has changed."""
    parameters = write_npy(tmp_path, DOCUMENTS)
    for path in tmp_path.glob("a.*"):
        os.utime(path, ns=(10**18, 10**18))
    made(cache, **parameters).check()
    (kept,) = cache.glob("*.ends")
    before = kept.stat().st_ino
    made(cache, **parameters).check()
    assert kept.stat().st_ino == before
    write_npy(tmp_path, [*DOCUMENTS, [1]])
    assert read(made(cache, **parameters)) == [*DOCUMENTS, [1]]
