"""Tokenizers and data from a stranger execute nothing: they are read as data, or refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


class Payload:
    """What unpickling would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def refused(atom: Callable, small: tuple[str, ...], tmp_path: Path) -> Callable:
    """Return the one sentence of a refusal that ran nothing and left nothing."""
    place = tmp_path / "run"

    def run(*overrides: str) -> str:
        done = atom("train", *small, *overrides, f"run.dir={place}", cwd=tmp_path, timeout=60)
        assert done.returncode == 2, done.stdout + done.stderr
        (said,) = done.stderr.splitlines()
        assert not (tmp_path / "mark").exists(), "something was executed"
        assert not place.exists()
        return said

    return run


def test_tokenizer(refused: Callable, tmp_path: Path) -> None:
    """Code beside it is not imported, and what is no tokenizer is not unpickled to see."""
    folder, mark = tmp_path / "tokenizer", tmp_path / "mark"
    folder.mkdir()
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    payload = pickle.dumps(Payload(mark))
    (folder / "tokenizer.model").write_bytes(payload)
    given = ("tokenizer=hf", f"tokenizer.path={folder}")
    assert "holds no tokenizer" in refused(*given)
    (folder / "tokenizer.json").write_bytes(payload)
    assert "cannot be read as a tokenizer" in refused(*given)
    (folder / "tokenizer.json").write_text('{"model": ' + "[" * 100_000)
    assert "cannot be read as a tokenizer" in refused(*given)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")  # reading it would wait for ever
    assert "holds tokenizer.json, which is no regular file" in refused(*given)


def test_dataset_path(refused: Callable, tmp_path: Path) -> None:
    """A path is a name of files and nothing else: no command, no device, no code of a dataset."""
    mark = tmp_path / "mark"
    local = "dataset=local"
    assert "dataset.path" in refused(local, f"dataset.path='$(touch {mark})'")
    assert "dataset.path" in refused(local, f"dataset.path='|touch {mark}'")
    assert "dataset.path" in refused(local, "dataset.path=/dev/zero")
    os.mkfifo(tmp_path / "pipe.txt")
    assert "dataset.path" in refused(local, f"dataset.path={tmp_path}/pipe.txt")
    table = tmp_path / "evil.parquet"
    table.write_bytes(pickle.dumps(Payload(mark)))
    assert "evil.parquet" in refused(local, f"dataset.path={table}")
    script = tmp_path / "evil"
    script.mkdir()
    (script / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    assert "dataset.path" in refused("dataset=huggingface", f"dataset.path={script}")
