"""Start ranks on this machine, through torch's elastic agent."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from atom.errors import RunError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def start(folder: Path, ranks: int, device: str, *, verbose: bool = False) -> None:
    """Run every rank of the run in ``folder`` to its end.

    On a CPU the ranks are forked from this process, which has imported torchtitan already: sixteen
    imports on two cores take longer than a short run. With GPUs they are processes of their own,
    since CUDA does not survive a fork.

    Raises:
        RunError: a rank failed, and the others have been ended.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from atom.titan import rank

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        start_method="fork" if device == "cpu" else "spawn",
        max_restarts=0,
        monitor_interval=0.2,
        signals_to_handle="SIGTERM",
    )
    try:
        if device == "cpu":
            elastic_launch(config, rank.main)(str(folder), verbose)
        else:
            arguments = ["-u", "-m", rank.__name__, str(folder)] + ["-v"] * verbose
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        raise RunError(_first_failure(error, folder)) from None


def _first_failure(error: ChildFailedError, folder: Path) -> str:
    """Return what the rank that failed first said; the others only lost it."""
    rank, failure = error.get_first_failure()
    message = failure.message
    if isinstance(message, dict):
        message = message.get("message", "")
    words = str(message).strip() or f"exit code {failure.exitcode}"
    return f"rank {rank} failed: {words} (see {folder / 'logs' / f'rank_{rank}.jsonl'})"
