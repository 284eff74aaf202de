"""``atom export``: write the weights or the adapters of a run in a format that others load."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from atom.cli import Parser

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser("atom export", "Write a run's weights as a folder that transformers loads.")
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--to", choices=("hf",), help="hf: Hugging Face's format")
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write the adapters of a run with lora.rank alone, in PEFT's format; by default they "
        "are merged with their base",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_average()
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of the weights; default: that of the checkpoint",
    )
    parser.add_argument(
        "--shard-size",
        type=size,
        help="maximum size of a file, such as 500MB; default: 5GB",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom export``; return the exit code."""
    words = parser()
    options = words.parse_args(arguments)
    if options.adapter and options.shard_size is not None:
        words.error("argument --shard-size: not allowed with argument --adapter")
    if not options.adapter and options.to is None:
        words.error("the following arguments are required: --to")
    from atom.titan.boot import boot

    boot("cpu")
    return _adapter(options) if options.adapter else _whole(options)


def _adapter(options: argparse.Namespace) -> int:
    from atom.titan.weights.adapter import export

    made = export(
        options.run,
        options.out,
        step=options.step,
        average=options.average,
        dtype=options.dtype,
    )
    print(
        f"step {made.step:,}: adapters of {made.layers:,} layers, {made.size / 10**6:,.1f} MB, in "
        f"{options.out}; they belong to {made.base}"
    )
    return 0


def _whole(options: argparse.Namespace) -> int:
    from atom.titan.weights.export import export

    made = export(
        options.run,
        options.out,
        step=options.step,
        average=options.average,
        dtype=options.dtype,
        shard_size=options.shard_size or size("5GB"),
    )
    files = f"{made.files} file{'s' * (made.files > 1)}"
    print(f"step {made.step:,}: {made.size / 10**6:,.1f} MB in {files}, in {options.out}")
    if made.base:
        print(f"the adapters are merged with {made.base}; --adapter writes them alone")
    if made.lost:
        print(
            f"atom: warning: Hugging Face's model lacks {len(made.lost)} of the weights, such as "
            f"{made.lost[0]}; its outputs differ from those of the run",
            file=sys.stderr,
        )
    if not made.tokenizer:
        print(
            "atom: warning: the run's tokenizer has no tokenizer.json, so the export has none",
            file=sys.stderr,
        )
    return 0


def size(text: str) -> int:
    """Return the number of bytes in ``text`` (``500MB``)."""
    match = re.fullmatch(r"(\d+) *([KMG]B)?", text.upper())
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; valid: such as 500MB or 5GB")
    return int(match[1]) * _UNITS[match[2] or ""]
