"""Compare runs: their settings, results and curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from atom.errors import UserError, shown
from atom.recipe import settings
from atom.recipe.run import Run, read
from atom.run_dir import chosen, evals, history, metrics
from atom.run_dir.evals import Evaluation
from atom.run_dir.folder import RUN_FILE
from atom.run_dir.metrics import StepMetrics
from atom.run_dir.status import Status, status
from atom.watch import chart
from atom.watch.chart import Series
from atom.watch.markup import element

CURVES: tuple[tuple[str, str, Callable[[StepMetrics], float]], ...] = (
    ("loss", "loss, nats per token", lambda row: row.loss),
    ("grad_norm", "gradient norm", lambda row: row.grad_norm),
    ("lr", "learning rate", lambda row: row.lr),
    ("tokens_per_second", "tokens per second", lambda row: row.tokens_per_second),
    ("memory_gib", "peak memory, GiB", lambda row: row.memory_gib),
)
"""(field, title, function that returns the value)"""


@dataclass(frozen=True)
class Compared:
    """One of the compared runs; ``name`` is unique among them."""

    name: str
    folder: Path
    status: Status
    settings: dict[str, Any]
    rows: list[StepMetrics]
    chosen: tuple[str, ...] = ()
    """Names of further numbers (:mod:`atom.run_dir.chosen`)."""
    evaluations: tuple[Evaluation, ...] = ()

    def numbers(self) -> dict[str, Any]:
        """Return the results; None where a value is unknown."""
        finite = [row for row in self.rows if math.isfinite(row.loss)]
        best = min(finite, key=lambda row: row.loss, default=None)
        return {
            "state": self.status.state,
            "step": self.status.step,
            "loss": _finite(self.status.loss),
            "loss of step": self.status.loss_step,
            "lowest loss": best.loss if best else None,
            "at step": best.step if best else None,
            **self._validated(),
            **self._evaluated(),
            **{chosen.short(name): self._last(name) for name in self.chosen},
            "tokens seen": self.status.tokens_seen,
            "tokens/s": _median([row.tokens_per_second for row in self.rows]),
            "s/step": _median([row.step_seconds for row in self.rows]),
            "memory GiB": max((row.memory_gib for row in self.rows), default=None),
            "restarts": self.status.restarts,
            "goodput": self.status.goodput,
        }

    def _last(self, name: str) -> float | None:
        """Return the last of a chosen number."""
        found = chosen.last(self.rows, name)
        return None if found is None else _finite(found[1])

    def _evaluated(self) -> dict[str, Any]:
        """Return the newest result of each number of evaluations."""
        found = evals.by_name(self.evaluations)
        return {name: _finite(each[-1].value) for name, each in found.items()}

    def _validated(self) -> dict[str, Any]:
        """Return the last loss and bits per byte of each validation set, and its data."""
        found: dict[str, Any] = {}
        for name, points in metrics.by_set(self.rows).items():
            last = points[-1][1]
            found[f"{name} loss"] = _finite(last.loss)
            if last.bits_per_byte is not None:
                found[f"{name} bits/byte"] = _finite(last.bits_per_byte)
            found[f"{name} data"] = last.data
        return found


def load(folders: Sequence[Path], show: Sequence[str] = ()) -> list[Compared]:
    """Load the runs.

    Args:
        folders: their folders.
        show: names of numbers to compare, beside those that a run shows (``metrics.show``).

    Raises:
        UserError: a folder holds no run, a file in it is unreadable, or no run has a number.
    """
    found, names_of = [], [*show]
    for name, folder in zip(names(folders), folders, strict=True):
        state = status(folder)
        rows = metrics.read(folder / metrics.FILE_NAME)
        run, course = _settings(folder)
        names_of += run.metrics.show
        found.append(
            Compared(name, folder, state, course, rows, evaluations=tuple(evals.read(folder)))
        )
    every = [row for run in found for row in run.rows]
    for name in show:
        if not chosen.is_in(every, name):
            raise UserError(
                f"--show {name}: no run has logged it; {chosen.nearest_in(every, name)}"
            )
    return [replace(run, chosen=tuple(dict.fromkeys(names_of))) for run in found]


def _settings(folder: Path) -> tuple[Run, dict[str, Any]]:
    """Return a run, and the settings that produced its steps.

    A setting that changed during the run lists all its values in words."""
    periods, changed = history.course(folder, RUN_FILE)
    told = {
        key: ", ".join(
            f"{shown(value)} {period}" for value, period in zip(values, periods, strict=True)
        )
        for key, values in changed.items()
    }
    run = read(periods[-1].file, below=folder)
    return run, settings.flat(run) | told


def names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest path suffixes that are unique."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-length:]) for part in parts]
        if len(set(found)) == len(set(parts)):
            return found
    return [str(folder) for folder in folders]


def data(runs: Sequence[Compared]) -> list[str | None]:
    """Return, for each run, whether it was trained on the data of the first one, in words; None if
    no step tells.
    """
    first, *others = ({row.step: row.data for row in run.rows if row.data} for run in runs)
    found: list[str | None] = [f"of {len(first):,} steps" if first else None]
    for other in others:
        both = sorted(first.keys() & other.keys())
        differing = next((step for step in both if first[step] != other[step]), None)
        if differing is not None:
            found.append(f"other from step {differing:,} on")
        else:
            found.append(f"the same in {len(both):,} steps" if both else None)
    return found


def differing(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs: key -> one value per run, or None."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    found = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if any(v != values[0] for v in values)}


def picture(runs: Sequence[Compared]) -> Element:
    """Return a picture of all curves: one panel per quantity, one color and dash per run."""
    row_height, head, gap = 18, 20, 26
    legend_height = row_height * len(runs) + 10
    panel_height = chart.HEIGHT + gap
    drawn = [
        (title, [Series(run.name, _points(run, value)) for run in runs])
        for _, title, value in (*CURVES, *_set_curves(runs), *_chosen_curves(runs))
    ]
    drawn += _evaluation_curves(runs)
    height = legend_height + panel_height * len(drawn)
    found = element(
        "svg",
        element("title", f"{len(runs)} runs compared"),
        element(
            "style",
            chart.STYLE,
            chart.PAPER,
        ),
        element("rect", class_="paper", width=chart.WIDTH, height=height),
        class_="chart",
        viewBox=f"0 0 {chart.WIDTH} {height}",
        width=chart.WIDTH * 2,
        height=height * 2,
    )
    for number, run in enumerate(runs):
        y = 16 + number * row_height
        style = f"line s{number % chart.COLORS}"
        found.append(element("path", class_=style, d=f"M12 {y - 4}h30"))
        found.append(element("text", run.name, x=50, y=y))
    for number, (title, curves) in enumerate(drawn):
        y = legend_height + number * panel_height
        found.append(element("text", title, class_="strong", x=12, y=y + head - 6))
        panel = chart.chart(title, curves)
        for name, place in (("y", y + head), ("width", chart.WIDTH), ("height", chart.HEIGHT)):
            panel.set(name, str(place))
        found.append(panel)
    return found


def _points(
    run: Compared, value: Callable[[StepMetrics], float | None]
) -> list[tuple[float, float]]:
    found = ((row.step, value(row)) for row in run.rows)
    return [(step, number) for step, number in found if number is not None]


def _set_curves(
    runs: Sequence[Compared],
) -> Iterator[tuple[str, str, Callable[[StepMetrics], float | None]]]:
    """Yield a curve for each validation set of any run; None where a step is not validated."""

    def loss_of(name: str) -> Callable[[StepMetrics], float | None]:
        def value(row: StepMetrics) -> float | None:
            found = (row.validation or {}).get(name)
            return None if found is None else found.loss

        return value

    for name in dict.fromkeys(name for run in runs for name in metrics.by_set(run.rows)):
        yield name, f"validation loss of {name}, nats per token", loss_of(name)


def _chosen_curves(
    runs: Sequence[Compared],
) -> Iterator[tuple[str, str, Callable[[StepMetrics], float | None]]]:
    """Yield a curve for each chosen number; None where a row does not have it."""
    for name in dict.fromkeys(name for run in runs for name in run.chosen):
        yield name, chosen.short(name), partial(chosen.value, name=name)


def _evaluation_curves(runs: Sequence[Compared]) -> Iterator[tuple[str, list[Series]]]:
    """Yield the curves of each number of evaluations that a run has for several checkpoints."""
    found = {run.name: dict(evals.points(evals.by_name(run.evaluations))) for run in runs}
    for name in dict.fromkeys(name for each in found.values() for name in each):
        curves = [Series(run, each.get(name, [])) for run, each in found.items()]
        if any(len(curve.points) > 1 for curve in curves):
            yield name, curves


def _median(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
