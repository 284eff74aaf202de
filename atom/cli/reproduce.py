"""``atom reproduce``: train segments of a release again, and compare."""

from __future__ import annotations

import tempfile
from pathlib import Path

from atom.cli import Parser
from atom.errors import one_line
from atom.io.json_data import dumps
from atom.release.reproduce import Reproduction, reproduce


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom reproduce",
        "Train the steps between checkpoints of a release again, with the code and packages that "
        "are installed here, and compare data, losses and tensors bit for bit. Exit code 1: "
        "something differs.",
    )
    parser.add_argument("release", type=Path, metavar="DIR", help="the folder of the release")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings that are different here, such as dataset.path",
    )
    parser.add_argument(
        "--segments", default="1", help="all, a number, or A-B; default: 1, the first"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep the runs here; default: removed"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom reproduce``; return the exit code."""
    options = parser().parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory(prefix="atom-reproduce-") as temporary:
        work = options.work or Path(temporary) / "work"
        found = reproduce(options.release, options.segments, work, overrides=options.overrides)
        print(dumps(found.to_json(), indent=2) if options.json else _text(found))
    return 0 if found.equal else 1


def _text(found: Reproduction) -> str:
    lines = []
    for each in found.compared:
        if each.failed is not None:
            lines.append(f"{each.segment}: not trained: {one_line(each.failed)}")
        elif each.equal:
            lines.append(
                f"{each.segment}: equal in {each.steps} logged steps and {each.tensors} tensors"
            )
        else:
            where = ", ".join(f"{name} {value}" for name, value in (each.first or {}).items())
            lines.append(f"{each.segment}: differs, first in {one_line(where)}")
            data = "equal" if each.same_data else "different"
            lines.append(f"  tokens: {data}; losses: by up to {each.largest:.1e} (relative)")
            lines += [f"  may explain it: {one_line(reason)}" for reason in each.reasons]
    lines.append(
        f"reproduced: {found.level} ({len(found.compared)} of {found.all} segments)"
        if found.level
        else "not reproduced"
    )
    return "\n".join(lines)
