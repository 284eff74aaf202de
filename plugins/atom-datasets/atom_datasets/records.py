"""Keep records of files as a memory-mapped table in the cache of ``datasets``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from atom.errors import UserError, nearest
from atom.io.copied_urls import shown
from atom.io.files import make_folder, read_text, write_text
from atom.plugin import Document
from atom_datasets import json_lines, parquet, tar_members
from atom_datasets.compression import Budget, budget, explained, opened
from atom_datasets.finding import Tally
from atom_datasets.json_lines import Row
from atom_datasets.quiet import quiet
from atom_datasets.tolerance import refuse

_MARKS = {"jsonl": ":", "webdataset": "#", "parquet": " row "}
"""Between the file and the number in an id, by format."""

BAD = "records that cannot be read"


class NoTextError(Exception):
    """The files have no records, or only records without text."""


class File(NamedTuple):
    """``name`` is for messages; ``path`` may be a decompressed copy."""

    name: Path
    path: Path


class Records:
    """The records of files that contain text, and empty documents for the bad ones.

    The table is not made by ``datasets``' readers: they require the same columns in all files,
    guess types (a text may become a timestamp), and interpret paths as patterns or chains of URLs.
    """

    def __init__(
        self,
        files: tuple[File, ...],
        format: str,
        text_field: str | None,
        fingerprint: str,
        max_bad_fraction: float = 0.0,
        max_bytes: int | None = None,
    ) -> None:
        """Open the table from the cache, or make it.

        Args:
            files: the files to read.
            format: ``jsonl``, ``webdataset`` or ``parquet``.
            text_field: the field or column with the text; None: documents are records.
            fingerprint: identifies the files and the other arguments.
            max_bad_fraction: maximum fraction of bad records.
            max_bytes: maximum decompressed bytes.

        Raises:
            UserError: too many records are bad, or all lack the field.
            NoTextError: the files contain no text.
        """
        from datasets import Dataset, Features, Value, config
        from datasets.exceptions import DatasetGenerationError

        features = Features(
            {
                "text": Value("large_string"),
                "file": Value("int32"),
                "number": Value("int64"),
                "problem": Value("string"),
            }
        )
        self._as_records = text_field is None
        self._names = [shown(file.name) for file in files]
        self._format = format
        notes = Path(config.HF_DATASETS_CACHE) / "atom_datasets" / f"{fingerprint}.json"
        arguments = {
            "files": files,
            "format": format,
            "text_field": text_field,
            "max_bad_fraction": max_bad_fraction,
            "notes": notes,
            "max_bytes": max_bytes,
        }
        try:
            with quiet():
                self._table = Dataset.from_generator(
                    _rows, features=features, gen_kwargs=arguments, fingerprint=fingerprint
                )
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, UserError | NoTextError):
                raise error.__cause__ from None
            if isinstance(error.__cause__, OSError):
                raise _not_kept(error.__cause__, config.HF_DATASETS_CACHE) from None
            raise
        except OSError as error:
            raise _not_kept(error, config.HF_DATASETS_CACHE) from None
        self.left_out = Tally()
        """Records left out when the table was made."""
        self.left_out.kinds.update(json.loads(read_text(notes)))

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Document:
        row = self._table[index]
        record = json.loads(row["text"]) if self._as_records and row["text"] else None
        return Document(row["text"], self._id(row), problem=row["problem"], record=record)

    def _id(self, row: dict[str, Any]) -> str:
        return f"{self._names[row['file']]}{_MARKS[self._format]}{row['number']}"


def _not_kept(error: OSError, cache: object) -> UserError:
    return UserError(
        f"its records cannot be copied to the cache {cache}: {error.strerror or error}",
        valid="space there and the right to write, or another folder in HF_DATASETS_CACHE",
        key="dataset.path",
    )


def _rows(
    files: tuple[File, ...],
    format: str,
    text_field: str | None,
    max_bad_fraction: float,
    notes: Path,
    max_bytes: int | None,
) -> Iterator[dict[str, str | int | None]]:
    """Yield the rows of the table, and write what is left out to ``notes``."""
    fields: set[str] = set()
    left_out = Tally()
    paths = [file.path for file in files]
    if format == "parquet":  # its compression is internal
        left = Budget(sum(path.stat().st_size for path in paths), max_bytes)
    else:
        left = budget(paths, max_bytes)
    bad, total, with_text, problem = 0, 0, 0, None
    for index, file in enumerate(files):
        for row in _read(file, format, text_field, left):
            if row.other is not None:
                left_out.add(tar_members.NO_RECORDS, row.other)
                continue
            total += 1
            if row.note is not None:
                left_out.add(row.note, f"{file.name.name}:{row.number}")
                fields.update(row.fields)
            if row.problem is not None:
                if max_bad_fraction == 0:
                    raise row.mistake(text_field or "")
                bad, problem = bad + 1, row.problem
                left_out.add(BAD, f"{file.name.name}:{row.number}")
            elif row.text is None:
                continue
            else:
                with_text += 1
            yield {
                "text": row.text or "",
                "file": index,
                "number": row.number,
                "problem": row.problem,
            }
    if problem is not None:
        refuse(problem, bad, total, max_bad_fraction)
    if with_text == 0:
        if (
            text_field is not None
            and fields
            and left_out.kinds[json_lines.WITHOUT_FIELD][0] == total - bad
        ):
            raise UserError(
                f"no record has this field; {nearest(text_field, fields)}",
                key="dataset.text_field",
                value=text_field,
            )
        raise NoTextError
    _write(notes, left_out)


def _read(file: File, format: str, text_field: str | None, left: Budget) -> Iterator[Row]:
    if format == "parquet":
        yield from parquet.read(file.path, file.name, text_field, left)
        return
    with explained(file.name), opened(file.path, left) as stream:
        read = tar_members.read if format == "webdataset" else json_lines.read
        yield from read(stream, file.name, text_field)


def _write(path: Path, left_out: Tally) -> None:
    """Write a file atomically: other processes may write the same one."""
    make_folder(path.parent)
    write_text(path, json.dumps(left_out.kinds))
