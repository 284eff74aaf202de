"""``atom new``: create a complete plugin package from the template in ``atom/templates``."""

from __future__ import annotations

import ast
import importlib.util
import json
import keyword
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import atom
from atom.cli import Parser
from atom.errors import UserError, nearest
from atom.plugin import INTERFACE, KINDS
from atom.registry.host import Host

TEMPLATE = Path(atom.__file__).parent / "templates"

_KINDS = [declaration.kind for declaration in KINDS]
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)*")

_SECTION = {declaration.kind: declaration.section for declaration in KINDS}


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom new",
        "Create a plugin package: declaration, parameters, a small working implementation, config "
        "group, tests, README, licence and CI.",
    )
    parser.add_argument(
        "kind",
        metavar="KIND",
        type=_kind,
        choices=_KINDS,
        help=f"kind of its component: {', '.join(_KINDS)}",
    )
    parser.add_argument("name", metavar="NAME", help="name of its distribution, such as my-net")
    parser.add_argument(
        "--dir", type=Path, metavar="PATH", help="the folder to create; default: ./NAME"
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom new``; return the exit code."""
    options = parser().parse_args(arguments)
    package = import_package(options.name)
    place = options.dir or Path(options.name)
    _check_place(place)
    _check_free(options.kind, options.name, package)
    make(options.kind, options.name, place)
    print(_next_steps(options.kind, package, place))
    return 0


def _kind(word: str) -> str:
    # argparse would list the choices without suggesting the nearest one.
    if word not in _KINDS:
        raise UserError(f"there is no kind {word}; {nearest(word, _KINDS)}")
    return word


def import_package(name: str) -> str:
    """Return the import package of the distribution ``name``: ``my_net`` for ``my-net``.

    Raises:
        UserError: ``name`` is not a valid distribution name, or its package cannot be imported.
    """
    if not _NAME.fullmatch(name):
        spelled = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        hint = f"; did you mean {spelled}?" if _NAME.fullmatch(spelled) else ""
        raise UserError(
            f"{name!r} is no name for a package: valid are lower-case letters, digits and single "
            f"hyphens between them, a letter first{hint}"
        )
    package = name.replace("-", "_")
    if keyword.iskeyword(package):
        raise UserError(f"{name} is a keyword of Python and cannot be imported; choose another")
    if package in sys.stdlib_module_names:
        raise UserError(f"{name} is a module of Python's standard library; choose another name")
    return package


def make(kind: str, name: str, place: Path) -> None:
    """Create the package in the folder ``place``, completely or not at all.

    Args:
        kind: one of the kinds of :data:`atom.plugin.KINDS`.
        name: the distribution's name, checked by :func:`import_package`.
        place: an empty or missing folder; its parent must exist.

    Raises:
        UserError: the folder is not writable, or the template itself uses a name derived from
            ``name``.
    """
    class_name = "".join(part.capitalize() for part in name.split("-"))
    answers: dict[str, str | int] = {
        "kind": kind,
        "name": name,
        "package": name.replace("-", "_"),
        "class_name": class_name,
        "authors": _authors(),
        "atom_versions": atom_versions(atom.__version__),
        "interface": INTERFACE,
    }
    try:
        # On the same filesystem, so that the complete package can be renamed to its destination.
        near = place if place.is_dir() else place.absolute().parent
        with TemporaryDirectory(dir=near, prefix=f".{name}-") as beside:
            made = Path(beside, name)
            _fill_in("shared", answers, made)
            _fill_in(kind, answers, made)
            if _binds_twice(made):
                raise UserError(f"the template itself uses the name {class_name}; choose another")
            place.mkdir(exist_ok=True)
            for child in made.iterdir():
                child.rename(place / child.name)
    except OSError as error:
        raise UserError(f"{place} cannot be created: {error.strerror}") from None


def atom_versions(version: str) -> str:
    """Return the version range of ``atom-train`` for a package created with ``version``."""
    major, minor, *_ = version.split(".")
    return f">={major}.{minor},<{int(major) + 1}"


def _fill_in(part: str, answers: dict[str, str | int], made: Path) -> None:
    import copier
    from copier import Settings

    copier.run_copy(
        str(TEMPLATE),
        made,
        data={**answers, "part": part},
        defaults=True,
        overwrite=True,
        quiet=True,
        unsafe=False,
        # The user's own settings are meant for other templates.
        settings=Settings(),
    )


def _check_place(place: Path) -> None:
    if place.is_dir():
        if any(place.iterdir()):
            raise UserError(f"the folder {place} is not empty; choose another with --dir")
    elif place.exists() or place.is_symlink():
        raise UserError(f"{place} is a file; choose another place with --dir")
    elif not place.absolute().parent.is_dir():
        raise UserError(f"there is no folder {place.absolute().parent} to create {place.name} in")


def _check_free(kind: str, name: str, package: str) -> None:
    """Refuse a name that an installed package already uses."""
    if importlib.util.find_spec(package) is not None:
        raise UserError(f"a package {package} is installed already; choose another name")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    else:
        raise UserError(f"{name} {version} is installed already; choose another name")
    host = Host.load()
    file = f"{_SECTION[kind]}/{package}.yaml"
    for plugin in host.plugins:
        offered = [c for c in host.components if c.plugin == plugin and c.kind == kind]
        declared = {component.declaration.name for component in offered}
        option = plugin.conf / file if plugin.conf is not None else None
        if package in declared or (option is not None and option.is_file()):
            raise UserError(f"{plugin.package} offers the {kind} {package} already; choose another")


def _authors() -> str:
    """Return git's user as the value of ``authors`` in pyproject.toml; empty if git has none."""
    name, email = _git_config("user.name"), _git_config("user.email")
    fields = {"name": name, "email": email if _EMAIL.fullmatch(email) else ""}
    known = [f"{key} = {_toml(value)}" for key, value in fields.items() if value]
    return f"[{{ {', '.join(known)} }}]" if name else ""


def _git_config(key: str) -> str:
    command = ["git", "config", "--get", key]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _toml(text: str) -> str:
    # A JSON string is a valid TOML string, except that TOML requires DEL to be escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _binds_twice(made: Path) -> bool:
    """Return whether a class of a module has the same name as an import of that module."""
    for path in made.rglob("*.py"):
        bound: list[str] = []
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                bound += [alias.asname or alias.name for alias in node.names]
            elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                bound.append(node.name)
        if len(set(bound)) < len(bound):
            return True
    return False


def _next_steps(kind: str, package: str, place: Path) -> str:
    # Its README begins with the commands to use it.
    tried = re.findall(r"^(atom train .*?)(?: +#.*)?$", (place / "README.md").read_text(), re.M)
    folder, extra = shlex.quote(str(place)), shlex.quote(f"{place}[test]")
    return (
        f"made {place}, a package with the {kind} {package}; next:\n"
        f"  pip install -e {extra}\n"
        f"  pytest {folder}\n"
        f"  {tried[0]}"
    )
