"""Run one rank of a run written by ``launcher=torchrun``, as torchrun starts it.

``python -m atom.launch.by_hand RUN`` reads ``run.yaml``; it does not need the command line that
created the run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from atom.errors import EX_STOPPED, RunStoppedError, UserError
from atom.launch import evaluations
from atom.launch.joined import recorded
from atom.launch.local import refuse_stopped
from atom.recipe.run import read
from atom.run_dir import claim
from atom.run_dir.folder import RUN_FILE


def main(folder: Path) -> int:
    """Run one rank; return the exit code."""
    from atom.launch import rank

    if os.environ["RANK"] != "0":
        return EX_STOPPED if rank.train(folder) else 0
    try:
        run = read(folder / RUN_FILE)
        assert run.resolved is not None
        claim.claim(folder)
        with (
            evaluations.in_background(folder, run.evaluation, run.training.steps),
            recorded(folder, run.resolved.world_size),
        ):
            rank.train(folder)
            refuse_stopped(folder)
    except UserError as error:
        print(f"atom: {error.sentence()}", file=sys.stderr, flush=True)
        return 2
    except RunStoppedError:
        return EX_STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
