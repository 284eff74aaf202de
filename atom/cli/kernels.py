"""``atom kernels``: list the installed kernels and their requirements.

``atom kernels explain OVERRIDES`` shows which kernels a run would use, and why it rejects the
others.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement

from atom.cli import Parser
from atom.compose import compose, plugin_lists
from atom.errors import UserError
from atom.io.json_data import dumps
from atom.kernels.choose import FITS, described
from atom.kernels.operations import OPERATIONS
from atom.plugin import Kernel
from atom.recipe.run import Run
from atom.registry.host import Component, Host
from atom.registry.select import select

if TYPE_CHECKING:
    from atom.kernels.choose import Choice, Situation

Row = tuple[str, ...]


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom kernels",
        "List the installed kernels and their requirements. `atom kernels explain` shows which of "
        "them a run would use.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, for programs")
    parser.add_argument("--operation", metavar="NAME", help="list the kernels of one operation")
    return parser


def explain_parser() -> Parser:
    """Return the parser of the arguments of ``atom kernels explain``."""
    parser = Parser(
        "atom kernels explain",
        "Show which kernel a run would use for each operation, and why not the others. The device "
        "can be one that this machine does not have: device=h100.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--with",
        dest="supposed",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="treat a package as installed: NAME or NAME==VERSION; may be repeated",
    )
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        help="overrides, as for `atom train`: KEY=VALUE, GROUP=OPTION",
    )
    return parser


SUBCOMMANDS = {"explain": explain_parser}
"""Name -> the parser of its arguments, for completion."""


def main(arguments: list[str]) -> int:
    """Run ``atom kernels``; return the exit code."""
    if arguments[:1] == ["explain"]:
        return _explain(explain_parser().parse_args(arguments[1:]))
    options = parser().parse_args(arguments)
    host = Host.load()
    found = [c for c in host.components if isinstance(c.declaration, Kernel)]
    names = sorted({kernel_of(c).operation for c in found})
    if options.operation is not None and options.operation not in names:
        raise UserError(
            f"no kernel is installed for the operation {options.operation}; valid: "
            + ", ".join(names)
        )
    listed = [
        component
        for name in names
        for component in host.kernels(name)
        if options.operation in (None, name)
    ]
    if options.json:
        print(dumps([_as_data(component) for component in listed], indent=2))
        return 0
    rows: list[Row] = [
        (
            kernel.operation,
            kernel.name,
            str(kernel.priority),
            component.plugin.package,
            described(kernel.needs, kernel.tolerance),
        )
        for component in listed
        for kernel in [kernel_of(component)]
    ]
    print(_table([("OPERATION", "KERNEL", "PRIORITY", "PACKAGE", "NEEDS"), *_once(rows)]))
    return 0


def kernel_of(component: Component) -> Kernel:
    assert isinstance(component.declaration, Kernel)
    return component.declaration


def _as_data(component: Component) -> dict[str, Any]:
    kernel = kernel_of(component)
    known = OPERATIONS.get(kernel.operation)
    return {
        "operation": kernel.operation,
        "kernel": kernel.name,
        "summary": component.summary,
        "package": component.plugin.package,
        "version": component.plugin.version,
        "priority": kernel.priority,
        "replaces": known.place if known and kernel.override else None,
        "needs": asdict(kernel.needs),
        "tolerance": dict(kernel.tolerance),
    }


# ---------------------------------------------------------------------------- explain


def _explain(options: argparse.Namespace) -> int:
    supposed = dict(map(_supposed, options.supposed))
    # A dry run can be for a device that this machine lacks.
    overrides = [*options.overrides, "dry_run=true"]
    host = Host.load(plugin_lists.trust(overrides))

    def job(run: Run) -> None:
        selection = select(run, host)
        from atom.titan.preflight.explain import explain

        choices, where = explain(run, selection, host, supposed)
        if options.json:
            print(dumps(_explained(run, choices, where), indent=2))
        else:
            print(_told(run, choices, where))

    compose.main(overrides, partial(compose.do, host=host, job=job), host)
    return 0


def _supposed(text: str) -> tuple[str, str | None]:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise UserError(f"--with {text}: is no package", valid="NAME or NAME==VERSION") from None
    exact = [each.version for each in requirement.specifier if each.operator == "=="]
    if len(exact) != len(requirement.specifier):
        raise UserError(f"--with {text}: names no single version", valid="NAME or NAME==VERSION")
    return requirement.name, exact[0] if exact else None


def _explained(run: Run, choices: tuple[Choice, ...], where: Situation) -> dict[str, Any]:
    return {
        "architecture": run.architecture.name,
        "device": where.device.name or where.device.kind,
        "capability": where.device.capability,
        "dtype": where.dtype,
        "sizes": where.sizes,
        "tensor_parallel": where.tensor_parallel,
        "context_parallel": where.context_parallel,
        "expert_parallel": where.expert_parallel,
        "deterministic": where.deterministic,
        "kernels": [
            {
                "operation": choice.operation,
                "chosen": choice.name,
                "package": choice.kernel.plugin.package,
                "version": choice.kernel.plugin.version,
                "rejected": dict(choice.rejected),
                "passed_over": dict(choice.passed_over),
            }
            for choice in choices
        ],
    }


def _told(run: Run, choices: tuple[Choice, ...], where: Situation) -> str:
    device = where.device
    words = [f"{run.architecture.name} on {device.name or device.kind}"]
    if device.capability:
        words.append("compute capability " + ".".join(map(str, device.capability)))
    words.append(f"computing in {where.dtype}")
    words += [f"{size} {'/'.join(map(str, values))}" for size, values in where.sizes.items()]
    if where.tensor_parallel > 1:
        words.append(f"tensor parallelism {where.tensor_parallel}")
    if where.context_parallel > 1:
        words.append(f"context parallelism {where.context_parallel}")
    if where.expert_parallel > 1:
        words.append(f"expert parallelism {where.expert_parallel}")
    if where.deterministic:
        words.append("deterministic")
    rows: list[Row] = []
    for choice in choices:
        rows.append((choice.operation, choice.name, "chosen", choice.declaration.described))
        rows += [(choice.operation, name, "rejected", why) for name, why in choice.rejected]
        rows += [
            (choice.operation, name, "not tried" if why.startswith(FITS) else "rejected", why)
            for name, why in choice.passed_over
        ]
    header = ("OPERATION", "KERNEL", "STATUS", "SUMMARY, OR REASON")
    return f"{', '.join(words)}\n\n" + _table([header, *_once(rows)])


def _once(rows: list[Row]) -> list[Row]:
    """Return ``rows`` with the first cell only where it differs from that of the row above."""
    before = ["", *(row[0] for row in rows)]
    return [
        ("" if row[0] == above else row[0], *row[1:])
        for row, above in zip(rows, before, strict=False)
    ]


def _table(rows: list[Row]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
