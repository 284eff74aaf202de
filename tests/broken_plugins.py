"""Plugins that are broken, each in its own way, and a folder to install them in."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from atom.testing.installing import describe

NET = """
from atom.plugin import Architecture, hookimpl

@hookimpl
def atom_architectures():
    yield Architecture(name="{name}", summary="a net", build="{package}.build:net")
"""


@dataclass(frozen=True)
class Broken:
    """The code of a plugin, and the reason that ATOM must give for not using it."""

    code: str
    reason: str
    entry_point: str | None = None
    metadata: str = ""
    files: dict[str, str] = field(default_factory=dict)


def hook(body: str, name: str = "atom_architectures", imports: str = "Architecture") -> str:
    return f"from atom.plugin import {imports}, hookimpl\n@hookimpl\ndef {name}():\n    {body}\n"


def net(name: str, **fields: str) -> str:
    written = {"summary": "a net", "build": "a.b:c"} | fields
    return f"Architecture(name={name!r}, {', '.join(f'{k}={v!r}' for k, v in written.items())})"


BROKEN = {
    "raises": Broken(
        "raise RuntimeError('no\\nlicence')\n",
        "cannot be imported: RuntimeError: no licence (raises/__init__.py:1)",
    ),
    "raises_below": Broken(
        "from raises_below import inner\n",
        "cannot be imported: ZeroDivisionError: division by zero (raises_below/inner.py:2)",
        files={"inner.py": "import os\n1 / 0\n"},
    ),
    "exits": Broken(
        "import sys\nsys.exit(0)\n",
        "cannot be imported: SystemExit: 0 (exits/__init__.py:2)",
    ),
    "raises_in_words": Broken(
        "class Sly(Exception):\n    def __str__(self):\n        raise KeyError('x')\nraise Sly\n",
        "cannot be imported: raises_in_words.Sly: <exception str() failed> "
        "(raises_in_words/__init__.py:4)",
    ),
    "not_python": Broken(
        "def atom_architectures(:\n",
        "cannot be imported: SyntaxError: invalid syntax (__init__.py, line 1)",
    ),
    "needs_a_package": Broken(
        "import no_such_thing\n",
        "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing' "
        "(needs_a_package/__init__.py:1)",
    ),
    "needs_an_extra": Broken(
        "import no_such_thing\n",
        "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing' "
        "(needs_an_extra/__init__.py:1); install it: pip install 'needs-an-extra[things]'",
        metadata="Requires-Dist: no-such-thing>=1; extra == 'things'\n",
    ),
    "no_module": Broken(
        "",
        "cannot be imported: ModuleNotFoundError: No module named 'no_module.plugin'",
        entry_point="no_module.plugin",
    ),
    "no_package": Broken(
        "",
        "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'",
        entry_point="nowhere_at_all",
    ),
    "an_attribute": Broken(
        "plugin = object()\n",
        "its entry point must name a module, not 'an_attribute:plugin'",
        entry_point="an_attribute:plugin",
    ),
    "unknown_hook": Broken(
        hook(f"yield {net('x')}", "atom_architecture"),
        "there is no hook atom_architecture; did you mean atom_architectures or "
        "atom_launchers or atom_datasets?",
    ),
    "wrong_arguments": Broken(
        f"from atom.plugin import *\nfrom atom.plugin import hookimpl\n@hookimpl\n"
        f"def atom_architectures(config):\n    yield {net('x')}\n",
        "hookimpl definition: atom_architectures(config); "
        "Argument(s) {'config'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "not_marked": Broken(
        f"from atom.plugin import Architecture\ndef atom_architectures():\n    yield {net('x')}\n",
        "atom_architectures is not marked with @atom.plugin.hookimpl",
    ),
    "wrong_type": Broken(
        hook("yield Dataset(name='x', summary='a dataset', source='a.b:c')", imports="Dataset"),
        "atom_architectures yielded the Dataset 'x', which is no Architecture",
    ),
    "yields_a_name": Broken(
        hook("yield 'llama9'"),
        "atom_architectures yielded an object of type str, which is no Architecture",
    ),
    "returns_none": Broken(
        hook("return None"),
        "atom_architectures returned None; it must yield Architecture objects",
    ),
    "returns_one": Broken(
        hook(f"return {net('x')}"),
        "atom_architectures returned the Architecture 'x'; it must yield Architecture objects",
    ),
    "repeats_a_name": Broken(
        hook(f"yield {net('x')}\n    yield {net('x')}"),
        "atom_architectures repeats the name x",
    ),
    "raises_late": Broken(
        hook(f"yield {net('x')}\n    raise OSError('gone')"),
        "atom_architectures raised: OSError: gone (raises_late/__init__.py:5)",
    ),
    "bad_name": Broken(
        hook(f"yield {net('My Net')}"),
        "atom_architectures raised: ValueError: name 'My Net' must match [a-z0-9][a-z0-9_]* "
        "(bad_name/__init__.py:4)",
    ),
    "bad_reference": Broken(
        hook(f"yield {net('x', build='a.b.c')}"),
        "atom_architectures raised: ValueError: build of 'x' is 'a.b.c', not "
        "'package.module:attribute' (bad_reference/__init__.py:4)",
    ),
    "forgets_a_field": Broken(
        hook("yield Architecture(name='x', summary='a net')"),
        "atom_architectures raised: TypeError: Architecture.__init__() missing 1 required "
        "keyword-only argument: 'build' (forgets_a_field/__init__.py:4)",
    ),
    "of_the_future": Broken(
        "ATOM_INTERFACE = 99\n" + hook(f"yield {net('x')}"),
        "speaks interface version 99; this ATOM speaks 1: upgrade ATOM",
    ),
}


class Site:
    """A folder of installed distributions, with the command run beside it."""

    def __init__(self, folder: Path, forked: Callable) -> None:
        self.folder = folder
        self._atom = forked

    def install(
        self,
        name: str,
        files: dict[str, str],
        *,
        entry_point: str | None = None,
        version: str = "1.0",
        metadata: str = "",
    ) -> None:
        """Put a distribution there. The paths of its files are relative to the folder."""
        module, point = name.replace("-", "_"), entry_point
        described = describe(
            self.folder, name, module=point, entry_point=module, version=version, metadata=metadata
        )
        points = described / "entry_points.txt"
        points.write_text("[console_scripts]\nx = y:z\n\n" + points.read_text())
        for path, text in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)

    def atom(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
        return self._atom(*arguments, cwd=cwd, **{"PYTHONPATH": str(self.folder)} | environment)

    def plugins(self, **environment: str) -> list[dict]:
        """Return what ``atom plugins --json`` lists."""
        result = self.atom("plugins", "--json", cwd=self.folder, **environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)
