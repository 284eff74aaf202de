"""Start ranks on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atom import events, logs
from atom.errors import RunError, RunStoppedError
from atom.run import Launch


def start(
    folder: Path, ranks: int, device: str, launch: Launch | None = None, *, verbose: bool = False
) -> None:
    """Run every rank of the run in ``folder`` to its end.

    On a CPU the ranks are forked from this process, which has imported torchtitan already: sixteen
    imports on two cores take longer than a short run. With GPUs they are processes of their own,
    since CUDA does not survive a fork.

    Raises:
        RunError: a rank failed, and the others have been ended.
        RunStoppedError: the ranks were asked to stop before the last step, and have.
    """
    launch = launch or Launch()
    from atom.launch.agent import Agent
    from atom.titan import rank

    entrypoint: Callable[..., Any] | str = rank.main
    arguments: tuple[Any, ...] = (str(folder), verbose)
    if device != "cpu":
        entrypoint = sys.executable
        arguments = ("-u", "-m", rank.__name__, str(folder), *(("-v",) if verbose else ()))
    agent = Agent(
        entrypoint,
        arguments,
        ranks,
        run=folder,
        restarts=launch.max_restarts,
        hang_seconds=launch.hang_seconds,
    )
    agent.start()
    logs.remove_if_empty(folder / "logs")
    if agent.failure is not None:
        raise RunError(agent.failure.words)
    refuse_stopped(folder)
    events.record(folder, events.FINISHED)


def refuse_stopped(folder: Path) -> None:
    """Raise :class:`RunStoppedError` if the ranks of the run have just ended early."""
    last = events.read(folder)[-1]
    if last["event"] == events.STOPPED:
        raise RunStoppedError(
            f"stopped by {last['reason']} after step {last['step']}, with a checkpoint; the same "
            f"command with run.dir={folder} goes on from there"
        )
