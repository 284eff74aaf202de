"""torch's elastic agent: it starts the ranks of this machine, and ends all when one fails."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import (
    DefaultLogsSpecs,
    MultiprocessContext,
    PContext,
    SubprocessContext,
)
from torch.distributed.elastic.rendezvous import RendezvousParameters, registry

_MONITOR_SECONDS = 0.2


class Agent(LocalElasticAgent):
    """Starts ``ranks`` workers and remembers how each one ended.

    torch's own result names one failed worker, the one that it noticed first. Where that one only
    lost its peer, the exit codes of all tell who went first.

    Args:
        entrypoint: a function, run in a forked process a rank; or an executable.
        arguments: of the entrypoint.
        ranks: number of workers.
    """

    def __init__(self, entrypoint: Callable[..., None] | str, arguments: tuple, ranks: int) -> None:
        parameters = RendezvousParameters(
            backend="c10d",
            endpoint="127.0.0.1:0",
            run_id=uuid.uuid4().hex,
            min_nodes=1,
            max_nodes=1,
            local_addr="127.0.0.1",
        )
        spec = WorkerSpec(
            role="rank",
            local_world_size=ranks,
            entrypoint=entrypoint,
            args=arguments,
            rdzv_handler=registry.get_rendezvous_handler(parameters),
            max_restarts=0,
            monitor_interval=_MONITOR_SECONDS,
            local_addr="127.0.0.1",
        )
        start_method = "spawn" if isinstance(entrypoint, str) else "fork"
        super().__init__(spec, logs_specs=DefaultLogsSpecs(), start_method=start_method)
        self._spec = spec
        self.exit_codes: dict[int, int | None] = {}

    def start(self) -> RunResult:
        """Run every worker to its end, or to the first failure and the end of the others."""
        # Ctrl-C is the launcher's business: it ends this process by a SIGTERM.
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"
        try:
            return self.run()
        finally:
            self._spec.rdzv_handler.shutdown()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            self.exit_codes = _exit_codes(self._pcontext)
        return result


def _exit_codes(context: PContext | None) -> dict[int, int | None]:
    """Return the exit code of each local rank; -N of one that signal N ended."""
    if isinstance(context, MultiprocessContext) and context._pc is not None:
        return {rank: process.exitcode for rank, process in enumerate(context._pc.processes)}
    if isinstance(context, SubprocessContext):
        handlers = context.subprocess_handlers
        return {rank: handler.proc.returncode for rank, handler in sorted(handlers.items())}
    return {}
