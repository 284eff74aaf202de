"""Compare predicted times of a step with published runs.

    python benchmarks/plan_accuracy.py ROWS.jsonl [--show WORD] [--fit] [--held-out] [--auto]

``ROWS.jsonl`` has a row a line: ``model``, ``hardware``, ``layout``, ``precision``, ``flags``,
``measured`` and how clean it is (A: all inputs known, B: one or two assumed, C: not scored). Step
times are compared, never MFU, which every framework counts otherwise.

``--fit`` fits the constants again and prints them. ``--held-out`` predicts each source with
constants that were fitted to all others: the error to expect of runs that nobody has seen. The
refit is linearized at the constants of ``atom/plan/constants.py``, its predictions are not.

``--auto`` searches the layouts of each dense row as ``parallelism=auto`` does, and compares the
best with the published one, both by their estimates and as ATOM runs them. It takes minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

from plan_parts import choosing, fit, memory
from plan_parts.frameworks import UnfitError
from plan_parts.jobs import Job, job
from plan_parts.scores import Scored, drift, is_hopper, ordered, table

from atom.plan.constants import DEFAULT, PRIORS, PUBLISHED, Constants
from atom.plan.time.step import step


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("rows", type=Path)
    arguments.add_argument("--show", help="print the parts of rows with this word in their id")
    arguments.add_argument("--fit", action="store_true")
    arguments.add_argument("--held-out", action="store_true")
    arguments.add_argument("--auto", action="store_true")
    given = arguments.parse_args()
    jobs, left = read(given.rows)
    constants = DEFAULT
    if given.fit:
        constants = fit.fitted(jobs, PUBLISHED, constants)
        print_constants(constants)
    rows = [Scored(j, s) for j, s in zip(jobs, fit.predicted(jobs, constants), strict=True)]
    report("All constants fitted to all rows", rows)
    for (source, why), count in sorted(left.items()):
        print(f"left out: {count} of {source}: {why}")
    print_memory(memory.scored(jobs))
    if given.auto:
        print_chosen(jobs)
    if given.held_out:
        report("Each source predicted without it", held_out(jobs, constants))
    if given.show:
        show([row for row in rows if given.show in row.job.id], constants)


def read(path: Path) -> tuple[list[Job], Counter[tuple[str, str]]]:
    """Return the jobs of a file of rows, and why the others are left out."""
    jobs, left = [], Counter[tuple[str, str]]()
    for line in path.read_text().splitlines():
        row = json.loads(line)
        try:
            jobs.append(job(row))
        except UnfitError as reason:
            left[row["set"], str(reason)] += 1
    return jobs, left


def held_out(jobs: list[Job], constants: Constants) -> list[Scored]:
    """Predict each source with constants fitted to the others."""
    base = fit.residuals(jobs, constants)
    slopes = fit.jacobian(jobs, constants, base)
    rows = []
    for source in dict.fromkeys(each.source for each in jobs):
        found = fit.solved(jobs, base, slopes, constants, PUBLISHED, without=source)
        mine = [each for each in jobs if each.source == source]
        rows += [Scored(j, s) for j, s in zip(mine, fit.predicted(mine, found), strict=True)]
    return rows


def report(title: str, rows: list[Scored]) -> None:
    hopper = [row for row in rows if is_hopper(row)]
    print(f"\n## {title}\n")
    print("\n".join(table(rows, lambda row: f"{row.job.source}, {row.job.gpu[:9].strip()}")))
    print()
    print("\n".join(table(rows, lambda row: f"{row.job.gpu[:9].strip()}, {row.job.precision}")))
    print()
    print("\n".join(table(hopper, lambda _: "Hopper")))
    print("\n".join(table(rows, lambda _: "all")[2:]))
    for name, some in (("Hopper", hopper), ("all", rows)):
        right, pairs = ordered(some)
        slope, error, count = drift(some)
        print(
            f"\n{name}: {right} of {pairs} pairs of one source, GPU and model in order "
            f"({right / max(pairs, 1):.0%}); drift {slope:+.2%} ± {error:.2%} a doubling of GPUs "
            f"({count} rows)"
        )


def show(rows: list[Scored], constants: Constants) -> None:
    for row in rows:
        found = step(row.job.work, row.job.layout, row.job.device, constants)
        parts = {
            name: getattr(found, name)
            for name in ("products", "attention", "memory", "launches", "optimizer", "idle",
                         "stragglers")
        }  # fmt: skip
        text = ", ".join(f"{k} {v:.3g}" for k, v in (parts | found.exposed).items() if v)
        print(f"{row.job.id}: {row.job.seconds:.3f} s, predicted {row.predicted:.3f} "
              f"({row.error:+.1%}): {text}")  # fmt: skip


def print_memory(rows: list[memory.Peak]) -> None:
    """Print the errors of the peak of memory, by source."""
    print(
        "\n## Memory\n\n| | published, GiB | estimated, GiB | error |\n| --- | ---: | ---: | ---: |"
    )
    for row in rows:
        print(f"| {row.job.id} | {row.published:.1f} | {row.estimated:.1f} | {row.error:+.1%} |")
    for name, some in (("Hopper", [r for r in rows if r.job.gpu.startswith("H")]), ("all", rows)):
        sizes = [abs(row.error) for row in some]
        if sizes:
            print(
                f"\n{name}: {len(sizes)} rows, median absolute error {median(sizes):.1%}, "
                f"worst {max(sizes):.1%}"
            )


def print_chosen(jobs: list[Job]) -> None:
    """Print the rows for which the search finds less than the published layout."""
    ratios = []
    for each in jobs:
        if each.dims.get("experts") or each.dims.get("mla"):
            continue
        found = choosing.compare(each)
        if found.seconds and found.best:
            ratios.append(found.best / found.seconds)
            if ratios[-1] > 1:
                print(f"{each.id}: {found.best:.3f} s found, {found.seconds:.3f} s published")
    print(
        f"\nauto: {len(ratios)} published layouts that fit, the best found takes "
        f"{median(ratios):.3f} of their time in the median, {max(ratios):.3f} at worst"
    )


def print_constants(constants: Constants) -> None:
    for name in PRIORS:
        before, after = getattr(PUBLISHED, name), getattr(constants, name)
        print(f"{name}: {before:.4g} -> {after:.4g}")


if __name__ == "__main__":
    main()
