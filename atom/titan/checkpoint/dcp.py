"""torch's distributed checkpoint (DCP), written whole or not at all, and read as data only.

DCP keeps its index in a pickle, ``.metadata``, and small values as pickles too. The index is read
by :mod:`atom.titan.checkpoint.dcp_index`, values as torch reads weights, and no link is
followed: a stranger's checkpoint runs nothing and reads nothing outside of its folder.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, WriteResult
from torch.futures import Future
from torch.utils.serialization import config as serialization

from atom.io.files import NotAFileError, copy, is_regular, open_regular, sha256
from atom.run_dir import checkpoint
from atom.titan.checkpoint import dcp_index
from atom.titan.checkpoint.dcp_index import HostileCheckpointError

# ---------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _HashedResult(WriteResult):
    """What was written of one value, with the digest of the whole file that it is in."""

    file: str
    file_size: int
    sha256: str


class AtomicWriter(FileSystemWriter):
    """Writes into a partial folder, and gives it its name when all ranks have written all.

    Each rank hashes what it has written itself; the coordinator puts the manifest together.

    Args:
        folder: of the checkpoints.
        step: of training.
        model_only: for the manifest.
        companions: files to keep a copy of beside the weights, those that exist.
    """

    def __init__(
        self, folder: Path, step: int, *, model_only: bool, companions: tuple[Path, ...] = ()
    ) -> None:
        self._partial = checkpoint.partial_folder(folder, step)
        super().__init__(self._partial)
        self._folder = folder
        self._step = step
        self._model_only = model_only
        self._companions = companions

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        # The digest of the file says all that a checksum of each value in it would, which takes
        # most of the time of writing.
        with serialization.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
            results = super().write_data(plan, planner).wait()
        digests: dict[str, tuple[int, str]] = {}
        hashed: list[WriteResult] = []
        for result in results:
            name = result.storage_data.relative_path
            if name not in digests:
                path = self._partial / name
                digests[name] = (path.stat().st_size, sha256(path))
            hashed.append(
                _HashedResult(
                    result.index, result.size_in_bytes, result.storage_data, name, *digests[name]
                )
            )
        future: Future[list[WriteResult]] = Future()
        future.set_result(hashed)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        files = {
            result.file: checkpoint.File(result.file_size, result.sha256)
            for of_rank in results
            for result in of_rank
            if isinstance(result, _HashedResult)
        }
        present = [companion for companion in self._companions if is_regular(companion)]
        for companion in present:
            copy(companion, self._partial / companion.name)
        for name in (dcp_index.FILE_NAME, *(companion.name for companion in present)):
            path = self._partial / name
            files[name] = checkpoint.File(path.stat().st_size, sha256(path))
        manifest = self._partial / checkpoint.MANIFEST
        checkpoint.Manifest(self._step, self._model_only, files).write(manifest)
        _sync(manifest)
        _sync(self._partial)
        place = checkpoint.step_folder(self._folder, self._step)
        if place.exists():
            # Saved before, by a process that went on from an older checkpoint: the new one stands.
            shutil.rmtree(place)
        self._partial.rename(place)
        _sync(self._folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------- reading


class _RegularFiles(FileSystem):
    """Opens a checkpoint's own files: no link, no device."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        if mode != "rb":
            raise ValueError(f"a checkpoint that is read is not written to: {mode}")
        try:
            with open_regular(Path(path)) as stream:
                yield cast(io.IOBase, stream)
        except NotAFileError as error:
            raise HostileCheckpointError(str(error)) from None


class SafeReader(FileSystemReader):
    """Reads a checkpoint of anyone's: no code in it is run, no file outside of it is opened.

    Raises:
        HostileCheckpointError: when it is read, if it holds anything but data.
    """

    _metadata: Metadata | None = None

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        self.fs = _RegularFiles()

    def read_metadata(self, *_arguments: Any, **_extra: Any) -> Metadata:
        if self._metadata is None:
            with self.fs.create_stream(Path(self.path, dcp_index.FILE_NAME), "rb") as file:
                self._metadata = dcp_index.read(cast(IO[bytes], file))
            self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata


class SafePlanner(DefaultLoadPlanner):
    """Reads values that are no tensors as torch reads weights: nothing but data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            data = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            name = read_item.dest_index.fqn
            reason = str(error).splitlines()[0]
            raise HostileCheckpointError(f"its value {name} is no data ({reason})") from None
        # The base class loads bytes with a pickle's full powers; what it does with them is wanted.
        clean = io.BytesIO()
        torch.save(data, clean)
        clean.seek(0)
        super().load_bytes(read_item, clean)


def load_alone(
    tensors: dict[str, torch.Tensor], reader: StorageReader, planner: LoadPlanner | None = None
) -> None:
    """Fill ``tensors`` by DCP in a process that is no rank, which DCP would warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, planner=planner, no_dist=True)
