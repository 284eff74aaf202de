"""``atom release``: write one folder with everything of runs that others need."""

from __future__ import annotations

import sys
from pathlib import Path

from atom.cli import Parser
from atom.release.write import release


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom release",
        "Write a folder with weights, checkpoints, settings, locks, code, cards and documents of "
        "finished runs, which `atom verify` checks and `atom reproduce` repeats.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, in order")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--form", type=Path, metavar="FILE", help="release.yaml, filled in")
    parser.add_argument("--key", type=Path, metavar="FILE", help="private key to sign with (PEM)")
    parser.add_argument("--public-key", type=Path, metavar="FILE", help="its public key (PEM)")
    parser.add_argument(
        "--states",
        choices=("all", "ends"),
        default="all",
        help="keep the optimizer's state of all checkpoints, or of the last of each run; "
        "default: all",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom release``; return the exit code."""
    options = parser().parse_args(arguments)
    made = release(
        options.runs,
        options.out,
        form=options.form,
        key=options.key,
        public_key=options.public_key,
        states=options.states,
    )
    for warning in made.warnings:
        print(f"atom: warning: {warning}", file=sys.stderr)
    print(made.folder)
    print(f"Model Openness Framework: class {made.verdicts.roman}")
    for missing in made.verdicts.missing():
        print(f"  for the next class: {missing}")
    print(f"Open Source AI Definition 1.0: {made.verdicts.definition}")
    for reason in made.verdicts.reasons:
        print(f"  {reason}")
    if made.left:
        print(f"left to say in release.yaml: {', '.join(made.left)}")
    return 0
