"""Send results of evaluations that came after a run's last step to its trackers.

``python -P -m atom.launch.late_evaluations RUN`` resumes the trackers of a run that has ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from atom.errors import RunError
from atom.io.environment import no_rank
from atom.io.files import appending
from atom.io.printing import protected
from atom.recipe.run import read
from atom.run_dir import evals, events
from atom.run_dir.folder import RUN_FILE

LOG = "trackers.log"


def track(place: Path) -> None:
    """Start the process, if the run has ended, and has trackers and such results; wait for it."""
    if not _late(place):
        return
    settings = read(place / RUN_FILE).metrics.engine
    if not any(settings.get(f"enable_{name}") for name in ("tensorboard", "wandb", "trackio")):
        return
    log = appending(place / "logs" / LOG)
    try:
        with suppress(OSError):
            subprocess.run(
                [sys.executable, "-P", "-m", "atom.launch.late_evaluations", str(place.absolute())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=no_rank(os.environ),
                check=False,
            )
    finally:
        os.close(log)


def main(words: list[str]) -> int:
    """Send the results; return the exit code."""
    place = Path(words[0])
    run = read(place / RUN_FILE)
    from atom.titan.boot import boot

    boot("cpu")
    from atom.titan import translate
    from atom.titan.train.trackers import Container

    config = translate.metrics(run.metrics)
    trackers = Container()
    try:
        trackers.start(config, place, None)
        if config.enable_trackio:
            trackers.add_trackio(place, None)
    except RunError as error:
        print(f"atom: {error}", file=sys.stderr)
        return 1
    trackers.evaluated(_late(place))
    trackers.close()
    return 0


def _late(place: Path) -> evals.Tracked:
    """Return the results that came after the ranks of a run had ended."""
    ends = [e["time"] for e in events.read(place) if e["event"] == events.FINISHED]
    if not ends:
        return {}
    ended = datetime.fromisoformat(ends[-1])
    # Results have whole seconds.
    return evals.tracked(
        each
        for each in evals.read(place)
        if datetime.fromisoformat(each.time) >= ended.replace(microsecond=0)
    )


if __name__ == "__main__":
    with protected():
        sys.exit(main(sys.argv[1:]))
