"""Read one text column of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.errors import UserError, nearest
from atom_datasets.compression import Budget
from atom_datasets.json_lines import WITHOUT_TEXT, Row, as_text

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

_ROWS = (16, 1024)
"""Rows per read: few if texts are so long that many would fill the memory."""

_TOGETHER = 1 << 30
"""Bytes per read, as far as the size is known in advance."""


def check(path: Path, name: Path, text_field: str | None) -> None:
    """Refuse a file that is not Parquet, or lacks the text column.

    Args:
        path: the file.
        name: the file's name in messages.
        text_field: the column; None: all are read, as records.

    Raises:
        UserError: says why.
    """
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with told(name, "no Parquet file"):
        schema = pq.read_schema(path)
    if text_field is None:
        return
    if text_field not in schema.names:
        raise UserError(
            f"{name} has no such column; {nearest(text_field, schema.names)}",
            key="dataset.text_field",
            value=text_field,
        )
    kind = schema.field(text_field).type
    if not is_text(kind):
        raise UserError(
            f"holds {kind} and no text in {name}", key="dataset.text_field", value=text_field
        )


def read(path: Path, name: Path, text_field: str | None, left: Budget) -> Iterator[Row]:
    """Yield the rows of a file accepted by :func:`check`; without a column, as JSON of all.

    Raises:
        UserError: the file is damaged, or its texts exceed the budget.
    """
    import pyarrow.parquet as pq

    if text_field is None:
        yield from _records(path, name, left)
        return
    number = 0
    with told(name, "damaged"), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_rows(file, text_field), columns=[text_field]):
            for text in texts(batch.column(0)):
                number += 1
                # A text that is stored once may occur in any number of rows.
                left.use(len(text or ""), name)
                if isinstance(text, bytes):
                    problem = f"row {number} of {name} is not UTF-8"
                    yield Row(number, problem=problem)
                else:
                    yield Row(number, text or None, note=None if text else WITHOUT_TEXT)


def _records(path: Path, name: Path, left: Budget) -> Iterator[Row]:
    import pyarrow.parquet as pq

    number = 0
    with told(name, "damaged"), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS[0]):
            for record in batch.to_pylist():
                number += 1
                text = as_text(without_nulls(record))
                left.use(len(text), name)
                yield Row(number, text)


def without_nulls(value: Any) -> Any:
    """Return a value of a table without the fields that are null.

    Rows of a column have the same fields, so that one has null for what only another row has.
    """
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value


def _rows(file: Any, column: str) -> int:
    """Return the number of rows per read: each may have the longest text of its column."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    largest = max(
        (
            chunk.total_uncompressed_size
            for group in groups
            for chunk in map(group.column, range(group.num_columns))
            if chunk.path_in_schema == column
        ),
        default=0,
    )
    fewest, most = _ROWS
    return min(most, max(fewest, _TOGETHER // max(largest, 1)))


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type contains text, or only nulls."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def texts(column: pa.Array) -> list[Any]:
    """Return the texts of a column, None for null, and bytes for those that are not UTF-8."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return [_decoded(data) for data in column.cast(pa.large_binary()).to_pylist()]


def _decoded(data: bytes | None) -> str | bytes | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return data


@contextmanager
def told(name: Path, what: str) -> Iterator[None]:
    """Report an error of pyarrow as a :class:`UserError`: ``name`` is ``what``."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).splitlines()[0].split()).rstrip(".")
        raise UserError(
            f"{name} is {what} ({reason})",
            valid="a complete copy of the file",
            key="dataset.path",
        ) from None
