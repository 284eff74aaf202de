"""``atom generate``: continue texts with the model of a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from atom.cli import Parser
from atom.io.process import importing
from atom.run_dir import saved

N = TypeVar("N", int, float)


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser("atom generate", "Continue texts with a run's model, in one process.")
    parser.add_argument("run", type=Path, help="the run folder, or an export of it")
    parser.add_argument(
        "prompts",
        metavar="prompt",
        nargs="+",
        help="the beginning of a text; several are computed together",
    )
    add_sampling(parser, tokens=100)
    parser.add_argument(
        "--batch",
        type=at_least(1, int),
        default=16,
        help="maximum number of texts that are computed together; default: 16",
    )
    return parser


def add_sampling(parser: Parser, tokens: int | None) -> None:
    """Add the options of drawing tokens, and those of the model.

    Args:
        parser: the parser of a command.
        tokens: the default of ``--tokens``; None for as many as the model supports.
    """
    most = tokens if tokens is not None else "as many as the model supports"
    parser.add_argument(
        "--tokens",
        type=at_least(1, int),
        default=tokens,
        help=f"maximum number of tokens to generate; default: {most}",
    )
    parser.add_argument(
        "--temperature",
        type=at_least(0, float),
        default=1.0,
        help="temperature of sampling; 0: always the most likely token; default: 1",
    )
    parser.add_argument(
        "--top-k",
        type=at_least(1, int),
        help="sample among this many most likely tokens; default: all",
    )
    parser.add_argument(
        "--top-p",
        type=_share,
        help="sample among the most likely tokens that have this probability together, above 0 "
        "and at most 1; default: all",
    )
    parser.add_argument(
        "--seed",
        type=at_least(0, int),
        default=0,
        help="seed of sampling, the same for each text; default: 0",
    )
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_average()
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )


def main(arguments: list[str]) -> int:
    """Run ``atom generate``; return the exit code."""
    options = parser().parse_args(arguments)
    saved.check_folder(options.run, step=options.step, average=options.average)
    with importing():
        from atom.titan.boot import boot
        from atom.titan.compat import device

        kind = device.pick(options.device)
        boot(kind)
        from atom.titan.generation.generator import Generator
        from atom.titan.generation.sampling import Sampling

    generator = Generator(options.run, step=options.step, kind=kind, average=options.average)
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    if len(options.prompts) > 1:
        texts = generator.texts(
            options.prompts, tokens=options.tokens, sampling=sampling, batch=options.batch
        )
        for number, (prompt, text) in enumerate(zip(options.prompts, texts, strict=True)):
            print("\n" if number else "", prompt, text, sep="")
        return 0
    (prompt,) = options.prompts
    pieces = generator.text(prompt, tokens=options.tokens, sampling=sampling)
    first = next(pieces, "")
    print(prompt, first, sep="", end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def at_least(least: N, kind: type[N]) -> Callable[[str], N]:
    """Return the type of an argument that is a number from ``least``."""

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


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not valid; valid: a number above 0 and at most 1"
        )
    return value
