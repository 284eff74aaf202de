"""``stdlib``: the library of the Python at hand."""

from __future__ import annotations

import pickle
import sysconfig
from pathlib import Path

import pytest

from atom.data.dealing import dealt
from atom.errors import UserError
from atom_datasets import stdlib
from atom_datasets.config import Stdlib

SOURCE = dealt(stdlib.source(Stdlib()))
LIBRARY = Path(sysconfig.get_path("stdlib"))


def test_a_pass_is_the_library_and_nothing_else() -> None:
    parts: dict[str, dict[int, str]] = {}
    for lane in range(16):
        for document in SOURCE.lane(lane, 16, seed=1, epoch=0):
            name, _, part = document.id.partition("#")
            assert int(part or 0) not in parts.setdefault(name, {})
            assert len(document.text) <= 65536
            parts[name][int(part or 0)] = document.text
    for name, texts in parts.items():
        content = (LIBRARY / name).read_bytes()
        assert "".join(texts[part] for part in sorted(texts)) == content.decode(
            "utf-8-sig", errors="replace"
        )
        assert not {"site-packages", "dist-packages", "__pycache__"} & set(name.split("/"))
    modules = {path.name for path in LIBRARY.glob("*.py") if path.stat().st_size > 0}
    assert modules == {name for name in parts if name.endswith(".py") and "/" not in name}
    assert "json/decoder.py" in parts
    assert any(len(texts) > 1 for texts in parts.values())


def test_a_python_without_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    with pytest.raises(UserError, match="no source of the standard library") as error:
        SOURCE.check()
    assert error.value.key == "dataset.name"


def test_the_source_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(SOURCE)) == SOURCE
