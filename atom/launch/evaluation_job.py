"""Evaluate one checkpoint of a run, as a job of a scheduler.

A launcher's ``evaluate`` makes a job that runs ``python -P -m atom.launch.evaluation_job RUN STEP``
on one machine. Like an evaluation beside the run, it records its outcome in the run's events, and
exits with 0 if the checkpoint was evaluated.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from atom.errors import UserError
from atom.io import strangers
from atom.io.printing import protected
from atom.launch import late_evaluations
from atom.launch.announcements import told
from atom.launch.evaluations import Job, record
from atom.recipe.run import read
from atom.run_dir import events
from atom.run_dir.folder import RUN_FILE

_SECONDS = 0.5


def main(words: list[str]) -> int:
    """Evaluate a checkpoint; return the exit code."""
    if len(words) != 2 or not words[1].isdecimal():
        print(f"usage: python -P -m {__spec__.name} RUN STEP", file=sys.stderr)
        return 2
    place, step = Path(words[0]), int(words[1])
    try:
        strangers.check(place)
        settings = read(place / RUN_FILE).evaluation
    except UserError as error:
        print(f"atom: {error.sentence()}", file=sys.stderr)
        return 2
    job = Job(place, settings, step)
    while (event := job.outcome()) is None:
        time.sleep(_SECONDS)
    record(place, event)
    late_evaluations.track(place)
    print(told(event), flush=True)
    return int(event["event"] != events.EVALUATED)


if __name__ == "__main__":
    with protected():
        sys.exit(main(sys.argv[1:]))
