"""What programs are told (``--json``) is JSON, whatever a run folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from atom.io.json_data import dumps
from atom.recipe.run import parse
from atom.run_dir import events
from atom.run_dir.metrics import StepMetrics

NAN = float("nan")
STEERING = "\x1b]52;c;x\x07\u202e\x9b\x7f"


def _no_json(text: str) -> NoReturn:
    raise AssertionError(f"{text} is no JSON")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose loss, gradients and pace are no numbers, and whose texts steer a terminal."""
    place = tmp_path / "lab/run"
    place.mkdir(parents=True)
    sections = {
        "architecture": {"name": "llama3", "dim": 64},
        "tokenizer": {"name": "bytes"},
        "optimizer": {"name": "AdamW"},
        "dataset": {"name": "local", "path": STEERING},
        "parallelism": {"name": "mesh"},
        "training": {"steps": 2, "seq_len": 64},
    }
    parse(sections).write(place / "run.yaml")
    row = StepMetrics(
        step=2, loss=NAN, grad_norm=float("inf"), lr=NAN, tokens_seen=128,
        tokens_per_second=float("inf"), step_seconds=0.0, memory_gib=-float("inf"),
    )  # fmt: skip
    (place / "metrics.jsonl").write_text(row.to_json() + "\n")
    events.record(place, events.STARTED, ranks=1, attempt=1)
    events.record(place, events.FAILED, step=2, restart=False, reason=f"ended {STEERING}")
    return place


@pytest.mark.parametrize(
    "words",
    ["status {run} --json", "runs {run}/.. --json", "compare {run} {run}/../other --json",
     "plugins --json"],
)  # fmt: skip
def test_programs_are_told_json(words: str, run: Path, forked: Callable) -> None:
    other = run.with_name("other")
    other.mkdir()
    for path in run.iterdir():
        (other / path.name).write_bytes(path.read_bytes().replace(b"name: local", b"name: stdlib"))
    result = forked(*words.format(run=run).split())
    assert result.returncode == 0, result.stderr
    json.loads(result.stdout, parse_constant=_no_json)
    assert not set(result.stdout) & set(STEERING.replace("]52;cx", "")) - set("]52;cx"), "steered"


def test_numbers_that_json_has_not() -> None:
    told = dumps({"a": [NAN, float("inf"), (1.5, {"b": -float("inf")})], "c": STEERING})
    assert json.loads(told, parse_constant=_no_json) == {
        "a": [None, None, [1.5, {"b": None}]],
        "c": STEERING,
    }
    assert told.isascii()
    assert told.isprintable()
