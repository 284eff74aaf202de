"""Train every architecture under every strategy, and record the differences between their losses.

    python -m atom.testing.matrix [--architectures GLOB] [--strategies GLOB] [--missing]

Rows are the installed options ``architecture=*tiny*``; columns are the options of ``parallelism``
that set only a layout. Each cell is the small run of the conformance kit
(:mod:`atom.testing.runs`) on real ranks over gloo, in float32, compared with the same run on one
rank. Each finished cell is stored as a line of JSON, so the matrix can be filled in several
invocations; the page is rewritten from all cells each time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import atom
from atom.compose.groups import Groups, loaded
from atom.errors import RunError, UserError
from atom.recipe.run import DEGREES
from atom.registry.host import Host
from atom.run_dir import metrics
from atom.run_dir.metrics import StepMetrics
from atom.testing import ranks, runs

CELLS = Path("benchmarks/results/matrix.jsonl")
PAGE = Path("docs/matrix.md")
TINY = "*tiny*"
PACKAGES = ("torch", "torchtitan")

HANG_SECONDS = 240
"""Seconds without a step after which the ranks of a cell count as hung."""

Sections = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One architecture under one strategy.

    Attributes:
        error: maximum |difference in loss| to one rank, over all steps; None if there is none.
        validation: maximum |difference in loss of a validation set| to one rank; None if unknown.
        reason: why there is no error value: the refusal of the run, or the failure of a rank.
        failed: whether ranks were started and failed.
    """

    architecture: str
    strategy: str
    ranks: int
    steps: int
    error: float | None = None
    validation: float | None = None
    reason: str = ""
    failed: bool = False
    date: str = ""
    versions: Mapping[str, str] | None = None

    @property
    def wrong(self) -> bool:
        """Whether the strategy fails, or trains differently from one rank."""
        errors = [error for error in (self.error, self.validation) if error is not None]
        return self.failed or not all(error <= runs.TOLERANCE for error in errors)

    @property
    def incomplete(self) -> bool:
        """Whether the strategy trains, and its validation is unknown."""
        return self.error is not None and self.validation is None


def architectures(host: Host) -> dict[str, Sections]:
    """Return the tiny options of the installed architectures, each as the section of a run."""
    found = _options(host, "architecture")
    return {name: section for name, section in found.items() if fnmatchcase(name, TINY)}


def strategies(host: Host) -> dict[str, Sections]:
    """Return the installed options that set a layout, sorted by the number of ranks."""
    found = _options(host, "parallelism")
    return dict(sorted(found.items(), key=lambda item: (world_size(item[1]), item[0])))


def world_size(strategy: Sections) -> int:
    """Return the number of ranks of a strategy; an open degree counts as two."""
    degrees = [strategy.get(name, 1) for name in DEGREES]
    return math.prod(2 if degree == -1 else degree for degree in degrees)


def run_cell(architecture: str, strategy: str, sections: tuple[Sections, Sections]) -> Cell:
    """Train one cell, and its reference run on one rank if that has not been trained yet."""
    model, layout = sections
    size = world_size(layout)
    launch = {"ranks": size, "max_restarts": 0, "start_seconds": HANG_SECONDS}
    run = runs.sections(model, layout, launch=launch)
    known: Sections = {
        "architecture": architecture,
        "strategy": strategy,
        "ranks": size,
        "steps": runs.STEPS,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"atom": atom.__version__} | {name: version(name) for name in PACKAGES},
    }
    server = ranks.shared()
    try:
        rows = server.train(run)
        reference = server.train(runs.sections(model))
    except (UserError, RunError) as error:
        failed = isinstance(error, RunError)
        return Cell(**known, reason=" ".join(str(error).split()), failed=failed)
    return Cell(
        **known,
        error=max(abs(row.loss - one.loss) for row, one in zip(rows, reference, strict=True)),
        validation=_validation_error(rows, reference),
    )


def _validation_error(rows: Sequence[StepMetrics], reference: Sequence[StepMetrics]) -> float:
    there, here = metrics.by_set(rows), metrics.by_set(reference)
    return max(
        abs(one.loss - other.loss)
        for name in here
        for (_, one), (_, other) in zip(there[name], here[name], strict=True)
    )


def read(path: Path) -> list[Cell]:
    """Return the stored cells."""
    if not path.is_file():
        return []
    return [Cell(**json.loads(line)) for line in path.read_text().splitlines()]


def page(cells: Iterable[Cell], rows: Iterable[str], columns: Mapping[str, int]) -> str:
    """Return the matrix as Markdown.

    Args:
        cells: the finished cells.
        rows: the architectures' options.
        columns: the strategies' options, and the number of ranks of each.
    """
    found = {(cell.architecture, cell.strategy): cell for cell in cells}
    reasons: dict[str, int] = {}
    lines = [
        "| | " + " | ".join(f"{name} ({n})" for name, n in columns.items()) + " | validation |",
        "| --- |" + " --- |" * (len(columns) + 1),
    ]
    for row in rows:
        shown = [_shown(found.get((row, column)), reasons) for column in columns]
        of_row = [found[row, column] for column in columns if (row, column) in found]
        lines.append(f"| `{row}` | " + " | ".join([*shown, _validated(of_row)]) + " |")
    run = [found[row, column] for row in rows for column in columns if (row, column) in found]
    dates = sorted({cell.date for cell in run})
    versions = sorted(
        {", ".join(f"{k} {v}" for k, v in (cell.versions or {}).items()) for cell in run}
    )
    table = "\n".join(lines)
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "never"
    return f"""\
# What trains under what

<!-- Written by `make matrix`; changes by hand are lost. -->

Each architecture that is installed, as its tiny option, under each strategy, with the number of
ranks in brackets. A cell is the largest difference in loss to the same run on one rank, over
{runs.STEPS} steps in float32 on CPU ranks over gloo. At most {runs.TOLERANCE:g} counts as the same
training, for mixtures of experts too; more is **bold**. A dash with a number means that the run is
refused before ranks start, for the reason below. Nothing is known of cells that were not run. The
last column is the largest difference in the loss of a validation set, over all strategies that
train, or over those in brackets.

{table}

{notes}

Run {when} with {"; ".join(versions) or "nothing"}.

`make matrix` runs all cells and writes this page; `make matrix ARGS=--missing` runs those that have
not been, or that were not validated.
"""


def _validated(cells: Sequence[Cell]) -> str:
    known = [(cell.validation, cell.strategy) for cell in cells if cell.validation is not None]
    if not known:
        return "not run"
    most = max(error for error, _ in known)
    found = f"{most:.1e}" if most <= runs.TOLERANCE else f"**{most:.1e}**"
    if any(cell.incomplete for cell in cells):
        found += f" ({', '.join(name for _, name in known)})"
    return found


def _shown(cell: Cell | None, reasons: dict[str, int]) -> str:
    if cell is None:
        return "not run"
    if cell.error is None:
        number = reasons.setdefault(cell.reason, len(reasons) + 1)
        return f"**failed** ({number})" if cell.failed else f"– ({number})"
    return f"**{cell.error:.1e}**" if cell.wrong else f"{cell.error:.1e}"


def _options(host: Host, group: str) -> dict[str, Sections]:
    """Return the options of a group that set only the group's own section."""
    groups = Groups(host.plugins)
    found: dict[str, Sections] = {}
    for option in sorted(groups.options.get(group, ())):
        folder = groups.owners[f"{group}/{option}"][0].conf
        assert folder is not None
        read_file = loaded(folder, f"{group}/{option}", "plugins")
        if read_file.header.get("package") is None:
            section = OmegaConf.to_container(read_file.config, resolve=True)
            assert isinstance(section, dict)
            found[option] = {str(key): value for key, value in section.items()}
    return found


def main(arguments: list[str]) -> int:
    """Fill the matrix; return 1 if a cell is wrong."""
    parser = argparse.ArgumentParser(prog="python -m atom.testing.matrix")
    parser.add_argument("--architectures", default="*", metavar="GLOB", help="of options")
    parser.add_argument("--strategies", default="*", metavar="GLOB", help="of options")
    parser.add_argument("--ranks", default=ranks.MOST_RANKS, type=int, help="at most, of a cell")
    parser.add_argument(
        "--missing", action="store_true", help="only cells that were not run, or not validated"
    )
    parser.add_argument("--cells", default=CELLS, type=Path, metavar="FILE.jsonl")
    parser.add_argument("--page", default=PAGE, type=Path, metavar="FILE.md")
    options = parser.parse_args(arguments)

    host = Host.load()
    rows, columns = architectures(host), strategies(host)
    kept = {(cell.architecture, cell.strategy): cell for cell in read(options.cells)}
    wrong = False
    for column, layout in columns.items():
        if not fnmatchcase(column, options.strategies) or world_size(layout) > options.ranks:
            continue
        for row, model in rows.items():
            if not fnmatchcase(row, options.architectures):
                continue
            known = kept.get((row, column))
            if options.missing and known is not None and not known.incomplete:
                continue
            cell = kept[row, column] = run_cell(row, column, (model, layout))
            wrong |= cell.wrong
            said = cell.reason if cell.error is None else f"{cell.error:.1e}"
            print(f"{row} {column}: {said}", flush=True)
            _write(kept, rows, columns, options)
    _write(kept, rows, columns, options)
    return int(wrong)


def _write(
    kept: Mapping[tuple[str, str], Cell],
    rows: Mapping[str, Sections],
    columns: Mapping[str, Sections],
    options: argparse.Namespace,
) -> None:
    """Write the cells of installed options, in the order of the table, and the page."""
    cells = [kept[row, column] for row in rows for column in columns if (row, column) in kept]
    sizes = {name: world_size(layout) for name, layout in columns.items()}
    options.cells.parent.mkdir(parents=True, exist_ok=True)
    options.cells.write_text("".join(json.dumps(asdict(cell)) + "\n" for cell in cells))
    options.page.write_text(page(cells, rows, sizes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
