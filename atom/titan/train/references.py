"""Compute the log-probabilities of examples under the initial weights, once, before training.

The model of the run computes them, with its layout and without gradients, before a checkpoint is
loaded. They are kept in ``references/DIGEST`` of the run folder, where the digest is of the initial
weights, the architecture and the dtypes. A run that resumes finds them there, on any layout; it
computes what is lacking, such as the rest after an interruption.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from atom.errors import RunError, UserError
from atom.io.files import is_regular, write_json
from atom.run_dir import checkpoint, events
from atom.titan.train import beforehand, example_loss, forward
from atom.titan.train.beforehand import COMPLETE, told
from atom.titan.train.callback import Callback
from atom.titan.train.reference_store import ReferenceStore
from atom.titan.train.untouched import Untouched
from atom.titan.train.validation import Validation

if TYPE_CHECKING:
    from atom.titan.train.trainer import Microbatch

FOLDER = "references"
"""Folder in a run folder."""

VERSION = 1
"""Of how references are computed and kept."""

SAVE_SECONDS = 60.0

_KEY = "checkpoint.initial_load"


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """What references depend on, as plain data.

    Attributes:
        model: the settings that change the computation, beside the weights.
        data: the settings that change which examples the run reads.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {"model": dict(self.model), "data": dict(self.data)}


class References(Callback):
    """A callback that gives the loss of examples its references; without one it does nothing."""

    name = "references"

    def on_built(self) -> None:
        trainer = self.trainer
        self._loss = example_loss.of(trainer.loss_fn)
        self._store: ReferenceStore | None = None
        if self._loss is not None and trainer.parallel_dims.cp_enabled:
            self._loss.group = trainer.parallel_dims.get_mesh("cp").get_group()

    def before_load(self) -> None:
        config = self.trainer.config.references
        if config is None:
            return
        begun = time.monotonic()
        mark = beforehand.mark(self.trainer, config.data)
        store = ReferenceStore(self._folder(config, mark))
        store.load()
        self._store = store
        if not told(is_regular(store.folder / mark)):
            self.trainer.checkpointer.load_initial()
            computed = self._compute(store)
            if dist.get_rank() == 0:
                write_json(store.folder / mark, {"sequences": len(store)})
                events.record(
                    self.trainer.run,
                    events.REFERENCES,
                    computed=computed,
                    sequences=len(store),
                    folder=f"{FOLDER}/{store.folder.name}",
                    seconds=round(time.monotonic() - begun, 3),
                )
        dist.barrier()

    def on_sequences(self, sequences: Sequence[bytes]) -> None:
        if self._loss is None:
            return
        found = None
        if self._store is not None:
            if not all(digest in self._store for digest in sequences):
                raise RunError(
                    f"step {self.trainer.step} reads an example whose reference was not computed "
                    "before training, as the run has left data out; a restart computes it"
                )
            found = [self._store[digest] for digest in sequences]
        self._loss.expect(len(sequences), found, self.trainer.device)

    def _folder(self, config: ReferenceConfig, mark: str) -> Path:
        """Return the folder of the references, which is named by the digest of the initial weights
        and of the settings of the model.

        Raises:
            UserError: the run would resume with other initial weights than it began with.
        """
        settings = self.trainer.config.checkpoint
        place = settings.initial_load_path if settings.enable else None
        kept = self.trainer.run / FOLDER
        before = told(sorted(path.parent.name for path in kept.glob(f"*/*{COMPLETE}")))
        resumes = told(checkpoint.resumable(self.trainer.run / settings.folder))
        if place is not None and not told(Path(place).is_dir()):
            complete = told(sorted(path.parent.name for path in kept.glob(f"*/{mark}")))
            if len(complete) == 1:  # a run that resumes no longer needs its initial weights
                return kept / complete[0]
            raise UserError(
                "is gone, and the log-probabilities under these weights are not complete",
                valid="the weights that the run began with",
                key=_KEY,
                value=place,
            )
        weights = {"seed": str(self.trainer.config.debug.seed)}
        if place is not None:
            weights = beforehand.weights(Path(place))
        name = beforehand.digest([VERSION, weights, config.model])
        if resumes and before and name not in before:
            raise UserError(
                "the initial weights, which are the reference, are not those that the run began "
                "with",
                valid="those, or a new run.dir",
                key=_KEY,
                value=place,
            )
        return kept / name

    def _compute(self, store: ReferenceStore) -> int:
        """Compute the references that are lacking; return their number."""
        trainer, loss = self.trainer, self._loss
        assert loss is not None
        computed, saved, alive = 0, time.monotonic(), time.monotonic()
        writes = self._writes()
        with Untouched(trainer):
            for sequences, passes in self._everything():
                lacking = {
                    digest: number for number, digest in enumerate(sequences) if digest not in store
                }
                if not beforehand.on_any(bool(lacking), trainer.device):
                    continue
                loss.record(len(sequences), trainer.device)
                for microbatches in passes:
                    forward.loss(trainer, microbatches)
                logprobs = loss.take_recorded().tolist()
                for digest, number in lacking.items():
                    store.add(digest, logprobs[number])
                computed += len(lacking) if writes else 0
                if writes and time.monotonic() - saved > SAVE_SECONDS:
                    store.save()
                    saved = time.monotonic()
                if time.monotonic() - alive > 1:
                    alive = time.monotonic()
                    for callback in trainer.callbacks:
                        callback.still_starting()
        if writes:
            store.save()
        dist.barrier()
        store.load()
        return beforehand.added(computed, trainer.device)

    def _writes(self) -> bool:
        """Return whether this rank has the sums, first of the ranks that share its sequences."""
        dims = self.trainer.parallel_dims
        first = all(
            not enabled or dims.get_mesh(name).get_local_rank() == 0
            for name, enabled in (("tp", dims.tp_enabled), ("cp", dims.cp_enabled))
        )
        return first and (not dims.pp_enabled or self.trainer.pp_has_last_stage)

    def _everything(self) -> Iterator[tuple[Sequence[bytes], Iterator[list[Microbatch]]]]:
        """Yield the sequences of each step and validation set, with their passes."""
        for sequences, groups in beforehand.batches(self.trainer):
            yield sequences, iter(groups)
        for callback in self.trainer.callbacks:
            if isinstance(callback, Validation):
                yield from callback.everything()
