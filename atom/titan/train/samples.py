"""Record the data that a rank trains on.

``logs/samples_rank_N.jsonl`` (``data.trace=true``) lists for each step the parts of documents in
it: ``{"step": S, "lanes": {LANE: [[epoch, document, first, count], …]}}``, where ``first`` to
``first + count - 1`` are training pairs of the document. A step repeated after a fault has several
lines; the last one counts.

Ranks that differ only in tensor, pipeline or context parallelism read the same lanes. The first of
them writes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import structlog
import torch.distributed as dist

from atom.io.files import appending
from atom.run_dir import events
from atom.titan.train.callback import Callback
from atom.titan.train.data import DocumentLoader

log = structlog.get_logger("atom")


class Samples(Callback):
    """A callback that records each step's data, on the first of the ranks with the same data."""

    name = "samples"

    def on_built(self) -> None:
        trainer = self.trainer
        self._notes: DataNotes | None = None
        if isinstance(trainer.dataloader, DocumentLoader) and self._reads_first():
            trace = trainer.config.trace_samples
            self._notes = DataNotes(trainer.run, dist.get_rank(), trace=trace)

    def after_step(self) -> None:
        if self._notes is not None:
            self._notes.write(self.trainer.step, self.trainer.dataloader)

    def close(self) -> None:
        if self._notes is not None:
            self._notes.close(self.trainer.dataloader)
            self._notes = None

    def _reads_first(self) -> bool:
        dims = self.trainer.parallel_dims
        meshes = (dims.get_optional_mesh(name) for name in ("tp", "cp", "pp"))
        return all(mesh.get_local_rank() == 0 for mesh in meshes if mesh is not None)


class DataNotes:
    """The data records of one rank.

    Args:
        run: the run folder.
        rank: its number.
        trace: whether to record each sample; otherwise only unreadable documents are recorded.
    """

    def __init__(self, run: Path, rank: int, *, trace: bool) -> None:
        self._run = run
        self._rank = rank
        self._events = 0
        self._trace: int | None = None
        if trace:
            path = run / "logs" / f"samples_rank_{rank}.jsonl"
            self._trace = appending(path, below=run)

    def write(self, step: int, loader: DocumentLoader) -> None:
        """Record what ``loader`` has read for ``step``."""
        for document in loader.left_out.bad:
            log.warning("bad document", step=step, document=document.id, reason=document.problem)
            # Many bad documents must be visible without filling the disk.
            if self._events < events.MOST_BAD_DOCUMENTS:
                self._events += 1
                events.record(
                    self._run,
                    events.BAD_DOCUMENT,
                    rank=self._rank,
                    step=step,
                    document=document.id,
                    reason=document.problem,
                )
        loader.left_out.bad.clear()
        if self._trace is not None:
            lanes = {str(lane): spans for lane, spans in loader.samples().items()}
            # One write, so that a killed rank leaves whole lines.
            os.write(self._trace, f"{json.dumps({'step': step, 'lanes': lanes})}\n".encode())

    def close(self, loader: DocumentLoader) -> None:
        """Record what was packed, and the number of documents without anything to train on."""
        packed = loader.packed
        if self._rank == 0 and packed.sequences:
            events.record(
                self._run,
                events.PACKED,
                sequences=packed.sequences,
                parts=packed.documents,
                cut=packed.cut,
                padding=round(packed.padding / (packed.sequences * loader.seq_len), 6),
            )
        left_out = loader.left_out
        if left_out.empty or left_out.short or left_out.long:
            numbers = {"documents": left_out.empty, "short": left_out.short}
            if left_out.long:
                numbers["long"] = left_out.long
            log.info("documents without text were skipped", **numbers)
            events.record(self._run, events.WITHOUT_TEXT, rank=self._rank, **numbers)
        if self._trace is not None:
            os.close(self._trace)
