"""``local``: the JSON members of tar archives are documents, and damaged archives are refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from local_files import documents, made, mistake, texts

from atom_datasets import tar_members

MEMBERS = {
    "a/000.json": json.dumps({"text": "one"}),
    "a/000.jpg": "an image",
    "a/001.JSON": json.dumps({"text": "two", "url": "x"}, indent=1),
    "a/002.meta.json": json.dumps({"text": "not a record"}),
    "../003.json": json.dumps({"text": "three"}),
    "/etc/004.json": json.dumps({"text": ""}),
    "n" * 300 + ".json": json.dumps({"text": "größer"}),
}


def archive(members: dict[str, str], format: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            data = content.encode()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("005.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_documents(format: int, suffix: str, tmp_path: Path) -> None:
    data = archive(MEMBERS, format)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == "tar.gz" else data)
    source = made(path)
    found = {document.id: document.text for document in documents(source)}
    assert found == {
        f"{path}#1": "one",
        f"{path}#3": "two",
        f"{path}#5": "three",
        f"{path}#7": "größer",
    }
    left_out = source.contents().left_out
    assert (
        "members of archives that are not JSON: 3 (a/000.jpg, a/002.meta.json, 005.json)"
        in left_out
    )
    assert any(phrase.startswith("records with no text in the field: 1") for phrase in left_out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name, "cache"]


def test_the_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archive({"0.json": '{"content": "x"}', "0.txt": ""}))
    assert texts(made(tmp_path / "a.tar", text_field="content")) == ["x"]
    assert "did you mean content?" in str(mistake(made(tmp_path / "a.tar", text_field="contents")))


WHOLE = archive({"0.json": '{"text": "one"}', "1.json": '{"text": "two"}'})
SECOND = 512 * 3  # after the folder, and the header and content of 0.json


def negative(data: bytes) -> bytes:
    """Give a member a negative size, in the binary form, with a valid checksum."""
    header = bytearray(data[SECOND : SECOND + 512])
    header[124:136] = b"\xff" * 10 + b"\xf8\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:SECOND] + bytes(header) + data[SECOND + 512 :]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[: SECOND + 520], "a.tar is truncated within member 2"),
        (
            lambda _: archive({"0.jpg": "x" * 600})[:1200],
            "a.tar is truncated or damaged (unexpected end of data)",
        ),
        (lambda data: data[:SECOND], "a.tar is truncated: it has no end mark"),
        (lambda data: data[: SECOND + 100], "a.tar is truncated: it has no end mark"),
        # tarfile takes a damaged header for the end
        (
            lambda data: data[:SECOND] + b"x" * 512 + data[SECOND + 512 :],
            "a.tar is damaged: byte 1,536 begins no member",
        ),
        (lambda data: data + data, "a.tar has more after its end mark; valid: one archive"),
        (negative, "a.tar has a member of negative size"),
        (lambda _: b"{}" * 900, "a.tar is no tar archive"),
        (gzip.compress, "a.tar is compressed with gzip; valid: a name that ends with .gz"),
        (lambda _: b"", "a.tar is no tar archive (empty file)"),
        (lambda _: archive({"0.json": "{"}), "member 1 of"),
        (lambda _: archive({"0.jpg": "", "1.json": "[1]"}), "member 2 of"),
        (lambda _: archive({"0.json": '{"text": 5}'}), "holds 5 and no text in member 1 of"),
        (lambda _: archive({"0.jpg": "{}"}), "there is no text in it"),
    ],
)
def test_damaged_archives(damage: Callable[[bytes], bytes], says: str, tmp_path: Path) -> None:
    (tmp_path / "whole.tar").write_bytes(WHOLE)
    assert texts(made(tmp_path / "whole.tar")) == ["one", "two"]
    path = tmp_path / "a.tar"
    path.write_bytes(damage(WHOLE))
    error = mistake(made(path))
    assert says in error.sentence()
    assert "\n" not in error.sentence()


def test_headers_and_members_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, member in (("a", "n" * 3000 + ".json"), ("b", "n" * 3001 + ".json"), ("c", "0.json")):
        (tmp_path / f"{name}.tar").write_bytes(archive({member: '{"text": "three"}'}))
    assert texts(made(tmp_path / "a.tar")) == ["three"]
    monkeypatch.setattr(tar_members, "_HEADER", 2048)
    error = mistake(made(tmp_path / "b.tar"))
    assert "b.tar is truncated or damaged (a header has more than" in error.told
    monkeypatch.setattr(tar_members, "RECORD", 16)
    assert "member 1 of" in mistake(made(tmp_path / "c.tar")).told
