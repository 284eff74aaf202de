"""Write files of all formats, and read them with ``local``."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from atom.data.dealing import dealt
from atom.errors import UserError
from atom.plugin import Document
from atom_datasets import local
from atom_datasets.config import Local

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
TEXTS = ["one\n", "zwei größer 語 🙂", "", "2024-01-31", "three", " "]


def made(path: Path | list[Path], **parameters: object) -> Any:
    paths = str(path) if isinstance(path, Path) else [str(one) for one in path]
    return dealt(local.source(Local.model_validate({"path": paths} | parameters)))


def documents(source: Any, lanes: int = 1) -> list[Document]:
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
