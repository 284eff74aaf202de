"""A plugin for another version of the interface, and one that uses what will go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from atom import plugin
from atom.plugin import Deprecation

pytestmark = pytest.mark.slow

NET = """
from atom.plugin import Architecture, Kernel, Needs, hookimpl
{version}

@hookimpl
def atom_architectures():
    yield Architecture(name="dated_net", summary="a net", build="dated_plugin.build:net")

@hookimpl
def atom_kernels():
    yield Kernel(name="dated", summary="a kernel", operation="rms_norm", priority=-1)
    yield Kernel(name="dated_too", summary="a kernel", operation="rms_norm", priority=-2)
"""


def listed(forked: Callable, site: Path) -> tuple[dict, str]:
    result = forked("plugins", "--json", PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert any(row["name"] == "llama3" and row["status"] == "ok" for row in rows)
    return next(row for row in rows if row["package"] == "dated-plugin"), result.stderr


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("ATOM_INTERFACE = 2", "speaks interface version 2; this ATOM speaks 1: upgrade ATOM"),
        ("ATOM_INTERFACE = 0", "speaks interface version 0; this ATOM speaks 1: upgrade the pl"),
        ("ATOM_INTERFACE = '1'", "ATOM_INTERFACE is an object of type str; it must be a whole"),
    ],
)
def test_another_version(forked: Callable, install: Callable, version: str, reason: str) -> None:
    site = install("dated-plugin", {"__init__.py": NET.format(version=version)})
    row, _ = listed(forked, site)
    assert row["status"] == "broken"
    assert row["reason"].startswith(reason)
    result = forked("train", "architecture.name=dated_plugin:dated_net", PYTHONPATH=str(site))
    assert result.returncode == 2
    assert f"its plugin dated-plugin is broken: {reason}" in result.stderr


def test_the_version_of_this_atom(forked: Callable, install: Callable) -> None:
    site = install("dated-plugin", {"__init__.py": NET.format(version="ATOM_INTERFACE = 1")})
    row, said = listed(forked, site)
    assert row["status"] == "ok"
    assert not said


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (
            {"atom_kernels": Deprecation(since="0.9", until=2, instead="atom_operations")},
            "uses atom_kernels, which is deprecated since ATOM 0.9 and goes with interface version "
            "2: use atom_operations",
        ),
        (
            {"Kernel.priority": Deprecation(since="0.9", until=2, instead="the order in kernels=")},
            "uses Kernel.priority, which is deprecated since ATOM 0.9 and goes with interface "
            "version 2: use the order in kernels=",
        ),
        (2, "speaks interface version 1, which is deprecated: this ATOM speaks 2"),
    ],
    ids=["hook", "field", "version"],
)
@pytest.mark.parametrize("command", [("plugins",), ("train", "--cfg", "job")], ids=" ".join)
def test_what_goes_is_said_once_and_works(
    forked: Callable,
    install: Callable,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Deprecation] | int,
    warning: str,
    command: tuple[str, ...],
) -> None:
    """Run the command with a change to the interface that some later ATOM would have."""
    site = install("dated-plugin", {"__init__.py": NET.format(version="ATOM_INTERFACE = 1")})
    name = "INTERFACE" if change == 2 else "DEPRECATED"
    monkeypatch.setattr(plugin, name, change)
    result = forked(*command, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "dated-plugin" in line]
    assert said == [f"atom: dated-plugin 1.0 {warning}"]
    if command == ("plugins",):
        assert "dated_net" in result.stdout


def test_a_field_left_alone_is_not_warned_of(
    forked: Callable, install: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install("dated-plugin", {"__init__.py": NET.format(version="")})
    change = {"Kernel.needs": Deprecation(since="1", until=2, instead="")}
    monkeypatch.setattr(plugin, "DEPRECATED", change)
    assert "dated-plugin" not in forked("plugins", PYTHONPATH=str(site)).stderr


def test_a_missing_optional_package(forked: Callable, install: Callable) -> None:
    """The reason names the module, the line, and the extra that brings it."""
    site = install("dated-plugin", {"__init__.py": "import no_such_kernels\n"})
    metadata = site / "dated_plugin-1.0.dist-info/METADATA"
    metadata.write_text(
        metadata.read_text()
        + "Provides-Extra: fast\nRequires-Dist: no-such-kernels>=1; extra == 'fast'\n"
    )
    row, _ = listed(forked, site)
    assert row["status"] == "broken"
    for words in (
        "No module named 'no_such_kernels'",
        "(dated_plugin/__init__.py:1)",
        "pip install 'dated-plugin[fast]'",
    ):
        assert words in row["reason"]


def test_an_optional_package_that_only_a_run_needs(forked: Callable, install: Callable) -> None:
    files = {
        "__init__.py": NET.format(version="").replace("build:net", "build:net"),
        "conf/architecture/dated.yaml": "name: dated_net\nwidth: 1\n",
        "config.py": "import no_such_kernels\n",
    }
    files["__init__.py"] = files["__init__.py"].replace(
        'build="dated_plugin.build:net"',
        'build="dated_plugin.build:net", config="dated_plugin.config:Net"',
    )
    site = install("dated-plugin", files)
    row, _ = listed(forked, site)
    assert row["status"] == "ok"
    result = forked("train", "architecture=dated", PYTHONPATH=str(site))
    assert result.returncode == 2
    assert "architecture dated_net of dated-plugin 1.0 cannot be used" in result.stderr
    assert "no_such_kernels" in result.stderr
