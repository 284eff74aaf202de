"""``huggingface``: what is in the files beside the text does not matter, and no file is lost."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from atom.errors import UserError
from atom_datasets import huggingface
from atom_datasets.config import HuggingFace

Write = Callable[[Path], object]


def made(path: Path, **parameters: object) -> huggingface.HuggingFaceSource:
    return huggingface.source(HuggingFace.model_validate({"path": str(path)} | parameters))


def texts(source: huggingface.HuggingFaceSource, lanes: int = 1) -> list[str]:
    """Return the texts of one pass, sorted, without empty ones."""
    source.check()
    return sorted(
        document.text
        for lane in range(lanes)
        for document in source.lane(lane, lanes, seed=0, epoch=0)
        if document.text
    )


def jsonl(*shards: list[object]) -> Write:
    def write(folder: Path) -> None:
        for number, records in enumerate(shards):
            lines = "".join(f"{json.dumps(record)}\n" for record in records)
            (folder / f"{number}.jsonl").write_text(lines)

    return write


def parquet(*shards: dict[str, object]) -> Write:
    def write(folder: Path) -> None:
        for number, columns in enumerate(shards):
            pq.write_table(pa.table(columns), folder / f"{number}.parquet")

    return write


def arrow(*shards: dict[str, object]) -> Write:
    def write(folder: Path) -> None:
        for number, columns in enumerate(shards):
            table = pa.table(columns)
            path = str(folder / f"{number}.arrow")
            with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)

    return write


def file(name: str, data: bytes) -> Write:
    return lambda folder: (folder / name).write_bytes(data)


def saved(folder: Path) -> None:
    import datasets

    # Not in `folder` itself, whose name may be a pattern to the library.
    with tempfile.TemporaryDirectory() as place:
        datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]}).save_to_disk(place)
        shutil.copytree(place, folder, dirs_exist_ok=True)
    # What `map` keeps there is no part of the dataset.
    arrow({"text": ["cached"]})(folder)


NESTED = [{"a": 1}, {"a": 2}]
VIEW = pa.array(["a", "b"], pa.string_view())

# What the shards hold, and the texts that are read.
READ: dict[str, tuple[Write, list[str]]] = {
    # huggingface/datasets#7222
    "a column of null in one shard": (
        jsonl([{"text": "a", "meta": None}], [{"text": "b", "meta": "x"}]),
        ["a", "b"],
    ),
    # huggingface/datasets#5596, huggingface/datasets#6162
    "a nested column that differs": (
        jsonl([{"text": "a", "meta": {"x": 1}}], [{"text": "b", "meta": {"x": {"y": [1]}}}]),
        ["a", "b"],
    ),
    "a column that some records have": (
        jsonl([{"text": "a"}, {"text": "b", "n": 1}, {"text": "c", "n": "one"}]),
        ["a", "b", "c"],
    ),
    # huggingface/datasets#7169
    "no text in some records": (
        jsonl([{"n": 1}, {"text": None}, {"text": ""}, {"text": "a"}]),
        ["a"],
    ),
    "the text comes after a first shard of null": (
        jsonl([{"text": None}] * 3, [{"text": "a"}]),
        ["a"],
    ),
    "texts that read like dates and numbers": (
        jsonl([{"text": "2024-01-31"}, {"text": "12"}, {"text": "null"}]),
        ["12", "2024-01-31", "null"],
    ),
    "a number of 5,000 digits": (
        file("a.jsonl", b'{"n": ' + b"9" * 5000 + b', "text": "a"}\n'),
        ["a"],
    ),
    "a byte order mark, CRLF, no last line end": (
        file("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}'),
        ["a", "b"],
    ),
    "an array": (file("a.json", b'[{"text": "a", "n": 1},\n {"text": "b", "n": "x"}]'), ["a", "b"]),
    "gzip of several members": (
        file("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n')),
        ["a", "b"],
    ),
    "Parquet with other columns": (
        parquet({"text": ["a"], "meta": pa.nulls(1)}, {"text": ["b"], "meta": NESTED[:1]}),
        ["a", "b"],
    ),
    "Parquet whose text has another type in each shard": (
        parquet(
            {"text": ["a", "b"]},
            {"text": pa.array(["c", "d"]).dictionary_encode()},
            {"text": pa.array(["e"], pa.large_string())},
            {"text": pa.nulls(2)},
            {"text": pa.array(["f"], pa.string_view())},
        ),
        ["a", "b", "c", "d", "e", "f"],
    ),
    "Arrow with other columns": (
        arrow({"text": ["a"], "meta": [1]}, {"text": VIEW, "meta": NESTED}),
        ["a", "a", "b"],
    ),
    # huggingface/datasets#4467
    "CSV with line ends in the text, and other columns": (
        lambda folder: [
            file("a.csv", b'\xef\xbb\xbfn,text\r\n1,"two\nlines, and ""quotes"""\r\n')(folder),
            file("b.csv", b"text,extra\nNA,x\n17,\nnull,y\n")(folder),
        ],
        ["17", "NA", "null", 'two\nlines, and "quotes"'],
    ),
    "a first shard without rows": (
        parquet({"text": pa.array([], pa.string())}, {"text": ["a"]}),
        ["a"],
    ),
    "what save_to_disk wrote": (saved, ["a", "b"]),
    "splits that save_to_disk wrote": (
        lambda folder: [
            saved(folder / "train"),
            file("dataset_dict.json", b'{"splits": ["train"]}')(folder),
        ],
        ["a", "b"],
    ),
    "lines of text": (file("a.txt", b"one\r\ntwo"), ["one", "two"]),
}


@pytest.mark.parametrize("case", READ)
def test_the_text_is_read_whatever_is_beside_it(case: str, tmp_path: Path) -> None:
    write, expected = READ[case]
    # huggingface/datasets#7468
    folder = tmp_path / "[a]*::b?"
    folder.mkdir()
    write(folder)
    assert texts(made(folder)) == expected
    assert texts(made(folder), lanes=3) == expected


@pytest.mark.parametrize("suffix", [".zst", ".zstd"])
def test_zstd_is_streamed(suffix: str, tmp_path: Path) -> None:
    for number in range(2):
        lines = "".join(json.dumps({"text": f"{number} {row}"}) + "\n" for row in range(300))
        compressed = pa.compress(lines.encode(), codec="zstd", asbytes=True)
        (tmp_path / f"{number}.jsonl{suffix}").write_bytes(compressed)
    expected = sorted(f"{number} {row}" for number in range(2) for row in range(300))
    assert texts(made(tmp_path)) == expected
    assert texts(made(tmp_path), lanes=3) == expected


# What the shards hold, and words of the sentence.
REFUSED: dict[str, tuple[Write, str]] = {
    "a list": (parquet({"text": [["a"]]}), "text_field=text: holds list<"),
    "a number": (parquet({"text": [1]}), "text_field=text: holds int64 and no text"),
    "no such column": (parquet({"content": ["a"], "n": [1]}), "valid: content, n"),
    "no such column of CSV": (file("a.csv", b"txt,n\na,1\n"), "did you mean txt"),
    "no such field": (jsonl([{"txt": "a"}]), "did you mean txt"),
    "nothing but null": (parquet({"text": pa.nulls(3)}), "there is no text in its column"),
    "too deep": (
        file("a.jsonl", b'{"text": "a", "b": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "line 1 of {folder}/a.jsonl is no JSON record (it is nested too deep)",
    ),
    "half of a file": (
        file("a.jsonl.zst", pa.compress(b'{"text": "a"}' * 99, codec="zstd", asbytes=True)[:-5]),
        "cannot be streamed: Truncated compressed stream",
    ),
    "no file that can be read": (file("a.py", b"x"), "data files found in {folder}"),
    "no UTF-8": (file("a.jsonl", b'{"text": "caf\xe9"}'), "byte 14 is not UTF-8"),
    "no Parquet": (file("a.parquet", b"PAR1 and nothing"), "cannot be streamed: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_one_sentence(case: str, tmp_path: Path) -> None:
    write, says = REFUSED[case]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder)
    with pytest.raises(UserError) as error:
        made(folder).check()
    assert says.format(folder=folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fault_further_on_names_its_place(tmp_path: Path) -> None:
    folder, other = tmp_path / "data", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    jsonl([{"text": f"{n}"} for n in range(700)])(folder)
    with (folder / "0.jsonl").open("a") as stream:
        stream.write('{"text": "cut')
    source = made(folder)
    source.check()
    with pytest.raises(UserError, match=r"line 701 of .*/0\.jsonl is no JSON record"):
        texts(source)
    column = pa.array([b"good", b"caf\xe9"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, column.buffers())
    parquet({"text": text})(other)
    with pytest.raises(UserError, match=r"other/train is damaged near .*row 1 \(.*utf-8"):
        texts(made(other))


def test_every_file_of_a_folder_is_read_or_told(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    for path in ("data/a.jsonl", "data/UP.JSONL", "data/x::y[1].jsonl", "elsewhere/c.jsonl"):
        (tmp_path / path).write_text(json.dumps({"text": Path(path).stem}) + "\n")
    (data / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(data)
    (data / "README.md").write_text("# About")
    (data / "notes.docx").write_bytes(b"PK")
    (data / ".hidden").touch()
    source = made(data)
    assert texts(source) == ["UP", "a", "c", "x::y[1]"]
    contents = source.contents()
    assert (contents.files, contents.documents) == (4, None)
    assert contents.left_out == (
        "hidden files and folders: 1 (.hidden)",
        "files elsewhere, read through links: 1 (c.jsonl)",
        "files that are in no split: 1 (notes.docx)",
    )
    # With names that say so there are splits; what is in none of them is told.
    (data / "train.jsonl").write_text('{"text": "train"}\n')
    (data / "test.jsonl").write_text('{"text": "test"}\n')
    huggingface._opened.cache_clear()
    assert texts(source) == ["train"]
    assert source.contents().left_out[2:] == (
        "files of other splits: 1 (test.jsonl)",
        "files that are in no split: 5 (UP.JSONL, a.jsonl, c.jsonl, …)",
    )
