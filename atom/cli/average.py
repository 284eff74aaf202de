"""``atom average``: write the mean of the weights of several checkpoints."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from atom.cli import Parser
from atom.io import new_folder
from atom.run_dir import averaging


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom average",
        "Write the mean of the weights of several checkpoints, of one run or of several runs, as "
        "a run folder with one checkpoint; with --average, of one checkpoint or several.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run folder, for its newest checkpoint, or RUN@STEP",
    )
    parser.add_argument(
        "--steps", type=_steps, default=[], help="checkpoints of one run, such as 100,200,300"
    )
    parser.add_argument(
        "--weights",
        type=_weights,
        default=[],
        help="a weight for each checkpoint, such as 1,2,1; default: the same for all",
    )
    parser.add_average()
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom average``; return the exit code."""
    options = parser().parse_args(arguments)
    new_folder.check(options.out)
    sources = averaging.choose(options.runs, options.steps, options.weights, options.average)
    averaging.check_out(options.out, sources)
    from atom.titan.boot import boot

    boot("cpu")
    from atom.titan.weights.average import average

    made = average(sources, options.out)
    size = f"{made.size / 10**6:,.1f} MB"
    number = f"{len(sources)} checkpoint{'s' * (len(sources) > 1)}"
    print(f"step {made.step:,}: the mean of {number}, {size}, in {options.out}")
    return 0


def _steps(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and len(word) < 16 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; valid: steps, such as 100,200")
    return [int(word) for word in words]


def _weights(text: str) -> list[float]:
    try:
        weights = [float(word) for word in text.split(",")]
    except ValueError:
        weights = [math.nan]
    if not all(0 <= weight < math.inf for weight in weights):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not valid; valid: finite numbers from 0, such as 1,2,1"
        )
    return weights
