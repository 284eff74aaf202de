"""Prepare token shards in a store: write each one on disk, and move it into the store."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atom.data import manifest as manifests
from atom.data.folder import RECIPE, UNFINISHED, Folder
from atom.data.manifest import SUFFIXES, TOKENIZER, LeftOut, Manifest, Shard, name_of
from atom.data.shards import DOCUMENT
from atom.data.splitting import Recipe
from atom.data.writing import writable
from atom.errors import RunError, UserError
from atom.io import caches, objects
from atom.io.files import make_folder, write_bytes
from atom.io.objects import ObjectError
from atom.io.process import call
from atom.io.urls import Place, Url

_MOST_RECORD = 8 << 20
_REQUESTS = 16
_STATE = re.compile(rf"{re.escape(UNFINISHED)}/(recipe|[0-9]+)\.json$")


def folder_at(place: Place) -> Folder:
    """Return the folder at a path or a URL.

    Raises:
        UserError: nothing can be written to the URL.
    """
    if isinstance(place, Path):
        return Folder(place)
    if place.is_web or place.is_pattern:
        raise UserError(f"--out {place}: nothing can be written there", valid="s3://BUCKET/FOLDER")
    return StoreFolder(place)


class StoreFolder(Folder):
    """A folder of a store.

    Each shard is written into a folder of the cache, and moved into the store when it is complete.
    The state is kept in the store, so that any machine can resume. Requests are sent by children
    and workers: the main process, which forks them, must have no threads.

    Args:
        url: the folder.
    """

    def __init__(self, url: Url) -> None:
        digest = hashlib.sha256(str(url).rstrip("/").encode()).hexdigest()[:32]
        super().__init__(caches.folder() / "preparing" / digest)
        self._url = url
        self._sizes: dict[str, int] = {}
        """Name -> size of the objects in the folder, when it was last listed."""

    @property
    def place(self) -> Place:
        return self._url

    def check_usable(self) -> None:
        with _refused():
            names = call(self._listed)
        known = (f"{UNFINISHED}/{RECIPE}", manifests.FILE_NAME)
        if names and not any(name in names for name in known):
            raise UserError(f"--out {self._url}: is not empty", valid="a new folder")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        make_folder(self.path.parent)
        # Only the processes of this machine exclude each other. Those of others would write the
        # same bytes.
        with super().claimed():
            yield

    def finished(self, recipe: Recipe) -> Manifest | None:
        with _refused():
            self._sizes = call(self._fetched)
        return super().finished(recipe)

    def begin(self, recipe: Recipe, tokenizer: Mapping[str, Path]) -> Path:
        folder = super().begin(recipe, tokenizer)
        with _refused():
            call(self._begun)
        return folder

    def record(self, number: int, shard: Shard, left_out: LeftOut) -> None:
        super().record(number, shard, left_out)
        names = [name_of(number, kind) for kind in SUFFIXES]
        with _kept(self._url):
            for name in (*names, f"{UNFINISHED}/{number:05}.json"):
                objects.upload(self.path / name, self._url / name)
        for name in names:
            (self.path / name).unlink()

    def records(self, number: int) -> npt.NDArray[Any]:
        name = name_of(number, "documents")
        with _kept(self._url):
            content = objects.read_whole(self._url / name, manifests.MOST_COUNT)
        return np.frombuffer(content, dtype=DOCUMENT)

    def refresh(self) -> None:
        with _kept(self._url):
            self._sizes = call(self._listed)

    def finish(self, manifest: Manifest) -> None:
        with writable(self.path):
            manifest.write(self.path)
        with _kept(self._url):
            call(self._finished)
        shutil.rmtree(self.path, ignore_errors=True)

    def _size(self, name: str) -> int:
        try:
            return self._sizes[name]
        except KeyError:
            raise FileNotFoundError from None

    # ------------------------------------------------------------------------ in a child

    def _listed(self) -> dict[str, int]:
        start = f"{str(self._url).rstrip('/')}/"
        return {str(each.url).removeprefix(start): each.size for each in objects.below(self._url)}

    def _fetched(self) -> dict[str, int]:
        """Copy the manifest, or the state, into the folder of the cache; return the sizes."""
        sizes = self._listed()
        for path in self.path.glob("*"):
            if path.is_file():
                path.unlink()
        whole = manifests.FILE_NAME in sizes
        make_folder(self.path / UNFINISHED)
        for path in (self.path / UNFINISHED).glob("*.json"):
            path.unlink()

        def fetch(name: str) -> None:
            most = manifests.MOST if whole else _MOST_RECORD
            write_bytes(self.path / name, objects.read_whole(self._url / name, most))

        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(fetch, [manifests.FILE_NAME] if whole else filter(_STATE.match, sizes)))
        return sizes

    def _begun(self) -> None:
        state = f"{UNFINISHED}/{RECIPE}"
        objects.upload(self.path / state, self._url / state)
        for path in (self.path / TOKENIZER).iterdir():
            objects.upload(path, self._url / TOKENIZER / path.name)

    def _finished(self) -> None:
        name = manifests.FILE_NAME
        objects.upload(self.path / name, self._url / name)
        states = filter(_STATE.match, self._listed())
        objects.remove(self._url / name for name in states)


@contextmanager
def _refused() -> Iterator[None]:
    """Turn a store's failure, before anything is written, into the error of ``--out``."""
    try:
        yield
    except ObjectError as error:
        raise UserError(f"--out {error}") from None


@contextmanager
def _kept(url: Url) -> Iterator[None]:
    try:
        yield
    except ObjectError as error:
        raise RunError(
            f"{error}; what is done is kept in {url}, and the same command resumes"
        ) from None
