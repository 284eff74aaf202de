"""Load a run's saved weights and the model that they belong to.

The weights are in a checkpoint, or in a folder in Hugging Face's format that ``atom export`` wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from atom.errors import UserError
from atom.plugin import ModelParts, Tokenizer
from atom.recipe.run import Run, read
from atom.registry.host import Host
from atom.registry.select import Selection, select
from atom.registry.trust import Trust
from atom.run_dir.folder import RUN_FILE, TOKENIZER, check_run
from atom.titan import translate
from atom.titan.checkpoint.callback_state import AVERAGE, CALLBACKS
from atom.titan.checkpoint.dcp import HostileCheckpointError, SafePlanner, SafeReader, load_alone
from atom.titan.trainer_config import model_parts, set_sharding


@dataclass(frozen=True)
class Trained:
    """A run loaded from its folder.

    Attributes:
        folder: the folder of the run, or of its export.
        run: its ``run.yaml``.
        host: the plugins that it may load.
        selection: its components.
        parts: the model's, with its sharding set for one rank.
    """

    folder: Path
    run: Run
    host: Host
    selection: Selection
    parts: ModelParts

    @property
    def tokenizer_files(self) -> Path:
        """The folder with the tokenizer's files."""
        place = self.folder / TOKENIZER
        return place if place.is_dir() else self.folder

    def tokenizer(self) -> Any:
        """Return the torchtitan tokenizer, with ``bos_id`` and ``eos_id``, each an id or None."""
        config = self.selection[Tokenizer].call("build")
        return config.build(tokenizer_path=str(self.tokenizer_files))

    def adapter(self) -> Any:
        """Return the architecture's state-dict adapter.

        Raises:
            UserError: it has none.
        """
        return adapter(self.parts, self.run.architecture.name)


def trained(folder: Path, run_file: Path | None = None) -> Trained:
    """Load the ``run.yaml`` of a run folder, or of an export.

    Args:
        folder: the folder.
        run_file: the ``run.yaml`` of an earlier start of the run; None: that of the last one.

    Raises:
        UserError: there is none, or it needs a package that is not installed.
    """
    check_run(folder, valid="the folder of a run, or its export")
    file = folder / RUN_FILE if run_file is None else run_file
    run = read(file)
    if run.resolved is None:
        raise UserError(f"{file} belongs to a run that has not started")
    host = Host.load(Trust.of_run(run.plugins))
    selection = select(run, host, training=False)
    training = translate.training(run.training, run.resolved.device)
    parts = model_parts(selection, run.resolved.vocab_size, training.seq_len)
    on_one_rank(parts, training)
    return Trained(folder, run, host, selection, parts)


def on_one_rank(parts: ModelParts, training: Any) -> None:
    """Set the sharding of a model's config for one rank; building the model may require it."""
    set_sharding(parts.model, training, translate.config("parallelism"))


def adapter(parts: ModelParts, architecture: str) -> Any:
    """Return the state-dict adapter of an architecture.

    Raises:
        UserError: it has none.
    """
    if parts.state_dict_adapter is None:
        raise UserError(
            "this architecture has no counterpart at Hugging Face",
            key="architecture.name",
            value=architecture,
        )
    return parts.state_dict_adapter(parts.model, None)


def on_meta(config: Any) -> nn.Module:
    """Return the whole model of a torchtitan model config, on the meta device."""
    with torch.device("meta"):
        model: nn.Module = config.build()
    return model


class Checkpoint:
    """A native checkpoint, read one tensor at a time.

    Args:
        place: its folder.
        average: the callback whose averaged weights replace the weights; None: the weights.

    Attributes:
        place: its folder.
        tensors: name -> shape and dtype of every tensor in it, the optimizer's included.

    Raises:
        UserError: it cannot be read, or has no such average; all methods raise this, too.
    """

    def __init__(self, place: Path, average: str | None = None) -> None:
        self.place = place
        self._reader = SafeReader(place)
        try:
            entries = self._reader.read_metadata().state_dict_metadata
        except (OSError, HostileCheckpointError) as error:
            raise self._unreadable(error) from None
        self.tensors: dict[str, TensorStorageMetadata] = {
            name: entry
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._stored: dict[str, str] = {}
        if average is not None:
            self._replace(average)

    def _replace(self, average: str) -> None:
        """Let the names of weights stand for their averages; buffers have none, and stay."""
        found: dict[str, dict[str, str]] = {}
        for stored in self.tensors:
            callback, kept, name = stored.removeprefix(CALLBACKS).partition(f".{AVERAGE}.")
            if stored.startswith(CALLBACKS) and kept:
                found.setdefault(callback, {})[name] = stored
        if average not in found:
            raise UserError(
                f"the checkpoint {self.place} has no averaged weights of a callback {average}",
                valid=", ".join(found) or "no --average: it has the weights alone",
            )
        self._stored = found[average]
        self.tensors |= {name: self.tensors[stored] for name, stored in self._stored.items()}

    def check(self, expected: Mapping[str, torch.Tensor]) -> None:
        """Refuse a checkpoint whose weights differ from ``expected`` in names or shapes."""
        shapes = {name: entry.size for name, entry in self.tensors.items()}
        roots = {name.partition(".")[0] for name in expected}
        extra = [n for n in shapes if n not in expected and n.partition(".")[0] in roots]
        problem = difference(expected, shapes)
        if problem is None and extra:
            problem = (
                f"{len(extra):,} of its weights are unknown to this architecture, such as "
                f"{extra[0]}"
            )
        if problem:
            raise UserError(f"the checkpoint {self.place} is of another model: {problem}")

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, whole."""
        entry = self.tensors[name]
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        self.fill({name: tensor})
        return tensor

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Read the values of ``tensors``, in place."""
        try:
            stored = {self._stored.get(name, name): tensor for name, tensor in tensors.items()}
            load_alone(stored, self._reader, SafePlanner())
        except (OSError, HostileCheckpointError, CheckpointException) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: BaseException) -> UserError:
        reason = " ".join(str(error).split())
        return UserError(f"the checkpoint {self.place} cannot be read: {reason}")


def difference(expected: Mapping[str, torch.Tensor], found: Mapping[str, Any]) -> str | None:
    """Return how the shapes ``found`` differ from those of the weights ``expected``, or None.

    Unexpected tensors are ignored.
    """
    lacking = [name for name in expected if name not in found]
    if lacking:
        return (
            f"{len(lacking):,} of its {len(expected):,} weights are missing, such as {lacking[0]}"
        )
    for name, tensor in expected.items():
        if tuple(found[name]) != tuple(tensor.shape):
            return f"{name} is {list(found[name])} there and {list(tensor.shape)} here"
    return None
