"""A dataset from a stranger is data: nothing is unpickled, and no file but its own is read."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec.implementations.zip  # noqa: F401 (the commands are forks, and need not import it)
import pandas as pd  # noqa: F401 (as above)
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.dataset  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

pytestmark = pytest.mark.slow  # the library that reads them takes seconds to import

SECRET = "swordfish"


class Touch:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


class Victim:
    def __init__(self, command: Callable, tmp_path: Path) -> None:
        self.folder, self.work, self.mark = tmp_path / "data", tmp_path / "work", tmp_path / "mark"
        self.folder.mkdir()
        self.work.mkdir()
        self.cache = tmp_path / "cache"
        self._command = command

    def run(self, *arguments: str, timeout: float = 120) -> str:
        """Return the sentence of a refusal that ran nothing, told nothing and left nothing."""
        result = self._command(
            "train", "tokenizer=bytes", "device=cpu", *arguments, cwd=self.work, timeout=timeout,
            HF_DATASETS_CACHE=str(self.cache), HF_HUB_OFFLINE="1",
        )  # fmt: skip
        said = result.stderr.strip().splitlines()[-1]
        assert result.returncode == 2, result.stderr
        assert not self.mark.exists(), "something was executed"
        assert SECRET not in result.stdout + result.stderr, "something was told"
        assert not list(self.work.iterdir()), "something was left behind"
        return said

    def huggingface(self, path: str | None = None) -> str:
        return self.run("dataset=huggingface", f"dataset.path={path or self.folder}")


@pytest.fixture
def victim(watched: Any, tmp_path: Path) -> Victim:
    made = Victim(watched, tmp_path)
    watched.places.append(made.cache)
    return made


@pytest.mark.parametrize("path", ["pandas", "json", "generator", "https://example.org/x", "a/b/c"])
def test_a_reader_by_name(path: str, victim: Victim) -> None:
    (victim.work.parent / "train.pkl").write_bytes(pickle.dumps(Touch(victim.mark)))
    said = victim.huggingface(path)
    assert f"dataset.path={path}" in said
    assert "OWNER/NAME" in said


@pytest.mark.parametrize(
    "files",
    ["../secret.txt", "/{tmp}/secret.txt", "file://{tmp}/secret.txt", "https://127.0.0.1:9/x.txt",
     "a/../../secret.txt", "~/secret.txt"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["data_files: {}", "data_files: [{{split: train, path: [{}]}}]"])
def test_a_card_that_names_files_elsewhere(files: str, form: str, victim: Victim) -> None:
    (victim.folder.parent / "secret.txt").write_text(SECRET)
    (victim.folder / "a.txt").write_text("hello")
    files = files.replace("/{tmp}", str(victim.folder.parent))
    files = files.replace("{tmp}", str(victim.folder.parent))
    card = form.format(f'"{files}"')
    (victim.folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  {card}\n---\nhello\n"
    )
    said = victim.huggingface()
    assert "names a file that is not in the dataset" in said
    assert files in said


@pytest.mark.parametrize("name", ["train.h5", "train.png", "train.wav"])
def test_formats_that_are_more_than_data(name: str, victim: Victim) -> None:
    (victim.folder / name).write_bytes(pickle.dumps(Touch(victim.mark)))
    assert "valid: arrow, csv, json, parquet, text, webdataset" in victim.huggingface()


@pytest.mark.parametrize("suffix", ["pth", "pyd", "pkl", "pickle"])
def test_entries_of_a_web_dataset(suffix: str, victim: Victim) -> None:
    with tarfile.open(victim.folder / "train.tar", "w") as tar:
        content = pickle.dumps(Touch(victim.mark))
        entry = tarfile.TarInfo(f"0.{suffix}")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    assert "there is no text in its column" in victim.huggingface()


def bomb(path: Path) -> None:
    """Make a file of a hundred megabytes or more, in a few kilobytes or one megabyte."""
    zeros = b"\0" * 2**20
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, zeros * 96)
        return
    if path.suffix == ".parquet":  # one text, 20,000 times
        indices = pa.array([0] * 20_000, pa.int32())
        text = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 2**20]))
        pq.write_table(pa.table({"text": text}), path, compression="zstd")
        return
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            for _ in range(1024):
                stream.write(zeros)
        return
    opens: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}
    with opens[path.suffix](path, "wb") as file:
        for _ in range(96):
            file.write(zeros)


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst", "txt.gz", "txt.xz", "parquet"])
def test_a_file_that_grows(suffix: str, victim: Victim) -> None:
    """It is left before it has filled the memory or the disk."""
    path = victim.folder / f"a.{suffix}"
    bomb(path)
    tolerant = ["dataset.max_bad_fraction=0.5"] if "txt" in suffix else []
    said = victim.run("dataset=local", f"dataset.path={path}", *tolerant)
    assert f"{path} decompresses to more than 200 times its size" in said
    copies = [file for file in victim.cache.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in copies) < 2**20


@pytest.mark.parametrize("suffix", ["jsonl.gz", "csv.gz", "jsonl.zip"])
def test_a_file_that_grows_in_a_folder_that_is_streamed(suffix: str, victim: Victim) -> None:
    path = victim.folder / f"a.{suffix}"
    bomb(path)
    assert f"{path} decompresses to more than 200 times its size" in victim.huggingface()


def test_many_small_files_that_grow(victim: Victim) -> None:
    """It is all of them together that count."""
    zeros = gzip.compress(b"\0" * (40 << 20))
    for number in range(2):
        (victim.folder / f"{number}.txt.gz").write_bytes(zeros)
    said = victim.run(
        "dataset=local", f"dataset.path={victim.folder}", "dataset.max_bad_fraction=0.5"
    )
    assert "1.txt.gz decompresses to more than 200 times its size" in said


def test_a_file_that_becomes_more_than_it_may(victim: Victim) -> None:
    path = victim.folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"x" * 2000 + b'"}'))
    for dataset in ("local", "huggingface"):
        said = victim.run(
            f"dataset={dataset}", f"dataset.path={victim.folder}", "dataset.max_bytes=1000"
        )
        assert f"dataset.max_bytes=1000 (command line): {path} decompresses to more" in said


def test_a_large_entry_of_a_web_dataset(victim: Victim) -> None:
    with tarfile.open(victim.folder / "train.tar", "w:gz") as tar:
        entry = tarfile.TarInfo("0.txt")
        entry.size = 80 << 20
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    assert "0.txt in an archive has more than 64 MiB" in victim.huggingface()


@pytest.mark.parametrize("dataset", ["local", "huggingface"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_line_without_an_end(name: str, dataset: str, victim: Victim) -> None:
    """A terabyte that takes no place on the disk."""
    path = victim.folder / name
    path.write_bytes(b'{"text": "')
    os.truncate(path, 1 << 40)
    said = victim.run(f"dataset={dataset}", f"dataset.path={victim.folder}")
    if (dataset, name) == ("local", "a.txt"):
        assert "is no text (byte 11 is zero)" in said
    else:
        assert f"line 1 of {path}" in said
        assert "has more than 64 MiB" in said


@pytest.mark.parametrize("kind", ["pipe", "device", "pipe in a folder", "device in a folder"])
def test_what_is_no_file(kind: str, victim: Victim) -> None:
    path = victim.folder / "a.txt"
    if kind.startswith("pipe"):
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    given = victim.folder if "folder" in kind else path
    for dataset in ("local", "huggingface") if "folder" in kind else ("local",):
        said = victim.run(f"dataset={dataset}", f"dataset.path={given}", timeout=30)
        assert f"{path} is not a regular file" in said
