"""Find which rank failed first, and why; the other ranks only lost their peer."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atom.io import json_data

RANK_FAILED = "rank failed"
"""Event that a rank logs before it ends, with the field ``error``."""

_LOST_A_PEER = re.compile(
    r"Connection (reset|closed|refused)|closed by peer|Broken pipe|gloo/transport|"
    r"DistBackendError|DistNetworkError|DistStoreError|NCCL",
)

_USELESS = re.compile(r"\.(UserError|RunError|HostileCheckpointError): ")
"""Errors that another attempt would raise again."""


@dataclass(frozen=True)
class Failure:
    """Why the ranks ended.

    Attributes:
        words: one sentence.
        rank: the rank that failed first; None if unknown or not a single rank.
        raised: True if a rank raised an exception of its own, which may recur on restart;
            False if a rank was killed, hung, or lost a peer.
        final: True if a restart cannot help.
    """

    words: str
    rank: int | None = None
    raised: bool = False
    final: bool = False


def cause(logs: Path, exit_codes: Mapping[int, int | None], since: str) -> Failure:
    """Return why the ranks ended.

    Args:
        logs: the folder of the ranks' logs.
        exit_codes: exit code of each rank; -N if signal N ended it.
        since: start time of the ranks in the format of the logs; older records belong to an
            earlier start.
    """
    for rank, code in exit_codes.items():
        # The agent ends the other ranks with SIGTERM.
        if code is not None and code < 0 and -code != signal.SIGTERM:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if -code == signal.SIGKILL else ""
            return Failure(f"rank {rank} failed: killed by {name}{hint}", rank=rank)
    said = []
    for rank, code in exit_codes.items():
        if code and code > 0:
            said += [
                (bool(_LOST_A_PEER.search(record["error"])), record["time"], rank, record["error"])
                for record in _failures(logs / f"rank_{rank}.jsonl")
                if record["time"] >= since
            ]
    if not said:
        codes = sorted({code for code in exit_codes.values() if code})
        return Failure(f"a rank failed: exit code {', '.join(map(str, codes))} (see {logs})")
    lost_a_peer, _, rank, error = min(said)
    return Failure(
        f"rank {rank} failed: {error} (see {logs / f'rank_{rank}.jsonl'})",
        rank=rank,
        raised=not lost_a_peer,
        final=bool(_USELESS.search(error)),
    )


def _failures(log: Path) -> list[dict[str, str]]:
    found = []
    try:
        for line in json_data.lines(log, below=log.parent.parent):
            if RANK_FAILED.encode() in line and (record := _failed(line)) is not None:
                found.append(record)
    except OSError:
        pass
    return found


def _failed(line: bytes) -> dict[str, str] | None:
    try:
        record = json_data.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("event") != RANK_FAILED:
        return None
    return record if all(isinstance(record.get(key), str) for key in ("time", "error")) else None
