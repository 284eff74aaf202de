"""Claim a folder of token shards, and keep the state of their preparation in it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from atom.data import manifest as manifests
from atom.data.manifest import (
    SUFFIXES,
    TOKEN_BYTES,
    TOKENIZER,
    LeftOut,
    Manifest,
    Shard,
    dtype_of,
    name_of,
)
from atom.data.shards import DOCUMENT
from atom.data.splitting import Recipe, identity_of
from atom.data.writing import writable
from atom.errors import UserError
from atom.io import json_data
from atom.io.files import copy, make_folder, write_json
from atom.io.urls import Place

UNFINISHED = ".preparing"
"""Folder with files that are being written, and with the counts of the finished shards."""

RECIPE = "recipe.json"


class Folder:
    """A folder that shards are prepared in.

    Args:
        path: the folder that the files are written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def place(self) -> Place:
        """The place of the finished shards."""
        return self.path

    def check_usable(self) -> None:
        """Refuse a folder that no preparation can begin or resume in.

        Raises:
            UserError: it is no folder, or holds other files.
        """
        folder = self.path
        if not os.path.lexists(folder):
            return
        if folder.is_symlink() or not folder.is_dir():
            raise UserError(f"--out {folder}: is a link, or no folder", valid="a new folder")
        known = (folder / UNFINISHED / RECIPE, folder / manifests.FILE_NAME)
        others = (entry for entry in folder.iterdir() if entry.name != UNFINISHED)
        if not any(map(os.path.lexists, known)) and any(others):
            raise UserError(f"--out {folder}: is not empty", valid="a new folder")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the folder, and let one process at a time prepare shards in it.

        Raises:
            UserError: it cannot be created, or another process writes to it.
        """
        try:
            make_folder(self.path)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"--out {self.place}: {error.strerror}", valid="a folder") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # Some network file systems cannot lock a folder.
                if error.errno == errno.EWOULDBLOCK:
                    raise UserError(
                        f"--out {self.place}: another process prepares shards in it",
                        valid="wait for it",
                    ) from None
            yield
        finally:
            os.close(descriptor)

    def finished(self, recipe: Recipe) -> Manifest | None:
        """Return the manifest if all shards of the recipe are written, or None.

        Raises:
            UserError: the folder holds something else.
        """
        if manifests.exists(self.path):
            found = manifests.read(self.path)
            self._check_same(recipe, identity_of(found))
            shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)
            return found
        state = self.path / UNFINISHED / RECIPE
        if os.path.lexists(state):
            try:
                self._check_same(recipe, json_data.read(state, below=self.path))
            except (OSError, ValueError) as error:
                raise UserError(f"{state} cannot be read: {error}", valid="another --out") from None
        return None

    def _check_same(self, recipe: Recipe, before: Mapping[str, object]) -> None:
        now = recipe.identity()
        if differing := [name for name in now if now[name] != before.get(name)]:
            raise UserError(
                f"--out {self.place}: holds shards made of something else "
                f"(other: {', '.join(differing)})",
                valid="a new folder, or the dataset and the tokenizer of before",
            )

    def begin(self, recipe: Recipe, tokenizer: Mapping[str, Path]) -> Path:
        """Record the recipe, which alone can resume, and copy the tokenizer's files.

        Returns:
            The folder of the copies.
        """
        folder = self.path / TOKENIZER
        with writable(self.path):
            make_folder(self.path / UNFINISHED)
            write_json(self.path / UNFINISHED / RECIPE, recipe.identity())
            make_folder(folder)
            for name, path in tokenizer.items():
                # A plugin is trusted for its files, which can lie in a cache of symbolic links.
                copy(path.resolve(), folder / name)
        return folder

    def record(self, number: int, shard: Shard, left_out: LeftOut) -> None:
        """Record a shard as finished, after its files have reached the disk."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        content = {"shard": shard.model_dump(), "left_out": left_out.model_dump()}
        write_json(self.path / UNFINISHED / f"{number:05}.json", content)

    def recorded(self, recipe: Recipe, number: int) -> tuple[Shard, LeftOut] | None:
        """Return the counts of a finished shard, or None."""
        try:
            found = json_data.read(self.path / UNFINISHED / f"{number:05}.json", below=self.path)
            shard = Shard.model_validate(found["shard"])
            left_out = LeftOut.model_validate(found["left_out"])
            sizes = tuple(self._size(name_of(number, kind)) for kind in SUFFIXES)
        except (OSError, ValueError, KeyError, ValidationError):
            return None
        width = TOKEN_BYTES[dtype_of(recipe.tokenizer.vocab_size)]
        return (shard, left_out) if sizes == shard.sizes(width) else None

    def refresh(self) -> None:
        """Look again at what is there, before :meth:`recorded` is called for all shards."""

    def _size(self, name: str) -> int:
        """Return the size of a shard's file.

        Raises:
            OSError: there is none.
        """
        return (self.path / name).lstat().st_size

    def records(self, number: int) -> npt.NDArray[Any]:
        """Return the records of the documents of a finished shard."""
        return np.fromfile(self.path / name_of(number, "documents"), dtype=DOCUMENT)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, and remove the state."""
        with writable(self.path):
            manifest.write(self.path)
        shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)
