"""Digests of contents: the same wherever and whenever, and read once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atom_datasets import identity


def parts(*files: Path, kept: Path) -> dict[str, str]:
    identity._content.cache_clear()  # as in another process
    return identity.parts(files, lambda: kept)


def test_names_are_those_within_the_folder_of_all(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    files = [tmp_path / "b.txt", tmp_path / "deep/a.txt"]
    for file in files:
        file.write_text("same")
    found = parts(*files, kept=tmp_path)
    assert list(found) == ["b.txt", "deep/a.txt"]
    assert len(set(found.values())) == 1
    assert list(parts(files[1], kept=tmp_path)) == ["a.txt"]


def test_the_order_of_contents_counts() -> None:
    assert identity.digest(["a", "b"], 1) != identity.digest(["b", "a"], 1)
    assert identity.digest(["a"], 1) != identity.digest(["a"], 2)


@pytest.mark.parametrize("at", [0, 70 << 20])
def test_a_large_file_is_sampled_from_end_to_end(at: int, tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate((70 << 20) + 1)
    before = parts(file, kept=tmp_path)
    with file.open("r+b") as stream:
        stream.seek(at)
        stream.write(b"x")
    assert parts(file, kept=tmp_path) != before


def test_what_has_not_changed_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, kept = tmp_path / "large", tmp_path / "kept"
    file.write_bytes(bytes(17 << 20))
    new = parts(file, kept=kept)
    os.utime(file, ns=(1, 1))
    assert parts(file, kept=kept) == new
    monkeypatch.setattr(identity, "_content", pytest.fail)
    assert identity.parts([file], lambda: kept) == new
    monkeypatch.undo()
    # A digest of what was written a moment ago is not kept: its time may not tell the next writing.
    os.utime(file)
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    parts(file, kept=kept)
    with file.open("r+b") as stream:
        stream.write(b"x")
    os.utime(file, ns=times)
    assert parts(file, kept=kept) != new
