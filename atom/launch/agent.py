"""Run torch's elastic agent: start the ranks of one machine, and end all of them when one fails."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import (
    DefaultLogsSpecs,
    MultiprocessContext,
    PContext,
    SubprocessContext,
)

from atom.launch.failure import Failure, cause
from atom.launch.hang_timeout import Patience
from atom.launch.machine import Machine
from atom.recipe.sections import Launch
from atom.run_dir import heartbeat, logs

_MONITOR_SECONDS = 0.2
_END_SECONDS = 5
"""Time that ranks have to end after a SIGTERM; they have nothing left to save."""

_LOOK_SECONDS = 30.0
"""Longest interval between two reads of the heartbeat; on a cluster all nodes share that file."""

_STACKS_SECONDS = 3.0
"""Time that hung ranks have to print their stacks and to dump the flight recorder's trace."""


class Agent(LocalElasticAgent):
    """An elastic agent that starts the workers of a machine once and diagnoses why they ended.

    torch's own result names one failed worker, the first that the agent noticed. That worker may
    only have lost its peer; the exit codes and logs of all workers show which one failed first.

    The agent does not restart workers. By then this process has threads, and a forked child could
    inherit a lock that is never released: see :mod:`atom.launch.local`.

    Args:
        entrypoint: a function, run in one forked process per rank; or an executable.
        arguments: arguments of the entrypoint.
        machine: the number of workers, and the endpoint of the other machines.
        run: the run folder.
        launch: how long ranks may go without a step before they count as hung.
        started: called when every worker has been started.
        finished: the folder where each rank leaves a file when it has finished.
    """

    def __init__(
        self,
        entrypoint: Callable[..., None] | str,
        arguments: tuple,
        machine: Machine,
        *,
        run: Path,
        launch: Launch,
        started: Callable[[], None],
        finished: Path,
    ) -> None:
        spec = WorkerSpec(
            role="rank",
            local_world_size=machine.ranks,
            entrypoint=entrypoint,
            args=arguments,
            rdzv_handler=machine.rendezvous(),
            max_restarts=0,
            monitor_interval=_MONITOR_SECONDS,
        )
        start_method = "spawn" if isinstance(entrypoint, str) else "fork"
        super().__init__(spec, logs_specs=DefaultLogsSpecs(), start_method=start_method)
        self._spec = spec
        self._first_rank = machine.first_rank
        self._looked = 0.0
        self._run_folder = run
        self._launch = launch
        self._started = started
        self._finished = finished
        self._known_to_finish: set[int] = set()
        self.failure: Failure | None = None
        """Why the ranks ended; None if they ended by themselves."""

    def start(self) -> RunResult:
        """Run every worker to its end; after the first failure, end the others."""
        # Ctrl-C is handled by the launcher, which ends this process with a SIGTERM.
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"
        signal.signal(signal.SIGUSR1, self._pass_on)
        try:
            return self.run()
        finally:
            self._spec.rdzv_handler.shutdown()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        self._begin = time.time()
        self._patience = Patience(self._launch, self._begin)
        workers: dict[int, int] = super()._start_workers(worker_group)
        self._started()
        return workers

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if (left := self._left_early()) is not None:
            self.failure = left
            return RunResult(state=WorkerState.FAILED)
        hung = self._hung()
        if hung is not None:
            self._end_hung()
        result = super()._monitor_workers(worker_group)
        if result.is_failed() or hung is not None:
            result = RunResult(state=WorkerState.FAILED, failures=result.failures)
            codes = {self._first_rank + place: code for place, code in self._exit_codes().items()}
            self.failure = hung or cause(self._run_folder / "logs", codes, logs.stamp(self._begin))
        return result

    def _shutdown(
        self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = _END_SECONDS
    ) -> None:
        super()._shutdown(death_sig, min(timeout, _END_SECONDS))

    def _left_early(self) -> Failure | None:
        """Return the failure of a rank that called ``exit(0)``: for torch it has succeeded, or,
        forked, it still owes its result, and the agent would wait for it forever.
        """
        for place, code in self._exit_codes().items():
            rank = self._first_rank + place
            if code != 0 or rank in self._known_to_finish:
                continue
            if not (self._finished / str(rank)).exists():
                return Failure(
                    f"rank {rank} failed: it ended with exit code 0 before the training did; "
                    "something in a plugin or a library calls exit",
                    rank=rank,
                    raised=True,
                )
            self._known_to_finish.add(rank)
        return None

    # ------------------------------------------------------------------------ hangs

    def _hung(self) -> Failure | None:
        if time.time() - self._looked < min(self._launch.hang_seconds / 10, _LOOK_SECONDS):
            return None
        self._looked = time.time()
        complaint = self._patience.complaint(heartbeat.last(self._run_folder), self._looked)
        if complaint is None or self._pcontext is None or not self._alive():
            return None
        return Failure(complaint)

    def _end_hung(self) -> None:
        """Have every rank print its stack (:mod:`atom.titan.train.hang`), then kill them all.

        SIGTERM does not work here: a stopped process does not react to it.
        """
        self._signal_all(signal.SIGUSR2)
        time.sleep(_STACKS_SECONDS)
        assert self._pcontext is not None
        self._pcontext.close(signal.SIGKILL)

    # ------------------------------------------------------------------------ processes

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._signal_all(signal.Signals(number))

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _alive(self) -> list[int]:
        if self._pcontext is None:
            return []
        codes = self._exit_codes()
        return [pid for rank, pid in self._pcontext.pids().items() if codes.get(rank) is None]

    def _exit_codes(self) -> dict[int, int | None]:
        return _exit_codes(self._pcontext)


def _exit_codes(context: PContext | None) -> dict[int, int | None]:
    """Return each local rank's exit code: None while it runs, -N if signal N ended it."""
    if isinstance(context, MultiprocessContext) and context._pc is not None:
        return {rank: process.exitcode for rank, process in enumerate(context._pc.processes)}
    if isinstance(context, SubprocessContext):
        handlers = context.subprocess_handlers
        return {rank: handler.proc.poll() for rank, handler in sorted(handlers.items())}
    return {}
