"""Start ranks on this machine, through torch's elastic agent."""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass
class RankError(Exception):
    """A rank failed: the first one that did, and its own words."""

    rank: int
    message: str

    def __str__(self) -> str:
        return f"rank {self.rank} failed: {self.message}"


def start(folder: Path, ranks: int, device: str, *, verbose: bool = False) -> None:
    """Run every rank of the run in ``folder`` to its end.

    On a CPU the ranks are forked from this process, which has imported torchtitan already: sixteen
    imports on two cores take longer than a short run. With GPUs they are processes of their own,
    since CUDA does not survive a fork.

    Raises:
        RankError: a rank failed; the others have been ended.
        KeyboardInterrupt: the run was interrupted; all ranks have been ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
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
    )
    try:
        if device == "cpu":
            elastic_launch(config, rank.main)(str(folder), verbose)
        else:
            arguments = ["-u", "-m", rank.__name__, str(folder)] + ["-v"] * verbose
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        raise _first(error) from None
    except SignalException:
        raise KeyboardInterrupt from None


def _first(error: object) -> RankError:
    rank, failure = error.get_first_failure()  # type: ignore[attr-defined]
    try:
        message = json.loads(failure.message)["message"]
    except (TypeError, ValueError, KeyError):
        message = failure.message
        if isinstance(message, dict):
            message = message.get("message", message)
    return RankError(rank, str(message).strip() or f"exit code {failure.exitcode}")
