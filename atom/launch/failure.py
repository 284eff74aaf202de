"""Which rank failed first, and of what: the others only lost it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from pathlib import Path

RANK_FAILED = "rank failed"
"""The event that a rank logs, with the field ``error``, before it ends."""

_LOST_A_PEER = re.compile(
    r"Connection (reset|closed|refused)|closed by peer|Broken pipe|gloo/transport|"
    r"DistBackendError|DistNetworkError|DistStoreError|NCCL",
)


def cause(logs: Path, exit_codes: Mapping[int, int | None], since: str) -> str | None:
    """Return one sentence on the rank that failed first, or None if nothing tells.

    Args:
        logs: the folder of the ranks' logs.
        exit_codes: of each rank; -N of one that signal N ended.
        since: when the ranks started, as the logs write it; older records are another start's.
    """
    for rank, code in exit_codes.items():
        # SIGTERM is how the others are ended.
        if code is not None and code < 0 and -code != signal.SIGTERM:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"rank {rank} failed: killed by {name}{hint}"
    said = []
    for rank, code in exit_codes.items():
        if code and code > 0:
            said += [
                (bool(_LOST_A_PEER.search(record["error"])), record["time"], rank, record["error"])
                for record in _failures(logs / f"rank_{rank}.jsonl")
                if record["time"] >= since
            ]
    if not said:
        return None
    _, _, rank, error = min(said)
    return f"rank {rank} failed: {error} (see {logs / f'rank_{rank}.jsonl'})"


def _failures(log: Path) -> list[dict[str, str]]:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return []
    records = [json.loads(line) for line in lines if RANK_FAILED in line]
    return [record for record in records if record.get("event") == RANK_FAILED]
