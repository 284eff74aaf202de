"""torchtitan's trainer, which can be asked to stop at a step's end, with a checkpoint."""

from __future__ import annotations

import signal
import time
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torchtitan.trainer
from torchtitan.components.dataloader import DataloaderExhaustedError
from torchtitan.distributed import ParallelDims

from atom.errors import RunError
from atom.run_dir import events, progress
from atom.run_dir.profile import DATA
from atom.titan import kernels
from atom.titan.checkpoint.checkpointer import VerifiedCheckpointManager
from atom.titan.train.data import DocumentLoader
from atom.titan.train.judging import JudgingTrainer
from atom.titan.train.recovery import Recovery
from atom.titan.train.samples import DataNotes
from atom.titan.train.startup import StartUp


class StoppableTrainer(JudgingTrainer):
    """Between two steps it looks whether it was asked to stop, and shows that it is alive."""

    @dataclass(kw_only=True, slots=True)
    class Config(JudgingTrainer.Config):
        trace_samples: bool = False
        functions: dict[str, str] = field(default_factory=dict)
        overrides: dict[str, str] = field(default_factory=dict)
        replaced: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._startup.reached("build")
        self._notes: DataNotes | None = None
        self._begun = False
        self._stop = StopRequest()
        self._recovery = Recovery(self._run) if dist.get_rank() == 0 else None
        if isinstance(self.dataloader, DocumentLoader) and self._reads_first():
            self._notes = DataNotes(self._run, dist.get_rank(), trace=config.trace_samples)
        self.stopped = False
        """Whether training has ended early, as it was asked to."""

    def init_distributed(self) -> ParallelDims:
        self._startup = StartUp()
        self._startup.reached("imports")
        dims: ParallelDims = super().init_distributed()
        self._startup.reached("rendezvous")
        dims.build_mesh()  # torchtitan would, when it first asks for a part of it
        self._startup.reached("mesh")
        return dims

    def train(self) -> None:
        with _no_sleep(), kernels.called(self.config.functions):
            super().train()
        dist.barrier()

    def batch_generator(self, data_iterable: Iterable[Any]) -> Iterator[Any]:
        batches = super().batch_generator(data_iterable)
        while True:
            with torch.profiler.record_function(DATA):
                try:
                    batch = next(batches)
                except DataloaderExhaustedError:
                    # torchtitan would end here as if this had been the last step.
                    raise RunError(
                        f"the data ends in step {self.step} of {self.config.training.steps}; "
                        "valid: fewer training.steps, or a dataset that begins again"
                    ) from None
            self._startup.reached("first_batch")
            yield batch

    def train_step(self, data_iterator: Iterator[Any]) -> None:
        super().train_step(data_iterator)
        if "first_step" not in self._startup.seconds:
            self._startup.reached("first_step")
            self._startup.tell(self._run, step=self.step, group=self._stop.group)
        if self._notes is not None:
            self._notes.write(self.step, self.dataloader)

    def should_continue_training(self) -> bool:
        self._startup.reached("load")
        if self._recovery is not None:
            self._recovery.between_steps(self.step, self._tokens_seen())
        if not self._begun:
            self._begin()
        if not super().should_continue_training():
            return False
        signalled = self._stop.agreed()
        if signalled is None:
            return True
        if self._settle_late():
            # What was left out is in no checkpoint yet: that of the next step holds it.
            return True
        self._log_unlogged()
        saved = False
        if isinstance(self.checkpointer, VerifiedCheckpointManager) and self.step:
            saved = self.checkpointer.save_now(self.step)
        if dist.get_rank() == 0:
            events.record(
                self._run,
                events.STOPPED,
                step=self.step,
                tokens_seen=self._tokens_seen(),
                # A launcher passes all signals on as one.
                reason=events.asked_by(events.read(self._run)) or signalled,
                saved=saved,
            )
        self.stopped = True
        return False

    def _begin(self) -> None:
        """Discard what was logged of steps behind the one that was loaded."""
        discarded: list[int | None] = [None]
        if dist.get_rank() == 0:
            discarded[0] = progress.discarded(events.read(self._run), self.step)
        dist.broadcast_object_list(discarded, src=0)
        assert discarded[0] is not None
        self._discarded = discarded[0]
        self._begin_after(self.step)
        self._begun = True

    def _begin_after(self, step: int) -> None:
        super()._begin_after(step)
        if self._begun and self._recovery is not None:
            self._recovery.between_steps(step, self._tokens_seen())

    def state_dict(self) -> dict[str, Any]:
        """Return torchtitan's state, with the tokens of all ranks in place of this rank's: other
        ranks may go on from it."""
        state = super().state_dict()
        return state | {"ntokens_seen": state["ntokens_seen"] * self._sharers()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        tokens = state_dict["ntokens_seen"]
        super().load_state_dict(state_dict | {"ntokens_seen": tokens // self._sharers()})

    def _reads_first(self) -> bool:
        """Return whether this is the first of the ranks that read the same data."""
        meshes = (self.parallel_dims.get_optional_mesh(name) for name in ("tp", "cp", "pp"))
        return all(mesh.get_local_rank() == 0 for mesh in meshes if mesh is not None)

    def close(self) -> None:
        if hasattr(self, "_stop"):
            self._stop.close()
            if self._notes is not None:
                self._notes.close(self.dataloader)
                self._notes = None
        super().close()


class _Sleepless(types.ModuleType):
    """The module ``time`` without its sleep."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Return at once."""


@contextmanager
def _no_sleep() -> Iterator[None]:
    """Keep torchtitan's first rank from sleeping for 2 s at the end, until the others may have
    ended, too: a barrier makes sure of it, and takes no longer than they do."""
    torchtitan.trainer.time = _Sleepless("time")
    try:
        yield
    finally:
        torchtitan.trainer.time = time


class StopRequest:
    """Whether any rank was asked to stop, agreed on by all at the same step.

    A signal reaches ranks at different times; a rank that stopped by itself would leave the others
    waiting for it. Each look starts a reduction of one integer in the background and takes the
    result of the look before, so that nobody waits, and a stop takes one step more.
    """

    _asked: int = 0
    """The signal that this process was sent, 0 for none."""

    def __init__(self) -> None:
        # On GPUs the default group's tensors are on the device, where reading one means waiting.
        gloo = dist.get_backend() == "gloo"
        self.group: Any = None if gloo else dist.new_group(backend="gloo")
        """Of all ranks, for tensors on a CPU."""
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    @classmethod
    def listen(cls, *signals: signal.Signals) -> None:
        """Take these signals for a request to stop."""

        def ask(number: int, _frame: FrameType | None) -> None:
            cls._asked = number

        for number in signals:
            signal.signal(number, ask)

    def agreed(self) -> str | None:
        """Return the name of the signal that all ranks know of by now, or None."""
        result = self._result()
        asked = torch.tensor(self._asked, dtype=torch.int32)
        work = dist.all_reduce(asked, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None
        self._pending = (asked, work)
        return signal.Signals(result).name if result else None

    def close(self) -> None:
        """Wait for what is under way: a group must not be destroyed before."""
        self._result()

    def _result(self) -> int:
        if self._pending is None:
            return 0
        (asked, work), self._pending = self._pending, None
        work.wait()
        return int(asked)
