"""Show what was planned for a run beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from atom.plan.outlook import Outlook
from atom.run_dir import profile
from atom.watch.markup import Child, element
from atom.watch.record import Record
from atom.watch.report_tables import table

WARM_UP = 4
"""Steps at the begin of a run that are left out, unless there are no others."""


@dataclass(frozen=True)
class Row:
    """A number, planned and measured; None where it is unknown."""

    name: str
    planned: float | None
    measured: float | None
    form: str = ".3g"

    @property
    def error(self) -> float | None:
        """Return the relative error of the plan."""
        if not self.measured or self.planned is None:
            return None
        return self.planned / self.measured - 1


def rows(record: Record, planned: Outlook) -> Iterator[Row]:
    """Yield what was planned and measured: a step, its parts, memory, goodput."""
    told = planned.told
    steady = [row.step_seconds for row in record.rows[WARM_UP:] or record.rows]
    step = statistics.median(steady) if steady else None
    yield Row("a step, s", told["step_seconds"], step)
    shares = [profile.mean(steps) for steps in record.profile.values() if steps]
    if shares:
        mean = profile.mean(shares)
        parts = told["parts"]
        computing = sum(
            parts[name] for name in ("products", "attention", "memory", "launches", "optimizer")
        )
        yield Row("computing, s", computing, mean.compute)
        for name in sorted({*told["exposed"], *mean.communication}):
            seconds = told["exposed"].get(name)
            yield Row(f"{name} communication, s", seconds, mean.communication.get(name, 0.0))
        yield Row("idle in the pipeline, s", parts["idle"], mean.bubble)
        rest = parts["other"] + parts["stragglers"]
        yield Row("data and others, s", rest, mean.data + mean.other)
    memory = max((row.memory_gib for row in record.rows), default=None)
    yield Row("memory of a rank, GiB", told["memory_gib"], memory)
    rate = record.status.tokens_per_second
    ranks = told["ranks"]
    yield Row("tokens/s", told["tokens_per_second_per_gpu"] * ranks, rate, ",.0f")
    yield Row("goodput", told["goodput"], record.status.goodput, ".1%")


def compared(record: Record) -> list[Element]:
    """Return the table of a run whose plan is known."""
    if record.planned is None:
        return []

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else f"{value:{form}}"

    lines: list[list[Child]] = [
        [row.name, shown(row.planned, row.form), shown(row.measured, row.form),
         shown(row.error, "+.0%")]
        for row in rows(record, record.planned)
    ]  # fmt: skip
    told = record.planned.told
    low, high = told["step_seconds_range"]
    words = (
        f"Planned for {told['ranks']:,} x {told['device']}; a step was expected within "
        f"{low:.3g} to {high:.3g} s. Measured: the median step after the first {WARM_UP}, the "
        "largest memory, and the parts of the profiled steps, which the profiler slows down."
    )
    return [
        table(("", "planned", "measured", "error of the plan"), lines, numbers=(1, 2, 3)),
        element("p", words, class_="faint"),
    ]
