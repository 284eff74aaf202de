"""The wheels work without a checkout: conf/ is in the core's, each plugin installs by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(ROOT), *map(str, PLUGINS)], check=True)
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(
    wheels: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """An environment of its own with the wheels; the heavy packages are lent by this one."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=True)
    site = next(place.glob("lib/python*/site-packages"))
    # A plain path line: what is installed editable here does not come along.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = place / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", *wheels], check=True
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [place / "bin" / "atom", *arguments],
            cwd=cwd,
            env=environment | {"ATOM_CACHE": str(cwd / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


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
    result = installed("train", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for words in ("architecture: ", "llama3_tiny", "experiment: ", "first_run", "KEY=VALUE"):
        assert words in result.stdout
    assert not list(tmp_path.iterdir())


def test_plugins_from_the_wheels(installed: Callable, tmp_path: Path) -> None:
    result = installed("plugins", "--json", cwd=tmp_path)
    rows = json.loads(result.stdout)
    assert {row["package"] for row in rows} >= {plugin.name for plugin in PLUGINS}
    assert {row["status"] for row in rows} == {"ok"}, [r for r in rows if r["status"] != "ok"]


def test_trains_from_the_wheels(installed: Callable, tmp_path: Path) -> None:
    result = installed(
        *("train", "tokenizer=bytes", "training.steps=2", "training.seq_len=64", "run.dir=run"),
        *("device=cpu",),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
