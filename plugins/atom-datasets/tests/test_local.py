"""``local``: files of all formats, and what can be wrong with them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from atom.errors import UserError
from atom.plugin import Document
from atom_datasets import json_lines, local, records
from atom_datasets.config import Local
from atom_datasets.json_lines import Row

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
TEXTS = ["one\n", "zwei größer 語 🙂", "", "2024-01-31", "three", " "]


def made(path: Path | list[Path], **parameters: object) -> local.LocalSource:
    paths = str(path) if isinstance(path, Path) else [str(one) for one in path]
    return local.source(Local.model_validate({"path": paths} | parameters))


def documents(source: local.LocalSource, lanes: int = 1) -> list[Document]:
    """Return the documents of one pass, sorted."""
    source.check()
    found = [
        document for lane in range(lanes) for document in source.lane(lane, lanes, seed=0, epoch=0)
    ]
    return sorted(found, key=lambda document: document.text)


def texts(source: local.LocalSource) -> list[str]:
    return [document.text for document in documents(source)]


def write_jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_parquet(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def mistake(source: local.LocalSource) -> UserError:
    with pytest.raises(UserError) as error:
        source.check()
    return error.value


# ---------------------------------------------------------------------------- what can be read


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_text(suffix: str, tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        path = tmp_path / f"{number}.md{suffix}"
        path.write_bytes(COMPRESSIONS[suffix](text.encode()))
    assert texts(made(tmp_path)) == sorted(filter(None, TEXTS))


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_json_lines(suffix: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "n": number}) for number, text in enumerate(TEXTS)]
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(COMPRESSIONS[suffix]("\n".join(lines).encode()))
    assert texts(made(path)) == sorted(filter(None, TEXTS))


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_parquet(suffix: str, tmp_path: Path) -> None:
    plain = write_parquet(tmp_path / "plain", content=[*TEXTS, None], n=[0] * 7)
    path = tmp_path / f"data.parquet{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](plain.read_bytes()))
    assert texts(made(path, text_field="content")) == sorted(filter(None, TEXTS))


def test_records_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        '\ufeff{"text": "first", "meta": {"a": 1}}\n'
        "\n"
        '{"text": null}\n'
        '{"meta": "of another type"}\r\n'
        '{"text": "\\ud800 half a pair", "meta": 3}\n'
        '{"text": "nul \\u0000 and line\\u2028separator", "new": [1]}\n'
        '{"text": "last, without line end"}'
    )
    assert [(document.id, document.text) for document in documents(made(path))] == [
        (f"{path}:1", "first"),
        (f"{path}:7", "last, without line end"),
        (f"{path}:6", "nul \0 and line\u2028separator"),
        (f"{path}:5", "\ufffd half a pair"),
    ]


def test_texts_that_read_like_dates_stay_texts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "2024-01-31"}, {"text": "2024-02-01"})
    assert texts(made(path)) == ["2024-01-31", "2024-02-01"]


def test_long_text_comes_in_parts_also_compressed(tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(100))
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    parts = list(made(path, max_chars=128).lane(0, 1, seed=0, epoch=0))
    parts.sort(key=lambda part: int(part.id.rpartition("#")[2]))
    assert len(parts) > 10
    assert parts[0].id == f"{path}#0"
    assert "".join(part.text for part in parts) == text


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\r\nb\rc\n")
    assert texts(made(path)) == ["a\r\nb\rc\n"]


# ---------------------------------------------------------------------------- which files


def test_paths_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b.md", "sub/c.txt", "sub/deep/d.txt", ".hidden", "[e].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(Path(name).stem)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path, expected in {
        ".": "[e] a b c d",
        "sub": "c d",
        "a.txt": "a",
        "*.txt": "[e] a",
        "**/*.txt": "[e] a c d",
        "[e].txt": "[e]",
        "~/b.md": "b",
        ".hidden": ".hidden",
    }.items():
        assert texts(local.source(Local(path=path))) == expected.split(), path
    assert texts(local.source(Local(path=["sub/*.txt", "sub", "b.md"]))) == ["b", "c", "d"]


def test_a_format_chooses_within_a_folder_and_overrules_a_suffix(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"text": "record"})
    (tmp_path / "README.md").write_text("readme")
    (tmp_path / "data.log").write_text('{"text": "from log"}')
    assert texts(made(tmp_path, format="jsonl")) == ["record"]
    assert texts(made(tmp_path / "a.jsonl", format="text")) == ['{"text": "record"}\n']
    assert texts(made(tmp_path / "data.log", format="jsonl")) == ["from log"]
    assert texts(made(tmp_path / "*.log", format="jsonl")) == ["from log"]


# ---------------------------------------------------------------------------- the cache


def test_a_table_is_made_once_and_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    rows = records._read

    def watched(file: records.File, *arguments: str) -> Iterator[Row]:
        read.append(file.name)
        return rows(file, *arguments)

    monkeypatch.setattr(records, "_read", watched)
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "first"})
    for _ in range(3):
        local._documents.cache_clear()  # as in another process
        assert texts(made(path)) == ["first"]
    assert read == [path]
    write_jsonl(path, {"text": "second"})
    local._documents.cache_clear()
    assert texts(made(path)) == ["second"]
    assert read == [path, path]


def test_the_digest_is_of_what_is_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "first", "title": "First"})
    digest = made(path).check()
    assert digest == made(path).check()
    assert digest != made(path, text_field="title").check()
    os.utime(path, ns=(1, 1))
    assert digest == made(path).check()
    write_jsonl(path, {"text": "First", "title": "First"})
    assert digest != made(path).check()


@pytest.mark.parametrize("suffix", list(COMPRESSIONS)[1:])
def test_compressed_files_in_pieces_and_cut_off(suffix: str, tmp_path: Path, cache: Path) -> None:
    text, record = os.urandom(10_000).hex(), b'{"text": "record"}\n' * 5000
    compress = COMPRESSIONS[suffix]
    path, rows = tmp_path / f"a.txt{suffix}", tmp_path / f"a.jsonl{suffix}"

    path.write_bytes(compress(text.encode()) + compress(b"more"))
    assert texts(made(path)) == [text + "more"]
    rows.write_bytes(compress(record) + compress(record))
    assert len(documents(made(rows))) == 10_000

    path.write_bytes(compress(text.encode())[:-2000])
    rows.write_bytes(compress(record)[:-8])
    local._documents.cache_clear()
    assert f"{path} cannot be decompressed" in str(mistake(made(path)))
    assert f"{rows} cannot be decompressed" in str(mistake(made(rows)))
    assert len(list((cache / "atom_datasets").glob("*[!n]"))) == 1, "half a copy was left behind"


def test_the_library_speaks_again_afterwards(tmp_path: Path) -> None:
    datasets.enable_progress_bars()
    datasets.logging.set_verbosity_warning()
    (tmp_path / "a.jsonl").write_text("no record")
    mistake(made(tmp_path / "a.jsonl"))
    texts(made(write_jsonl(tmp_path / "b.jsonl", {"text": "x"})))
    assert datasets.logging.get_verbosity() == datasets.logging.WARNING
    assert not datasets.are_progress_bars_disabled()


def test_the_source_can_be_sent_to_another_process(tmp_path: Path) -> None:
    source = made([tmp_path / "a", tmp_path / "b"])
    assert pickle.loads(pickle.dumps(source)) == source


# ---------------------------------------------------------------------------- mistakes


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    for path, format, says in (
        ("nowhere", "auto", "no such file or folder"),
        ("empty", "auto", "no file in this folder"),
        ("text", "parquet", "whose suffix says parquet"),
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
    assert f"{tmp_path}/a.{suffix} is no file" in str(error)


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
