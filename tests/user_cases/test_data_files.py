"""Files as people have them: every fault is told in a sentence, nothing is left out in silence."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

T = (
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.global_batch_size=4",
    "training.steps=2",
    "architecture.n_layers=2",
    "architecture.dim=64",
    "metrics=none",
    "device=cpu",
)

Write = Callable[[Path], object]


def jsonl(name: str, *lines: str | bytes) -> Write:
    """Write a file of 20 good records and then ``lines``."""

    def write(folder: Path) -> None:
        good = [json.dumps({"text": f"record {n}"}).encode() for n in range(20)]
        more = [line if isinstance(line, bytes) else line.encode() for line in lines]
        (folder / name).write_bytes(b"\n".join([*good, *more]) + b"\n")

    return write


def content(name: str, data: bytes) -> Write:
    return lambda folder: (folder / name).write_bytes(data)


def table(name: str, **columns: object) -> Write:
    return lambda folder: pq.write_table(pa.table(columns), folder / name)


def both(*writes: Write) -> Write:
    return lambda folder: [write(folder) for write in writes]


GOOD = b'{"text": "a good record"}\n'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n"
DEEP = b'{"text": "deep", "tree": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def a_loop(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")


def gone(folder: Path) -> None:
    content("a.txt", b"text")(folder)
    (folder / "b.txt").symlink_to(folder / "nowhere")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "a.txt")


def lfs_parquet(folder: Path) -> None:
    (folder / "a.parquet").write_bytes(LFS)


# What is written, what is overridden beside the path, and words of the sentence.
REFUSED: dict[str, tuple[Write, tuple[str, ...], str]] = {
    # ---- records: jingyaogong/minimind#551, jingyaogong/minimind#13
    "bad UTF-8": (
        jsonl("a.jsonl", b'{"text": "caf\xe9"}'),
        (),
        r"line 21 of .*byte 14 is not UTF-8",
    ),
    # thunlp/GEAR#2
    "cut off": (jsonl("a.jsonl", '{"text": "cut'), (), r"line 21 of .*no JSON record"),
    "no object": (jsonl("a.jsonl", "[1, 2]"), (), r"line 21 .*it is a list"),
    "no text": (jsonl("a.jsonl", '{"text": ["a"]}'), (), r"holds \[\"a\"\] and no text in line 21"),
    # unslothai/unsloth#7465, run-llama/llama_index#18877
    "too deep": (jsonl("a.jsonl", DEEP), (), r"line 21 of .*nested too deep"),
    "too deep in the text": (
        jsonl("a.jsonl", DEEP.replace(b'"deep", "tree": ', b"")),
        (),
        r"line 21 of .*nested too deep",
    ),
    "twice": (jsonl("a.jsonl", '{"text": "a", "text": "b"}'), (), r"line 21 .*it has text twice"),
    "padded with zeros": (jsonl("a.jsonl", b"\0" * 512), (), r"line 21 of .*no JSON record"),
    "more than may be": (
        jsonl("a.jsonl", "no record", DEEP, b"\xff"),
        ("dataset.max_bad_fraction=0.1",),
        r"3 of 23 documents cannot be read",
    ),
    # ---- whole files
    "an array": (
        content("a.json", b'[{"text": "a"}, {"text": "b"}]'),
        (),
        r"a\.json is one JSON array; valid: .*jq -c",
    ),
    "an array of many lines": (
        content("a.json", b'[\n  {\n    "text": "a"\n  }\n]\n'),
        ("dataset.max_bad_fraction=0.5",),
        r"a\.json is one JSON array",
    ),
    "UTF-16 records": (
        content("a.jsonl", (GOOD * 9).decode().encode("utf-16")),
        ("dataset.max_bad_fraction=0.5",),
        r"a\.jsonl is UTF-16 text; valid: UTF-8 \(iconv",
    ),
    "UTF-16 text": (content("a.txt", "text".encode("utf-16")), (), r"a\.txt is UTF-16 text"),
    "gzip without its suffix": (
        content("a.jsonl", gzip.compress(GOOD)),
        (),
        r"a\.jsonl is compressed with gzip; valid: a name that ends with \.gz",
    ),
    # google-research-datasets/natural-questions#24
    "gzip cut off": (
        content("a.jsonl.gz", cut(gzip.compress(os.urandom(999).hex().encode()))),
        ("dataset.max_bad_fraction=0.5",),
        r"a\.jsonl\.gz cannot be decompressed: .*; valid: a complete copy of the file",
    ),
    "no gzip": (content("a.txt.gz", b"plain"), (), r"a\.txt\.gz cannot be decompressed"),
    # InertExpert2911/Mutual_Fund_Data#1, policy-gradient/GRPO-Zero#1
    "a Git LFS pointer for text": (
        content("a.txt", LFS),
        (),
        r"a\.txt is the pointer .*git lfs pull",
    ),
    "a Git LFS pointer for Parquet": (lfs_parquet, (), r"a\.parquet is the pointer .*git lfs pull"),
    "a web page": (
        content("a.jsonl", b"<!DOCTYPE html><html>404</html>"),
        ("dataset.max_bad_fraction=0.9",),
        r"a\.jsonl is a web page",
    ),
    "Parquet cut off": (
        both(table("a.parquet", text=["text"] * 999), lambda f: os.truncate(f / "a.parquet", 99)),
        (),
        r"a\.parquet is no Parquet file \(.*\); valid: a complete copy of the file",
    ),
    "a table": (content("a.csv", b"text\na\n"), (), r"a\.csv is a table .*dataset=huggingface"),
    # ---- streams
    "a stream too deep": (
        jsonl("a.jsonl", DEEP),
        ("dataset=huggingface",),
        r"line 21 of .*a\.jsonl is no JSON record \(it is nested too deep\)",
    ),
    "a Git LFS pointer in a stream": (
        content("a.txt", LFS),
        ("dataset=huggingface",),
        r"a\.txt is the pointer of a file in Git LFS",
    ),
    "a stream of lists": (
        table("a.parquet", text=[["a"]]),
        ("dataset=huggingface",),
        r"text_field=text.*holds list<.*> and no text",
    ),
    "a stream without the column": (
        content("a.csv", b"txt,n\na,1\n"),
        ("dataset=huggingface",),
        r"text_field=text.*no such column; did you mean txt\?",
    ),
    # ---- columns
    "lists": (table("a.parquet", text=[["a"]]), (), r"text_field=text.*holds list<.*> and no text"),
    "bytes": (table("a.parquet", text=[b"a"]), (), r"text_field=text.*holds binary and no text"),
    "nothing but null": (table("a.parquet", text=pa.nulls(3)), (), r"there is no text in it"),
    # ---- files and folders
    "a link to itself": (a_loop, (), r"loop is not a regular file, or is a broken link"),
    "a link to nowhere": (gone, (), r"b\.txt is not a regular file, or is a broken link"),
    "a link to nowhere in a pattern": (
        gone,
        ("dataset.path='data/*.txt'",),
        r"b\.txt is not a regular file",
    ),
    "a pipe": (pipe, (), r"a\.txt is not a regular file"),
    # ---- parameters without an effect
    "a field of text": (
        content("a.txt", b"text"),
        ("dataset.text_field=content",),
        r"text_field=content .*has no effect on files of the format text",
    ),
    "parts of records": (
        jsonl("a.jsonl"),
        ("dataset.max_chars=100",),
        r"max_chars=100 .*has no effect on files of the format jsonl",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_fault_is_one_sentence(case: str, tmp_path: Path, forked: Callable) -> None:
    write, overrides, says = REFUSED[case]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    arguments = (*T, "dataset=local", "dataset.path=data", "run.dir=run", *overrides)
    hf = str(tmp_path.parent / "hf")
    result = forked("train", *arguments, cwd=tmp_path, HF_HOME=hf, HF_HUB_OFFLINE="1")
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.search(says, result.stderr), result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "this is a bug" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


# huggingface/pytorch-image-models#334, fastai/fastai#2270
@pytest.mark.slow
def test_what_is_read_and_what_is_not_is_told(tmp_path: Path, atom: Callable) -> None:
    """Linked folders are read, each file once; header, run.yaml and report have the rest."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / ".cache").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    jsonl("a.jsonl", '{"text": ""}', '{"text": null}', '{"title": "b"}', "", "no record")(data)
    (data / "B.JSONL.GZ").write_bytes(gzip.compress(GOOD) + gzip.compress(GOOD))
    (elsewhere / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") * 2)
    (elsewhere / "deep" / "d.ndjson").write_bytes(DEEP + b"\n" + GOOD.strip())
    (data / "README.md").write_text("# About")
    (data / "linked").symlink_to(elsewhere)
    (data / "again").symlink_to(elsewhere / "deep")
    (elsewhere / "back").symlink_to(data)
    (data / "z.jsonl").hardlink_to(data / "a.jsonl")
    # 20 and 1 that is bad; 2; 2; 1 and 1 that is bad.
    arguments = (*T, "dataset=local", "dataset.path=data", "dataset.format=jsonl")
    tolerant = ("dataset.max_bad_fraction=0.1", "training.steps=5", "run.dir=run")
    hf = str(tmp_path.parent / "hf")
    for run in range(2):  # of the second run, the cache knows what was left out
        result = atom("train", *arguments, *tolerant, cwd=tmp_path, HF_HOME=hf)
        assert result.returncode == 0, result.stdout + result.stderr
        header = result.stdout
        assert "local, 27 documents in 4 files, tokenizer bytes" in header
        for phrase in (
            "left out: hidden files and folders: 1 (.cache)",
            "left out: files that are not jsonl: 1 (README.md)",
            "left out: files elsewhere, read through links: 2 (d.ndjson, c.jsonl)",
            "left out: further names of the same files: 1 (z.jsonl)",
            "left out: records with no text in the field: 2 (a.jsonl:21, a.jsonl:22)",
            "left out: records without the field: 1 (a.jsonl:23)",
            "left out: records that cannot be read: 2 (a.jsonl:25, d.ndjson:1)",
        ):
            assert phrase in header, header
        kept = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["resolved"]["data"]
        assert (kept["files"], kept["documents"], len(kept["left_out"])) == (4, 27, 7)
        (tmp_path / "run").rename(tmp_path / f"run{run}")
    assert atom("report", "run0", cwd=tmp_path).returncode == 0
    page = (tmp_path / "run0" / "report.html").read_text()
    assert "further names of the same files: 1 (z.jsonl)" in page
    # Bad documents are met in each pass, and are two all the same.
    lines = (tmp_path / "run0" / "events.jsonl").read_text().splitlines()
    met = [json.loads(line)["event"] for line in lines].count("bad_document")
    assert met > 2
    assert ">2 bad documents<" in page


# huggingface/datasets#7468, huggingface/datasets#7222
@pytest.mark.slow
def test_a_folder_is_streamed_whatever_its_name(tmp_path: Path, atom: Callable) -> None:
    """Brackets and colons are no pattern, and columns that nobody asked for do not matter."""
    data = tmp_path / "my [raw]::data"
    data.mkdir()
    for number, meta in enumerate((None, "x", {"y": [1]})):
        records = [json.dumps({"text": f"a record of {number}", "meta": meta})] * 9
        records.insert(1, json.dumps({"text": None, "meta": meta}))
        (data / f"{number}.jsonl").write_text("\n".join(records))
    arguments = (*T, "dataset=huggingface", "dataset.path='my [raw]::data'", "run.dir=run")
    environment = {"HF_HOME": str(tmp_path.parent / "hf"), "HF_HUB_OFFLINE": "1"}
    result = atom("train", *arguments, cwd=tmp_path, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "huggingface, 3 files, tokenizer bytes" in result.stdout
    assert atom("report", "run", cwd=tmp_path).returncode == 0
    assert re.search(r">\d+ documents without text<", (tmp_path / "run/report.html").read_text())
    assert re.search(
        r">0.00% padding, \d+ of \d+ documents cut<", (tmp_path / "run/report.html").read_text()
    )
