"""torch's distributed checkpoint (DCP), written whole or not at all, and read as data only.

DCP keeps its index in a pickle, ``.metadata``, and small values as pickles too. Here both are read
by unpicklers that know the classes DCP writes and no others, so a checkpoint of a stranger's runs
nothing.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from torch.utils.serialization import config as serialization

from atom import checkpoint
from atom.files import sha256

_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_METADATA, name) for name in (
        "Metadata", "MetadataIndex", "ChunkStorageMetadata", "TensorStorageMetadata",
        "BytesStorageMetadata", "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("collections", "OrderedDict"),
}  # fmt: skip


class HostileCheckpointError(Exception):
    """A checkpoint holds something else than data."""


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
        companion: a file to keep a copy of beside the weights, if it exists.
    """

    def __init__(
        self, folder: Path, step: int, *, model_only: bool, companion: Path | None = None
    ) -> None:
        self._partial = checkpoint.partial_folder(folder, step)
        super().__init__(self._partial)
        self._folder = folder
        self._step = step
        self._model_only = model_only
        self._companion = companion

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
        if self._companion is not None and self._companion.is_file():
            shutil.copyfile(self._companion, self._partial / self._companion.name)
        for name in (".metadata", self._companion.name if self._companion else ".metadata"):
            path = self._partial / name
            if path.is_file():
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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------- reading


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise HostileCheckpointError(
            f"its index names {module}.{name}, which is nothing that a checkpoint holds"
        )


class SafeReader(FileSystemReader):
    """Reads a checkpoint of anyone's: no code in it is run, no file outside of it is opened.

    Raises:
        HostileCheckpointError: when it is read, if it holds anything but data.
    """

    _metadata: Metadata | None = None

    def read_metadata(self, *_arguments: Any, **_extra: Any) -> Metadata:
        if self._metadata is None:
            with Path(self.path, ".metadata").open("rb") as file:
                self._metadata = _read_metadata(file)
            if getattr(self._metadata, "storage_meta", None) is None:
                self._metadata.storage_meta = StorageMeta()
            self._metadata.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
        return self._metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        for item in plan.items:
            name = self.storage_data[item.storage_index].relative_path
            if Path(name).name != name:
                raise HostileCheckpointError(f"its index names {name!r}, a file outside of it")
        return super().prepare_local_plan(plan)


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


def _read_metadata(file: IO[bytes]) -> Metadata:
    metadata = _Unpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise HostileCheckpointError("its index is none")
    return metadata
