"""Records of text fields (JSON lines, Parquet), as memory-mapped tables that ``datasets`` keeps in
its cache."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atom.errors import UserError, nearest
from atom.plugin import Document
from atom_datasets.compression import explained, opened
from atom_datasets.quiet import quiet
from atom_datasets.tolerance import refuse

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]

_SURROGATES = re.compile("[\ud800-\udfff]")


class NoTextError(Exception):
    """There are no records, or none of them has any text."""


# ---------------------------------------------------------------------------- JSON lines


class JsonLines:
    """The records of JSON lines files that have text in them.

    The table is made here and not by ``datasets``' own reader of JSON, which guesses types: it
    makes timestamps of a text that reads like one, and stops at a blank line.
    """

    def __init__(
        self,
        files: tuple[Path, ...],
        text_field: str,
        fingerprint: str,
        max_bad_fraction: float = 0.0,
    ) -> None:
        """Open the table from the cache, or make it.

        Args:
            files: one JSON object a line, plain or compressed.
            text_field: the field of an object that holds the text. Objects without it, or with
                null or no text in it, are left out.
            fingerprint: the same as long as the files and the other arguments are.
            max_bad_fraction: of the records, how many may be none; they are empty documents.

        Raises:
            UserError: a line is no JSON object, or its field is no text, more often than may be;
                or the field is in none of them.
            NoTextError: there is nothing in the files.
        """
        from datasets import Dataset, Features, Value
        from datasets.exceptions import DatasetGenerationError

        features = Features(
            {
                "text": Value("large_string"),
                "file": Value("int32"),
                "line": Value("int64"),
                "problem": Value("string"),
            }
        )
        self._files = files
        try:
            with quiet():
                self._table = Dataset.from_generator(
                    _rows,
                    features=features,
                    gen_kwargs={
                        "files": files,
                        "text_field": text_field,
                        "max_bad_fraction": max_bad_fraction,
                    },
                    fingerprint=fingerprint,
                )
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, UserError | NoTextError):
                raise error.__cause__ from None
            raise

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Document:
        row = self._table[index]
        id = f"{self._files[row['file']]}:{row['line']}"
        return Document(row["text"], id, problem=row["problem"])


def _rows(
    files: tuple[Path, ...], text_field: str, max_bad_fraction: float
) -> Iterator[dict[str, str | int | None]]:
    fields: set[str] = set()
    empty = True
    bad, total, last = 0, 0, None
    for number, path in enumerate(files):
        for line, data in _lines(path):
            if data.isspace():
                continue
            total += 1
            try:
                record = _record(path, line, data)
                text = _text(record, text_field, path, line)
            except UserError as error:
                if max_bad_fraction == 0:
                    raise
                bad, last = bad + 1, error
                yield {"text": "", "file": number, "line": line, "problem": error.problem}
                continue
            if text:
                empty = False
                yield {"text": _encodable(text), "file": number, "line": line, "problem": None}
            if text_field not in fields:
                fields.update(record)
    if last is not None:
        refuse(last.problem, bad, total, max_bad_fraction)
    if fields and text_field not in fields:
        raise UserError(
            f"no record has this field; {nearest(text_field, fields)}",
            key="dataset.text_field",
            value=text_field,
        )
    if empty:
        raise NoTextError


def _text(record: dict[str, object], text_field: str, path: Path, line: int) -> str | None:
    text = record.get(text_field)
    if text is None or isinstance(text, str):
        return text
    raise UserError(
        f"holds {json.dumps(text)[:40]} and no text in line {line} of {path}",
        key="dataset.text_field",
        value=text_field,
    )


def _record(path: Path, line: int, data: bytes) -> dict[str, object]:
    try:
        record = json.loads(data.rstrip())
    except ValueError as error:
        reason = re.sub(r": line 1 column (\d+) \(char \d+\)", r" at column \1", str(error))
        raise _no_record(path, line, reason) from None
    if not isinstance(record, dict):
        raise _no_record(path, line, f"it is a {type(record).__name__}")
    return record


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with explained(path), opened(path) as stream:
        yield from enumerate(stream, 1)


def _no_record(path: Path, line: int, reason: str) -> UserError:
    return UserError(
        f"line {line} of {path} is no JSON record ({reason}); valid: one JSON object a line",
        key="dataset.path",
    )


def _encodable(text: str) -> str:
    # JSON can spell half of a surrogate pair, which UTF-8 and Arrow cannot hold.
    return text if text.isascii() else _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


# ---------------------------------------------------------------------------- Parquet


class Parquet:
    """The rows of Parquet files; those without text are empty documents."""

    def __init__(self, files: tuple[Path, ...], text_field: str) -> None:
        """Open the table from the cache, or make it of the one column.

        Raises:
            UserError: a file is no Parquet, or has no such column of text.
            NoTextError: there is nothing in the files.
        """
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError

        if sum(_checked_rows(path, text_field) for path in files) == 0:
            raise NoTextError
        try:
            with quiet():
                self._table: datasets.Dataset = load_dataset(
                    "parquet",
                    data_files=[str(path.absolute()) for path in files],
                    split="train",
                    columns=[text_field],
                )
        except DatasetGenerationError as error:
            reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
            raise UserError(f"a Parquet file is damaged ({reason})", key="dataset.path") from error
        self._text_field = text_field
        if self._is_empty():
            raise NoTextError

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Document:
        return Document(self._table[index][self._text_field] or "", id=f"row {index}")

    def _is_empty(self) -> bool:
        import pyarrow.compute as pc  # type: ignore[import-untyped]

        chunks: list[pa.Array] = self._table.data.column(self._text_field).chunks
        return not any(pc.max(pc.binary_length(chunk)).as_py() for chunk in chunks)


def _checked_rows(path: Path, text_field: str) -> int:
    """Return the number of rows of a file that has the column."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with explained(path):
            metadata = pq.read_metadata(path)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path} is no Parquet file ({reason})", key="dataset.path") from None
    schema = metadata.schema.to_arrow_schema()
    if text_field not in schema.names:
        raise UserError(
            f"{path} has no such column; {nearest(text_field, schema.names)}",
            key="dataset.text_field",
            value=text_field,
        )
    kind = schema.field(text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(
            f"holds {kind} and no text in {path}",
            key="dataset.text_field",
            value=text_field,
        )
    return int(metadata.num_rows)
