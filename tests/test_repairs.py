"""The register of repairs: complete, true to the installed releases, and still needed."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from atom.errors import UserError
from atom.io.references import resolve
from atom.io.repair import Repair
from atom.kernels.operations import OPERATIONS
from atom.testing import repairs
from atom.titan.boot import boot

ROOT = Path(__file__).parents[1]
EVERY = repairs.every()
PROBED = [repair for repair in EVERY if repair.probe is not None]
MOST_UNPROBED = 5

probed = cache(repairs.probed)


def named(found: list[Repair]) -> list:
    return [pytest.param(repair, id=repair.target) for repair in found]


# ---------------------------------------------------------------------------- what is replaced


@pytest.mark.parametrize("repair", named(EVERY))
def test_its_source_is_what_the_repair_was_written_for(repair: Repair) -> None:
    found = repairs.problems(repair)
    assert not found, repairs.message(repair, found)


@pytest.mark.parametrize("repair", named(EVERY))
def test_a_record_says_where_it_stands_upstream_and_in_atom(repair: Repair) -> None:
    assert (ROOT / repair.where).is_file()
    if repair.upstream.startswith("docs/"):
        assert (ROOT / repair.upstream).is_file()
    else:
        assert repair.upstream.startswith("https://") or "nothing to report" in repair.upstream
    for text in (repair.reason, repair.remove_when):
        assert text.endswith(".")
    for reference in (repair.replacement, repair.function):
        if reference is not None:
            resolve(reference)
    python = not repair.target.startswith(("atom.", "sys:", "libc:"))
    assert bool(repair.sources) or not python, "nothing tells when a release has changed it"


def test_the_digest_tells_what_has_changed(tmp_path: Path) -> None:
    """Other body, other signature, no such function: one sentence each, with the record's name."""
    file = tmp_path / "library.py"
    file.write_text("class Layer:\n    def forward(self, x):\n        return x\n\n\nSIZE = 1\n")
    place, path = "library:Layer.forward", [str(tmp_path)]
    repair = replace(
        EVERY[0],
        target=place,
        sources={p: repairs.digest(p, path) for p in (place, "library:SIZE")},
    )
    assert repairs.problems(repair, path) == []
    for old, new, expected in [
        ("return x\n", "return x + 1\n", f"the body of {place} has changed"),
        ("(self, x)", "(self, x, mask)", f"the signature of {place} has changed"),
        ("def forward", "def backward", f"{place} is gone"),
        ("SIZE = 1", "SIZE = 2", "library:SIZE has changed"),
        ("SIZE = 1", "", "library:SIZE is gone"),
    ]:
        before = file.read_text()
        file.write_text(before.replace(old, new))
        (found,) = repairs.problems(repair, path)
        file.write_text(before)
        assert expected in found
        assert repair.reason in repairs.message(repair, [found])
        assert place in repairs.message(repair, [found])


def test_every_module_of_repairs_is_in_the_register() -> None:
    known = {repair.where for repair in EVERY}
    for file in (ROOT / "atom" / "titan" / "compat").glob("*.py"):
        data = file.stem == "__init__" or file.stem.startswith("register")
        assert data or _used(file) & known, file


def _used(file: Path) -> set[str]:
    """Return the file, and that of the repair which imports it."""
    name = file.relative_to(ROOT).as_posix()
    module = f"atom.titan.compat.{file.stem}:"
    return {name} | {
        repair.where
        for repair in EVERY
        if module in f"{repair.replacement or ''} {repair.function or ''}"
    }


# ---------------------------------------------------------------------------- the fault


@pytest.mark.slow
@pytest.mark.parametrize("repair", named(PROBED))
def test_its_fault_is_still_there(repair: Repair) -> None:
    assert repair.probe is not None
    found = probed()[repair.probe]
    assert found is True, repairs.gone(repair, found)


def test_few_faults_are_not_probed() -> None:
    assert len(EVERY) - len(PROBED) <= MOST_UNPROBED
    assert all(repair.unprobed for repair in EVERY if repair.probe is None)


# ---------------------------------------------------------------------------- the only place

COMPAT = ("atom/titan/compat/", "atom/compose/internals.py", "atom/io/repair.py")
CALLS = {"addFilter", "set_dist", "set_active", "mallopt", "__setattr__", "setattr", "delattr"}
"""Calls that change another library, or the process for it."""


def replacements(file: Path) -> list[str]:
    """Return the statements of a file that replace something of another library."""
    tree = ast.parse(file.read_text())
    foreign = _foreign(tree)
    found = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        match node:
            case ast.Assign() | ast.Delete():
                targets = node.targets
            case ast.AugAssign() | ast.AnnAssign():
                targets = [node.target]
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in CALLS:
                targets = [*node.args[:1], node.func] if name in ("setattr", "delattr") else []
                if not targets:
                    found.append(ast.unparse(node))
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                if isinstance(each, ast.Name) and not isinstance(node, ast.Call):
                    continue
                root = _root(each)
                text = ast.unparse(each) if root == "sys" else ""
                code = isinstance(each, ast.Attribute) and each.attr == "__code__"
                if root in foreign or code or text.startswith("sys.modules["):
                    found.append(ast.unparse(node))
    return found


def _foreign(tree: ast.Module) -> set[str]:
    """Return the names that a module imports from other libraries than Python's and ATOM's."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [(each.name, each.asname or each.name.split(".")[0]) for each in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported = [(node.module or "", each.asname or each.name) for each in node.names]
        else:
            continue
        for module, name in imported:
            package = module.split(".")[0]
            if package not in sys.stdlib_module_names and not package.startswith("atom"):
                names.add(name)
    return names


def _root(expression: ast.expr) -> str | None:
    while isinstance(expression, ast.Attribute | ast.Subscript | ast.Call):
        expression = expression.func if isinstance(expression, ast.Call) else expression.value
    return expression.id if isinstance(expression, ast.Name) else None


@pytest.mark.slow
def test_nothing_of_a_library_is_replaced_elsewhere() -> None:
    found = {}
    for folder in ("atom", "plugins"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            place = file.relative_to(ROOT).as_posix()
            if "/tests/" in place or "/templates/" in place or place.startswith(COMPAT):
                continue
            if statements := replacements(file):
                found[place] = statements
    assert not found, "put a Repair into the register and apply that"


def test_what_replaces_something_is_seen(tmp_path: Path) -> None:
    """The test above sees each way of replacing that ATOM has used, and leaves its own objects."""
    file = tmp_path / "file.py"
    replacing = [
        "torch.compile = leave",
        "Layer.forward, kept = forward, 1",
        "torch.table['env'] = handler",
        "del torch.compile",
        "setattr(torch, 'compile', leave)",
        "sys.modules['torch.x'] = None",
        "function.__code__ = other",
        "logging.getLogger('torch').addFilter(hide)",
    ]
    head = "import logging\nimport sys\nimport torch\nfrom torch.nn import Layer\nimport atom\n"
    for statement in replacing:
        file.write_text(f"{head}{statement}\n")
        assert len(replacements(file)) == 1, statement
    file.write_text(f"{head}self.x = torch.ones(1)\natom.x = 1\nmodel = Layer()\nmodel.y = 2\n")
    assert replacements(file) == []


def test_functions_that_kernels_replace_are_in_the_register() -> None:
    known = {repair.target for repair in EVERY}
    for name, operation in OPERATIONS.items():
        place = operation.function
        assert place is None or place.startswith("atom.") or place in known, name


# ---------------------------------------------------------------------------- boot


def test_a_process_boots_once_and_for_one_device() -> None:
    """This one has booted for the CPU, before its tests were collected."""
    boot("cpu")
    with pytest.raises(UserError, match=r"device.*cuda.*set up for cpu"):
        boot("cuda")
