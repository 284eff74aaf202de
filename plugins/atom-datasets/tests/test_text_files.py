"""Long files in parts: nothing lost, nothing too long."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.plugin import Document
from atom_datasets.finding import walk
from atom_datasets.text_files import TextFile, TextFiles

PIECES = st.sampled_from(["a", "\n", "\r\n", "é", "語", "🙂", "\x00", "line of text\n", "x" * 40])
CONTENTS = (
    st.lists(PIECES, max_size=60).map(lambda pieces: "".join(pieces).encode())
    | st.binary(max_size=300)
    | st.lists(st.sampled_from([b"\x80", b"\xe2\x82", b"\xf0\x9f", b"a", b"\n"]), max_size=300).map(
        b"".join
    )
)


def documents(folder: Path, contents: Iterable[bytes], max_chars: int) -> list[list[Document]]:
    """Return the documents of each file."""
    files = []
    for number, content in enumerate(contents):
        path = folder / str(number)
        path.write_bytes(content)
        files.append(TextFile(path.name, path, len(content)))
    read = TextFiles(files, max_chars)
    found = [read[index] for index in range(len(read))]
    return [[d for d in found if d.id.partition("#")[0] == file.name] for file in files]


@settings(deadline=None, max_examples=300)
@given(st.lists(CONTENTS, max_size=4), st.integers(64, 200))
def test_parts_put_together_are_the_file(contents: list[bytes], max_chars: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        read = documents(Path(folder), contents, max_chars)
    for content, parts in zip(contents, read, strict=True):
        assert "".join(part.text for part in parts) == content.decode("utf-8-sig", errors="replace")
        assert all(0 < len(part.text) <= max_chars for part in parts) or content == b"\xef\xbb\xbf"
        flags = [(part.starts, part.ends) for part in parts]
        last = len(parts) - 1
        assert flags == [(index == 0, index == last) for index in range(len(parts))]
        if len(content) <= max_chars:
            assert len(parts) == (len(content) > 0)


def test_cuts_are_at_line_ends(tmp_path: Path) -> None:
    content = "".join(f"line {number}\n" for number in range(10_000))
    (parts,) = documents(tmp_path, [content.encode()], 2000)
    assert len(parts) == -(-len(content) // 1000)
    assert all(part.text.endswith("\n") for part in parts)
    assert [part.id for part in parts[:3]] == ["0#0", "0#1", "0#2"]


def test_a_line_without_end_is_cut_between_characters(tmp_path: Path) -> None:
    (parts,) = documents(tmp_path, [("語" * 1000).encode()], 100)
    assert len(parts) == 60
    assert "".join(part.text for part in parts) == "語" * 1000


def test_a_short_file_is_one_document(tmp_path: Path) -> None:
    assert documents(tmp_path, [b"a\r\nb"], 64) == [[Document("a\r\nb", "0")]]


def test_no_document_beyond_the_last(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("text")
    read = TextFiles([TextFile("a", path, 4)], 64)
    with pytest.raises(IndexError):
        read[1]


def test_walk_is_sorted_and_leaves_out(tmp_path: Path) -> None:
    for name in ("b/c", "b-a", "a", ".hidden", ".git/x", "b/without/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    found = walk(tmp_path, frozenset({"without"}))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a", "b-a", "b/c"]
