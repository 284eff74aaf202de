"""``atom plugins``: the table, the list for programs, and nothing heavy imported for them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from atom.cli import main
from atom.cli.plugins import Row, rows, table
from atom.plugin import KINDS
from atom.registry.host import Host

FIELDS = ["kind", "name", "package", "version", "status", "reason", "summary"]
COLUMNS = ["KIND", "NAME", "PACKAGE", "VERSION", "STATUS", "SUMMARY, OR REASON"]


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load()


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    assert main(["plugins", "--json", *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys)
    assert all(list(row) == FIELDS for row in found)
    assert {
        "kind": "architecture",
        "name": "llama3",
        "package": "atom-llama",
        "version": "0.1.0",
        "status": "ok",
        "reason": None,
        "summary": "Llama 3 dense decoder: grouped-query attention, RoPE, SwiGLU, RMSNorm",
    } in found
    assert {row["status"] for row in found} == {"ok"}
    kinds = [declaration.kind for declaration in KINDS]
    order = [(kinds.index(row["kind"]), row["name"]) for row in found]
    assert order == sorted(order)


def test_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    every = listed(capsys)
    for declaration in KINDS:
        found = listed(capsys, "--kind", declaration.kind)
        assert found == [row for row in every if row["kind"] == declaration.kind]
        assert found
    assert main(["plugins", "--kind", "dataset"]) == 0
    names = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]]
    known = ["huggingface", "local", "mixture", "prepared", "stdlib", "stdlib_chat"]
    known += ["stdlib_pairs", "tokens"]
    assert names == known


def test_table(capsys: pytest.CaptureFixture[str], host: Host) -> None:
    """A line a component, in aligned columns, whole however long, for it goes to no terminal."""
    assert main(["plugins"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    starts = [header.index(name) for name in COLUMNS]
    ends = [*starts[1:], None]
    cells = [
        [line[start:end].rstrip() for start, end in zip(starts, ends, strict=True)]
        for line in lines
    ]
    assert cells == [
        [str(row.kind), row.name, row.package, row.version, "ok", row.summary] for row in rows(host)
    ]


@pytest.mark.parametrize("columns", [20, 60, 80, 132, 400])
def test_table_in_a_terminal(host: Host, columns: int) -> None:
    """Nothing is lost however narrow the terminal is; the last column fits where it can."""
    every = [*rows(host), Row(None, "x", "x-plugin", "1", "broken", "because " * 30, None)]
    lines = table(every, columns).splitlines()
    assert lines == [line.rstrip() for line in lines]
    words = " ".join(lines).split()
    wanted = " ".join(table(every, None).splitlines()).split()
    assert sorted(words) == sorted(wanted)
    if columns >= 132:
        assert max(map(len, lines)) <= columns
        assert (len(lines) == len(every) + 1) == (columns == 400)


@pytest.fixture
def faulty(install: Callable) -> Path:
    """A folder with a broken plugin, one without components, and one of config files alone."""
    install("faulty", {"__init__.py": "raise RuntimeError('no licence')\n"})
    install("idle", {"__init__.py": ""})
    return install("options", {"__init__.py": "", "conf/kernels/mine.yaml": "default: auto\n"})


def test_broken_plugins_are_rows(forked: Callable, faulty: Path, host: Host) -> None:
    result = forked("plugins", "--json", PYTHONPATH=str(faulty))
    assert (result.returncode, result.stderr) == (0, "")
    *others, broken, idle, options = json.loads(result.stdout)
    assert others == [asdict(row) for row in rows(host)]
    reason = "cannot be imported: RuntimeError: no licence (faulty/__init__.py:1)"
    start = {"kind": None, "version": "1.0", "status": "ok", "reason": None, "summary": None}
    assert broken == start | {
        "name": "faulty",
        "package": "faulty",
        "status": "broken",
        "reason": reason,
    }
    assert idle == start | {"name": "idle", "package": "idle", "summary": "declares nothing"}
    assert options == start | {
        "name": "options",
        "package": "options",
        "summary": "config groups: kernels",
    }


def test_broken_plugins_in_the_table(
    faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(faulty))
    assert main(["plugins"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "faulty" in line)
    assert line.split(maxsplit=5) == [
        *("-", "faulty", "faulty", "1.0", "broken"),
        "cannot be imported: RuntimeError: no licence (faulty/__init__.py:1)",
    ]
    # One that is broken may be of this kind, or not: it is counted, and not in the list.
    assert main(["plugins", "--kind", "dataset"]) == 0
    said = capsys.readouterr().out
    assert "no licence" not in said
    assert said.endswith("\n\nbroken plugins of all kinds: 1 (`atom plugins` shows the reasons)\n")
    assert main(["plugins", "--kind", "dataset", "--json"]) == 0
    assert all(row["kind"] == "dataset" for row in json.loads(capsys.readouterr().out))


def test_no_plugins_at_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATOM_PLUGINS_ALLOW", "nothing-of-that-name")
    blocked = listed(capsys)
    assert blocked
    assert {row["status"] for row in blocked} == {"blocked"}
    assert main(["plugins", "--kind", "dataset"]) == 0
    assert capsys.readouterr().out == "no plugin offers any dataset\n"
    monkeypatch.delenv("ATOM_PLUGINS_ALLOW")
    # The folders of the packages are not searched: none is installed then.
    monkeypatch.setattr(sys, "path", [])
    assert listed(capsys) == []
    assert main(["plugins"]) == 0
    assert capsys.readouterr().out == "there are no plugins\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--jsn"], "unrecognized arguments: --jsn; did you mean --json?"),
        (["llama3"], "unrecognized arguments: llama3; valid: --help, --json, --kind, -h"),
        (["--kind"], "argument --kind: expected one argument"),
        (
            ["--kind", "kernels"],
            "argument --kind: invalid choice: 'kernels' (choose from 'tokenizer', "
            "'architecture', 'parallelism', 'kernel', 'dataset', 'objective', 'launcher', "
            "'callback', 'evaluator', 'optimizer')",
        ),
        (["--js"], "unrecognized arguments: --js; did you mean --json?"),
        (["lock"], "the following arguments are required: FILE"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugins", *arguments]) == 2
    said = capsys.readouterr()
    command = "atom plugins lock" if arguments == ["lock"] else "atom plugins"
    assert said.err == f"atom: {command}: {says}\n"
    assert said.out == ""


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, atom.cli\n"
        "for options in ([], ['--json'], ['--kind', 'kernel'], ['--help']):\n"
        "    assert atom.cli.main(['plugins', *options]) == 0\n"
        "heavy = {'torch', 'torchtitan', 'transformers', 'datasets', 'tokenizers', 'numpy',\n"
        "         'hydra', 'pydantic'}\n"
        "found = heavy & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
