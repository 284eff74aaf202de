"""What a message tells people to set exists: every key that a string of the code names."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from atom_docs import config_reference

from atom.recipe.run import Run
from atom.registry.host import Host, resolve
from atom.registry.trust import Trust

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for folder in (ROOT / "atom", *ROOT.glob("plugins/*/atom_*"))
    for path in sorted(folder.rglob("*.py"))
]
KINDS = ("architecture", "tokenizer", "dataset", "launcher")
FILES = (".json", ".jsonl", ".yaml", ".md", ".py", ".log", ".txt", ".html", ".toml", ".sh")

_KEY = re.compile(rf"(?<![\w.$/-])((?:{'|'.join(Run.model_fields)})(?:\.[a-z_]\w*)+)(?![\w(/])")


def sentences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the strings that are not documentation; what is put into one stands as ``…``."""
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif id(node) in documentation | inside or not isinstance(node, ast.Constant):
            continue
        elif isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Every key of a run, and of the components of each package under ``PACKAGE:``."""
    found: set[str] = set()
    for name, field in Run.model_fields.items():
        found |= {name, *within(name, field.annotation)}
    for section, schemas in config_reference.torchtitan_schemas().items():
        for schema in schemas.values():
            fields = dataclasses.fields(schema) if schema is not None else ()
            found |= {f"{section}.{field.name}" for field in fields}
    for component in Host.load(Trust()).components:
        if component.kind == "kernel":
            found.add(f"kernels.{component.name.partition('/')[0]}")
        elif component.declaration.config is not None:
            model = resolve(component.declaration.config, component)
            package = component.declaration.config.partition(".")[0]
            found |= {f"{package}:{key}" for key in within(component.kind, model)}
    return found | {"activation_checkpoint.mode", "kernels.default"}


def within(name: str, annotation: Any) -> Iterator[str]:
    for model in config_reference.models_in(annotation):
        for key, field in model.model_fields.items():
            yield f"{name}.{key}"
            yield from within(f"{name}.{key}", field.annotation)


VALUES = ("callbacks.norms",)
"""Beginnings of names of numbers, which look like keys."""


def test_keys_in_messages_exist(keys: set[str]) -> None:
    """A plugin names keys of its own components; the core, of components that ship with it."""
    every = keys | {key.partition(":")[2] for key in keys if ":" in key}
    named, unknown = set(), []
    for path in SOURCES:
        package = path.relative_to(ROOT / "plugins").parts[1] if "plugins" in path.parts else ""
        for line, text in sentences(ast.parse(path.read_text())):
            for key in _KEY.findall(text):
                if key.endswith(FILES) or key in VALUES:
                    continue
                named.add(key)
                own = package and key.partition(".")[0] in KINDS
                if not (key in keys or (f"{package}:{key}" in keys if own else key in every)):
                    unknown.append(f"{path.relative_to(ROOT)}:{line}: {key}")
    assert len(named) > 60, "the walk finds no keys"
    assert not unknown, "\n".join(unknown)
