"""Find the weights that the adapters of a run belong to, digest them, and read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from atom.errors import UserError
from atom.io.files import is_regular, sha256
from atom.recipe.run import Run
from atom.run_dir import checkpoint, inputs, saved
from atom.run_dir.folder import RUN_FILE
from atom.titan import saved_model
from atom.titan.checkpoint import hugging_face_folder as hf_folder
from atom.titan.checkpoint import hugging_face_reader as hf_reader
from atom.titan.checkpoint.checkpointer import HUGGING_FACE
from atom.titan.saved_model import Checkpoint, Trained

KEY = "checkpoint.initial_load"
_COMPANIONS = (RUN_FILE, inputs.FILE_NAME)


def digest(run: Run, *, verify: bool) -> str | None:
    """Return the SHA-256 of the names and digests of the files of a run's base; None without one.

    Args:
        run: a run with the full path of its initial weights.
        verify: hash the files of a checkpoint, too, which its manifest has digests of. Files in
            Hugging Face's format are always hashed.

    Raises:
        UserError: there is no such base, or it is damaged.
    """
    place = run.checkpoint.initial_load
    if not run.lora.rank or not place:
        return None
    folder = Path(place.removeprefix(HUGGING_FACE))
    try:
        if place.startswith(HUGGING_FACE):
            found = {path.name: sha256(path) for path in hf_folder.files(folder)}
        elif (folder / checkpoint.MANIFEST).is_file():
            manifest = checkpoint.read_manifest(folder)
            if problem := checkpoint.missing(folder, manifest):
                raise UserError(f"is damaged: {problem}", key=KEY, value=place)
            if verify:
                saved.verify(folder)
            found = {name: file.sha256 for name, file in manifest.files.items()}
        else:
            paths = sorted(path for path in folder.iterdir() if is_regular(path))
            found = {path.name: sha256(path) for path in paths}
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"is the base of adapters, and cannot be read: {words}", key=KEY, value=place
        ) from None
    # The checkpoint of the same step can lie in another folder, with another path in its run.yaml.
    lines = [f"{sha} {name}\n" for name, sha in sorted(found.items()) if name not in _COMPANIONS]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Base:
    """The weights that adapters belong to, read by the names of a checkpoint.

    Args:
        trained: the run of the adapters.

    Raises:
        UserError: they are gone, damaged or others than those that the adapters were trained on.
    """

    def __init__(self, trained: Trained) -> None:
        run = trained.run
        assert run.resolved is not None
        place = run.checkpoint.initial_load
        if digest(run, verify=False) != run.resolved.base:
            raise UserError(
                f"{place} has other weights than when the adapters of {trained.folder} were "
                "trained on them",
                valid="those weights, at that path",
            )
        folder = Path(place.removeprefix(HUGGING_FACE))
        self.shapes: Mapping[str, torch.Tensor] = saved_model.on_meta(
            trained.parts.model
        ).state_dict()
        """The names and shapes of all weights."""
        self._adapter = self._checkpoint = None
        if place.startswith(HUGGING_FACE):
            self._adapter, self._folder = trained.adapter(), folder
            self._quantized = bool(run.checkpoint.engine.get("initial_load_in_hf_quantized"))
            self._block: tuple[tuple[str, ...], dict[str, torch.Tensor]] = ((), {})
        else:
            self._checkpoint = Checkpoint(folder)
            self._checkpoint.check(dict(self.shapes))

    def read(self, name: str) -> torch.Tensor:
        """Return one weight, whole."""
        if self._checkpoint is not None:
            return self._checkpoint.read(name)
        names, values = self._block
        if name not in names:
            # A weight may be part of another one there, and tied weights are one.
            above = name.split(".")[:2] if name.startswith("layers.") else []
            names = tuple(n for n in self.shapes if _is_in_block(n, above))
            values = self._read(names)
            self._block = names, values
        return values[name]

    def _read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        empty = {
            name: torch.empty(self.shapes[name].shape, dtype=self.shapes[name].dtype)
            for name in names
        }
        return hf_reader.load(
            empty, self._adapter, self._folder, quantized=self._quantized, alone=True
        )


def _is_in_block(name: str, above: list[str]) -> bool:
    mine = name.split(".")[:2]
    return mine == above if above else mine[0] != "layers"
