"""Show a run on the screen: header, progress, summary.

A terminal shows a progress bar and keeps about ten rows; a pipe gets one plain line per step,
without control codes. Ranks draw nothing: the launcher follows ``metrics.jsonl``.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from atom.io.numbers import clock, decimal, human, sparkline
from atom.io.printing import clean
from atom.io.terminal import Animation, Encodable, Styled
from atom.run_dir import checkpoint, chosen
from atom.run_dir.metrics import FILE_NAME, StepMetrics
from atom.watch import step_text, validation_rows
from atom.watch.pace import Pace

SPLITS = {
    "dp_replicate": "the batch, over replicas",
    "dp_shard": "parameters (FSDP)",
    "tp": "tensors",
    "pp": "layers",
    "cp": "the sequence",
    "ep": "experts",
}
"""What each mesh dimension shards or splits."""

KEPT_ROWS = 10
"""Approximate number of rows that a terminal keeps."""

CURVE_COLUMNS = 60

_LABEL = 9  # width of "kernels" and its separator, in columns
_MIN_BAR = 8


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a run before its first step.

    ``layout`` is (mesh dimension, degree), outermost first; ``schedule`` is the pipeline schedule;
    ``read`` is the size of the dataset, ``licence`` its licence, and ``left_out`` the part that is
    not read as it stands;
    ``sources`` and ``stages`` are the rows of a mixture (:mod:`atom.watch.mixture_rows`);
    ``batch`` and ``validation`` are shown unchanged; ``kernels`` is (operation, chosen kernel);
    ``rejected`` is (operation, preferred kernel, why it does not fit); ``resumed_from`` is the
    checkpoint's step.
    """

    run_dir: str
    model: str
    parameters: int
    tokenizer: str
    vocab_size: int
    dataset: str
    device: str
    ranks: int
    layout: Sequence[tuple[str, int]]
    schedule: str | None
    batch: str
    steps: int
    kernels: Sequence[tuple[str, str]]
    resumed_from: int | None
    rejected: Sequence[tuple[str, str, str]] = ()
    read: str = ""
    licence: str = ""
    left_out: Sequence[str] = ()
    sources: Sequence[tuple[str, str]] = ()
    stages: Sequence[tuple[str, str]] = ()
    validation: str = ""


class Screen:
    """A view that draws one run on ``stream``.

    Args:
        stream: the output; the standard output by default.
        verbose: print one line per step and no bar, even on a terminal, because rank 0's log is
            printed there too.
    """

    def __init__(self, stream: IO[str] | None = None, verbose: bool = False) -> None:
        target = Encodable(stream or sys.stdout)
        self._console = Styled(target)
        self._ascii = not target.encoding.lower().startswith("utf")
        self._terminal = target.isatty() and self._console.is_interactive
        self._draws_bar = self._terminal and not verbose
        self._bar: Animation | None = None
        self._steps: int | None = None
        self._pace = Pace()
        self._first_step: int | None = None
        self._latest: StepMetrics | None = None
        self._reached: int | None = None
        self._kept: StepMetrics | None = None
        self._columns: list[step_text.Column] = []
        self._chosen: list[str] = []
        self._unknown: set[str] = set()

    def header(self, header: Header) -> None:
        """Show the run that is about to start."""
        self._steps = header.steps
        size = f"{human(header.parameters)} parameters"
        self._print(Text.assemble((clean(header.model), "bold"), f", {size}"))
        self._row("run", clean(header.run_dir))
        ids = f"tokenizer {header.tokenizer}, {header.vocab_size:,} ids"
        words = filter(None, (header.dataset, header.read, ids))
        self._row("data", clean(", ".join(words)))
        self._table("", header.sources)
        if header.licence:
            self._row("", clean(f"licence: {header.licence}"))
        for phrase in header.left_out:
            self._row("", Text(clean(f"left out: {phrase}"), "dim"))
        self._row("batch", clean(header.batch))
        steps = Text(f"{header.steps:,}")
        if header.resumed_from is not None:
            steps.append(f", resumed after step {header.resumed_from:,}", "bold")
        self._row("steps", steps)
        if header.validation:
            self._row("validate", clean(header.validation))
        self._table("stages", header.stages)
        ranks = "1 rank" if header.ranks == 1 else f"{header.ranks:,} ranks"
        self._row("layout", f"{ranks} on {header.device}")
        self._layout(header)
        self._kernels(header.kernels)
        for operation, kernel, reason in header.rejected:
            self._row("", Text(clean(f"{operation}: not {kernel}, {reason}"), "dim"))
        self._print(Text())

    def starting(self, text: str, steps: int | None = None) -> None:
        """Show what ATOM waits for; a terminal also shows the elapsed time until the first step.

        ``steps`` is the last step of the run, for a screen that has shown no header.
        """
        self._steps = steps or self._steps
        waiting = f"{clean(text).rstrip(' .…')} …"
        if not self._draws_bar:
            self._print(Text(waiting))
            return
        spinner = Spinner("line" if self._ascii else "dots", style="cyan")
        begin = time.monotonic()

        def status() -> RenderableType:
            frame = cast(Text, spinner.render(self._console.get_time()))
            elapsed = (f" {clock(time.monotonic() - begin)}", "dim")
            return Text.assemble(frame, f" {waiting}", elapsed, no_wrap=True, overflow="crop")

        self._animate(status)

    @property
    def has_steps(self) -> bool:
        """Whether a step has been shown."""
        return self._latest is not None or self._reached is not None

    def choose(self, names: Sequence[str]) -> None:
        """Show further numbers of each step, by their names in :mod:`atom.run_dir.chosen`."""
        self._chosen = list(names)

    def weigh(self, sequences: Callable[[int], int]) -> None:
        """Estimate the remaining time by sequences, which ``sequences`` counts up to a step."""
        self._pace.sequences = sequences

    def step(self, metrics: StepMetrics) -> None:
        """Show a step."""
        self._pace.add(metrics)
        for name in self._chosen:
            sentence = chosen.not_logged(metrics, name)
            if sentence is not None and name not in self._unknown:
                self._unknown.add(name)
                self.note(sentence)
        previous, self._latest = self._latest, metrics
        self._first_step = min(metrics.step, self._first_step or metrics.step)
        if not self._draws_bar:
            self._print(Text(self._line(metrics)))
            return
        for name, found in (metrics.validation or {}).items():
            self.note(f"validation after step {metrics.step:,}: {name} {found}")
        self._animate(self._progress)
        if previous is None or self._stays(metrics, previous.step):
            self._keep(metrics)

    def reached(self, step: int) -> None:
        """Record that a step is done, even if it is not logged."""
        first, self._reached = self._reached is None, step
        if self._draws_bar and first and self._latest is None:
            self._animate(self._progress)

    def note(self, text: str) -> None:
        """Show a line of text above the progress bar."""
        self._print(Text(clean(text, keep="\n")))

    def close(self) -> None:
        """Remove the progress bar and leave the latest step; stop the drawing thread."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._draws_bar and self._latest is not None and self._latest is not self._kept:
            self._keep(self._latest)

    def summary(
        self,
        metrics: Sequence[StepMetrics],
        run_dir: str,
        seconds: float,
        began: int | None = None,
    ) -> None:
        """Show the results.

        Args:
            metrics: rows of the whole run, from its first step; rows passed to :meth:`step` are
                those of this process.
            run_dir: the run folder.
            seconds: time that this process spent on the run.
            began: the first step done by this process, if it differs from the first logged one.
        """
        self.close()
        self._print(Text())
        place = Path(run_dir)
        first_step = math.inf if self._first_step is None else self._first_step
        taken = [row for row in metrics if row.step >= first_step]
        self._row("steps", _steps_taken(taken, seconds, began))
        if metrics:
            first, last = metrics[0], metrics[-1]
            style = "bold" if math.isfinite(last.loss) else "bold red"
            fall = (f"{decimal(last.loss, 4)}", style)
            self._row("loss", Text.assemble(f"{decimal(first.loss, 4)} → ", fall))
            columns = min(CURVE_COLUMNS, self._width() - _LABEL)
            curve = sparkline([row.loss for row in metrics], columns, ascii_only=self._ascii)
            self._row("", Text(curve, "cyan"))
            for name, words, course in validation_rows.course(
                metrics, columns, ascii_only=self._ascii
            ):
                self._row("set", words, Text(f"{clean(name)}  ", "cyan"))
                self._row("", Text(course, "cyan"))
            speed = [row.tokens_per_second for row in taken]
            pace = f", {statistics.median(speed):,.0f} tokens/s" if speed else ""
            self._row("tokens", f"{last.tokens_seen:,} seen{pace}")
            self._row("metrics", clean(str(place / FILE_NAME)))
        checkpoints = place / checkpoint.FOLDER
        if steps := checkpoint.steps(checkpoints):
            self._row("weights", clean(str(checkpoint.step_folder(checkpoints, steps[-1]))))

    # ------------------------------------------------------------------------ header

    def _layout(self, header: Header) -> None:
        split = [(name, degree) for name, degree in header.layout if degree > 1]
        whole = [name for name, degree in header.layout if degree == 1]
        names = max((len(name) for name, _ in split), default=0)
        degrees = max((len(str(degree)) for _, degree in split), default=0)
        for name, degree in split:
            what = SPLITS.get(name, "")
            if name == "pp" and header.schedule:
                what += f", schedule {clean(header.schedule)}"
            cells = ((f"{name:<{names}}  ", "cyan"), (f"{degree:>{degrees}}", "bold"), f"  {what}")
            self._row("", Text.assemble(*cells))
        if whole:
            self._row("", Text(f"not split: {', '.join(whole)}", "dim"))

    def _table(self, label: str, rows: Sequence[tuple[str, str]]) -> None:
        names = max((len(name) for name, _ in rows), default=0)
        for name, words in rows:
            self._row(label, clean(words), Text(f"{clean(name):<{names}}  ", "cyan"))
            label = ""

    def _kernels(self, kernels: Sequence[tuple[str, str]]) -> None:
        operations: dict[str, list[str]] = {}
        for operation, kernel in kernels:
            operations.setdefault(kernel, []).append(operation)
        names = max(map(len, operations), default=0)
        label = "kernels"
        for kernel, served in operations.items():
            self._row(label, ", ".join(served), Text(f"{kernel:<{names}}  ", "cyan"))
            label = ""

    # ------------------------------------------------------------------------ steps

    def _line(self, metrics: StepMetrics) -> str:
        """Return a step as a line of a log file."""
        total = "" if self._steps is None else f"/{self._steps}"
        words = [f"step {metrics.step:>{max(len(total) - 1, 1)}}{total}"]
        words += step_text.words(metrics, self._chosen)
        if self._steps is not None:
            words.append(f"left {clock(self._pace.left(self._steps))}")
        return "  ".join(words)

    def _progress(self) -> RenderableType:
        latest, step = self._latest, self._reached or 0
        if latest is None:
            total = "" if self._steps is None else f"/{self._steps}"
            return Text(f"step {step}{total}", no_wrap=True, overflow="crop")
        step = max(step, latest.step)
        loss = f"loss {decimal(latest.loss, 4)}"
        if self._steps is None:
            return Text(f"step {step}  {loss}", no_wrap=True, overflow="crop")
        counter = f"{step:>{len(str(self._steps))}}/{self._steps}"
        left = f"left {clock(self._pace.left(self._steps, now=time.monotonic()))}"
        speed = f"{human(latest.tokens_per_second)} tok/s"
        for parts in ((loss, speed, left), (loss, left), (loss,)):
            words = "  ".join(parts)
            bar = self._width() - len(counter) - len(words) - 3
            if bar >= _MIN_BAR:
                break
        line = Table.grid(padding=(0, 1))
        for _ in range(3):
            line.add_column(no_wrap=True)
        line.add_row(
            Text(counter, "bold"),
            ProgressBar(
                self._steps,
                step,
                width=max(bar, 1),
                complete_style="cyan",
                finished_style="green",
            ),
            Text(words),
        )
        return line

    def _stays(self, metrics: StepMetrics, previous: int) -> bool:
        """Return whether a step's row is kept: evenly spaced rows, the last one, restarts."""
        if metrics.step <= previous or metrics.step == self._steps:
            return True
        stride = KEPT_ROWS if self._steps is None else math.ceil(self._steps / KEPT_ROWS)
        return metrics.step // stride > previous // stride

    def _keep(self, metrics: StepMetrics) -> None:
        """Print a row permanently, with the column heads above the first one."""
        if not self._columns:
            self._columns = step_text.columns(metrics, self._steps, self._width(), self._chosen)
            heads = "  ".join(f"{column.head:>{column.width}}" for column in self._columns)
            self._print(Text(heads, "dim", no_wrap=True, overflow="crop"))
        cells = (f"{column.show(metrics):>{column.width}}" for column in self._columns)
        self._print(Text("  ".join(cells), no_wrap=True, overflow="crop"))
        if self._bar is not None:
            self._bar.draw()  # a bar that lags behind the row above it looks wrong
        self._kept = metrics

    def _animate(self, status: Callable[[], RenderableType]) -> None:
        if self._bar is None:
            self._bar = Animation(self._console, status)
        else:
            self._bar.show(status)

    # ------------------------------------------------------------------------ lines

    def _width(self) -> int:
        return max(self._console.width, 2 * _LABEL)

    def _row(self, label: str, value: str | Text, head: Text | None = None) -> None:
        """Print ``value`` after ``label`` (and ``head``); further lines are aligned below
        ``value``.
        """
        value = Text(value) if isinstance(value, str) else value
        prefix = Text.assemble((f"{label:<{_LABEL}}", "dim"), head or "")
        lines = [value]
        if self._terminal:
            room = max(self._width() - prefix.cell_len, _LABEL)
            lines = list(value.wrap(self._console, room, overflow="fold"))
        for line in lines:
            self._print(Text.assemble(prefix, line))
            prefix = Text(" " * prefix.cell_len)

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=not self._terminal)


def _steps_taken(taken: Sequence[StepMetrics], seconds: float, began: int | None) -> str:
    if not taken:
        return f"none done in {clock(seconds)}"
    first, last = began or taken[0].step, taken[-1].step
    span = f"{last:,}" if first == 1 else f"{first:,} to {last:,}"
    return f"{span} in {clock(seconds)}"
