"""Write documents of token ids in the formats of others, and read them with ``tokens``."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from atom.errors import UserError
from atom_datasets import tokens
from atom_datasets.config import Tokens

EOS = 9
DOCUMENTS = [[1, 2, 3, EOS], [EOS], [300, 4, 5, EOS], [6, EOS]]
CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


def index(
    lengths: Sequence[int],
    width: int,
    *,
    code: int = 8,
    magic: bytes = b"MMIDIDX\0\0",
    version: int = 1,
    count: int | None = None,
    pointers: Sequence[int] | None = None,
    entries: Sequence[int] | None = None,
    modes: Sequence[int] = (),
) -> bytes:
    """Return an index of Megatron, as its source describes it."""
    begins = [width * sum(lengths[:number]) for number in range(len(lengths))]
    entries = list(range(len(lengths) + 1)) if entries is None else entries
    sequences = len(lengths) if count is None else count
    return b"".join(
        [
            struct.pack("<9sQBQQ", magic, version, code, sequences, len(entries)),
            np.array(lengths, "<i4").tobytes(),
            np.array(begins if pointers is None else pointers, "<i8").tobytes(),
            np.array(entries, "<i8").tobytes(),
            np.array(modes, "i1").tobytes(),
        ]
    )


def write_megatron(
    folder: Path, documents: Sequence[Sequence[int]], dtype: str = "uint16", name: str = "a"
) -> dict[str, Any]:
    ids = [each for document in documents for each in document]
    (folder / f"{name}.bin").write_bytes(np.array(ids, dtype).tobytes())
    width = np.dtype(dtype).itemsize
    written = index([len(each) for each in documents], width, code=CODES[dtype])
    (folder / f"{name}.idx").write_bytes(written)
    return {"path": str(folder / name)}


def write_npy(
    folder: Path, documents: Sequence[Sequence[int]], dtype: str = "uint16", name: str = "a"
) -> dict[str, Any]:
    """Write ids without a header and a line for each document, as Dolma does."""
    ids = [each for document in documents for each in document]
    (folder / f"{name}.npy").write_bytes(np.array(ids, dtype).tobytes())
    lines, end = [], 0
    for number, document in enumerate(documents):
        begin, end = end, end + len(document)
        lines.append(f'{begin},{end},id-{number},"s3://a, ""b""\n.json.gz",{number}\r\n')
    (folder / f"{name}.csv.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    return {"path": str(folder / f"{name}.npy"), "dtype": dtype}


def write_lists(
    folder: Path, documents: Sequence[Sequence[int] | None], dtype: str = "int32", name: str = "a"
) -> dict[str, Any]:
    column = pa.array(documents, pa.list_(pa.from_numpy_dtype(np.dtype(dtype))))
    table = pa.table({"input_ids": column, "attention_mask": [1] * len(documents)})
    pq.write_table(table, folder / f"{name}.parquet", row_group_size=3)
    return {"path": str(folder / f"{name}.parquet")}


WRITERS = {"megatron": write_megatron, "npy": write_npy, "parquet": write_lists}


def made(cache: Path, **parameters: Any) -> tokens.TokensSource:
    context: Any = SimpleNamespace(cache=cache)
    return tokens.source(Tokens.model_validate(parameters), context)


def read(source: tokens.TokensSource) -> list[list[int]]:
    source.check()
    documents = source.documents()
    return [documents[number].tokens.tolist() for number in range(len(documents))]


def mistake(source: tokens.TokensSource) -> UserError:
    with pytest.raises(UserError) as error:
        source.check()
    assert "\n" not in error.value.sentence()
    return error.value
