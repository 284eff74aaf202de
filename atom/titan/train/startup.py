"""Measure the time of each phase from the start of a rank to its first step."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import torch
import torch.distributed as dist

from atom.run_dir import events
from atom.titan.train.callback import Callback

if TYPE_CHECKING:
    from atom.titan.train.trainer import AtomTrainer

PHASES = ("imports", "rendezvous", "mesh", "build", "load", "first_batch", "first_step")
"""The phases in order.

``imports`` lasts from the start of the process to the construction of torchtitan's trainer;
``rendezvous`` until all ranks have met; ``mesh`` creates process groups; ``build`` makes model,
optimizer and data; ``load`` reads the checkpoint; ``first_batch`` reads a batch; ``first_step``
includes compilation.
"""

log = structlog.get_logger("atom")


class StartUp(Callback):
    """A callback that reports the seconds of each phase after the first step."""

    name = "startup"

    def __init__(self, trainer: AtomTrainer) -> None:
        super().__init__(trainer)
        self._phases = Phases()

    def on_phase(self, phase: str) -> None:
        self._phases.reached(phase)

    def on_built(self) -> None:
        self._phases.reached("build")

    def between_steps(self) -> None:
        self._phases.reached("load")

    def after_step(self) -> None:
        if "first_step" not in self._phases.seconds:
            self._phases.reached("first_step")
            self._phases.tell(
                self.trainer.run, step=self.trainer.step, group=self.trainer.stop_request.group
            )


class Phases:
    """The seconds of each phase of this rank."""

    def __init__(self) -> None:
        self._last = _process_began()
        self.seconds: dict[str, float] = {}

    def reached(self, phase: str) -> None:
        """Record the end of ``phase``, the first time only."""
        if phase in self.seconds:
            return
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.seconds[phase] = now - self._last
        self._last = now

    def tell(self, run: Path, *, step: int, group: Any = None) -> None:
        """Log this rank's seconds, and on rank 0 record the maximum over ranks of each phase.

        Args:
            run: the run folder.
            step: the completed step.
            group: a process group of all ranks, for tensors on a CPU.
        """
        own = [self.seconds.get(phase, 0.0) for phase in PHASES]
        log.info("the first step is done", seconds=_rounded(own))
        slowest = torch.tensor(own, dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX, group=group)
        if dist.get_rank() == 0:
            events.record(
                run,
                events.UNDER_WAY,
                step=step,
                seconds=_rounded(own),
                slowest=_rounded(slowest.tolist()),
            )


def _rounded(seconds: list[float]) -> dict[str, float]:
    return {phase: round(value, 3) for phase, value in zip(PHASES, seconds, strict=True)}


def _process_began() -> float:
    """Return when this process was started or forked, in seconds since boot."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(stat[19]) / os.sysconf("SC_CLK_TCK")
