"""``local``: files and folders that cannot be read are refused in one sentence."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from local_files import (
    COMPRESSIONS,
    made,
    mistake,
    texts,
    write_jsonl,
    write_parquet,
)

from atom.errors import UserError
from atom.io.process import call
from atom_datasets import json_lines
from atom_datasets.config import Local


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    for path, format, says in (
        ("nowhere", "auto", "no such file or folder"),
        ("empty", "auto", "no file in this folder"),
        ("text", "parquet", "a suffix of parquet"),
        ("*.txt", "auto", "no file matches"),
    ):
        error = mistake(made(tmp_path / path, format=format))
        assert (error.key, error.value) == ("dataset.path", str(tmp_path / path))
        assert says in str(error)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_a_link_to_nowhere(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{suffix}").symlink_to(tmp_path / "gone")
    error = mistake(made(tmp_path))
    assert error.key == "dataset.path"
    assert f"{tmp_path}/a.{suffix} is not a regular file" in str(error)


def test_one_path_of_several_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    error = mistake(made([tmp_path / "a.txt", tmp_path / "b.txt"]))
    assert error.value == str(tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            '{"text": "good"}\n{"text": \n',
            "line 2 of {path} is no JSON record (Expecting value at column 9)",
        ),
        ('{"text": "good"}\n\n{"text": "a"} {}\n', "line 3 of {path} is no JSON record (Extra"),
        ('"text"\n', "line 1 of {path} is no JSON record (it is a str)"),
        ("[1, 2]\n", "line 1 of {path} is no JSON record (it is a list)"),
        ("\xff\n", "line 1 of {path} is no JSON record ("),
        ('{"text": 5}\n', "holds 5 and no text in line 1 of {path}"),
    ],
)
def test_a_line_that_is_no_record(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content.encode("latin-1"))
    good = write_jsonl(tmp_path / "good.jsonl", *[{"text": "good"}] * 2000)
    error = mistake(made([good, path]))
    assert says.format(path=path) in str(error)
    assert "\n" not in str(error)


def test_a_line_that_is_too_long_is_one_bad_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "RECORD", 40)
    monkeypatch.setattr(json_lines, "_PART", 16)
    path = write_jsonl(tmp_path / "a.jsonl", *({"text": text} for text in ("one", "x" * 80, "two")))
    assert "line 2 of" in mistake(made(path)).told
    assert texts(made(path, max_bad_fraction=0.5)) == ["", "one", "two"]
    another = tmp_path / "b.jsonl"
    another.write_text(path.read_text() + "y" * 99)
    assert texts(made(another, max_bad_fraction=0.5)) == ["", "", "one", "two"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_what_compressed_files_may_become(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content = b'{"text": "' + b"x" * 989 + b'"}'
    path.write_bytes(gzip.compress(content))
    assert mistake(made(path, max_bytes=1000)).key == "dataset.max_bytes"
    assert len(texts(made(path, max_bytes=1001))) == 1


def test_a_field_that_no_record_has(tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path / "a.jsonl", {"content": "a"}, {"title": "b"})
    parquet = write_parquet(tmp_path / "a.parquet", content=["a"], title=["b"])
    for path in (jsonl, parquet):
        error = mistake(made(path))
        assert (error.key, error.value) == ("dataset.text_field", "text")
        assert "valid: content, title" in str(error)
        assert "did you mean content?" in str(mistake(made(path, text_field="contents")))


def test_a_column_that_one_file_has_not(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=["a"])
    write_parquet(tmp_path / "b.parquet", other=["a"])
    assert "b.parquet has no such column; valid: other" in str(mistake(made(tmp_path)))


def test_a_column_that_is_no_text(tmp_path: Path) -> None:
    error = mistake(made(write_parquet(tmp_path / "a.parquet", text=[1, 2])))
    assert error.key == "dataset.text_field"
    assert "holds int64 and no text" in str(error)


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"text" * 100])
def test_a_file_that_is_no_parquet(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    error = mistake(made(path))
    assert error.key == "dataset.path"
    assert "is no Parquet file" in str(error)


def test_a_parquet_that_is_damaged_inside(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=[f"{n}" * 50 for n in range(10_000)])
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    error = mistake(made(path))
    assert error.key == "dataset.path"
    assert "damaged" in str(error)


def test_no_text_in_any_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "c.jsonl").touch()
    write_jsonl(tmp_path / "d.jsonl", {"text": ""}, {"text": None})
    write_parquet(tmp_path / "e.parquet", text=pa.array(["", None], pa.string()))
    write_parquet(tmp_path / "f.parquet", text=pa.array([], pa.large_string()))
    for path in sorted(tmp_path.glob("*.*")):
        error = mistake(made(path))
        assert (error.key, error.value) == ("dataset.path", str(path))
        assert "no text" in str(error)


def test_files_of_two_formats(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"text": "a"})
    (tmp_path / "README.md").write_text("readme")
    error = mistake(made(tmp_path))
    assert "jsonl (a.jsonl) and text (README.md); choose one with dataset.format" in str(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"caf\xe9", "byte 4 is not UTF-8"),
        (b"\x7fELF\x02\0\0", "byte 6 is zero"),
    ],
)
def test_files_that_are_no_text(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "image").write_bytes(content)
    error = mistake(made(tmp_path))
    assert f"{tmp_path / 'image'} is no text" in str(error)
    assert says in str(error)


def test_a_character_across_the_part_that_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("xx" + "語" * 2000)
    assert texts(made(path)) == ["xx" + "語" * 2000]


@pytest.mark.parametrize("suffix", list(COMPRESSIONS)[1:])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_files_that_are_not_compressed_as_they_say(suffix: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_text('{"text": "plain"}')
    error = mistake(made(path))
    assert error.key == "dataset.path"
    assert f"{path} cannot be decompressed: " in str(error)


@pytest.mark.parametrize(
    ("key", "value"), [("path", []), ("path", ""), ("format", "csv"), ("max_chars", 1), ("x", 1)]
)
def test_parameters_that_cannot_be(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        Local.model_validate({"path": "a", key: value})


# ---------------------------------------------------------------------------- bad documents


def test_bad_lines_are_put_up_with_up_to_a_fraction(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [f'{{"text": "record {n}"}}' for n in range(20)]
    lines[7] = '{"text": "cut'
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"line 8 of .*a\.jsonl is no JSON record"):
        made(path).check()
    with pytest.raises(UserError, match=r"1 of 20 documents cannot be read, more than that"):
        made(path, max_bad_fraction=0.04).check()
    tolerant = made(path, max_bad_fraction=0.05)
    tolerant.check()
    documents = list(tolerant.lane(0, 1, seed=0, epoch=0))
    assert len(documents) == 20
    (bad,) = [document for document in documents if document.problem]
    assert bad.text == ""
    assert bad.id == f"{path}:8"
    # The others come as they would if the line were whole.
    lines[7] = '{"text": "cut no more"}'
    path.write_text("\n".join(lines))
    whole = list(made(path).lane(0, 1, seed=0, epoch=0))
    assert [d.id for d in whole] == [d.id for d in documents]


@pytest.mark.parametrize("max_chars", [64, 65536])
def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path, max_chars: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a line of text\n" * 400 + b"caf\xe9\n" + b"a line of text\n" * 40)
    strict = made(path, max_chars=max_chars)
    with pytest.raises(UserError, match=r"line 401 of .*a\.txt: byte 0xe9 is not UTF-8"):
        list(strict.lane(0, 1, seed=0, epoch=0))
    other = tmp_path / "b.txt"
    other.write_text("text\n" * 10)
    tolerant = made([path, other], max_chars=max_chars, max_bad_fraction=0.6)
    documents = list(tolerant.lane(0, 1, seed=0, epoch=0))
    assert [d.problem for d in documents if d.problem] == [
        f"line 401 of {path}: byte 0xe9 is not UTF-8"
    ]
    assert all(not d.text for d in documents if d.problem)


@pytest.mark.parametrize("room", [0, 4096])
def test_a_cache_without_room(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder can be made, or the table does not fit; a child has the limit."""
    path = write_jsonl(tmp_path / "a.jsonl", *({"text": f"{n}" * 99} for n in range(999)))
    cache = tmp_path / "cache"
    if not room:
        cache.write_text("a file")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache / "datasets"))

    def limited() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if room:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        return str(mistake(made(path)))

    assert f"its records cannot be copied to the cache {cache}/datasets: " in call(limited)


def test_a_file_that_changes_or_goes_while_it_is_read(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("text of some length\n")
    documents = made(tmp_path).lane(0, 1, seed=0, epoch=0)
    next(documents)
    for path in tmp_path.iterdir():
        path.write_text("another text\n")
    with pytest.raises(UserError, match=r"has changed under the run \(it had 20 bytes and has 13"):
        next(documents)
    documents = made(tmp_path, max_chars=100).lane(0, 1, seed=0, epoch=0)
    next(documents)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        next(documents)


# ---------------------------------------------------------------------------- permissions


@pytest.mark.parametrize(
    ("path", "closed"),
    [
        ("data", "data/closed"),
        ("data/*/a.jsonl", "data/closed"),
        ("data/**/*.jsonl", "data/closed"),
        ("data", "data/open/a.jsonl"),
    ],
)
def test_what_may_not_be_read_is_not_left_out(path: str, closed: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("open", "closed"):
            (folder / "data" / name).mkdir(parents=True)
            write_jsonl(folder / "data" / name / "a.jsonl", {"text": name})
        folder.chmod(0o755)
        (folder / closed).chmod(0)
        receiver, sender = os.pipe()
        child = os.fork()
        if child == 0:  # root may read everything
            with suppress(BaseException):
                if os.geteuid() == 0:
                    os.setuid(65534)
                try:
                    made(folder / path).check()
                except UserError as error:
                    os.write(sender, str(error).encode())
            os._exit(0)
        os.close(sender)
        said = os.fdopen(receiver).read()
        os.waitpid(child, 0)
        (folder / closed).chmod(0o755)
    assert f"{folder / closed} cannot be read: Permission denied; valid: " in said
