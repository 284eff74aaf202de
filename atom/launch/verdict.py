"""After the nodes of a run have ended: what is to be done next, told by an exit code.

``python -m atom.launch.verdict RUN CODE`` reads what the nodes have written down, for CODE is what
their surroundings made of it: of many nodes one fails, the others lose it or are killed, and the
highest code of all says nothing of the cause. It ends with 0 (done), 75 (stopped, with a
checkpoint), 76 (start them again) or 1 (do not).

Without CODE it is asked before nodes are started once more, where nobody was left to ask when they
had ended. Nodes that have written down no end were lost with their machines, which counts as no
failure.
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
    """Return the exit code, and a sentence; write the failure down, if it was one.

    Args:
        run: the run folder.
        code: the highest that a node ended with; None if that is not known.
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
        # What a node refuses before it starts (exit code 2), it refuses again.
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
        return EX_AGAIN, f"{failure.words}; starting the ranks again"
    return 1, failure.words + (f"; not started again: {refused}" if refused else "")


def _first(failed: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the failure that the others follow from: the first that is a node's own."""
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
    """Return the count of restarts, as the failures before have left it."""
    restarts = Restarts(read(run / RUN_FILE).launch.max_restarts)
    for event in happened:
        if event["event"] == events.FAILED and "saved" in event:
            before = Failure(event["reason"], raised=event["raised"], final=event["final"])
            restarts.refuse(before, step=event["step"], saved=event["saved"])
        elif event["event"] in (events.STOPPED, events.FINISHED):
            restarts = Restarts(restarts.limit)
    return restarts


if __name__ == "__main__":
    # A launcher may give every task of a node more, such as which node it is.
    exit_code, words = verdict(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
    if words:
        print(f"atom: {clean(words)}", file=sys.stderr)
    sys.exit(exit_code)
