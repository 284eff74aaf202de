"""The wheels work without a checkout: conf/ is in the core's, each plugin installs by itself."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from installed import PLUGINS

pytestmark = pytest.mark.slow


def test_core_wheel_ships_its_groups(wheels: list[Path]) -> None:
    core = next(wheel for wheel in wheels if wheel.name.startswith("atom_train-"))
    names = zipfile.ZipFile(core).namelist()
    assert "atom/conf/train.yaml" in names
    assert "atom/conf/experiment/first_run.yaml" in names
    assert "atom/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "plugins/"))]


def test_plugin_wheels_ship_theirs(wheels: list[Path]) -> None:
    for plugin in PLUGINS:
        wheel = next(w for w in wheels if w.name.startswith(plugin.name.replace("-", "_")))
        shipped = {n for n in zipfile.ZipFile(wheel).namelist() if "/conf/" in n}
        package = plugin / plugin.name.replace("-", "_")
        here = {str(p.relative_to(plugin)) for p in package.glob("conf/**/*.yaml")}
        assert here
        assert shipped == here


def test_help_from_the_wheel(installed: Callable, tmp_path: Path) -> None:
    result = installed("atom", "train", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for words in ("architecture: ", "llama3_tiny", "experiment: ", "first_run", "KEY=VALUE"):
        assert words in result.stdout
    assert not list(tmp_path.iterdir())


def test_plugins_from_the_wheels(installed: Callable, tmp_path: Path) -> None:
    result = installed("atom", "plugins", "--json", cwd=tmp_path)
    rows = json.loads(result.stdout)
    assert {row["package"] for row in rows} >= {plugin.name for plugin in PLUGINS}
    assert {row["status"] for row in rows} == {"ok"}, [r for r in rows if r["status"] != "ok"]


def test_trains_from_the_wheels(installed: Callable, tmp_path: Path) -> None:
    result = installed(
        *(
            "atom",
            "train",
            "tokenizer=bytes",
            "training.steps=2",
            "training.seq_len=64",
            "run.dir=run",
        ),
        *("device=cpu",),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
