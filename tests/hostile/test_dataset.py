"""A dataset from a stranger is data: nothing is unpickled, and no file but its own is read."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

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
def victim(forked: Callable, tmp_path: Path) -> Victim:
    return Victim(forked, tmp_path)


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
