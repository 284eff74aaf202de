"""Decide, after the nodes of a run have ended, what to do next; report it as an exit code.

``python -m atom.launch.verdict RUN CODE`` reads the records that the nodes wrote. CODE, the highest
exit code of all nodes, does not tell the cause: one node fails, and the others lose it or are
killed. The exit code is 0 (done), 75 (stopped, with a checkpoint), 76 (restart the nodes) or 1 (do
not restart).

Without CODE, it runs before nodes are started again, in case no process could run it when they
ended. Nodes that recorded no end were lost with their machines, which does not count as a failure.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from atom.errors import EX_STOPPED
from atom.io.printing import clean
from atom.launch.failure import Failure
from atom.launch.restarts import Restarts
from atom.recipe.run import read
from atom.run_dir import checkpoint, events, progress
from atom.run_dir.folder import RUN_FILE

EX_AGAIN = 76


def verdict(run: Path, code: int | None = None) -> tuple[int, str]:
    """Return the exit code and a sentence; record the failure, if there was one.

    Args:
        run: the run folder.
        code: the highest exit code of a node; None if unknown.
    """
    happened = events.read(run)
    starts = [at for at, event in enumerate(happened) if event["event"] == events.STARTED]
    latest = happened[starts[-1] :] if starts else []
    ends = {event["event"]: event for event in latest}
    if events.FINISHED in ends:
        return 0, ""
    if events.STOPPED in ends:
        stops = [event["step"] for event in happened if event["event"] == events.STOPPED]
        if stops[-1] in stops[:-1]:
            return 1, f"stopped twice after step {stops[-1]}: its jobs are too short for a step"
        return EX_STOPPED, ""
    failed = [event for event in latest if event["event"] == events.NODE_FAILED]
    if code is None and (not failed or events.FAILED in ends):
        return EX_AGAIN, ""  # lost, or judged before
    failure = Failure(f"the nodes ended with exit code {code}")
    where = {}
    if failed:
        first = _first(failed)
        failure, where = _failure(first), {"host": first["host"]}
    if not starts:
        # A node refuses again what it refused before it started (exit code 2).
        failure = Failure(f"the first node did not start (exit code {code})", final=code == 2)
    begin = datetime.fromisoformat(latest[0]["time"]).timestamp() if latest else time.time()
    step = progress.since(run, begin)
    saved = checkpoint.resumable(run / checkpoint.FOLDER)
    newest = saved[0] if saved else 0
    refused = _restarts(run, happened).refuse(failure, step=step, saved=newest)
    events.record(
        run,
        events.FAILED,
        reason=failure.words,
        rank=failure.rank,
        restart=refused is None,
        raised=failure.raised,
        final=failure.final,
        step=step,
        saved=newest,
        **where,
    )
    if refused is None:
        return EX_AGAIN, f"{failure.words}; restarting the ranks"
    return 1, failure.words + (f"; not restarted: {refused}" if refused else "")


def _first(failed: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the root failure: the earliest that a node raised itself."""
    own = [event for event in failed if event["raised"] or event["final"]]
    return (own or failed)[0]


def _failure(event: dict[str, Any]) -> Failure:
    return Failure(
        f"{event['reason']} (node {event['node']})",
        rank=event["rank"],
        raised=event["raised"],
        final=event["final"],
    )


def _restarts(run: Path, happened: list[dict[str, Any]]) -> Restarts:
    """Return the restart counter, as earlier failures left it."""
    restarts = Restarts(read(run / RUN_FILE).launch.max_restarts)
    for event in happened:
        if event["event"] == events.FAILED and "saved" in event:
            before = Failure(event["reason"], raised=event["raised"], final=event["final"])
            restarts.refuse(before, step=event["step"], saved=event["saved"])
        elif event["event"] in (events.STOPPED, events.FINISHED):
            restarts = Restarts(restarts.limit)
    return restarts


if __name__ == "__main__":
    # A launcher may append further arguments for each task, such as the node index.
    exit_code, words = verdict(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
    if words:
        print(f"atom: {clean(words)}", file=sys.stderr)
    sys.exit(exit_code)
