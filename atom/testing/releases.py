"""Compare two releases of a library by their source, without importing either."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atom.io.repair import Repair
from atom.testing.repairs import MissingError, source


@dataclass(frozen=True)
class Field:
    """A field of a dataclass, as written in the source."""

    type: str
    default: str


@dataclass(frozen=True)
class Change:
    """A field that differs between two releases.

    Attributes:
        owner: ``module:Class`` of the dataclass.
        name: name of the field.
        what: the difference, in words.
    """

    owner: str
    name: str
    what: str


def configs(package: Path) -> dict[str, dict[str, Field]]:
    """Return the fields of every dataclass of a package: ``module:Class`` -> name -> field."""
    found: dict[str, dict[str, Field]] = {}
    for file in sorted(package.rglob("*.py")):
        module = ".".join(file.relative_to(package.parent).with_suffix("").parts)
        for name, node in _classes(ast.parse(file.read_text()).body):
            if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
                found[f"{module.removesuffix('.__init__')}:{name}"] = {
                    each.target.id: Field(
                        ast.unparse(each.annotation), ast.unparse(each.value) if each.value else ""
                    )
                    for each in node.body
                    if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
                }
    return found


def changed_fields(
    old: Mapping[str, Mapping[str, Field]], new: Mapping[str, Mapping[str, Field]]
) -> Iterator[Change]:
    """Yield the differences in the fields of the dataclasses of ``old``.

    A removed field is paired with a new one of the same class that could be its new name.
    """
    for owner, fields in old.items():
        if owner not in new:
            moved = [each for each in new if each.partition(":")[2] == owner.partition(":")[2]]
            where = f"; {', '.join(moved)} has that name" if 0 < len(moved) < 3 else ""
            yield Change(owner, "", f"the dataclass is gone{where}")
            continue
        added = {name: field for name, field in new[owner].items() if name not in fields}
        for name, field in fields.items():
            now = new[owner].get(name)
            if now is None:
                yield Change(owner, name, f"is gone{_renamed(name, field, added)}")
            elif now.type != field.type:
                yield Change(owner, name, f"is of type {now.type}; it was {field.type}")
            elif now.default != field.default:
                yield Change(owner, name, f"defaults to {now.default}; it was {field.default}")
        for name, field in added.items():
            yield Change(owner, name, f"is new: {field.type} = {field.default or 'required'}")


def missing_imports(
    files: Iterable[Path], package: str, path: Sequence[str]
) -> dict[str, list[str]]:
    """Return the names that files import from a package and that it lacks.

    Args:
        files: Python files.
        package: the library.
        path: the folders to search for it.

    Returns:
        ``module:name`` -> the places that import it, ``FILE:LINE``.
    """
    found: dict[str, list[str]] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level or node.module is None:
                continue
            if node.module.split(".")[0] != package:
                continue
            for alias in node.names:
                place = f"{node.module}:{alias.name}"
                if not _exists(place, path):
                    found.setdefault(place, []).append(f"{file}:{node.lineno}")
    return found


def imported(files: Iterable[Path], package: str) -> set[str]:
    """Return the names that files import from a package."""
    return {
        alias.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package
        for alias in node.names
    }


def differences(repair: Repair, old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """Yield diff lines for each source location that a repair relies on.

    Args:
        repair: the repair, with the ``sources`` to compare.
        old: the folders of the release that the repair was written for.
        new: the folders of the other release.
    """
    for place in repair.sources:
        try:
            before, after = source(place, old).text, source(place, new).text
        except MissingError:
            continue
        if before != after:
            yield from difflib.unified_diff(
                before.splitlines(), after.splitlines(), place, place, lineterm="", n=1
            )


def _exists(place: str, path: Sequence[str]) -> bool:
    try:
        source(place, path)
    except MissingError:
        module, _, name = place.partition(":")
        try:  # a module of the package
            source(f"{module}.{name}:", path)
        except MissingError:
            return False
    return True


def _renamed(name: str, field: Field, added: Mapping[str, Field]) -> str:
    alike = [other for other, its in added.items() if its.type == field.type]
    same = [other for other in alike if added[other].default == field.default]
    words = set(name.split("_"))
    likely = sorted(
        set(same) | {other for other in alike if words & set(other.split("_"))},
        key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio(),
    )
    return f"; perhaps {' or '.join(likely[:2])} now" if likely else ""


def _classes(body: Iterable[ast.stmt], outer: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield outer + node.name, node
            yield from _classes(node.body, f"{outer}{node.name}.")
