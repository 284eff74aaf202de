"""The documentation: its links resolve, its commands compose, its keys exist, its tutorial works.

Two kinds of code blocks are told apart. ``sh`` holds commands: every ``atom …`` line must compose.
``console`` holds a transcript, commands after ``$`` and what they print: it is run, in order, in an
environment of its own, and compared; ``…`` stands for anything. A block with a ``:caption:`` is a
file, which is there when the page's commands run.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from atom import compose, plugin
from atom.cli import COMMANDS
from atom.errors import UserError
from atom.host import Host, resolve
from atom.run import Run
from atom.select import select
from atom.trust import Trust

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLE = DOCS / "examples" / "atom-gated-linear-attention"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("plugins/*/README.md"), *ROOT.glob("[RC]*.md")])

_DIRECTIVE = re.compile(r"\{(?P<name>[\w-]+)\}\s*(?P<argument>.*)")
_KEY = re.compile(r"[a-z_]+(\.[a-z_]+)+(=\S+)?")
_FILE_SUFFIXES = ("jsonl", "yaml", "md", "py", "toml", "json")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@dataclass(frozen=True)
class Block:
    """A fenced block of code. ``file`` is the caption of one that is a file."""

    line: int
    language: str
    text: str
    file: str | None = None


@dataclass(frozen=True)
class Step:
    """A command of a transcript, and what it prints."""

    command: str
    output: str

    @property
    def is_mistake(self) -> bool:
        return self.output.startswith("atom: ")


# ---------------------------------------------------------------------------- reading pages


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page: Path) -> list[Block]:
    return [_block(token) for token in tokens(page) if token.type == "fence"]


def _block(token: Token) -> Block:
    assert token.map is not None
    directive = _DIRECTIVE.fullmatch(token.info.strip())
    if directive is None:
        return Block(token.map[0] + 1, token.info.strip(), token.content)
    text, options = token.content, {}
    while match := re.match(r":([\w-]+):[ ]*(.*)\n", text):
        options[match[1]] = match[2]
        text = text[match.end() :]
    language = directive["argument"] if directive["name"] == "code-block" else token.info
    return Block(token.map[0] + 1, language, text.lstrip("\n"), options.get("caption"))


def inline(page: Path) -> Iterator[Token]:
    for token in tokens(page):
        yield from token.children or ()


def commands(page: Path) -> list[str]:
    """Return the ``atom …`` commands of a page that are not part of a transcript to be run."""
    found = []
    for block in blocks(page):
        if block.language in ("sh", "bash"):
            for line in block.text.replace("\\\n", " ").splitlines():
                found += atom_commands(line)
    return found


def atom_commands(line: str) -> list[str]:
    """Return the ``atom …`` commands of a line of shell, also those that torchrun starts."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    ended: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|"):
            ended.append([])
        else:
            ended[-1].append(word)
    return [
        shlex.join(words[words.index("atom") :])
        for words in ended
        if "atom" in words and words[0] != "cd"
    ]


def transcript(page: Path) -> list[Step]:
    """Return the steps of a page's transcripts."""
    found = []
    for block in blocks(page):
        if block.language == "console" or block.text.startswith("$ "):
            for part in re.split(r"^\$ ", block.text.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append(Step(command, output.strip()))
    return found


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


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and MyST give to headings."""
    found = set()
    parsed = tokens(page)
    for heading, content in pairwise(parsed):
        if heading.type == "heading_open":
            words = re.sub(r"[^\w\s-]", "", content.content.lower())
            found.add(re.sub(r"\s", "-", words.strip()))
    return found


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


@every_page
def test_config_keys_exist(page: Path, keys: set[str]) -> None:
    unknown = []
    for token in inline(page):
        key = token.content.partition("=")[0]
        if token.type != "code_inline" or not _KEY.fullmatch(token.content):
            continue
        is_file = key.rpartition(".")[2] in _FILE_SUFFIXES
        if key.partition(".")[0] in Run.model_fields and not is_file and key not in keys:
            unknown.append(key)
    assert not unknown


@pytest.fixture(scope="module")
def keys(reference: Any) -> set[str]:
    """Every key of a run, with the parameters of all components that are installed here."""
    found: set[str] = set()
    for section, schemas in reference.torchtitan_schemas().items():
        for schema in schemas.values():
            fields = dataclasses.fields(schema) if schema is not None else ()
            found |= {f"{section}.{field.name}" for field in fields}
    for name, field in Run.model_fields.items():
        model = reference._model(field.annotation)
        found |= {f"{name}.{key}" for key in model.model_fields} if model is not None else set()
    for component in Host.load(Trust()).components:
        if component.kind == "kernel":
            found.add(f"kernels.{component.name.partition('/')[0]}")
        elif component.declaration.config is not None:
            model = resolve(component.declaration.config, component)
            found |= {f"{component.kind}.{key}" for key in model.model_fields}
    return found | {"activation_checkpoint.mode", "kernels.default"}


@pytest.fixture(scope="module")
def reference() -> Any:
    """The module that makes the reference of configurations."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        return import_module("config_reference")
    finally:
        sys.path.remove(str(DOCS / "_ext"))


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
    options = {option for suite in suites for option in suite.options}
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


def write_files(page: Path, folder: Path) -> None:
    """Write the files of a page into ``folder``."""
    for block in blocks(page):
        if block.file is not None:
            place = folder / block.file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(block.text)


def check_command(command: str) -> None:
    """Assert that an ``atom`` command is one: it parses, and a run composes."""
    _, name, *arguments = shlex.split(command)
    if name.startswith("-"):
        assert name in ("--help", "--version"), command
        return
    assert name in COMMANDS, command
    if name != "train":
        import_module(COMMANDS[name][0]).parser().parse_args(arguments)
        return
    words = [word for word in arguments if word not in ("--help", "-v")]
    for option, value in (("--cfg", "job"), ("--info", "defaults")):
        if option in words:
            assert words[words.index(option) + 1] == value, command
            del words[words.index(option) :][:2]
            words = [word for word in words if word not in (option, value)]
    trust = Trust.gather([word for word in words if not word.startswith("plugins.locked=")])
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
    """Check the sections that torchtitan's dataclasses are the schema of."""
    from atom.titan import device

    device.use("cpu")
    from torchtitan.config import ParallelismConfig

    from atom.titan import sections

    sections.build(ParallelismConfig, run.parallelism.parameters, "parallelism")
    sections.activation_checkpoint(run.activation_checkpoint)
    for name, schema in sections.SCHEMA.items():
        sections.build(schema, getattr(run, name), name)


# ---------------------------------------------------------------------------- as a reader would

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Shell:
    """A shell in an environment with ATOM, its plugins and pip, where packages can be installed."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=True)
    site = next(place.glob("lib/python*/site-packages"))
    # With what is installed editable here.
    lent = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (site / "lent.pth").write_text(lent)
    python = place / "bin" / "python"
    for name, module, function in (("atom", "atom.cli", "main"), ("pytest", "pytest", "main")):
        script = place / "bin" / name
        script.write_text(
            f"#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        )
        script.chmod(0o755)
    kept = {k: v for k, v in environment.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=cwd,
            env=kept | {"PATH": f"{place / 'bin'}:{kept['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if transcript(page)], ids=name_of)
def test_transcripts_are_true(page: Path, shell: Shell, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    for step in transcript(page):
        result = shell(step.command, tmp_path)
        assert result.returncode == (2 if step.is_mistake else 0), result.stdout
        if step.output:
            assert matches(result.stdout, step.output), f"$ {step.command}\n{result.stdout}"


def matches(printed: str, expected: str) -> bool:
    """Return whether a command printed what is expected, but for white space and ``…``."""
    words = [re.escape(word).replace("…", ".*") for word in expected.split()]
    pattern = r"\s*" + r"\s+".join(words) + r"\s*"
    # Nothing, too, may stand for what is left out between two words.
    pattern = pattern.replace(r"\s+.*\s+", r"\s+(.*\s+)?")
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


@pytest.mark.slow
def test_example_conforms(shell: Shell, tmp_path: Path) -> None:
    """A plugin written from this documentation passes the suite of its kind."""
    installed = shell(f"pip install -q -e {shlex.quote(str(EXAMPLE))}", tmp_path)
    assert installed.returncode == 0, installed.stdout
    result = shell(f"pytest -q -rs {shlex.quote(str(EXAMPLE))}", tmp_path)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html"]
    built = tmp_path / "built"
    result = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(built)],
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said = (built / "reference" / "config.html").read_text()
    for key in ("training.global_batch_size", "optimizer.lr", "architecture.n_layers"):
        assert key in said
    assert "atom_architectures" in (built / "reference" / "plugin.html").read_text()
