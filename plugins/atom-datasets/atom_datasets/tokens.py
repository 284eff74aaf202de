"""``tokens``: read files of token ids that others have written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from atom.errors import UserError
from atom.io.copied_urls import in_urls
from atom.io.urls import is_url
from atom.plugin import Contents, SourceContext
from atom_datasets import flat_ids, identity, leading_out, megatron, token_lists
from atom_datasets.config import Tokens
from atom_datasets.content import check_pointer
from atom_datasets.finding import Found, Tally, find
from atom_datasets.in_store import copy_beside
from atom_datasets.leading_out import Links
from atom_datasets.token_files import TokenFile, TokenFiles

Format = Literal["megatron", "npy", "parquet"]

_SUFFIXES: dict[str, Format] = {
    ".idx": "megatron",
    ".bin": "megatron",
    ".npy": "npy",
    ".csv.gz": "npy",
    ".parquet": "parquet",
}
_BESIDE = {".bin": ".idx", ".csv.gz": ".npy"}
"""Suffixes of files that are read with another: the suffix of that one."""

_ONLY: dict[str, Format] = {"dtype": "npy", "eos_id": "npy", "column": "parquet"}
"""Parameters that apply to one format."""


def source(config: Tokens, context: SourceContext) -> TokensSource:
    """Return the source that ``config`` describes; files are searched on first use."""
    paths = (config.path,) if isinstance(config.path, str) else tuple(config.path)
    return TokensSource(
        tuple(map(_with_suffix, paths)),
        config.format,
        config.dtype,
        config.eos_id,
        config.column,
        config.max_bytes,
        config.links,
        context.cache,
    )


@dataclass(frozen=True)
class TokensSource:
    """The documents of token files: sequences of Megatron, parts of flat files, or rows."""

    paths: tuple[str, ...]
    format: Literal["auto", "megatron", "npy", "parquet"]
    dtype: str | None
    eos_id: int | None
    column: str
    max_bytes: int | None
    links: Links
    cache: Path

    @in_urls()
    def check(self) -> str:
        """Return a digest of the files' contents, in order.

        Checks every position of a document, and makes the copies that reading needs.

        Raises:
            UserError: nothing matches, or a file is missing, truncated or damaged.
        """
        format, found = _found(self)
        for path in found.files:
            check_pointer(path)
        # Not those opened before: the files may have changed since.
        documents = TokenFiles([_opened(self, format, path) for path in found.files])
        if format == "megatron":
            for file in documents.files:
                megatron.check(file)
        if format == "npy":
            self._check_eos(found.files)
        if not any(documents.shard_sizes()):
            raise UserError("has no tokens", key="dataset.path", value=self._shown)
        recipe = (self.format, self.dtype, self.eos_id, self.column)
        return identity.digest(self.parts().values(), *recipe)

    @in_urls()
    def parts(self) -> dict[str, str]:
        """Return the digest of each file's content by its name."""
        format, found = _found(self)
        files = [each for path in found.files for each in _with_beside(path, format)]
        return identity.parts(files, lambda: self.cache)

    @in_urls()
    def contents(self) -> Contents:
        """Return the number of files and documents, and what is not known or not read."""
        format, found = _found(self)
        documents, left_out = _documents(self), Tally()
        for path, file in zip(found.files, documents.files, strict=True):
            if format == "npy" and flat_ids.rest(file):
                left_out.add("files with tokens after their last document, not read", path.name)
            if format == "parquet" and (names := token_lists.others(path, self.column)):
                left_out.add("files with other columns, not read", f"{path.name}: {names[0]}")
        return Contents(
            files=len(found.files),
            documents=len(documents),
            left_out=(
                "the check of the tokenizer (the files do not record theirs)",
                *found.left_out.phrases(),
                *left_out.phrases(),
            ),
        )

    def tokenizer(self) -> None:
        """Return None: the files do not say which tokenizer made them."""

    @in_urls()
    def documents(self) -> TokenFiles:
        """Return the documents."""
        return _documents(self)

    def _check_eos(self, files: tuple[Path, ...]) -> None:
        if self.eos_id is not None and all(flat_ids.metadata(path).is_file() for path in files):
            raise UserError(
                f"has no effect: {flat_ids.metadata(files[0]).name} says where documents end",
                valid="null",
                key="dataset.eos_id",
                value=self.eos_id,
            )

    @property
    def _shown(self) -> str:
        return self.paths[0] if len(self.paths) == 1 else f"[{','.join(self.paths)}]"


@lru_cache(maxsize=4)
def _documents(source: TokensSource) -> TokenFiles:
    format, found = _found(source)
    return TokenFiles([_opened(source, format, path) for path in found.files])


def _opened(source: TokensSource, format: Format, path: Path) -> TokenFile:
    if format == "megatron":
        return megatron.opened(path)
    if format == "parquet":
        return token_lists.opened(path, source.column, source.cache, source.max_bytes)
    return flat_ids.opened(path, source.dtype, source.eos_id, source.cache, source.max_bytes)


# ---------------------------------------------------------------------------- files


def _found(source: TokensSource) -> tuple[Format, Found]:
    """Return the format and the files of a source, without those that are read beside others."""
    chosen = source.format

    def wanted(path: Path) -> bool:
        format = _SUFFIXES.get(_suffix(path))
        return format is not None and chosen in ("auto", format)

    found = find(source.paths, wanted, "token files" if chosen == "auto" else chosen, source.links)
    format = _one_format(found.files, source) if chosen == "auto" else chosen
    files: dict[Path, None] = {}
    known = set(found.files)
    for path in found.files:
        main = _main(path) if _suffix(path) in _BESIDE and wanted(path) else path
        copy_beside(path, [each.name for each in _beside(main, format)])
        if not main.is_file():
            raise UserError(
                f"{main} is missing, which belongs to {path.name}",
                valid="both files side by side, or dataset.format=npy for a file of ids alone",
                key="dataset.path",
            )
        files[main] = None
    _check_parameters(source, format)
    for path in files:
        beside = [each for each in _with_beside(path, format) if each not in known]
        # Those that were found have been checked, and a file that the user names need not be.
        for _ in leading_out.check(beside, path.parent, source.links):
            pass
    return format, Found(tuple(files), found.left_out)


def _one_format(files: tuple[Path, ...], source: TokensSource) -> Format:
    examples: dict[Format, str] = {}
    for path in reversed(files):
        format = _SUFFIXES.get(_suffix(path))
        if format is None:
            raise UserError(
                f"the suffix of {path.name} says no format",
                valid="dataset.format=npy for a flat file of ids, or megatron or parquet",
                key="dataset.path",
            )
        examples[format] = path.name
    if len(examples) > 1:
        listed = " and ".join(f"{name} ({example})" for name, example in sorted(examples.items()))
        raise UserError(
            f"it holds files of the formats {listed}; choose one with dataset.format",
            key="dataset.path",
            value=source._shown,
        )
    return next(iter(examples))


def _check_parameters(source: TokensSource, format: Format) -> None:
    for name, only in _ONLY.items():
        value: Any = getattr(source, name)
        default = Tokens.model_fields[name].default
        if only != format and value != default:
            raise UserError(
                f"has no effect on files of the format {format}",
                valid="null" if default is None else default,
                key=f"dataset.{name}",
                value=value,
            )


def _with_suffix(path: str) -> str:
    """Return the path of an index where the path is its prefix, as Megatron's users write it."""
    if is_url(path):
        return path
    given, index = (Path(name).expanduser() for name in (path, f"{path}.idx"))
    return str(index) if not given.exists() and index.is_file() else path


def _beside(path: Path, format: Format) -> list[Path]:
    """Return the files that can belong to a file of ids or its index, and itself."""
    if format == "megatron":
        return [path, path.with_suffix(".bin")]
    return [path, flat_ids.metadata(path)] if format == "npy" else [path]


def _with_beside(path: Path, format: Format) -> list[Path]:
    if format == "megatron":
        return [path, path.with_suffix(".bin")]
    if format == "npy" and (beside := flat_ids.metadata(path)).is_file():
        return [path, beside]
    return [path]


def _main(path: Path) -> Path:
    suffix = _suffix(path)
    return path.with_name(path.name[: -len(suffix)] + _BESIDE[suffix])


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".csv.gz" if name.endswith(".csv.gz") else path.suffix.lower()
