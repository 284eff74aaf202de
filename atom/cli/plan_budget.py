"""``atom plan budget=1e23``: size, tokens, learning rate and batch of a budget, and a ladder."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from atom.cli import Parser
from atom.cli.plan_numbers import number
from atom.errors import UserError, nearest
from atom.io import new_folder
from atom.io.files import write_text
from atom.io.json_data import dumps
from atom.io.numbers import human
from atom.io.terminal import Encodable, Styled
from atom.plan import budget as budgets
from atom.plan import device, hyperparameters, scaling
from atom.plan.budget import Budget
from atom.plan.hyperparameters import RULES, Rule
from atom.plan.ladder import SHARE, Rung, ladder, sequences
from atom.plan.scaling import FLOPS, Law, Optimum

EXPERIMENT = "experiment"


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom plan",
        "Divide a budget between parameters and tokens by a scaling law, and choose learning rate "
        "and batch size by a published rule: `atom plan budget=1e23`. `atom plan fit RUN …` fits "
        "the law to finished runs. Without a budget, plan the run of `atom train`'s overrides: "
        "memory, time of a step, days, dollars, energy.",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="budget=1e23 (FLOPs), 2e6usd or 5000gpu_days; "
        f"law={', '.join(scaling.names())} or FILE.yaml; rule={', '.join(RULES)}; "
        "device=h100; plan.price_gpu_hour, plan.mfu, plan.goodput, plan.unique_tokens, "
        "plan.vocab_size, plan.ladder_share; training.seq_len",
    )
    parser.add_argument(
        "--ladder",
        type=Path,
        metavar="FOLDER",
        help="write experiments of small runs that check the law and the rule to this new folder, "
        "for `atom train --config-dir FOLDER -m`",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write the plan of a run, or of a sweep, to this file as a page with pictures",
    )
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="plan each combination of comma-separated values: world_size=256,512 -m",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    return parser


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    budget: str
    law: str = scaling.DEFAULT
    rule: str = hyperparameters.DEFAULT
    device: str = "h100"
    price_gpu_hour: float = budgets.PRICE
    mfu: float = budgets.MFU
    goodput: float = budgets.GOODPUT
    unique_tokens: float | None = None
    vocab_size: float = 128256.0  # Llama 3's
    ladder_share: float = SHARE
    seq_len: float = 4096.0


_RANGES = {
    "price_gpu_hour": (0.0, 1e6),
    "mfu": (1e-6, 1.0),
    "goodput": (1e-6, 1.0),
    "unique_tokens": (1.0, 1e18),
    "vocab_size": (1, 2**30),
    "ladder_share": (1e-9, 1.0),
    "seq_len": (1, 2**30),
}
_WHOLE = ("vocab_size", "seq_len")


def run(options: argparse.Namespace) -> int:
    """Print the plan; return the exit code."""
    wanted = _wanted(options.overrides)
    law, rule = scaling.named(wanted.law), _rule(wanted.rule)
    known = device.named(wanted.device)
    budget = budgets.read(
        wanted.budget,
        known,
        price_gpu_hour=wanted.price_gpu_hour,
        mfu=wanted.mfu,
        goodput=wanted.goodput,
    )
    best = law.optimum(budget.flops, wanted.unique_tokens)
    rungs: list[Rung] = []
    if options.ladder:
        new_folder.check(options.ladder, "--ladder")
        rungs = ladder(
            budget.flops,
            law,
            rule,
            vocab_size=int(wanted.vocab_size),
            seq_len=int(wanted.seq_len),
            share=wanted.ladder_share,
        )
        _write(options.ladder, rungs)
    others = _others(wanted, budget.flops)
    if options.json:
        print(dumps(_json(wanted, budget, law, best, others, rungs), indent=2))
        return 0
    console = Styled(Encodable(sys.stdout))
    _print(console, wanted, budget, law, best, others)
    if rungs:
        _print_ladder(console, options.ladder, rungs, budget.flops)
    return 0


def _wanted(overrides: list[str]) -> Wanted:
    keys = {
        **{name: name for name in ("budget", "law", "rule", "device")},
        "training.seq_len": "seq_len",
        **{f"plan.{name}": name for name in _RANGES if name != "seq_len"},
    }
    found: dict[str, Any] = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{word} is no override", valid="KEY=VALUE, such as budget=1e23")
        if key not in keys:
            raise UserError(
                f"is no key of a plan from a budget; {nearest(key, keys)}", key=key, value=text
            )
        if keys[key] in found:
            raise UserError("is given twice", key=key, value=text, origin="command line")
        name = keys[key]
        limits = _RANGES.get(name)
        found[name] = text if limits is None else number(key, text, limits, whole=name in _WHOLE)
    return Wanted(**found)


def _rule(name: str) -> Rule:
    if name not in RULES:
        raise UserError(f"there is no such rule; {nearest(name, RULES)}", key="rule", value=name)
    return RULES[name]


def _others(wanted: Wanted, flops: float) -> dict[str, Optimum | str]:
    """Return the optimum of each other law, or why it has none."""
    found: dict[str, Optimum | str] = {}
    for name in scaling.names():
        if name != wanted.law:
            try:
                found[name] = scaling.named(name).optimum(flops, wanted.unique_tokens)
            except UserError:
                found[name] = "knows no repeated tokens"
    return found


def _settings(rule: Rule, best: Optimum, seq_len: int) -> dict[str, Any]:
    """Return the settings of a run by a rule."""
    batch = sequences(rule.batch(best.parameters, best.tokens), seq_len)
    return {
        "optimizer.lr": float(f"{rule.lr(best.parameters, best.tokens):.3g}"),
        "training.global_batch_size": batch,
        "training.seq_len": seq_len,
        "training.steps": max(round(best.tokens / batch / seq_len), 1),
    }


def _json(
    wanted: Wanted,
    budget: Budget,
    law: Law,
    best: Optimum,
    others: dict[str, Optimum | str],
    rungs: list[Rung],
) -> dict[str, Any]:
    return {
        "budget": dataclasses.asdict(budget),
        "inputs": dataclasses.asdict(wanted),
        "law": {"name": law.name, "source": law.source, **dataclasses.asdict(best)},
        "other_laws": {
            name: each if isinstance(each, str) else dataclasses.asdict(each)
            for name, each in others.items()
        },
        "rules": {
            name: {"source": rule.source, **_settings(rule, best, int(wanted.seq_len))}
            for name, rule in RULES.items()
        },
        "ladder": [
            {**dataclasses.asdict(rung), "tokens": rung.tokens, "flops": rung.flops}
            for rung in rungs
        ],
    }


def _print(
    console: Console,
    wanted: Wanted,
    budget: Budget,
    law: Law,
    best: Optimum,
    others: dict[str, Optimum | str],
) -> None:
    console.print(
        f"budget   {budget.flops:.3g} FLOPs = {budget.gpu_days:,.0f} GPU-days of {wanted.device} = "
        f"{budget.dollars:,.0f} dollars",
        soft_wrap=True,
    )
    console.print(
        f"         plan.mfu={wanted.mfu:g}, plan.goodput={wanted.goodput:g}, "
        f"plan.price_gpu_hour={wanted.price_gpu_hour:g}; FLOPs are {FLOPS:g} a parameter and token",
        soft_wrap=True,
    )
    console.print(f"law      {law.name}, {law.source}\n", soft_wrap=True)
    table = _table("law", "parameters", "tokens", "tokens/parameter", "loss")
    for name, each in {f"{law.name} (chosen)": best, **others}.items():
        if isinstance(each, str):
            table.add_row(name, each, "–", "–", "–")
            continue
        loss = "–" if each.loss is None else f"{each.loss:.3f}"
        ratio = f"{each.tokens / each.parameters:.1f}"
        table.add_row(name, human(each.parameters), human(each.tokens), ratio, loss)
    console.print(table)
    if wanted.unique_tokens is not None and best.tokens > wanted.unique_tokens:
        console.print(
            f"{human(wanted.unique_tokens)} unique tokens, each read "
            f"{best.tokens / wanted.unique_tokens:.1f} times"
        )
    console.print()
    table = _table("rule", "learning rate", "sequences", "tokens of a batch", "steps")
    for name, rule in RULES.items():
        found = _settings(rule, best, int(wanted.seq_len))
        batch = found["training.global_batch_size"]
        table.add_row(
            name,
            f"{found['optimizer.lr']:g}",
            f"{batch:,}",
            human(batch * int(wanted.seq_len)),
            f"{found['training.steps']:,}",
        )
    console.print(table)
    for name, rule in RULES.items():
        if budget.flops > rule.most:
            console.print(f"{name} is beyond its runs, of at most {rule.most:.0e} FLOPs")


def _print_ladder(console: Console, folder: Path, rungs: list[Rung], flops: float) -> None:
    cost = sum(rung.flops for rung in rungs)
    console.print(
        f"\nladder   {len(rungs)} runs of {human(rungs[0].parameters)} to "
        f"{human(max(rung.parameters for rung in rungs))} parameters, {cost:.2g} FLOPs, "
        f"{cost / flops:.1%} of the budget",
        soft_wrap=True,
    )
    command = [
        "atom", "train", "--config-dir", str(folder), "-m", "+experiment=glob(ladder_*)",
        "run.dir=runs/ladder",
    ]  # fmt: skip
    console.print(f"\n{shlex.join(command)} architecture=…", soft_wrap=True)
    console.print("atom plan fit runs/ladder/*/", soft_wrap=True)


def _write(folder: Path, rungs: list[Rung]) -> None:
    with new_folder.filled(folder) as partial:
        (partial / EXPERIMENT).mkdir()
        for rung in rungs:
            write_text(partial / EXPERIMENT / f"{rung.name}.yaml", rung.to_yaml())


def _table(head: str, *heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(head, no_wrap=True)
    for each in heads:
        table.add_column(each, justify="right" if each else "left")
    return table
