"""``atom new``: what it makes is whole, tidy and the user's; what it refuses leaves no trace."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from installed import PLUGINS, ROOT

import atom
from atom.cli import COMMANDS, main
from atom.cli.new import TEMPLATE, make
from atom.plugin import HOOKS, INTERFACE, KINDS
from atom.registry.host import Host

pytestmark = pytest.mark.slow

CODE = {
    "tokenizer": {"config.py", "prepare.py", "build.py"},
    "architecture": {"config.py", "model.py", "sharding.py", "build.py"},
    "parallelism": {"build.py", "parallelize.py"},
    "kernel": {"rms_norm.py"},
    "dataset": {"config.py", "source.py", "fables.jsonl"},
    "objective": {"config.py", "encoder.py"},
    "launcher": {"config.py", "plan.py"},
    "callback": {"config.py", "callback.py"},
    "evaluator": {"config.py", "evaluate.py"},
    "optimizer": {"config.py", "build.py"},
}
"""Kind -> the files of its import package, beside those that every kind has."""

SHORT = {kind: kind[:5] for kind in CODE}
"""Kind -> what the name of a made package has of it; the lines of longer ones may be too long."""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a git that knows no user."""
    place = tmp_path / "workplace"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return place


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def group(kind: str) -> str:
    return {"kernel": "kernels", "callback": "callbacks", "evaluator": "evaluators"}.get(kind, kind)


# ---------------------------------------------------------------------------- what is made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """A package of each kind as the command makes it, and what the command says."""
    found = {}
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("GIT_CONFIG_GLOBAL", str(place / "gitconfig"))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        for kind in CODE:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                assert main(["new", kind, f"my-{SHORT[kind]}"]) == 0
            found[kind] = place / f"my-{SHORT[kind]}", said.getvalue()
    return found


@pytest.mark.parametrize("kind", CODE)
def test_makes_the_package(kind: str, made: dict[str, tuple[Path, str]]) -> None:
    folder, said = made[kind]
    name, package = f"my-{SHORT[kind]}", f"my_{SHORT[kind]}"
    assert files(folder) == {
        ".github/workflows/test.yml",
        ".gitignore",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        f"{package}/__init__.py",
        f"{package}/py.typed",
        f"{package}/conf/{group(kind)}/{package}.yaml",
        "tests/test_conformance.py",
    } | {f"{package}/{name}" for name in CODE[kind]}
    more = {"parallelism": " launch.ranks=2", "dataset": " tokenizer=bytes"}.get(kind, "")
    assert said == (
        f"made {name}, a package with the {kind} {package}; next:\n"
        f"  pip install -e '{name}[test]'\n"
        f"  pytest {name}\n"
        f"  atom train {group(kind)}={package}{more}\n"
    )


def test_what_is_made_is_tidy(made: dict[str, tuple[Path, str]]) -> None:
    """Everything is filled in, and ATOM's own linters have nothing to say."""
    folders = [folder for folder, _ in made.values()]
    for folder in folders:
        for name in files(folder):
            text = (folder / name).read_text()
            assert not any(mark in text for mark in ("[[", "]]", "[%", "%]", "[#")), name
            assert text.endswith("\n") or not text, name
            assert not text.endswith("\n\n"), name
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), *map(str, folders)]
    for command in (["check"], ["format", "--check", "--diff"]):
        done = subprocess.run([*ruff, *command, *config], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", CODE)
def test_pyproject_says_what_it_is(kind: str, made: dict[str, tuple[Path, str]]) -> None:
    folder, _ = made[kind]
    package = f"my_{SHORT[kind]}"
    pyproject = tomllib.loads((folder / "pyproject.toml").read_text())
    project = pyproject["project"]
    assert project["name"] == f"my-{SHORT[kind]}"
    assert project["entry-points"] == {"atom": {package: package}}
    assert project["dependencies"] == ["atom-train>=0.1,<1"]
    assert atom.__version__.startswith("0.1."), "the range above follows the version"
    assert project["license"] == "Apache-2.0"
    assert "authors" not in project
    workflow = (folder / ".github/workflows/test.yml").read_text()
    assert yaml.safe_load(workflow)["jobs"]["test"]["steps"][-1] == {"run": "pytest"}
    assert "${{ matrix.python-version }}" in workflow


@pytest.mark.parametrize("kind", CODE)
def test_declaration_and_group_agree(
    kind: str, made: dict[str, tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The declaration imports and points to what is there; the group has every default."""
    package = f"my_{SHORT[kind]}"
    folder, _ = made[kind]
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module(package)
    assert module.ATOM_INTERFACE == INTERFACE
    hook = next(hook for hook, declaration in HOOKS.items() if declaration.kind == kind)
    (declaration,) = getattr(module, hook)()
    assert declaration.name == package
    for attribute in declaration.references:
        if reference := getattr(declaration, attribute):
            where, _, what = reference.partition(":")
            code = (folder / where.replace(".", "/")).with_suffix(".py").read_text()
            assert f"\ndef {what}(" in code or f"\nclass {what}(" in code, attribute
    file = folder / package / "conf" / group(kind) / f"{package}.yaml"
    section = yaml.safe_load(file.read_text())
    if declaration.chosen == "many":
        section = section[package]
    if file.read_text().startswith("# @package _global_"):
        section = section[group(kind)]
    if declaration.config is not None:
        where, _, what = declaration.config.partition(":")
        fields = getattr(importlib.import_module(where), what).model_fields
        assert section == {"name": package} | {key: field.default for key, field in fields.items()}


def test_dir_says_where(workplace: Path, capsys: pytest.CaptureFixture) -> None:
    (workplace / "a place").mkdir()
    assert main(["new", "kernel", "my-thing", "--dir", "a place"]) == 0
    assert "pyproject.toml" in files(workplace / "a place")
    assert "pip install -e 'a place[test]'\n  pytest 'a place'" in capsys.readouterr().out
    assert [path.name for path in workplace.iterdir()] == ["a place"]


def test_the_folder_one_is_in(workplace: Path) -> None:
    """It is filled, not replaced: a shell stands in it."""
    before = workplace.stat().st_ino
    assert main(["new", "kernel", "my-thing", "--dir", "."]) == 0
    assert workplace.stat().st_ino == before
    assert not [path for path in workplace.iterdir() if path.name.startswith(".my-thing")]


def test_author_is_gits(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "gitconfig").write_text(
        '[user]\n\tname = Zoë \\"Z\\" O\'Neil\n\temail = zoe@example.org\n', encoding="utf-8"
    )
    main(["new", "kernel", "my-thing"])
    pyproject = tomllib.loads((workplace / "my-thing" / "pyproject.toml").read_text())
    assert pyproject["project"]["authors"] == [
        {"name": 'Zoë "Z" O\'Neil', "email": "zoe@example.org"}
    ]


def test_an_address_that_is_none_is_left_out(workplace: Path, tmp_path: Path) -> None:
    """hatchling would refuse to build a package with it."""
    (tmp_path / "gitconfig").write_text("[user]\n\tname = Zoë\n\temail = zoe at home\n")
    main(["new", "kernel", "my-thing"])
    pyproject = tomllib.loads((workplace / "my-thing" / "pyproject.toml").read_text())
    assert pyproject["project"]["authors"] == [{"name": "Zoë"}]


def test_needs_no_git_and_no_settings(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's settings of Copier are for templates of their own."""
    settings = tmp_path / "settings.yml"
    settings.write_text("defaults: {name: other, what: other}\ntrust: [/]\n")
    monkeypatch.setenv("COPIER_SETTINGS_PATH", str(settings))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["new", "tokenizer", "my-thing"]) == 0
    pyproject = tomllib.loads((workplace / "my-thing" / "pyproject.toml").read_text())
    assert pyproject["project"]["name"] == "my-thing"
    assert pyproject["project"]["description"] == "A tokenizer for ATOM"


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["architectur", "my-net"], "no kind architectur; did you mean architecture?"),
        (["kernel"], "arguments are required: NAME"),
        (["kernel", "My_Net"], "'My_Net' is no name for a package: .* did you mean my-net?"),
        (["kernel", "2nd-net"], "'2nd-net' is no name for a package: .* a letter first$"),
        (["kernel", "../net"], "'../net' is no name .* did you mean net?"),
        (["kernel", "my--net"], "single hyphens .* did you mean my-net?"),
        (["kernel", "réseau"], "'réseau' is no name"),
        (["kernel", ""], "'' is no name"),
        (["kernel", "lambda"], "lambda is a keyword of Python"),
        (["kernel", "json"], "json is a module of Python's standard library"),
        (["dataset", "yaml"], "a package yaml is installed already"),
        (["dataset", "atom-llama"], "a package atom_llama is installed already"),
        (["dataset", "atom-train"], "atom-train .* is installed already"),
        (["architecture", "llama3"], "atom-llama offers the architecture llama3 already"),
        (["architecture", "llama3-tiny"], "atom-llama offers the architecture llama3_tiny already"),
        (["parallelism", "fsdp"], "atom-parallelism offers the parallelism fsdp already"),
        (["kernel", "reference"], "atom-kernels-torch offers the kernel reference already"),
        (["architecture", "linear"], "the template itself uses the name Linear"),
        (["kernel", "override"], "the template itself uses the name Override"),
        (["kernel", "my-net", "--dir", "taken"], "the folder taken is not empty"),
        (["kernel", "my-net", "--dir", "taken/file"], "taken/file is a file"),
        (["kernel", "my-net", "--dir", "no/where"], "there is no folder .*/no to create where in"),
    ],
)
def test_refuses(
    arguments: list[str], says: str, workplace: Path, capsys: pytest.CaptureFixture
) -> None:
    (workplace / "taken").mkdir()
    (workplace / "taken" / "file").touch()
    before = sorted(workplace.rglob("*"))
    assert main(["new", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("atom: ")
    assert re.search(says, captured.err), captured.err
    assert sorted(workplace.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture) -> None:
    assert main(["new", "kernel", "my-net", "--dir", "/proc/my-net"]) == 2
    assert "/proc/my-net cannot be created: " in capsys.readouterr().err


# ---------------------------------------------------------------------------- the template


def test_every_kind_has_a_template() -> None:
    kinds = {declaration.kind for declaration in KINDS}
    folders = {path.name for path in TEMPLATE.iterdir() if path.is_dir()}
    assert folders == kinds | {"shared"} == {*CODE, "shared"}


def test_template_runs_nothing() -> None:
    """It uses none of Copier's features that need the user's trust."""
    settings = set(yaml.safe_load((TEMPLATE / "copier.yml").read_text()))
    private = {name for name in settings if name.startswith("_")}
    assert private == {"_min_copier_version", "_subdirectory", "_envops"}


def test_only_this_command_imports_copier() -> None:
    modules = [module for module, _ in COMMANDS.values()]
    script = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\n"
    script += "assert not {'copier', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_licence_is_atoms() -> None:
    assert (TEMPLATE / "shared/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


# ---------------------------------------------------------------------------- our own packages


WITHOUT_A_SUITE = {"distill": "its teacher is a trained model: tests/test_preferences.py has it"}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_our_packages_are_what_the_template_makes(plugin: Path, tmp_path: Path) -> None:
    """A reader of any of them sees the template, filled in."""
    components = [c for c in Host.load().components if c.plugin.package == plugin.name]
    package = plugin.name.replace("-", "_")
    made = tmp_path / plugin.name
    make(components[0].kind, plugin.name, made)

    # The repository has one workflow and one .gitignore; each package does the rest its own way.
    every = {"LICENSE", "README.md", "pyproject.toml", "tests/test_conformance.py"}
    every |= {f"{package}/__init__.py", f"{package}/py.typed"}
    if any(component.declaration.config for component in components):
        every.add(f"{package}/config.py")
    assert every - {f"{package}/config.py"} <= files(made)
    assert every <= files(plugin)
    for component in components:
        assert (plugin / package / "conf" / group(component.kind)).is_dir(), component.name
    assert (plugin / "LICENSE").read_bytes() == (made / "LICENSE").read_bytes()

    ours, theirs = (
        tomllib.loads((folder / "pyproject.toml").read_text()) for folder in (plugin, made)
    )
    assert ours["build-system"] == theirs["build-system"]
    assert ours["tool"] == theirs["tool"]
    for key in ("name", "readme", "license", "license-files", "requires-python"):
        assert ours["project"][key] == theirs["project"][key], key
    assert set(theirs["project"]) - {"authors"} <= set(ours["project"])
    assert set(theirs["project"]["dependencies"]) <= set(ours["project"]["dependencies"])
    test = "optional-dependencies"
    assert set(theirs["project"][test]["test"]) <= set(ours["project"][test]["test"])
    assert list(ours["project"]["entry-points"]["atom"].values()) == [package]

    tests = (plugin / "tests/test_conformance.py").read_text()
    assert "from atom.testing import conformance" in tests
    for component in components:
        if component.name in WITHOUT_A_SUITE:
            continue
        line = rf'^Test\w+ = conformance\(\s*"{component.kind}:{component.name}"'
        assert re.search(line, tests, re.MULTILINE), f"{component.name} has no conformance line"
    declaring = (plugin / package / "__init__.py").read_text()
    assert f"ATOM_INTERFACE = {INTERFACE}" in declaring
    readme, template = ((folder / "README.md").read_text() for folder in (plugin, made))
    assert readme.startswith(f"# {plugin.name}\n")
    develop = template[template.rindex("```sh\n") :].partition("    #")[0]
    assert develop in readme, "the commands of a developer"
