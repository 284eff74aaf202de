"""``atom eval``: score a run's model on tasks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from atom.cli import Parser, named
from atom.cli.scoring import add_layout, as_rank, is_first, on_layout
from atom.errors import UserError
from atom.io import yaml_data
from atom.io.json_data import dumps
from atom.io.numbers import decimal
from atom.io.printing import clean
from atom.io.terminal import Encodable, Styled
from atom.recipe.scoring_layout import ScoringLayout
from atom.run_dir import evals, evaluators, saved
from atom.run_dir.evals import Evaluation


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom eval",
        "Score a model on tasks of the installed evaluators, and add the results to evals.jsonl in "
        "its folder.",
    )
    parser.add_argument(
        "run", type=Path, help="a run folder, an export, or a folder in Hugging Face's format"
    )
    parser.add_argument(
        "--tasks",
        type=_words,
        action="extend",
        default=[],
        metavar="TASK,…",
        help="tasks: TASK, EVALUATOR:TASK, or a pattern such as 'olmes:arc_*'; may be repeated",
    )
    parser.add_argument(
        "--evaluator",
        type=_evaluator,
        action="append",
        default=[],
        dest="evaluators",
        metavar="NAME[=SECTION]",
        help="an evaluator with parameters, '{name: NAME, parameters}', under a name for --tasks; "
        "may be repeated; default: those of the run, and the installed ones",
    )
    parser.add_argument("--list", action="store_true", help="list the tasks, and evaluate nothing")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_average()
    parser.add_argument(
        "--limit", type=_number(1), help="maximum number of documents of a task; default: all"
    )
    parser.add_argument(
        "--seed", type=_number(0), default=0, help="seed of what evaluators draw; default: 0"
    )
    parser.add_argument(
        "--max-length",
        type=_number(2),
        help="longest sequence in tokens; default: training.seq_len of the run",
    )
    parser.add_argument("--batch-tokens", type=_number(1), help="tokens of one pass; default: 4096")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="precision of the weights; default: float32",
    )
    add_layout(parser)
    parser.add_argument("--json", action="store_true", help="print JSON lines, for programs")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom eval``; return the exit code."""
    options = parser().parse_args(arguments)
    run, offered = evaluators.of_folder(options.run, named("--evaluator", options.evaluators))
    if options.list:
        return _list(offered)
    if not options.tasks:
        raise UserError("atom eval: no task is named", valid="--tasks TASK,…; --list lists them")
    tasks = offered.find(options.tasks)
    saved.check(options.run, run, step=options.step, average=options.average)
    on_layout("eval", arguments, options, run, partial(_score, options, tasks))
    return 0


def on_rank(arguments: list[str]) -> None:
    """Run ``atom eval`` as one of the ranks of a layout, on a GPU."""
    options = parser().parse_args(arguments)
    tasks = []
    if is_first():
        _, offered = evaluators.of_folder(options.run, named("--evaluator", options.evaluators))
        tasks = offered.find(options.tasks)
    as_rank(options, partial(_score, options, tasks))


def _score(
    options: argparse.Namespace, tasks: Sequence[evaluators.Task], kind: str, layout: ScoringLayout
) -> None:
    from atom.titan.evaluation.evaluate import Settings, evaluate, subject

    settings = Settings(
        step=options.step,
        average=options.average,
        limit=options.limit,
        seed=options.seed,
        dtype=options.dtype,
        max_length=options.max_length,
        tokens=options.batch_tokens,
        layout=layout,
    )
    scored = subject(options.run, settings, kind=kind)
    if scored.shared is not None and not is_first():
        scored.shared.serve()
        return
    console = Styled(Encodable(sys.stdout))
    if not options.json:
        where = "a folder of weights" if scored.step is None else f"step {scored.step:,}"
        console.print(f"{clean(str(options.run))}, {where}\n", soft_wrap=True)
    found: list[Evaluation] = []
    for results in evaluate(scored, tasks, settings):
        evals.record(options.run, results)
        found += results
        _warn(results[0])
        if options.json:
            for result in results:
                print(dumps(result.to_json()), flush=True)
    if scored.shared is not None:
        scored.shared.end()
    if not options.json:
        console.print(_table(found))


def _warn(result: Evaluation) -> None:
    if result.truncated:
        print(
            f"atom: {clean(result.asked)}: {result.truncated:,} requests are longer than "
            f"{result.max_length:,} tokens, and lost their beginning",
            file=sys.stderr,
        )


def _table(results: Sequence[Evaluation]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("task", overflow="fold")
    table.add_column("metric", overflow="fold")
    for head in ("value", "stderr", "few-shot", "documents"):
        table.add_column(head, justify="right", no_wrap=True)
    for found in results:
        table.add_row(
            clean(found.task),
            clean(found.metric),
            decimal(found.value, 4),
            "–" if found.stderr is None else decimal(found.stderr, 4),
            "–" if found.few_shot is None else str(found.few_shot),
            f"{found.samples:,}",
        )
    return table


def _list(offered: evaluators.Evaluators) -> int:
    """Print the tasks; return 2 if an evaluator that the user has named cannot list its own."""
    code = 0
    for name in offered.by_name:
        try:
            tasks = sorted(offered.tasks(name))
        except UserError as error:
            print(f"atom: {name}: {error.sentence()}", file=sys.stderr)
            code = 2 if name in offered.named else code
            continue
        for task in tasks:
            print(f"{name}:{task}")
    return code


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; valid: TASK or TASK,TASK,…")
    return words


def _evaluator(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    # A colon ends the name in --tasks.
    if not name or ":" in name:
        valid = "NAME or NAME=SECTION, and no colon in NAME"
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; valid: {valid}")
    try:
        return name, yaml_data.load(value, f"--evaluator {name}") if equals else name
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= 10**12:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not valid; valid: a whole number from {least}"
            )
        return int(text)

    return number
