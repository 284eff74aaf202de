"""Write torch's distributed checkpoints (DCP) atomically, and read them as data only.

DCP stores its index as a pickle, ``.metadata``, and small values as pickles too.
:mod:`atom.titan.checkpoint.dcp_index` parses the index without running it, values are loaded with
torch's weights-only loader, and links are not followed: an untrusted checkpoint runs no code and
reads no file outside its folder.
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
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, WriteResult
from torch.futures import Future
from torch.utils.serialization import config as serialization

from atom.errors import UserError
from atom.io.files import NotAFileError, copy, is_regular, open_regular, sha256, write_json
from atom.run_dir import checkpoint
from atom.titan.checkpoint import dcp_index, tensor_digest
from atom.titan.checkpoint.dcp_index import HostileCheckpointError

# ---------------------------------------------------------------------------- writing

_OF_ANOTHER = ("Missing key in checkpoint", "Size mismatch between saved")
"""How torch begins the reason why a checkpoint does not fit what it is loaded into."""


@dataclass(frozen=True)
class _HashedResult(WriteResult):
    """The write result of one value, with the digest of the file that contains it.

    ``digest`` is that of the part of the tensor: see :mod:`atom.titan.checkpoint.tensor_digest`.
    """

    file: str
    file_size: int
    sha256: str
    digest: int = 0


class AtomicWriter(FileSystemWriter):
    """A writer that fills a partial folder and renames it when all ranks have finished.

    Each rank hashes the files that it wrote; the coordinator writes the manifest.

    Args:
        folder: the folder of checkpoints.
        step: the training step.
        model_only: recorded in the manifest.
        companions: files to copy beside the weights, if they exist.
        split: write a file for each value: torch holds all values of a file until it is written.
        tensors: write the digests of the tensors, too.
        by_rank: prefix of the tensors of single ranks, which have no digest.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        *,
        model_only: bool,
        companions: tuple[Path, ...] = (),
        split: bool = False,
        tensors: bool = False,
        by_rank: tuple[str, ...] = (),
    ) -> None:
        self._partial = checkpoint.partial_folder(folder, step)
        super().__init__(self._partial, single_file_per_rank=not split)
        self._folder = folder
        self._step = step
        self._model_only = model_only
        self._companions = companions
        self._tensors = tensors
        self._by_rank = by_rank

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        # The file's digest replaces the checksum of each value, which takes most of the writing
        # time.
        with serialization.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
            results = super().write_data(plan, planner).wait()
        of_tensors = _of_tensors(plan, planner) if self._tensors else {}
        digests: dict[str, tuple[int, str]] = {}
        hashed: list[WriteResult] = []
        for result in results:
            name = result.storage_data.relative_path
            if name not in digests:
                path = self._partial / name
                digests[name] = (path.stat().st_size, sha256(path))
            hashed.append(
                _HashedResult(
                    result.index,
                    result.size_in_bytes,
                    result.storage_data,
                    name,
                    *digests[name],
                    digest=of_tensors.get(result.index, 0),
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
        names = [dcp_index.FILE_NAME, *(companion.name for companion in present)]
        if self._tensors:
            write_json(self._partial / checkpoint.TENSORS, self._digests(metadata, results))
            names.append(checkpoint.TENSORS)
        for name in names:
            path = self._partial / name
            files[name] = checkpoint.File(path.stat().st_size, sha256(path))
        manifest = self._partial / checkpoint.MANIFEST
        checkpoint.Manifest(self._step, self._model_only, files).write(manifest)
        _sync(manifest)
        _sync(self._partial)
        place = checkpoint.step_folder(self._folder, self._step)
        if place.exists():
            # Saved earlier by a process that resumed from an older checkpoint: the new one wins.
            shutil.rmtree(place)
        self._partial.rename(place)
        _sync(self._folder)

    def _digests(self, metadata: Metadata, results: list[list[WriteResult]]) -> dict[str, Any]:
        """Add up the digests of the parts of each tensor."""
        sums: dict[str, int] = {}
        for result in (result for of_rank in results for result in of_rank):
            if isinstance(result, _HashedResult):
                sums[result.index.fqn] = sums.get(result.index.fqn, 0) + result.digest
        tensors = {
            name: (str(entry.properties.dtype).removeprefix("torch."), entry.size, sums[name])
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        found: dict[str, Any] = tensor_digest.content(tensors, self._by_rank)
        return found


def _of_tensors(plan: SavePlan, planner: SavePlanner) -> dict[MetadataIndex, int]:
    """Return the digests of the parts of tensors that this rank writes."""
    found = {}
    for item in plan.items:
        if item.type is WriteItemType.BYTE_IO or item.tensor_data is None:
            continue
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, torch.Tensor)
        chunk = item.tensor_data.chunk
        found[item.index] = tensor_digest.part(tensor, chunk.offsets, item.tensor_data.size)
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------- reading


class _RegularFiles(FileSystem):
    """A file system that opens regular files only: no links, no devices."""

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
    """A reader for untrusted checkpoints: it runs no code and opens no file outside the folder.

    Raises:
        HostileCheckpointError: on reading, if the checkpoint contains anything but data.
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
    """A planner that loads non-tensor values with torch's weights-only loader."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            data = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            name = read_item.dest_index.fqn
            reason = str(error).splitlines()[0]
            raise HostileCheckpointError(f"its value {name} is no data ({reason})") from None
        # The base class would unpickle the bytes without restrictions; re-encode the checked value
        # for it.
        clean = io.BytesIO()
        torch.save(data, clean)
        clean.seek(0)
        super().load_bytes(read_item, clean)


def load_fitting(state_dict: dict[str, Any], reader: SafeReader) -> None:
    """Load a checkpoint on all ranks.

    Raises:
        UserError: it is of another model.
        CheckpointException: it cannot be read.
    """
    try:
        dcp.load(state_dict, storage_reader=reader, planner=SafePlanner())
    except CheckpointException as error:
        causes = [str(cause) for cause, _ in error.failures.values()]
        reason = next((cause for cause in causes if cause.startswith(_OF_ANOTHER)), None)
        if reason is None:
            raise
        raise UserError(
            f"the checkpoint {reader.path} is of another model: {reason.rstrip('.')}",
            valid="the settings of the run that saved it, without resume.force",
        ) from error


def load_alone(
    tensors: dict[str, torch.Tensor], reader: StorageReader, planner: LoadPlanner | None = None
) -> None:
    """Fill ``tensors`` through DCP in a process outside a process group, without DCP's warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, planner=planner, no_dist=True)
