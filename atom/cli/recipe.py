"""``atom recipe``: run the stages of a recipe, and show what became of them."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from atom.cli import Parser
from atom.cli.data import prepare_parser
from atom.cli.data_prepare import check_used
from atom.compose import plugin_lists, recipe_files
from atom.errors import UserError, nearest
from atom.io.files import make_folder, write_text
from atom.io.json_data import dumps
from atom.io.terminal import say
from atom.registry.host import Host
from atom.run_dir import claim
from atom.stages import composed as compositions
from atom.stages import decided, digests
from atom.stages.composed import Composed
from atom.stages.declaration import parsed

_FOLDER = Path("outputs/recipe")
_FILE = "recipe.yaml"
_OF_PLANS = ("device=", "world_size=", "plan.")


def parser() -> Parser:
    """Return the parser of ``atom recipe``."""
    return Parser(
        "atom recipe",
        "Run a recipe, a graph of stages from a corpus to a model, each of them a command of ATOM "
        "(`atom recipe run NAME`). `list` shows the recipes, `status` what became of the stages, "
        "`graph` how they depend on each other, `plan` what they will take, `diff` how two recipes "
        "differ. `clean` removes what outdated declarations have made.",
    )


def run_parser(command: str, summary: str) -> Parser:
    """Return the parser of a sub-command that composes a recipe."""
    made = Parser(f"atom recipe {command}", summary)
    made.add_argument("name", metavar="NAME", help="a recipe, or the path of a .yaml file")
    made.add_argument(
        "overrides",
        nargs="*",
        metavar="OVERRIDE",
        help="VARIABLE=VALUE, STAGE.KEY=VALUE, ~STAGE.KEY; launcher=NAME and launcher.KEY=VALUE "
        "for every stage that trains",
    )
    made.add_argument("--dir", type=Path, help=f"folder of the recipe; default: {_FOLDER}/NAME")
    made.add_argument("--config-dir", metavar="DIR", help="folder of configuration files")
    return made


def main(arguments: list[str]) -> int:
    """Run ``atom recipe``; return the exit code."""
    if not arguments or arguments[0].startswith("-"):
        parser().parse_args(arguments)
        raise UserError("atom recipe: a command is missing", valid=", ".join(_COMMANDS))
    name, *rest = arguments
    if name not in _COMMANDS:
        raise UserError(f"there is no command atom recipe {name}; {nearest(name, _COMMANDS)}")
    return _COMMANDS[name](SUBCOMMANDS[name]().parse_intermixed_args(rest))


def run_arguments() -> Parser:
    """Return the parser of the arguments of ``atom recipe run``."""
    parsing = run_parser("run", "Run the stages that are not finished, or have changed.")
    parsing.add_argument(
        "--cfg", action="store_true", help="print the composed recipe, run nothing"
    )
    parsing.add_argument("--only", type=_names, default=[], metavar="STAGE,…", help="these stages")
    parsing.add_argument(
        "--from", dest="begin", type=_names, default=[], metavar="STAGE,…",
        help="these stages again, and all that need them",
    )  # fmt: skip
    parsing.add_argument(
        "--jobs", type=_count, default=1, help="the most stages that run at once; default: 1"
    )
    parsing.add_argument(
        "--same-code", action="store_true",
        help="do not run a stage again because the code of ATOM or of a plugin has changed",
    )  # fmt: skip
    parsing.add_argument(
        "--no-check", action="store_true", help="run without a dry run of every stage before"
    )
    return parsing


def _run(options: argparse.Namespace) -> int:
    host = Host.load(plugin_lists.trust([]))
    made = _composed(options, host)
    if options.cfg:
        print(compositions.document(made).replace(str(made.folder), "FOLDER"), end="")
        return 0
    from atom.stages import checks
    from atom.stages.running import Runner

    code = digests.of_code(host.plugins)
    names = decided.chosen(made, options.only, options.begin)
    if made.folder.exists():
        claim.check(made.folder)
    with_code = not options.same_code
    found = decided.decide(made, code, with_code=with_code, again=options.begin)
    decided.check_chosen(made, found, names)
    todo = [name for name in made.stages if name in names and found[name].runs]
    if not todo:
        say(f"{made.folder}: every stage is finished, and nothing has changed")
        return 0
    if not options.no_check:
        checks.check(made, todo, say, _parse)
    make_folder(made.folder)
    claim.claim(made.folder)
    write_text(made.folder / _FILE, compositions.document(made))
    Runner(made, code, jobs=options.jobs, tell=say, with_code=with_code).run(names, options.begin)
    say(f"{made.folder}: every stage is finished")
    return 0


def status_arguments() -> Parser:
    """Return the parser of the arguments of ``atom recipe status``."""
    return run_parser("status", "Show what became of each stage.")


def _status(options: argparse.Namespace) -> int:
    made = _composed(options)
    from rich.console import Console

    from atom.stages.picture import table

    found = decided.decide(made)
    live = made.folder.is_dir() and claim.holder(made.folder) is not None
    Console(highlight=False, file=sys.stdout).print(table(made, found, live=live))
    return 0


def graph_arguments() -> Parser:
    """Return the parser of the arguments of ``atom recipe graph``."""
    return run_parser("graph", "Print the graph as Mermaid text.")


def _graph(options: argparse.Namespace) -> int:
    made = _composed(options)
    from atom.stages.picture import graph

    print(graph(made, decided.decide(made)), end="")
    return 0


def plan_arguments() -> Parser:
    """Return the parser of the arguments of ``atom recipe plan``."""
    parsing = run_parser(
        "plan",
        "Show what each stage that trains will take, by `atom plan`. device=NAME, world_size=N and "
        "plan.KEY=VALUE hold for all of them.",
    )
    parsing.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parsing


def _plan(options: argparse.Namespace) -> int:
    everywhere = [w for w in options.overrides if w.startswith(_OF_PLANS)]
    options.overrides = [word for word in options.overrides if word not in everywhere]
    made = _composed(options)
    from atom.stages.planned import planned, table

    plans = planned(made, everywhere)
    if options.json:
        print(dumps(plans, indent=2))
        return 0
    from rich.console import Console

    Console(highlight=False, file=sys.stdout).print(table(plans))
    return 0


def diff_arguments() -> Parser:
    """Return the parser of the arguments of ``atom recipe diff``."""
    parsing = Parser("atom recipe diff", "Show how two recipes differ once they are composed.")
    parsing.add_argument("recipes", nargs=2, metavar="NAME", help="a recipe or a .yaml file")
    parsing.add_argument("--config-dir", metavar="DIR", help="folder of configuration files")
    return parsing


def _diff(options: argparse.Namespace) -> int:
    texts = []
    for name in options.recipes:
        made = _composed(
            argparse.Namespace(name=name, overrides=[], dir=Path("FOLDER"),
                               config_dir=options.config_dir)
        )  # fmt: skip
        texts.append(compositions.document(made).splitlines())
    first, second = texts
    names = {"fromfile": options.recipes[0], "tofile": options.recipes[1]}
    lines = list(difflib.unified_diff(first, second, lineterm="", **names))
    print("\n".join(lines) if lines else "the recipes are the same")
    return 0


def clean_arguments() -> Parser:
    """Return the parser of the arguments of ``atom recipe clean``."""
    parsing = run_parser("clean", "Remove what outdated declarations have made.")
    parsing.add_argument(
        "--stages", type=_names, default=[], metavar="STAGE,…", help="remove these stages too"
    )
    return parsing


def _clean(options: argparse.Namespace) -> int:
    made = _composed(options)
    decided.chosen(made, options.stages, [])
    if not made.folder.is_dir():
        raise UserError(f"{made.folder} does not exist", valid="the folder of a recipe")
    claim.claim(made.folder)
    from atom.stages.running import clean

    removed = clean(made, options.stages)
    print("\n".join(f"removed {place}" for place in removed) or "nothing to remove")
    return 0


def list_arguments() -> Parser:
    """Return the parser of the arguments of ``atom recipe list``."""
    parsing = Parser("atom recipe list", "List the recipes.")
    parsing.add_argument("--config-dir", metavar="DIR", help="folder of configuration files")
    return parsing


def _list(options: argparse.Namespace) -> int:
    host = Host.load(plugin_lists.trust([]))
    found = recipe_files.files(host, options.config_dir)
    width = max(map(len, found), default=0)
    for name in sorted(found):
        content, origin = recipe_files.find(name, host, options.config_dir)
        print(f"{name:{width}}  {parsed(content, origin).summary}")
    if not found:
        print("there are no recipes")
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "status": _status,
    "graph": _graph,
    "plan": _plan,
    "diff": _diff,
    "clean": _clean,
    "list": _list,
}

SUBCOMMANDS: dict[str, Callable[[], Parser]] = {
    "run": run_arguments,
    "status": status_arguments,
    "graph": graph_arguments,
    "plan": plan_arguments,
    "diff": diff_arguments,
    "clean": clean_arguments,
    "list": list_arguments,
}
"""Name -> the parser of its arguments, for completion."""


def _composed(options: argparse.Namespace, host: Host | None = None) -> Composed:
    """Return the composed recipe."""
    host = host or Host.load(plugin_lists.trust([]))
    content, origin = recipe_files.find(options.name, host, options.config_dir)
    recipe = parsed(content, origin)
    name = Path(origin).stem
    folder = (options.dir or _FOLDER / name).absolute()
    everywhere = [w for w in options.overrides if w.startswith(("launcher=", "launcher."))]
    training = [n for n, stage in recipe.stages.items() if stage.command == "train"]
    overrides = [f"{stage}.{word}" for word in everywhere for stage in training]
    overrides += [word for word in options.overrides if word not in everywhere]
    return compositions.composed(recipe, name, origin, folder, overrides)


def _parse(command: str, words: list[str]) -> None:
    """Parse the arguments of a command.

    Raises:
        UserError: they are invalid.
    """
    if command == "data prepare":
        for word in prepare_parser().parse_args(words).overrides:
            check_used(word)
        return
    importlib.import_module(f"atom.cli.{command}").parser().parse_args(words)


def _names(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _count(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is no number of jobs; valid: 1 to 1000")
    return int(text)
