"""``atom stop``: end a run early, with a checkpoint to resume from."""

from __future__ import annotations

import sys
from pathlib import Path

from atom.cli import Parser
from atom.errors import RunError
from atom.watch.stop import stop


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom stop",
        "Ask the active job of a run folder to save a checkpoint after its next step and to end; "
        "wait, and report how it ended. The same `atom train` command resumes the run later.",
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="seconds to wait; no limit by default"
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom stop``; return the exit code: 0 if the run has ended without a failure."""
    options = parser().parse_args(arguments)

    def asked(pid: int) -> None:
        print(f"asked process {pid} to stop after its next step, with a checkpoint", flush=True)

    try:
        found = stop(options.run, timeout=options.timeout, asked=asked)
    except KeyboardInterrupt:
        print("no longer waiting; the job still stops", file=sys.stderr)
        raise
    if found.state == "failed":
        raise RunError(f"the run failed after step {found.step}: {found.reason}")
    saved = (
        "no checkpoint" if found.checkpoint is None else f"checkpoint of step {found.checkpoint:,}"
    )
    print(f"{found.state} after step {found.step:,}, {saved}")
    return 0
