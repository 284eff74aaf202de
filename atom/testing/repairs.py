"""Check the repairs of other libraries: whether their source is unchanged, and the fault still
exists.

``python -m atom.testing.repairs`` probes every fault in this process, without repairs, and prints
JSON: probe -> whether the fault exists, or why the probe failed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path

from atom.compose import repairs as of_hydra
from atom.io.references import resolve
from atom.io.repair import Repair
from atom.registry.host import Host
from atom.testing.probes import imports
from atom.titan.compat import register

SECONDS = 300


def every() -> tuple[Repair, ...]:
    """Return the repairs of the engine, of Hydra, and of every installed plugin."""
    return (*register.REPAIRS, *of_hydra.REPAIRS, *of_plugins())


def of_plugins() -> tuple[Repair, ...]:
    """Return the ``REPAIRS`` of each plugin's module ``repairs``."""
    packages = sorted({component.plugin.import_package for component in Host.load().components})
    return tuple(
        repair
        for package in packages
        if find_spec(package) is not None and find_spec(f"{package}.repairs") is not None
        for repair in resolve(f"{package}.repairs:REPAIRS")
    )


# ---------------------------------------------------------------------------- (a) the source


@dataclass(frozen=True)
class Source:
    """The source of one location in a library.

    Attributes:
        file: the file.
        line: its first line.
        text: the definition, or the statement that assigns the name.
        signature: for a function, the part before its body; None otherwise.
    """

    file: Path
    line: int
    text: str
    signature: str | None


class MissingError(Exception):
    """Raised if a location that a repair was written for does not exist."""


def source(place: str, path: Iterable[str] | None = None) -> Source:
    """Return the source of ``module:name``, ``module:Class.name`` or ``module:``.

    Nothing is imported.

    Args:
        place: a location in a library.
        path: the folders to search for packages; by default those of this process.

    Raises:
        MissingError: the module, or the name in it, does not exist.
    """
    module, _, names = place.partition(":")
    file = _file(module, sys.path if path is None else path)
    if file is None:
        raise MissingError(f"there is no module {module}")
    text = file.read_text()
    found: list[ast.stmt] = []
    body = ast.parse(text).body
    for name in filter(None, names.split(".")):
        found = [node for node in _statements(body) if name in _bound(node)]
        if not found:
            raise MissingError(f"{file} has no {name}")
        body = [child for node in found if isinstance(node, ast.ClassDef) for child in node.body]
    lines = text.splitlines(keepends=True)
    if not names:
        return Source(file, 1, text, None)

    def between(first: ast.stmt, end: int) -> str:
        decorators = getattr(first, "decorator_list", [])
        begin = min([first.lineno, *(each.lineno for each in decorators)])
        return "".join(lines[begin - 1 : end])

    functions = [n for n in found if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    heads = [between(node, max(node.body[0].lineno - 1, node.lineno)) for node in functions]
    return Source(
        file,
        found[0].lineno,
        "".join(between(node, node.end_lineno or node.lineno) for node in found),
        "".join(heads) if functions else None,
    )


def digest(place: str, path: Iterable[str] | None = None) -> str:
    """Return the digest of a location's source; for a function, those of its signature and its
    whole.

    Args:
        place: see :func:`source`.
        path: see :func:`source`.

    Raises:
        MissingError: the location does not exist.
    """
    found = source(place, path)
    if found.signature is None:
        return _short(found.text)
    return f"{_short(found.signature)}.{_short(found.text)}"


def problems(repair: Repair, path: Iterable[str] | None = None) -> list[str]:
    """Return a sentence for each location that has changed since the repair was written."""
    found = []
    for place, known in repair.sources.items():
        try:
            now = digest(place, path)
            where = source(place, path)
        except MissingError as error:
            found.append(f"{place} is gone: {error}")
            continue
        if now == known:
            continue
        changed = "signature" if now.split(".")[0] != known.split(".")[0] else "body"
        what = f"the {changed} of {place}" if "." in now else place
        found.append(
            f"{what} has changed ({where.file}:{where.line}); after {repair.where} has been "
            f"compared with it, its digest is {now}"
        )
    return found


def message(repair: Repair, found: Iterable[str], path: Sequence[str] | None = None) -> str:
    """Return instructions for a repair with a changed target.

    Args:
        repair: a record.
        found: its :func:`problems`.
        path: the folders that were searched; by default those of this process.
    """
    return "\n".join(
        [
            f"{repair.target}: replaced for {repair.version}; installed: {installed(repair, path)}",
            f"  reason: {repair.reason}",
            f"  see: {repair.where}; upstream: {repair.upstream}",
            *(f"  - {problem}" for problem in found),
        ]
    )


def gone(repair: Repair, found: bool | str, path: Sequence[str] | None = None) -> str:
    """Return instructions for a repair with a probe that finds no fault, or fails.

    Args:
        repair: a record.
        found: its result from :func:`probed`.
        path: the folders of the packages; by default those of this process.
    """
    if isinstance(found, str):
        return f"{repair.target}: the probe {repair.probe} failed: {found}"
    return (
        f"{repair.target}: repaired for {repair.version}, and {installed(repair, path)} no longer "
        f"has the fault; the repair in {repair.where} can be removed. Condition: "
        f"{repair.remove_when}"
    )


def installed(repair: Repair, path: Sequence[str] | None = None) -> str:
    """Return the package that a repair is for, with the installed release."""
    package = repair.version.split()[0]
    if package == "Python":
        return f"Python {sys.version.split()[0]}"
    found = Distribution.discover(name=package, path=list(sys.path if path is None else path))
    release = next((each.version for each in found), None)
    return f"{package} {release}" if release else f"no {package}"


def _file(module: str, path: Iterable[str]) -> Path | None:
    first, *rest = module.split(".")
    for folder in path:
        package = Path(folder or ".", first)
        place = package.joinpath(*rest)
        for candidate in (place / "__init__.py", place.with_suffix(".py")):
            if candidate.is_file():
                return candidate
        if (package / "__init__.py").is_file():
            return None  # Python does not search further for a submodule
    if path is not sys.path or (spec := find_spec(first)) is None:
        return None
    roots = [str(Path(each).parent) for each in spec.submodule_search_locations or ()]
    return _file(module, roots) if roots else None


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, including those in the branches of ``if`` and ``try``."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)
        else:
            yield node


def _bound(node: ast.stmt) -> set[str]:
    """Return the names that a statement binds."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Import() | ast.ImportFrom():
            return {(each.asname or each.name).split(".")[0] for each in node.names}
        case ast.Assign() | ast.AnnAssign():
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            return {
                each.id
                for target in targets
                for each in ast.walk(target)
                if isinstance(each, ast.Name)
            }
    return set()


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# ---------------------------------------------------------------------------- (b) the fault


def probed(python: str = sys.executable) -> dict[str, bool | str]:
    """Return probe -> whether the fault exists, or a text that says why the probe failed.

    All probes run in one separate process without repairs.

    Args:
        python: interpreter of the environment to probe.

    Raises:
        RuntimeError: the process ended without an answer.
    """
    done = subprocess.run(
        [python, "-P", "-m", "atom.testing.repairs"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process of the probes ended:\n{done.stderr[-3000:]}")
    found: dict[str, bool | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _probe_all() -> dict[str, bool | str]:
    found: dict[str, bool | str] = {}
    probes = [repair.probe for repair in every() if repair.probe is not None]
    for probe in sorted(probes, key=lambda probe: not probe.startswith(f"{imports.__name__}:")):
        try:
            found[probe] = bool(resolve(probe)())
        except Exception as error:
            found[probe] = f"{type(error).__name__}: {error}"[:500]
    return found


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a library must not be read as the answer
    print(json.dumps(_probe_all()), file=answers)
