"""Hydra as its users know it, through the real command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


def test_cfg_job_prints_the_run_and_writes_nothing(forked: Callable, tmp_path: Path) -> None:
    result = forked(
        "train", "--cfg", "job", "training.steps=7", "+experiment=first_run", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["training"]["steps"] == 7
    assert config["architecture"]["name"] == "llama3"
    assert config["parallelism"]["context_parallel_degree"] == 2
    assert not list(tmp_path.iterdir())


def test_info_defaults(forked: Callable, tmp_path: Path) -> None:
    result = forked("train", "--info", "defaults", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "architecture/llama3_tiny" in result.stdout


def test_a_folder_of_ones_own(forked: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine/architecture").mkdir(parents=True)
    (tmp_path / "mine/architecture/small.yaml").write_text(
        "name: llama3\ndim: 64\nn_layers: 2\nn_heads: 2\n"
    )
    result = forked(
        "train", "--config-dir", "mine", "architecture=small", "--cfg", "job", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["architecture"]["dim"] == 64


def test_keys_of_torchtitan_need_no_plus(forked: Callable, tmp_path: Path) -> None:
    """Keys that no file writes down are set like the others; torchtitan's schema checks them."""
    result = forked("train", "--cfg", "job", "training.max_norm=0.5", cwd=tmp_path)
    assert yaml.safe_load(result.stdout)["training"]["max_norm"] == 0.5


def test_composing_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, atom.cli\n"
        "assert atom.cli.main(['train', '--cfg', 'job']) == 0\n"
        "heavy = {'torch', 'torchtitan', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_sweep_runs_one_after_another(atom: Callable, tmp_path: Path) -> None:
    result = atom(
        *("train", "-m", "tokenizer=bytes", "training.steps=2", "training.seq_len=64"),
        *("optimizer.lr=1e-3,2e-3", "run.dir=sweep", "device=cpu"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for number, lr in enumerate((1e-3, 2e-3)):
        place = tmp_path / "sweep" / str(number)
        assert yaml.safe_load((place / "run.yaml").read_text())["optimizer"]["lr"] == lr
        assert len((place / "metrics.jsonl").read_text().splitlines()) == 2
        assert json.loads((place / "lock.json").read_text())["seed"] == 0
