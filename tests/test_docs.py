"""The documentation: its links resolve, its commands compose, the keys that it names exist.

The kinds of code blocks are explained in :mod:`atom_docs.pages`.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from atom_docs import config_reference
from atom_docs.pages import (
    DOCS,
    PAGES,
    ROOT,
    anchors,
    blocks,
    commands,
    inline,
    name_of,
    write_files,
)

from atom import plugin
from atom.cli import COMMANDS
from atom.compose import compose, plugin_lists
from atom.errors import UserError
from atom.recipe.run import Run
from atom.registry.host import Host, resolve
from atom.registry.select import select
from atom.registry.trust import Trust

pytestmark = pytest.mark.slow

EXAMPLE = DOCS / "examples" / "atom-gated-linear-attention"

_KEY = re.compile(r"[a-z_]+(\.[a-z_]+)+(=\S+)?")
_FILE_SUFFIXES = ("model", "jsonl", "yaml", "md", "py", "toml", "json")

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# ---------------------------------------------------------------------------- what is said exists


@every_page
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for token in inline(page):
        href = str(token.attrGet("href") or token.attrGet("src") or "")
        path, _, anchor = href.partition("#")
        if not href or re.match(r"[a-z]+:", href):
            continue
        target = page.parent / path if path else page
        known = target.exists() and (not anchor or target.is_dir() or anchor in anchors(target))
        if not known:
            broken.append(href)
    assert not broken


@every_page
def test_code_blocks_parse(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text, f"{name_of(page)}:{block.line}")


@every_page
def test_commands_compose(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    for command in commands(page):
        check_command(command)


@every_page
def test_commands_in_prose_exist(page: Path) -> None:
    for token in inline(page):
        words = token.content.split()
        if token.type == "code_inline" and words[:1] == ["atom"] and len(words) > 1:
            known = words[1] in COMMANDS or words[1] in ("--help", "--version", "COMMAND", "…")
            assert known, token.content


EXAMPLES = {
    "components.md": ("dataset.data", "dataset.sources."),
    "callback.md": ("callbacks.my_callback.", "training.model_parts"),
    "optimizer.md": ("optimizer.state",),
    "evaluator.md": ("evaluators.my_evaluator.",),
}
"""Page -> parameters of a plugin that the page itself writes, and names of Python that look so."""


@every_page
def test_config_keys_exist(page: Path, keys: set[str]) -> None:
    unknown = []
    for token in inline(page):
        key = token.content.partition("=")[0]
        if token.type != "code_inline" or not _KEY.fullmatch(token.content):
            continue
        is_file = key.rpartition(".")[2] in _FILE_SUFFIXES
        own = any(key.startswith(start) for start in EXAMPLES.get(page.name, ()))
        if key.partition(".")[0] in Run.model_fields and not (is_file or own) and key not in keys:
            unknown.append(key)
    assert not unknown


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Every key of a run, with the parameters of all components that are installed here."""
    found: set[str] = set()
    for section, schemas in config_reference.torchtitan_schemas().items():
        for schema in schemas.values():
            fields = dataclasses.fields(schema) if schema is not None else ()
            found |= {f"{section}.{field.name}" for field in fields}
    for name, field in Run.model_fields.items():
        for model in config_reference.models_in(field.annotation):
            found |= {f"{name}.{key}" for key in model.model_fields}
    for component in Host.load(Trust()).components:
        if component.kind == "kernel":
            found.add(f"kernels.{component.name.partition('/')[0]}")
        elif component.declaration.config is not None:
            model = resolve(component.declaration.config, component)
            found |= {f"{component.kind}.{key}" for key in model.model_fields}
    return found | {"activation_checkpoint.mode", "kernels.default"}


def test_the_whole_interface_is_in_the_reference() -> None:
    public = [
        name
        for name, thing in vars(plugin).items()
        if isinstance(thing, type) and thing.__module__ == plugin.__name__
    ]
    page = (DOCS / "reference" / "plugin.md").read_text()
    assert not [name for name in public if f"atom.plugin.{name}\n" not in page]


def test_every_kind_has_a_page_with_its_checks() -> None:
    for kind in (declaration.kind for declaration in plugin.KINDS):
        page = (DOCS / "plugins" / f"{kind}.md").read_text()
        assert f"{{conformance-checks}} {kind}" in page


def test_options_of_suites_exist() -> None:
    suites = [
        import_module(f"atom.testing.suites.{declaration.kind}").CONFORMANCE
        for declaration in plugin.KINDS
    ]
    options = {option for suite in suites for option in getattr(suite, "options", ())}
    named = {
        option
        for page in PAGES
        for call in re.findall(r"having\((.*)\)", page.read_text())
        for option in re.findall(r"(\w+)=", call)
    }
    assert named
    assert named <= options


def test_what_the_example_uses_is_documented() -> None:
    """Nobody has to read torchtitan's source, or ATOM's, to write such a plugin."""
    pages = "".join(page.read_text() for page in (DOCS / "plugins").glob("*.md"))
    used = {
        alias.name
        for file in (EXAMPLE / "atom_gated_linear_attention").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module is not None
        if node.module.partition(".")[0] in ("atom", "torchtitan")
        for alias in node.names
    }
    assert {"Decoder", "ShardingConfig", "ModelParts"} <= used
    assert not [name for name in used if not re.search(rf"\b{name}\b", pages)]


def test_list_names_every_plugin_of_ours() -> None:
    listed = (DOCS / "plugins" / "list.md").read_text()
    packages = [path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")]
    assert packages
    assert not [package for package in packages if f"`{package}`" not in listed]


# ---------------------------------------------------------------------------- commands


def check_command(command: str) -> None:
    """Assert that an ``atom`` command is one: it parses, and a run composes."""
    _, name, *arguments = shlex.split(command)
    if name.startswith("-"):
        assert name in ("--help", "--version"), command
        return
    assert name in COMMANDS, command
    if name != "train":
        module = import_module(COMMANDS[name][0])
        below = getattr(module, "SUBCOMMANDS", {})
        if name == "plan":  # overrides of a run, and a sweep of them
            arguments = [word for word in arguments if word != "-m"]
        if arguments and arguments[0] in below:
            below[arguments[0]]().parse_args(arguments[1:])
        else:
            module.parser().parse_args(arguments)
        return
    words = [word for word in arguments if word not in ("--help", "-v")]
    words = [
        "dry_run=true" if word == "--dry-run" else word for word in words
    ]  # as atom train does
    for option, value in (("--cfg", "job"), ("--info", "defaults")):
        if option in words:
            at = words.index(option)
            assert words[at + 1] == value, command
            del words[at : at + 2]
    trust = plugin_lists.trust([word for word in words if not word.startswith("plugins.locked=")])
    host = Host.load(trust)
    composed: list[Run] = []

    def check(config: Any) -> None:
        run = compose.run_of(config, host)
        check_sections(run)
        select(run, host)
        composed.append(run)

    try:
        compose.main(words, check, host)
    except UserError as error:
        pytest.fail(f"{command}: {error}", pytrace=False)
    assert composed, command


def check_sections(run: Run) -> None:
    """Check the sections that torchtitan has a dataclass of."""
    from atom.titan import translate

    translate.training(run.training, "cuda")
    translate.parallelism(run.parallelism)
    translate.lr_scheduler(run.lr_scheduler)
    translate.checkpoint(run.checkpoint)
    translate.compilation(run.compile)
    translate.comm(run.comm, "cuda")
    translate.metrics(run.metrics)
    translate.profiler(run.profiler)
    translate.debug(run.debug)
    if run.activation_checkpoint.mode != "auto":  # what a strategy has yet to choose
        translate.activation_checkpoint(run.activation_checkpoint)
