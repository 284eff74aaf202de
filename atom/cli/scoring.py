"""Run a command that scores a model on the ranks of ``--layout``, or in this process.

``python -m atom.cli.scoring FOLDER FINISHED --store FILE COMMAND ARGUMENTS…`` is a rank on a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from atom.cli import COMMANDS, Parser
from atom.errors import UserError
from atom.io.files import is_regular
from atom.io.printing import protected
from atom.launch import joined
from atom.recipe.run import Run, read
from atom.recipe.scoring_layout import ScoringLayout, parse
from atom.run_dir.folder import RUN_FILE

OPTION = "--layout"

Score = Callable[[str, ScoringLayout], None]
"""Scores on a device, as a rank of a layout."""


def add_layout(parser: Parser) -> None:
    """Add ``--layout`` and ``--device``."""
    parser.add_argument(
        OPTION,
        metavar="DEGREES",
        help="ranks that share the model, for one that does not fit: 'dp_shard=2,tp=2', or 'run' "
        "for the layout of the run; default: one process",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )


def on_layout(
    command: str, arguments: list[str], options: argparse.Namespace, run: Run | None, score: Score
) -> None:
    """Call ``score`` in this process, or on each rank of the layout.

    Args:
        command: the name of the command.
        arguments: its arguments.
        options: the same, parsed: with ``run``, ``layout`` and ``device``.
        run: the run; None for a folder without one.
        score: reports and writes on the first rank.

    Raises:
        UserError: the layout is impossible, or a rank refuses its input.
    """
    layout = ScoringLayout() if options.layout is None else parse(options.layout, run, OPTION)
    started = joined.world_size()
    if started is not None:
        raise UserError(
            f"another launcher has started {started} ranks of `atom {command}`, and each would "
            "score the whole model",
            valid=f"one `atom {command}`, whose {OPTION} starts ranks on this machine",
        )
    from atom.titan.boot import boot
    from atom.titan.compat import device

    kind = device.pick(options.device)
    boot(kind)
    if layout.ranks == 1:
        score(kind, layout)
        return
    from atom.launch import scoring
    from atom.titan import saved_model
    from atom.titan.weights import laid_out

    # Imported once, for all ranks that are forked.
    importlib.import_module("atom.titan.evaluation.evaluate")
    trained = saved_model.trained(options.run)
    laid_out.check(trained, layout, kind=kind, key=OPTION, value=options.layout)
    work = partial(_on_cpu, score, kind, layout)
    scoring.run(work, __name__, (command, *arguments), layout.ranks, kind)


def _on_cpu(score: Score, kind: str, layout: ScoringLayout) -> None:
    from atom.launch.rank import share_cpu

    if kind == "cpu":
        share_cpu(layout.ranks)
    score(kind, layout)


def as_rank(options: argparse.Namespace, score: Score) -> None:
    """Call ``score`` in a process that is one rank of the layout."""
    from atom.titan.boot import boot
    from atom.titan.compat import device

    file = options.run / RUN_FILE
    run = read(file) if is_regular(file) else None
    kind = device.pick(options.device)
    boot(kind)
    _on_cpu(score, kind, parse(options.layout, run, OPTION))


def is_first() -> bool:
    """Return whether this process is the first rank, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def main(words: list[str]) -> None:
    """Run one rank."""
    from atom.launch.scoring import on_rank

    parser = argparse.ArgumentParser(f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("finished")
    parser.add_argument("--store")
    parser.add_argument("command", choices=("eval", "validate"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args(words)
    command: Any = importlib.import_module(COMMANDS[options.command][0])
    work = partial(command.on_rank, options.arguments)
    on_rank(str(options.folder), work, options.finished, options.store)


if __name__ == "__main__":
    with protected():
        main(sys.argv[1:])
