"""Detect files of another format from their first bytes."""

from __future__ import annotations

import codecs
from pathlib import Path

from atom.errors import UserError
from atom_datasets.compression import explained, opened
from atom_datasets.finding import open_regular

_SNIFFED = 4096

_OTHERS = (
    (b"\xff\xfe\0\0", "UTF-32 text", "UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    (b"\0\0\xfe\xff", "UTF-32 text", "UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    (b"\xff\xfe", "UTF-16 text", "UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text", "UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\x1f\x8b", "compressed with gzip", "a name that ends with .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "a name that ends with .zst"),
    (b"\xfd7zXZ\0", "compressed with xz", "a name that ends with .xz"),
    (b"PK\x03\x04", "a zip archive", "the files in it, unpacked"),
    (b"ARROW1", "an Arrow file", "dataset=huggingface, which reads its folder"),
    (b"%PDF-", "a PDF", "its text"),
)
_LFS = b"version https://git-lfs.github.com/spec/"
_PARQUET = b"PAR1"


def check_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer, a file that has not been fetched.

    Raises:
        UserError: it is a pointer.
    """
    with explained(path), open_regular(path) as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise _refusal(path, "the pointer of a file in Git LFS", "the file (git lfs pull)")


def check(path: Path, format: str, *, tolerant: bool) -> None:
    """Refuse a file that is unreadable, or as a whole not of ``format``.

    Args:
        path: the file, compressed or not.
        format: ``text``, ``jsonl``, ``webdataset`` or ``parquet``.
        tolerant: accept a bad text file; its reader counts it.

    Raises:
        UserError: names the actual format, and what would be valid.
    """
    check_pointer(path)
    with explained(path), opened(path) as stream:
        head = stream.read(_SNIFFED)
    if format == "text":
        if not tolerant:
            _check_text(path, head)
        return
    for signature, what, valid in _OTHERS:
        if head.startswith(signature):
            raise _refusal(path, what, valid)
    if format == "jsonl" and head.startswith(_PARQUET):
        raise _refusal(path, "a Parquet file", "dataset.format=parquet")
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise _refusal(path, "a web page, and no data", "the file itself, downloaded again")


def _check_text(path: Path, head: bytes) -> None:
    for signature, what, valid in (
        *_OTHERS,
        (_PARQUET, "a Parquet file", "dataset.format=parquet"),
    ):
        if head.startswith(signature):
            raise _refusal(path, what, valid)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < _SNIFFED)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1} is not UTF-8"
    else:
        if b"\0" not in head:
            return
        reason = f"byte {head.index(0) + 1} is zero"
    raise UserError(
        f"{path} is no text ({reason})",
        valid="UTF-8 text, or another dataset.format",
        key="dataset.path",
    )


def _refusal(path: Path, what: str, valid: str) -> UserError:
    return UserError(f"{path} is {what}", valid=f"{valid}", key="dataset.path")
