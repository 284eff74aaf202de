"""Compute a teacher's predictions of the documents that a run trains on, once, before training.

The teacher is loaded whole on the first rank of those that share sequences, which predicts the
documents that the run will read, one batch for each step. Its likeliest ids and their
log-probabilities are kept in ``teacher/DIGEST`` of the run folder, where the digest is of the
teacher's weights, the number of ids and the temperature.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from atom.errors import RunError, UserError
from atom.io.files import is_regular, write_json
from atom.plugin import Teacher
from atom.recipe.run import read
from atom.run_dir import events, saved
from atom.run_dir.folder import RUN_FILE
from atom.titan.train import beforehand, teacher_loss
from atom.titan.train.beforehand import COMPLETE, told
from atom.titan.train.callback import Callback
from atom.titan.train.teacher_store import TeacherStore

FOLDER = "teacher"
"""Folder in a run folder."""

VERSION = 1
"""Of how predictions are computed and kept."""

TOKENS = 4096
"""Tokens of one pass of the teacher, padding included; at least one document."""

SAVE_SECONDS = 60.0

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(ids_BL, positions_BL) -> logits_BLV"""

Document = tuple[torch.Tensor, torch.Tensor]
"""The ids of a document but the last, and whether the next of each is predicted."""


@dataclass(frozen=True, kw_only=True)
class TeachingConfig:
    """A teacher, and the settings that change which documents the run reads, as plain data.

    Attributes:
        teacher: the teacher.
        vocab_size: ids of the run's tokenizer; the teacher's logits of others are left out.
        dtype: the dtype in which the teacher computes.
        data: the settings.
        load: loads the teacher; :func:`atom.titan.weights.teacher.provide` sets it on ranks.
    """

    teacher: Teacher
    vocab_size: int
    dtype: str
    data: Mapping[str, Any] = field(default_factory=dict)
    load: Callable[[Path, str, str], Forward] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {"teacher": str(self.teacher.folder), "data": dict(self.data)}


class Teaching(Callback):
    """A callback that gives the loss a teacher's predictions; without one it does nothing."""

    name = "teaching"

    def on_built(self) -> None:
        self._loss = teacher_loss.of(self.trainer.loss_fn)
        self._store: TeacherStore | None = None

    def before_load(self) -> None:
        config = self.trainer.config.teaching
        if config is None:
            return
        begun = time.monotonic()
        mark = beforehand.mark(self.trainer, config.data)
        store = TeacherStore(self._folder(config, mark), config.teacher.top)
        store.load()
        if not told(is_regular(store.folder / mark)):
            computed = self._compute(store, config)
            if dist.get_rank() == 0:
                write_json(store.folder / mark, {"documents": len(store)})
                events.record(
                    self.trainer.run,
                    events.REFERENCES,
                    computed=computed,
                    sequences=len(store),
                    folder=f"{FOLDER}/{store.folder.name}",
                    seconds=round(time.monotonic() - begun, 3),
                )
        self._store = store
        dist.barrier()

    def on_sequences(self, sequences: Sequence[bytes]) -> None:
        if self._loss is None or self._store is None:
            return
        if not all(digest in self._store for digest in sequences):
            raise RunError(
                f"step {self.trainer.step} reads a document that the teacher has not predicted "
                "before training, as the run has left data out; a restart computes it"
            )
        rows = [self._store[digest] for digest in sequences]
        empty = np.empty((0, 0), dtype=np.int32)
        ids = np.concatenate([ids for ids, _ in rows]) if rows else empty
        logprobs = np.concatenate([each for _, each in rows]) if rows else empty
        self._loss.expect(
            torch.from_numpy(ids).to(self.trainer.device, torch.int64),
            torch.from_numpy(logprobs).to(self.trainer.device, torch.float32),
        )

    def _folder(self, config: TeachingConfig, mark: str) -> Path:
        """Return the folder of the predictions.

        Raises:
            UserError: the teacher is gone, and the predictions are not complete.
        """
        kept, teacher = self.trainer.run / FOLDER, config.teacher
        if not told(teacher.folder.is_dir()):
            complete = told(sorted(path.parent.name for path in kept.glob(f"*/{mark}")))
            if len(complete) == 1:
                return kept / complete[0]
            raise UserError(
                "the teacher is gone, and its predictions are not complete",
                valid="the folder that the run began with",
                key="objective.teacher",
                value=teacher.folder,
            )
        weights = beforehand.weights(told(place(teacher.folder)))
        name = beforehand.digest([VERSION, weights, teacher.top, teacher.temperature, config.dtype])
        before = told(sorted(path.parent.name for path in kept.glob(f"*/*{COMPLETE}")))
        if before and name not in before:
            raise UserError(
                "the teacher is not the one that the run began with",
                valid="that one, or a new run.dir",
                key="objective.teacher",
                value=teacher.folder,
            )
        return kept / name

    def _compute(self, store: TeacherStore, config: TeachingConfig) -> int:
        trainer = self.trainer
        computes = self._computes()
        forward: Forward | None = None
        computed, written, alive = 0, time.monotonic(), time.monotonic()
        for sequences, groups in beforehand.batches(trainer):
            lacking = [digest not in store for digest in sequences]
            if not beforehand.on_any(any(lacking), trainer.device):
                continue
            if computes and any(lacking):
                if forward is None:
                    assert config.load is not None
                    teacher = config.teacher
                    forward = config.load(teacher.folder, trainer.device.type, config.dtype)
                found = dict(zip(sequences, _documents(groups), strict=True))
                wanted = {d: found[d] for d, lacks in zip(sequences, lacking, strict=True) if lacks}
                for digest, row in _predicted(forward, wanted, config):
                    store.add(digest, *row)
                computed += len(wanted)
            if computes and time.monotonic() - written > SAVE_SECONDS:
                store.save()
                written = time.monotonic()
            if time.monotonic() - alive > 1:
                alive = time.monotonic()
                for callback in trainer.callbacks:
                    callback.still_starting()
        store.save()
        dist.barrier()
        store.load()
        return beforehand.added(computed, trainer.device)

    def _computes(self) -> bool:
        """Return whether this rank is the first of those that share its sequences."""
        dims = self.trainer.parallel_dims
        shared = {"tp": dims.tp_enabled, "cp": dims.cp_enabled, "pp": dims.pp_enabled}
        return all(
            not enabled or dims.get_mesh(name).get_local_rank() == 0
            for name, enabled in shared.items()
        )


def place(folder: Path) -> Path:
    """Return the folder with the files of a teacher's weights."""
    if (folder / RUN_FILE).is_file() and not any(folder.glob("*.safetensors")):
        return saved.newest(folder, read(folder / RUN_FILE))[1]
    return folder


def _documents(groups: beforehand.Groups) -> Iterator[Document]:
    """Yield the documents of a step in the order of their numbers."""
    for group in groups:
        for inputs, labels_BL in group:
            rows = zip(inputs["input"], labels_BL, inputs["positions"], strict=True)
            for ids_L, labels_L, positions_L in rows:
                begins = (positions_L == 0).nonzero().flatten().tolist()
                for begin, end in zip(begins, [*begins[1:], len(ids_L)], strict=True):
                    predicted = labels_L[begin:end] >= 0
                    if predicted.any():  # otherwise it is padding
                        yield ids_L[begin:end], predicted


@torch.no_grad()
def _predicted(
    forward: Forward, documents: Mapping[bytes, Document], config: TeachingConfig
) -> Iterator[tuple[bytes, tuple[Any, Any]]]:
    """Yield the likeliest ids and their log-probabilities for each document, by its digest."""
    batch: list[bytes] = []
    for digest in sorted(documents, key=lambda digest: (-len(documents[digest][0]), digest)):
        if batch and (len(batch) + 1) * len(documents[batch[0]][0]) > TOKENS:
            yield from _pass(forward, {each: documents[each] for each in batch}, config)
            batch = []
        batch.append(digest)
    if batch:
        yield from _pass(forward, {each: documents[each] for each in batch}, config)


def _pass(
    forward: Forward, documents: Mapping[bytes, Document], config: TeachingConfig
) -> Iterator[tuple[bytes, tuple[Any, Any]]]:
    # Attention is causal, so padding at the end changes nothing before it.
    ids_BL = torch.nn.utils.rnn.pad_sequence(
        [ids for ids, _ in documents.values()], batch_first=True
    )
    positions_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand(len(ids_BL), -1)
    logits_BLV = forward(ids_BL, positions_BL.contiguous())
    for (digest, (ids, predicted)), logits_LV in zip(documents.items(), logits_BLV, strict=True):
        chosen_NV = logits_LV[: len(ids)][predicted][:, : config.vocab_size].float()
        logprobs_NV = (chosen_NV / config.teacher.temperature).log_softmax(-1)
        top = logprobs_NV.topk(config.teacher.top, dim=-1)
        yield digest, (top.indices.cpu().numpy(), top.values.cpu().numpy())
