"""``local``: files of the user's own."""

from __future__ import annotations

import codecs
import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from atom.errors import UserError
from atom.plugin import Document
from atom_datasets.compression import SUFFIXES, bare_suffix, explained, opened, plain
from atom_datasets.config import Local
from atom_datasets.dealing import Documents, deal
from atom_datasets.tables import JsonLines, NoTextError, Parquet
from atom_datasets.text_files import TextFile, TextFiles, walk

Format = Literal["text", "jsonl", "parquet"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}

_SNIFFED = 4096


def source(config: Local) -> LocalSource:
    """Return the source that ``config`` describes. The files are looked for when it is used."""
    paths = (config.path,) if isinstance(config.path, str) else tuple(config.path)
    return LocalSource(
        paths, config.format, config.text_field, config.max_chars, config.max_bad_fraction
    )


@dataclass(frozen=True)
class LocalSource:
    """The documents of local files: a text file, a part of a long one, a record or a row each."""

    paths: tuple[str, ...]
    format: Literal["auto", "text", "jsonl", "parquet"]
    text_field: str
    max_chars: int
    max_bad_fraction: float = 0.0

    def check(self) -> str:
        """Return a digest of the files' paths, sizes and times of change.

        Makes the tables and decompressed copies that reading needs, in the cache of ``datasets``.

        Raises:
            UserError: nothing matches, or what does cannot be read or holds no text.
        """
        files = find(self)
        # With a tolerance, what is no text is counted when it is read.
        if isinstance(_documents(self), TextFiles) and self.max_bad_fraction == 0:
            for path in files:
                _check_is_text(path)
        return _digest(self, files)

    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        """Yield the documents of ``lane``; see :func:`atom_datasets.dealing.deal`."""
        return deal(_documents(self), lane, lanes, seed=seed, epoch=epoch, start=start)


def find(source: LocalSource) -> tuple[Path, ...]:
    """Return the files that ``source`` names, each once.

    A folder stands for the files in it and below that are of the source's format.

    Raises:
        UserError: one of the paths leads to no file.
    """
    found: dict[Path, None] = {}
    for given in source.paths:
        path = Path(given).expanduser()
        if path.is_dir():
            files = walk(path)
            nothing = "there is no file in this folder"
            if source.format != "auto":
                files = [file for file in files if _format_of(file) == source.format]
                nothing = f"there is no file in this folder whose suffix says {source.format}"
        elif path.exists():
            files, nothing = [path], ""
        elif glob.has_magic(given):
            matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path has none for any path)
            files = [file for match in sorted(matches) if (file := Path(match)).is_file()]
            nothing = "no file matches this pattern"
        else:
            files, nothing = [], "there is no such file or folder"
        if not files:
            raise UserError(nothing, key="dataset.path", value=given)
        found.update(dict.fromkeys(files))
    for path in found:
        if not path.is_file():
            raise UserError(f"{path} is no file, or a link to one that is gone", key="dataset.path")
    return tuple(found)


@lru_cache(maxsize=4)
def _documents(source: LocalSource) -> Documents:
    files = find(source)
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


def _opened(source: LocalSource, files: tuple[Path, ...]) -> Documents:
    format = _one_format(files, source) if source.format == "auto" else source.format
    if format == "jsonl":
        return JsonLines(files, source.text_field, _digest(source, files), source.max_bad_fraction)
    copies = tuple(plain(path, _cache()) if path.suffix in SUFFIXES else path for path in files)
    if format == "parquet":
        return Parquet(copies, source.text_field)
    return TextFiles(
        (_text_file(path, copy) for path, copy in zip(files, copies, strict=True)),
        source.max_chars,
        source.max_bad_fraction,
    )


def _text_file(path: Path, copy: Path) -> TextFile:
    stat = copy.stat()
    return TextFile(name=str(path), path=copy, size=stat.st_size, mtime=stat.st_mtime_ns)


def _format_of(path: Path) -> Format:
    return _FORMATS.get(bare_suffix(path), "text")


def _one_format(files: tuple[Path, ...], source: LocalSource) -> Format:
    """Files of two formats are rather a mistake (a README beside the data) than a wish."""
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


def _check_is_text(path: Path) -> None:
    with explained(path), opened(path) as stream:
        head = stream.read(_SNIFFED)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < _SNIFFED)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1} is not UTF-8"
    else:
        if b"\0" not in head:
            return
        reason = f"byte {head.index(0) + 1} is zero"
    raise UserError(
        f"{path} is no text ({reason}); valid: UTF-8 text, or another dataset.format",
        key="dataset.path",
    )


def _digest(source: LocalSource, files: tuple[Path, ...]) -> str:
    stats = [(str(path.absolute()), (s := path.stat()).st_size, s.st_mtime_ns) for path in files]
    recipe = [source.format, source.text_field, source.max_chars, source.max_bad_fraction, stats]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def _shown(paths: tuple[str, ...]) -> str:
    return paths[0] if len(paths) == 1 else f"[{','.join(paths)}]"
