"""Start ranks on this machine."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from atom import logs
from atom.errors import RunError
from atom.launch import failure


def start(folder: Path, ranks: int, device: str, *, verbose: bool = False) -> None:
    """Run every rank of the run in ``folder`` to its end.

    On a CPU the ranks are forked from this process, which has imported torchtitan already: sixteen
    imports on two cores take longer than a short run. With GPUs they are processes of their own,
    since CUDA does not survive a fork.

    Raises:
        RunError: a rank failed, and the others have been ended.
    """
    from atom.launch.agent import Agent
    from atom.titan import rank

    since = logs.stamp(datetime.now(UTC).timestamp())
    if device == "cpu":
        agent = Agent(rank.main, (str(folder), verbose), ranks)
    else:
        flags = ("-v",) if verbose else ()
        agent = Agent(sys.executable, ("-u", "-m", rank.__name__, str(folder), *flags), ranks)
    result = agent.start()
    logs.remove_if_empty(folder / "logs")
    if result.is_failed():
        first = min(result.failures.values(), key=lambda failed: failed.timestamp)
        raise RunError(
            failure.cause(folder / "logs", agent.exit_codes, since)
            or f"a rank failed: exit code {first.exitcode} (see {folder / 'logs'})"
        )
