"""``atom generate``: continue a text with the model of a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from atom.cli import Parser

N = TypeVar("N", int, float)


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser("atom generate", "Continue a text with a run's model, in one process.")
    parser.add_argument("run", type=Path, help="the run folder, or an export of it")
    parser.add_argument("prompt", help="the beginning of the text")
    parser.add_argument(
        "--tokens",
        type=_at_least(1, int),
        default=100,
        help="maximum number of tokens to generate; default: 100",
    )
    parser.add_argument(
        "--temperature",
        type=_at_least(0, float),
        default=1.0,
        help="temperature of sampling; 0: always the most likely token; default: 1",
    )
    parser.add_argument(
        "--top-k",
        type=_at_least(1, int),
        help="sample among this many most likely tokens; default: all",
    )
    parser.add_argument(
        "--seed", type=_at_least(0, int), default=0, help="seed of sampling; default: 0"
    )
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_average()
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom generate``; return the exit code."""
    options = parser().parse_args(arguments)
    from atom.titan.boot import boot
    from atom.titan.compat import device

    kind = device.pick(options.device)
    boot(kind)
    from atom.titan.weights.generate import Generator

    generator = Generator(options.run, step=options.step, kind=kind, average=options.average)
    pieces = generator.text(
        options.prompt,
        tokens=options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
    )
    first = next(pieces, "")
    print(options.prompt, first, sep="", end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def _at_least(least: N, kind: type[N]) -> Callable[[str], N]:
    def number(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            value = None
        # An infinite temperature is not a valid number.
        if value is None or not least <= value < 2**63:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not valid; valid: {what} from {least}")
        return value

    return number
