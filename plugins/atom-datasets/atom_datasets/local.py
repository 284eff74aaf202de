"""``local``: read the user's files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from atom.errors import UserError
from atom.io.copied_urls import in_urls, shown
from atom.plugin import Contents, SourceContext
from atom_datasets import content, identity, parquet
from atom_datasets.compression import bare_suffix, budget, is_compressed, plain
from atom_datasets.config import Local
from atom_datasets.finding import Found, find
from atom_datasets.leading_out import Links
from atom_datasets.records import File, NoTextError, Records
from atom_datasets.text_files import TextFile, TextFiles

Format = Literal["text", "jsonl", "webdataset", "parquet"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".tar": "webdataset",
}

_TABLES = frozenset({".csv", ".tsv", ".arrow", ".feather", ".xlsx"})


def source(config: Local, context: SourceContext | None = None) -> LocalSource:
    """Return the source that ``config`` describes; files are searched on first use."""
    paths = (config.path,) if isinstance(config.path, str) else tuple(config.path)
    return LocalSource(
        paths,
        config.format,
        config.text_field,
        config.max_chars,
        config.max_bad_fraction,
        config.max_bytes,
        config.links,
        context is not None and context.records,
    )


@dataclass(frozen=True)
class LocalSource:
    """The documents of local files: text files, parts of long ones, records or rows.

    With ``records``, a record or a row is a document with all of its fields.
    """

    paths: tuple[str, ...]
    format: Literal["auto", "text", "jsonl", "webdataset", "parquet"]
    text_field: str
    max_chars: int
    max_bad_fraction: float = 0.0
    max_bytes: int | None = None
    links: Links = "data"
    records: bool = False

    @in_urls()
    def check(self) -> str:
        """Return a digest of the files' contents, in order.

        Makes the tables and decompressed copies that reading needs, in the cache of ``datasets``.

        Raises:
            UserError: nothing matches, or a file cannot be read or has no text.
        """
        files = _found(self).files
        format = _format(files, self)
        for path in files:
            # With a tolerance, files that are not text are counted when they are read.
            content.check(path, format, tolerant=self.max_bad_fraction > 0)
        _documents(self)
        recipe = (self.format, self.text_field, self.max_chars, self.max_bad_fraction)
        kind = ("records",) if self.records else ()
        return identity.digest(self.parts().values(), *recipe, *kind)

    @in_urls()
    def parts(self) -> dict[str, str]:
        """Return the digest of each file's content by its name."""
        return identity.parts(_found(self).files, _cache)

    @in_urls()
    def contents(self) -> Contents:
        """Return the number of files and documents, and what is left out."""
        found, documents = _found(self), _documents(self)
        left_out = (*found.left_out.phrases(), *documents.left_out.phrases())
        return Contents(files=len(found.files), documents=len(documents), left_out=left_out)

    @in_urls()
    def documents(self) -> TextFiles | Records:
        """Return the documents."""
        return _documents(self)


def _found(source: LocalSource) -> Found:
    chosen = source.format
    wanted = None if chosen == "auto" else lambda path: _format_of(path) == chosen
    return find(source.paths, wanted, chosen, source.links)


@lru_cache(maxsize=4)
def _documents(source: LocalSource) -> TextFiles | Records:
    files = _found(source).files
    try:
        documents = _opened(source, files)
    except NoTextError:
        documents = None
    if not documents:
        raise UserError(
            f"there is no text in it (files read: {len(files)})",
            key="dataset.path",
            value=_shown(source.paths),
        )
    return documents


def _opened(source: LocalSource, files: tuple[Path, ...]) -> TextFiles | Records:
    format = _format(files, source)
    copies = files if format in ("jsonl", "webdataset") else _plain(files, source.max_bytes)
    if format == "text":
        return TextFiles(
            (_text_file(path, copy) for path, copy in zip(files, copies, strict=True)),
            source.max_chars,
            source.max_bad_fraction,
        )
    field = None if source.records else source.text_field
    if format == "parquet":
        for path, copy in zip(files, copies, strict=True):
            parquet.check(copy, path, field)
    return Records(
        tuple(map(File, files, copies)),
        format,
        field,
        _digest(source, files),
        source.max_bad_fraction,
        source.max_bytes,
    )


def _plain(files: tuple[Path, ...], most: int | None) -> tuple[Path, ...]:
    left = budget(files, most)
    # Without compressed files, `datasets` need not be imported.
    return tuple(plain(path, _cache(), left) if is_compressed(path) else path for path in files)


def _text_file(path: Path, copy: Path) -> TextFile:
    stat = copy.stat()
    return TextFile(name=shown(path), path=copy, size=stat.st_size, mtime=stat.st_mtime_ns)


def _format_of(path: Path) -> Format:
    return _FORMATS.get(bare_suffix(path), "text")


def _format(files: tuple[Path, ...], source: LocalSource) -> Format:
    """Return the format of the files.

    Raises:
        UserError: the formats differ, or none is known; or a given parameter does not apply to it.
    """
    format = _one_format(files, source) if source.format == "auto" else source.format
    ignored = ["text_field" if format == "text" else "max_chars"]
    if source.records and format != "text":
        ignored.append("text_field")
    for name in ignored:
        value, default = getattr(source, name), Local.model_fields[name].default
        records = name == "text_field" and source.records
        if value != default:
            raise UserError(
                "has no effect on records, which an objective reads whole"
                if records
                else f"has no effect on files of the format {format}",
                valid=f"{default}" if records else f"{default}, or another dataset.format",
                key=f"dataset.{name}",
                value=value,
            )
    return format


def _one_format(files: tuple[Path, ...], source: LocalSource) -> Format:
    """Return the only format of the files.

    Two formats are more likely a mistake (a README beside the data) than intended.
    """
    for path in files:
        if (suffix := bare_suffix(path)) in _TABLES:
            raise UserError(
                f"{path} is a table ({suffix})",
                valid="dataset=huggingface, which reads a column, or dataset.format=text for the "
                "raw text",
                key="dataset.path",
            )
    examples = {_format_of(path): path for path in reversed(files)}
    if len(examples) > 1:
        listed = " and ".join(f"{name} ({path.name})" for name, path in sorted(examples.items()))
        raise UserError(
            f"it holds files of the formats {listed}; choose one with dataset.format",
            key="dataset.path",
            value=_shown(source.paths),
        )
    return next(iter(examples))


def _cache() -> Path:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "atom_datasets"


def _digest(source: LocalSource, files: tuple[Path, ...]) -> str:
    stats = [(str(path.absolute()), (s := path.stat()).st_size, s.st_mtime_ns) for path in files]
    recipe = [source.format, source.text_field, source.max_chars, source.max_bad_fraction, stats]
    recipe += ["records"] * source.records
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def _shown(paths: tuple[str, ...]) -> str:
    return paths[0] if len(paths) == 1 else f"[{','.join(paths)}]"
