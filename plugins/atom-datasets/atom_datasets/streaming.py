"""Make ``datasets`` stream one text column, or rows as records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from atom.errors import UserError, nearest
from atom_datasets import json_lines
from atom_datasets.links import original
from atom_datasets.parquet import is_text, without_nulls

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]

_ROWS = 256
"""Rows per table, or fewer if they reach the maximum bytes of a record."""


RECORD = "record"
"""The column of records, each as JSON."""


def read_records(builder: datasets.DatasetBuilder) -> None:
    """Make ``builder`` read all columns, as one column of records.

    Raises:
        UserError: it reads no table, for example images.
    """
    from datasets import Features, Value
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    config = builder.config
    if not hasattr(builder, "_cast_table"):
        raise UserError(
            f"is of the format {builder.name}, which has no records",
            valid="Parquet, JSON lines or CSV",
            key="dataset.path",
        )
    if isinstance(builder, Parquet):
        config.batch_size = config.batch_size or _ROWS
    elif isinstance(builder, Csv):
        # "NA", "null" and numbers are texts, too.
        config.dtype = "str"
        config.keep_default_na = False
    elif isinstance(builder, Json) and config.field is None and config.encoding == "utf-8":
        builder._generate_tables = _JsonTables(None)
    builder.info.features = Features({RECORD: Value("large_string")})
    builder._cast_table = _as_records


def read_only(builder: datasets.DatasetBuilder, text_field: str) -> None:
    """Make ``builder`` read the column ``text_field``, as text.

    By default builders read all columns and require the same types in all files: an unused column
    that is null in one file and nested in the next ends the stream.
    """
    from datasets import Features, Value
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.packaged_modules.text.text import Text

    if not hasattr(builder, "_cast_table"):  # images, web datasets: no table columns
        return
    config = builder.config
    if isinstance(builder, Parquet):
        config.columns = [text_field]
        # The default is the size of a file's first row group, which may be 0.
        config.batch_size = config.batch_size or _ROWS
    elif isinstance(builder, Csv):
        config.usecols = [text_field]
        # "NA", "null" and numbers are texts, too.
        config.features = Features({text_field: Value("string")})
        config.keep_default_na = False
    elif isinstance(builder, Json) and config.field is None and config.encoding == "utf-8":
        builder._generate_tables = _JsonTables(text_field)
    elif isinstance(builder, Text) and config.sample_by == "line":
        builder._generate_tables = _TextTables(builder, text_field)
    builder.info.features = Features({text_field: Value("large_string")})
    builder._cast_table = _Column(text_field)


def _as_records(table: pa.Table, **_: Any) -> pa.Table:
    """Return a table of rows as JSON, without what is null, as in the files of records."""
    import pyarrow as pa

    rows = [json_lines.as_text(without_nulls(row)) for row in table.to_pylist()]
    return pa.table({RECORD: pa.array(rows, pa.large_string())})


class _Column:
    """A transform that keeps one text column of a table."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, table: pa.Table, **_: Any) -> pa.Table:
        import pyarrow as pa

        if self._name not in table.column_names:
            raise no_column(self._name, table.column_names)
        column = table.column(self._name)
        if not is_text(column.type):
            raise UserError(
                f"holds {column.type} and no text", key="dataset.text_field", value=self._name
            )
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return pa.table({self._name: column.cast(pa.large_string())})


class _JsonTables:
    """A reader that makes tables of JSON lines, or of files with a single array."""

    def __init__(self, text_field: str | None) -> None:
        self._field = text_field

    def __call__(
        self, files_iterables: Iterable[Iterable[str]], **_: Any
    ) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        import pyarrow as pa
        from datasets.utils.file_utils import xopen

        name = self._field or RECORD
        for shard, files in enumerate(files_iterables):
            number = 0
            for file in files:
                with xopen(file, "rb") as stream:
                    rows = _json_rows(stream, original(file), self._field)
                    for batch in _batches(row.text for row in rows):
                        column = pa.array(batch, pa.large_string())
                        yield (shard, number), pa.table({name: column})
                        number += 1


class _TextTables:
    """A reader that makes tables of text lines, as ``datasets`` does, and refuses endless lines."""

    def __init__(self, builder: Any, text_field: str) -> None:
        self._config, self._cast = builder.config, _Column(text_field)

    def __call__(
        self, files_iterables: Iterable[Iterable[str]], **_: Any
    ) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        import pyarrow as pa
        from datasets.utils.file_utils import xopen

        config = self._config
        for shard, files in enumerate(files_iterables):
            number = 0
            for file in files:
                opened = xopen(file, encoding=config.encoding, errors=config.encoding_errors)
                with opened as stream:
                    lines = _lines(stream, original(file), keep=bool(config.keep_linebreaks))
                    for batch in _batches(lines):
                        column = pa.array(batch, pa.large_string())
                        yield (shard, number), self._cast(pa.table({"text": column}))
                        number += 1


def _lines(stream: TextIO, name: str, *, keep: bool) -> Iterator[str]:
    number = 0
    while line := stream.readline(json_lines.RECORD + 1):
        number += 1
        if len(line) > json_lines.RECORD:
            raise UserError(
                f"line {number} of {name} has more than {json_lines.RECORD >> 20} MiB",
                valid="shorter lines, or dataset=local, which splits a text",
                key="dataset.path",
            )
        yield line if keep else line.rstrip("\n")


def _batches(texts: Iterable[str | None]) -> Iterator[list[str | None]]:
    batch: list[str | None] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text or "")
        if len(batch) == _ROWS or size > json_lines.RECORD:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _json_rows(stream: BinaryIO, name: str, text_field: str | None) -> Iterator[json_lines.Row]:
    """Yield the records of a file.

    Raises:
        UserError: a record is bad, or all lack the field.
    """
    fields: set[str] = set()
    found = False
    for row in json_lines.read(stream, name, text_field, arrays=True):
        if row.problem is not None:
            raise row.mistake(text_field or "")
        found = found or row.note != json_lines.WITHOUT_FIELD
        fields.update(row.fields if not found else ())
        yield row
    if text_field is not None and fields and not found:
        raise no_column(text_field, fields)


def no_column(name: str, columns: Iterable[str]) -> UserError:
    """Return the error of a missing column."""
    return UserError(
        f"it has no such column; {nearest(name, columns)}", key="dataset.text_field", value=name
    )
