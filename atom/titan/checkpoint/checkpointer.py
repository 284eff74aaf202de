"""A checkpoint manager that writes atomically and loads only verified data."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torchtitan.components.checkpointer.base import (
    DATALOADER,
    LR_SCHEDULER,
    MODEL,
    OPTIMIZER,
)
from torchtitan.components.checkpointer.dcp import AsyncMode, CheckpointManager
from torchtitan.tools.utils import GarbageCollection

from atom.errors import RunError, UserError
from atom.recipe.run import read
from atom.run_dir import checkpoint, events, inputs
from atom.run_dir.folder import LOCK, RUN_FILE
from atom.run_dir.kept import Kept
from atom.titan.checkpoint import callback_state, mixed_sources, new_rows
from atom.titan.checkpoint import hugging_face_reader as hf_reader
from atom.titan.checkpoint.dcp import AtomicWriter, SafeReader, load_fitting
from atom.titan.checkpoint.new_rows import Added, Growing
from atom.titan.checkpoint.random_state import RandomState
from atom.titan.compat.staging import without_offsets
from atom.titan.optim.kept_optimizers import StateOnly, follow_schedule

RANDOM = "random"
"""State-dict key of the random number generators' states, one per rank."""

HUGGING_FACE = "hf:"
"""Prefix of a path to initial weights in Hugging Face's format."""

FAULTS = "faults"
"""State-dict key of the history that faults are judged by: see :mod:`atom.titan.train.anomaly`."""

STREAM = "stream"
"""State-dict key of the digest of all tokens up to a step: see :mod:`atom.titan.train.stream`."""

log = structlog.get_logger("atom")


class VerifiedCheckpointManager(CheckpointManager):
    """A checkpoint manager that saves through :class:`AtomicWriter` and loads verified checkpoints.

    It loads the newest checkpoint with valid digests.

    The work of a rank does not grow with the number of ranks: each rank hashes the files that it
    wrote, and when loading, each file is hashed by one rank.

    A failed save (a full disk) is recorded and retried at the next interval; only the last save
    must succeed.
    """

    save_future: Future[Any] | None

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "async"
        """Write in the background (async), or hold training until all is written (disabled)."""

        keep_every: int = 0
        """Keep checkpoints of steps divisible by this forever, beside keep_latest_k; 0: none."""

        keep_best: int = 0
        """Keep so many checkpoints of the lowest loss (its mean since the one before)."""

        keep_best_of: str | None = None
        """The validation set with the loss that keep_best compares; None: the training loss."""

        initial_load: str = ""
        """Weights to start from: hf:FOLDER (Hugging Face's format), a run's folder, or step-N."""

        def __post_init__(self) -> None:
            if self.initial_load:
                name = self.initial_load.removeprefix(HUGGING_FACE)
                path = str(Path(name).expanduser().resolve())
                if self.initial_load_path not in (None, path):  # type: ignore[has-type]
                    raise ValueError("initial_load and initial_load_path are two places.")
                # mypy does not look for slots in a base class of another package.
                self.initial_load_path = path  # type: ignore[misc]
                self.initial_load_in_hf = name != self.initial_load  # type: ignore[misc]
            CheckpointManager.Config.__post_init__(self)
            if self.keep_every < 0 or self.keep_best < 0:
                raise ValueError("keep_every and keep_best cannot be negative.")

    def __init__(self, config: Config, *, base_folder: str = "", **runtime: Any) -> None:
        super().__init__(config, base_folder=base_folder, **runtime)
        if not self.enable:
            return
        self._run = Path(base_folder)
        self._place = Path(self.folder)
        self._kept = Kept(
            config.keep_latest_k, config.keep_every, config.keep_best, config.keep_best_of
        )
        if self.async_mode is AsyncMode.ASYNC:
            # It keeps its staging memory for the next copy: allocating it again, page by page,
            # takes longer than the copy.
            self.stager = DefaultStager(StagingOptions(False, False, False, False))
        self._saving: tuple[int, float] | None = None
        """The step of the background save and its start time."""
        self.states[RANDOM] = RandomState()
        self.data_begins: int | None = None
        """The step of a checkpoint of another run, without its position in the data."""
        self.added: Added | None = None
        """The tokens that the run adds to the tokenizer of its initial weights."""
        self.branch: str | None = None
        """The checkpoint that the run has begun from: ``resume.from``."""
        self.tensor_digest = False
        """Whether checkpoints have digests of their tensors."""

    # ------------------------------------------------------------------------ saving

    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: AsyncMode,
        enable_garbage_collection: bool = False,
        to_hf: bool = False,
    ) -> Any:
        """Save as torchtitan does, through a writer that renames the folder when it is complete."""
        if to_hf:
            return super().dcp_save(
                state_dict, checkpoint_id, async_mode, enable_garbage_collection, to_hf
            )
        step = int(checkpoint_id.rpartition("-")[2])
        self._saving = (step, time.monotonic())
        averages = {} if RANDOM in state_dict else callback_state.averaging(self.states)
        writer = AtomicWriter(
            self._place,
            step,
            model_only=RANDOM not in state_dict,
            companions=tuple(self._run / name for name in (RUN_FILE, LOCK, inputs.FILE_NAME)),
            tensors=self.tensor_digest,
            by_rank=(f"{RANDOM}.",),
        )
        future: Any = None
        if async_mode is AsyncMode.DISABLED:
            try:
                dcp.save(state_dict | averages, storage_writer=writer)
            except CheckpointException as error:
                self._saved(error)
            else:
                self._saved(None)
        else:
            pinned = async_mode is AsyncMode.ASYNC_WITH_PINNED_MEM
            kinds = dcp.state_dict_saver.AsyncCheckpointerType
            future = dcp.async_save(
                without_offsets(state_dict | averages),
                storage_writer=writer,
                process_group=self.pg,
                async_checkpointer_type=kinds.PROCESS if pinned else kinds.THREAD,
                async_stager=self.stager,
            )
        if enable_garbage_collection:
            GarbageCollection.collect("GC collection invoked by checkpointer.")
        return future

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        if last_step and self._should_save(curr_step, last_step):
            # torchtitan would start a second save while one is still running.
            self.maybe_wait_for_saving()
        self._poll()
        return super()._save(curr_step, last_step)

    def save_now(self, step: int) -> bool:
        """Save everything of ``step``; return whether it is on disk (False if the run never saves).

        Raises:
            RunError: it could not be written.
        """
        if not self.enable or self.load_only:
            return False
        self.maybe_wait_for_saving()
        if step not in checkpoint.steps(self._place):
            self.dcp_save(
                self._flattened_model_states_sd(),
                checkpoint_id=self._create_checkpoint_id(step),
                async_mode=AsyncMode.DISABLED,
            )
            self._check_written(step)
        return True

    def _save_last_step(self, curr_step: int) -> None:
        super()._save_last_step(curr_step)
        if not self.last_save_in_hf:
            self._check_written(curr_step)

    def _check_written(self, step: int) -> None:
        if step not in checkpoint.steps(self._place):
            raise RunError(f"the checkpoint of step {step}, the last one, could not be written")

    def _poll(self) -> None:
        """Record a background save that has ended.

        Ranks may see the end at different steps, so nothing is decided here.
        """
        future = self.save_future
        if future is not None and future.done():
            self._saved(future.exception())
            self.save_future = None

    def _wait_for_saving(self) -> None:
        assert self.save_future is not None
        self._saved(self.save_future.exception())
        self.save_future = None

    def _saved(self, error: BaseException | None) -> None:
        if self._saving is None:
            return
        (step, begin), self._saving = self._saving, None
        if error is not None and not isinstance(error, CheckpointException):
            raise error
        if dist.get_rank() != 0:
            return
        if error is None:
            seconds = round(time.monotonic() - begin, 3)
            told = {}
            if self.tensor_digest and (digest := checkpoint.tensors(self._place, step)):
                told["tensors"] = digest
            events.record(self._run, events.CHECKPOINT_SAVED, step=step, seconds=seconds, **told)
            # The checkpoint exists only now; torchtitan purges before it does, and not after the
            # last.
            self._purge_stale_checkpoints()
            return
        reason = _reason(error)
        log.warning("checkpoint failed", step=step, reason=reason)
        shutil.rmtree(checkpoint.partial_folder(self._place, step), ignore_errors=True)
        events.record(self._run, events.CHECKPOINT_FAILED, step=step, reason=reason)

    def _close(self) -> None:
        self.maybe_wait_for_saving()
        super()._close()

    # ------------------------------------------------------------------------ keeping

    def _purge_stale_checkpoints(self) -> None:
        if not self._should_purge():
            return
        steps = checkpoint.steps(self._place)
        kept = self._kept.among(steps, self._run)
        for step in steps:
            if step in kept:
                continue
            place = checkpoint.step_folder(self._place, step)
            # Rename first: a half-deleted folder must not count as a checkpoint.
            doomed = place.rename(place.with_name(f".{place.name}.deleted"))
            self.purge_queue.put(str(doomed))

    # ------------------------------------------------------------------------ loading

    def _find_load_step(self, folder: str = "") -> int:
        """Return the newest step with valid files, the same on every rank; -1 if there is none.

        Damaged checkpoints found on the way are set aside.

        Raises:
            UserError: all are damaged.
        """
        if folder and Path(folder) != self._place:
            return super()._find_load_step(folder)
        first = dist.get_rank() == 0
        if first:
            for leftover in self._place.glob(".step-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        damaged = 0
        for step in reversed(_agreed(checkpoint.in_own_format(self._place) if first else None)):
            reason, usable = self._verified(step)
            if reason is None and usable:
                if first:
                    events.record(self._run, events.RESUMED, step=step)
                return step
            damaged += reason is not None
            if reason is not None and first:
                aside = checkpoint.set_aside(self._place, step)
                log.error("checkpoint damaged", step=step, reason=reason, place=str(aside))
                events.record(
                    self._run,
                    events.CHECKPOINT_DAMAGED,
                    step=step,
                    reason=reason,
                    place=aside.name,
                )
        if self.branch is not None:
            raise UserError(
                "the checkpoint is damaged, and its copy in the run folder was set aside",
                valid="another step, and a new run.dir",
                key="resume.from",
                value=self.branch,
            )
        if damaged:
            raise UserError(
                f"all checkpoints of the run are damaged and were set aside ({damaged} in "
                f"{self._place}); the same command would train from the first step",
                valid="that, or another run.dir",
                key="run.dir",
                value=self._run,
            )
        return -1

    def load_initial(self) -> None:
        """Load the run's initial weights alone, if it names some."""
        if self.enable and self.initial_load_path:
            self.dcp_load(
                self._states_to_load(model_only=True),
                checkpoint_id=self.initial_load_path,
                from_hf=self.initial_load_in_hf,
                from_quantized=self.initial_load_in_hf_quantized,
            )

    def _verified(self, step: int) -> tuple[str | None, bool]:
        """Return why a step's checkpoint is damaged, or None; and whether to resume from it."""
        place = checkpoint.step_folder(self._place, step)
        try:
            manifest = checkpoint.read_manifest(place)
        except ValueError as error:
            reason: str | None = str(error)
            usable = False
        else:
            usable = not manifest.model_only
            reason = checkpoint.missing(place, manifest)
            if reason is None and usable:
                mine = sorted(manifest.files)[dist.get_rank() :: dist.get_world_size()]
                reason = checkpoint.altered(place, manifest, mine)
        found: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(found, reason)
        return next((words for words in found if words is not None), None), usable

    def dcp_load(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        from_hf: bool,
        from_quantized: bool,
    ) -> None:
        """Load as torchtitan does, without executing code from the checkpoint.

        Raises:
            UserError: the initial weights contain NaN or infinity.
        """
        if from_hf:
            folder = Path(checkpoint_id)
            growing = self._growing(
                state_dict, lambda: new_rows.in_hugging_face(folder, self.sd_adapter, state_dict)
            )
            try:
                loaded = hf_reader.load(
                    state_dict, self.sd_adapter, folder, quantized=from_quantized, alone=False
                )
            except hf_reader.NotFiniteError as error:
                raise _no_numbers(checkpoint_id, error) from None
            if growing is not None:
                loaded = growing.end(loaded)
            self.states[MODEL].load_state_dict(loaded)
            return
        reader = SafeReader(checkpoint_id)
        saved = reader.read_metadata().state_dict_metadata
        if RANDOM in state_dict and f"{RANDOM}.{RandomState.key()}.cpu" not in saved:
            # Saved with fewer ranks, or by another trainer: this rank keeps its current state.
            state_dict.pop(RANDOM)
        if FAULTS in state_dict and f"{FAULTS}.good" not in saved:
            state_dict.pop(FAULTS)  # saved by an earlier version
        if STREAM in state_dict and f"{STREAM}.digest" not in saved:
            state_dict.pop(
                STREAM
            )  # saved by an earlier version, or without provenance.token_digest
        callback_state.leave_out_new(state_dict, saved)
        if self.exclude_from_loading and self._excluded_before(Path(checkpoint_id)):
            state_dict |= {name: self.states[name] for name in self.exclude_from_loading}
        if self._step_of(checkpoint_id) == self.data_begins:
            state_dict.pop(DATALOADER, None)
        loader, place = self.states.get(DATALOADER), Path(checkpoint_id)
        own = place.parent == self._place and (place / RUN_FILE).is_file()
        if DATALOADER in state_dict and isinstance(loader, mixed_sources.HasSources):
            loader.expect_cursor(f"{DATALOADER}.cursor" in saved)
        if own and isinstance(loader, mixed_sources.HasSources):
            step = self._step_of(checkpoint_id)
            mixed_sources.prepare(loader, place, step, loaded=DATALOADER in state_dict)
        if OPTIMIZER in state_dict:
            state_dict[OPTIMIZER] = StateOnly(state_dict[OPTIMIZER])
        growing = None
        if place.parent != self._place:
            growing = self._growing(state_dict, lambda: new_rows.in_checkpoint(saved))
        load_fitting(state_dict, reader)
        if growing is not None:
            state_dict |= growing.end(state_dict)
        if LR_SCHEDULER in state_dict:
            follow_schedule(state_dict[LR_SCHEDULER])
        if Path(checkpoint_id).parent != self._place:
            try:
                hf_reader.check_finite(state_dict)
            except hf_reader.NotFiniteError as error:
                raise _no_numbers(checkpoint_id, error) from None
        if MODEL in self.states:
            self.states[MODEL].load_state_dict(state_dict)

    def _growing(self, state: dict[str, Any], rows: Callable[[], int | None]) -> Growing | None:
        """Let ``state`` be read with as many rows as initial weights have, if tokens are added."""
        found = rows() if self.added is not None else None
        return Growing(state, self.added, found) if self.added and found else None

    @staticmethod
    def _step_of(checkpoint_id: str) -> int:
        return int(checkpoint_id.rpartition("-")[2])

    def _excluded_before(self, place: Path) -> bool:
        """Return whether this run saved the checkpoint with the same keys excluded on load."""
        if place.parent != self._place or not (place / RUN_FILE).is_file():
            return False
        before = read(place / RUN_FILE).checkpoint.engine.get("exclude_from_loading", ())
        return set(before) == set(self.exclude_from_loading)


def _no_numbers(place: str, error: Exception) -> UserError:
    return UserError(str(error), key="checkpoint.initial_load", value=place)


def _agreed(steps: list[int] | None) -> list[int]:
    """Return rank 0's list: other ranks may list the folder while it is being renamed."""
    seen = [steps]
    dist.broadcast_object_list(seen, src=0)
    assert seen[0] is not None
    return seen[0]


def _reason(error: BaseException) -> str:
    """Return the error message of the first rank that a CheckpointException names."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = min(error.failures.items())
        return f"rank {rank}: {type(cause).__name__}: {cause}"
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
