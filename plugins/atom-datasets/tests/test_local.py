"""``local``: files of all formats, and its cache."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from local_files import (
    COMPRESSIONS,
    TEXTS,
    documents,
    made,
    mistake,
    texts,
    write_jsonl,
    write_parquet,
)

from atom.data.dealing import dealt
from atom_datasets import local, records
from atom_datasets.config import Local
from atom_datasets.json_lines import Row

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
        assert texts(dealt(local.source(Local(path=path)))) == expected.split(), path
    assert texts(dealt(local.source(Local(path=["sub/*.txt", "sub", "b.md"])))) == ["b", "c", "d"]


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
    text, record = os.urandom(10_000).hex(), b'{"text": "%s"}\n' % (b"record" * 15) * 1000
    compress = COMPRESSIONS[suffix]
    path, rows = tmp_path / f"a.txt{suffix}", tmp_path / f"a.jsonl{suffix}"

    path.write_bytes(compress(text.encode()) + compress(b"more"))
    assert texts(made(path)) == [text + "more"]
    rows.write_bytes(compress(record) + compress(record))
    assert len(documents(made(rows))) == 2_000

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
