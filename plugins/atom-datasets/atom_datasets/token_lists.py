"""Read a column of token lists of Parquet files, through flat copies in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from atom.errors import UserError, nearest
from atom_datasets.compression import Budget, explained
from atom_datasets.kept import derived
from atom_datasets.parquet import told
from atom_datasets.token_files import Stat, TokenFile, broken, mapped

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

_DTYPE = np.dtype("<u4")
_TOKENS = 1 << 22
"""Tokens read at once, if rows are of even length."""


def opened(path: Path, column: str, cache: Path, max_bytes: int | None) -> TokenFile:
    """Return the token file of a Parquet file; its rows are documents.

    Args:
        path: the file.
        column: the column of lists.
        cache: a folder for the copy.
        max_bytes: maximum bytes of the copy; None: the default of
            :class:`atom_datasets.compression.Budget`.

    Raises:
        UserError: the file is damaged, or has no such column.
    """
    check(path, column)
    with explained(path):
        stat = Stat.of(path)
    write = partial(_write, path, column, Budget(stat.size, max_bytes))
    copies = derived(cache, [stat], column, ["tokens", "ends"], write)
    tokens, ends = map(Stat.of_copy, copies)
    opens = partial(_ends, ends, path)
    documents, total = ends.size // 8, tokens.size // _DTYPE.itemsize
    return TokenFile(path, tokens, _DTYPE, 0, total, documents, opens)


def others(path: Path, column: str) -> list[str]:
    """Return the names of the other columns."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with told(path, "no Parquet file"):
        return [name for name in pq.read_schema(path).names if name != column]


def check(path: Path, column: str) -> None:
    """Refuse a file that is not Parquet, or has no such column of lists of integers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with told(path, "no Parquet file"):
        schema = pq.read_schema(path)
    if column not in schema.names:
        raise UserError(
            f"{path} has no such column; {nearest(column, schema.names)}",
            key="dataset.column",
            value=column,
        )
    kind = schema.field(column).type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(test(kind) for test in lists) or not pa.types.is_integer(kind.value_type):
        raise UserError(
            f"holds {kind} and no lists of token ids in {path}",
            valid="a column of lists of integers; dataset=local reads text",
            key="dataset.column",
            value=column,
        )


def _ends(kept: Stat, name: Path) -> Sequence[int]:
    found: Any = np.frombuffer(mapped(kept, name), dtype="<i8")
    return found


def _write(path: Path, column: str, left: Budget, files: Sequence[BinaryIO]) -> None:
    """Write the ids of all rows, and where each row ends."""
    import pyarrow.parquet as pq

    tokens, ends = files
    total = row = 0
    with told(path, "damaged"), pq.ParquetFile(path) as file:
        rows, most = _rows(file, column)
        # A run-length-encoded page can hold any number of ids.
        left.use(most * _DTYPE.itemsize, path)
        for batch in file.iter_batches(rows, columns=[column]):
            ids, sizes = _flat(batch.column(0), path, row)
            if total + len(ids) > most:
                raise broken(path, f"it has more than the {most:,} ids that its footer says")
            tokens.write(ids.tobytes())
            ends.write((total + np.cumsum(sizes)).astype("<i8").tobytes())
            total, row = total + len(ids), row + len(sizes)


def _rows(file: Any, column: str) -> tuple[int, int]:
    """Return the number of rows per read, and the number of ids in the file."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    chunks = [
        chunk
        for group in groups
        for chunk in map(group.column, range(group.num_columns))
        if chunk.path_in_schema.split(".")[0] == column
    ]
    counts = [chunk.num_values for chunk in chunks]
    pairs = zip(counts, groups, strict=True)
    longest = max((count / max(group.num_rows, 1) for count, group in pairs), default=1)
    return int(min(65536, max(1, _TOKENS // max(longest, 1)))), sum(counts)


def _flat(column: pa.Array, path: Path, first: int) -> tuple[np.ndarray[Any, Any], Any]:
    """Return the ids of a batch of rows, and the number of ids in each row."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    values = pc.list_flatten(column)
    if values.null_count:
        place = int(np.argmax(pc.is_null(values).to_numpy(zero_copy_only=False)))
        raise broken(path, f"row {_row(sizes, place, first)} has an id that is null")
    ids = values.to_numpy(zero_copy_only=False)
    wrong = (ids < 0) | (ids > np.iinfo(_DTYPE).max) if len(ids) else np.zeros(0, bool)
    if bool(wrong.any()):
        place = int(np.argmax(wrong))
        raise broken(path, f"row {_row(sizes, place, first)} has the id {ids[place]}")
    return ids.astype(_DTYPE), sizes.astype(np.int64)


def _row(sizes: Any, place: int, first: int) -> int:
    """Return the number of the row of an id, counted from 1."""
    return first + int(np.searchsorted(np.cumsum(sizes), place, side="right")) + 1
