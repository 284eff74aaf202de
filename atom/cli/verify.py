"""``atom verify``: check a release."""

from __future__ import annotations

from pathlib import Path

from atom.cli import Parser
from atom.errors import one_line
from atom.io.json_data import dumps
from atom.release.verify import Verification, verify


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom verify",
        "Check a release: every file and tensor by its digest, the signature, and the verdicts. It "
        "runs nothing of the release. Exit code 1: something is not as released.",
    )
    parser.add_argument("release", type=Path, metavar="DIR", help="the folder of the release")
    parser.add_argument(
        "--public-key",
        type=Path,
        metavar="FILE",
        help="the key that must have signed it; default: the key in the release",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom verify``; return the exit code."""
    options = parser().parse_args(arguments)
    found = verify(options.release, options.public_key)
    print(dumps(found.to_json(), indent=2) if options.json else _text(found))
    return 1 if found.problems else 0


def _text(found: Verification) -> str:
    lines = [f"{found.files:,} files, {found.tensors:,} tensors", f"signature: {found.signature}"]
    if found.verdicts is not None:
        lines.append(f"Model Openness Framework: class {found.verdicts.roman}")
        lines += [f"  for the next class: {one_line(each)}" for each in found.verdicts.missing()]
        lines.append(f"Open Source AI Definition 1.0: {found.verdicts.definition}")
        lines += [f"  {one_line(each)}" for each in found.verdicts.reasons]
    lines += [f"wrong: {one_line(each)}" for each in found.problems]
    lines.append("not verified" if found.problems else "verified: R0")
    return "\n".join(lines)
