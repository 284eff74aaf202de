"""Every packing trains alike on every layout, resumes exactly, and any step's data is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.run_dir import events

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(atom: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards of 300 records of very different lengths."""
    place = tmp_path_factory.mktemp("packed")
    records = (
        json.dumps({"text": f"record {number}: " + "word " * (number * number % 97)})
        for number in range(300)
    )
    (place / "records.jsonl").write_text("\n".join(records) + "\n")
    source = ("dataset=local", f"dataset.path={place / 'records.jsonl'}", "tokenizer=bytes")
    done = atom("data", "prepare", *source, "--out", str(place / "shards"), "--workers", "1")
    assert done.returncode == 0, done.stderr
    return place / "shards"


@pytest.mark.parametrize("packing", ["best_fit", "windows", "none"])
def test_a_packing_trains_alike_on_layouts_and_resumes(
    packing: str, shards: Path, train: Callable, atom: Callable, tmp_path: Path
) -> None:
    """Losses within 2e-4 of one rank's, tokens the same; the second half after a resume on two."""
    common = (
        *("dataset=prepared", f"dataset.path={shards}", "tokenizer=bytes"),
        *(f"data.packing={packing}", "data.trace=true", "checkpoint.interval=2"),
    )
    alone = train(tmp_path / "alone", *common, "training.steps=4")
    train(tmp_path / "run", *common, "training.steps=2")
    two = ("parallelism=fsdp", "launch.ranks=2", "training.steps=4")
    resumed = train(tmp_path / "run", *common, *two)
    for row, reference in zip(resumed, alone, strict=True):
        assert row["loss"] == pytest.approx(reference["loss"], abs=2e-4)
        assert row["data"] == reference["data"]
    packed = [e for e in events.read(tmp_path / "alone") if e["event"] == events.PACKED]
    assert [0 < each["padding"] < 1 for each in packed] == [True]
    trace = (tmp_path / "alone" / "logs" / "samples_rank_0.jsonl").read_text().splitlines()
    for line in (json.loads(trace[0]), json.loads(trace[-1])):
        for options in ((), ("--from-start",)):
            step = str(line["step"])
            done = atom("data", "at", str(tmp_path / "run"), "--step", step, "--json", *options)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["lanes"] == line["lanes"]
