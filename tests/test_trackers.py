"""Trackers of others, fed by a run: what was written is read back with their own readers."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from atom.run_dir import evals

STEPS = 3


@pytest.fixture(scope="module")
def tracked(train: Callable[..., list[dict]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that all trackers follow, with what metrics.jsonl says of it."""
    place = tmp_path_factory.mktemp("tracked") / "run"
    rows = train(
        place,
        "metrics=wandb_offline",
        "metrics.enable_tensorboard=true",
        *(["metrics.enable_trackio=true"] if importlib.util.find_spec("trackio") else []),
        f"training.steps={STEPS}",
        "checkpoint.enable=false",
        *("validation.sets.more=stdlib", "validation.interval=2", "validation.tokens=64"),
        *("callbacks=[norms,histograms]", "callbacks.norms.interval=2"),
    )
    (place / "rows.json").write_text(json.dumps(rows))
    return place


@pytest.mark.slow
def test_tensorboard_has_every_step(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = tracked.glob("tb/events.out.tfevents.*")
    found = EventAccumulator(str(file))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("loss_metrics/global_avg_loss")]
    rows = json.loads((tracked / "rows.json").read_text())
    assert [step for step, _ in losses] == [1, 2, 3]
    assert [loss for _, loss in losses] == pytest.approx([row["loss"] for row in rows], rel=1e-6)
    for name in ("loss", "bits_per_byte"):
        points = [(event.step, event.value) for event in found.Scalars(f"validation/more/{name}")]
        assert [step for step, _ in points] == [2, 3]
        expected = [row["validation"]["more"][name] for row in rows[1:]]
        assert [value for _, value in points] == pytest.approx(expected, rel=1e-6)
    points = found.Scalars("callbacks/norms/gradient/layers.0")
    expected = [row["callbacks"]["norms"]["gradient/layers.0"] for row in rows[1:]]
    assert [event.step for event in points] == [2, 3]
    assert [event.value for event in points] == pytest.approx(expected, rel=1e-6)
    (drawn,) = found.Histograms("callbacks/histograms/weight/layers.0")
    edges, counts = histogram_of(rows)
    assert drawn.step == STEPS
    buckets = dict(
        zip(drawn.histogram_value.bucket_limit, drawn.histogram_value.bucket, strict=True)
    )
    assert {end: count for end, count in buckets.items() if count} == pytest.approx(
        {end: count for end, count in zip(edges[1:], counts, strict=True) if count}, rel=1e-3
    )
    assert drawn.histogram_value.num == pytest.approx(1, rel=1e-3)


def histogram_of(rows: list[dict]) -> tuple[list[float], list[float]]:
    """Return edges and counts of a histogram of the last step."""
    found = rows[-1]["histograms"]["histograms"]
    return found["edges"], found["counts"]["weight/layers.0"]


def leveldb_records(log: bytes, block: int = 32768) -> Iterator[bytes]:
    """Yield the records of a LevelDB log, in whose format W&B keeps a run; its package no longer
    brings a reader. The header counts as part of the first block."""
    at, whole = 0, b""
    while at + 7 <= len(log):
        left = block - (at + 7) % block
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", log, at + 4)
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_keeps_every_step_without_a_network(tracked: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = tracked.glob("tb/wandb/offline-run-*/run-*.wandb")
    losses: dict[int, float] = {}
    histograms: dict[int, dict[str, Any]] = {}
    for data in leveldb_records(file.read_bytes()[7:]):  # behind W&B's own header
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            values = {item.nested_key[0] if item.nested_key else item.key: item.value_json
                      for item in record.history.item}  # fmt: skip
            losses[int(values["_step"])] = float(values["loss_metrics/global_avg_loss"])
            for item in record.history.item:
                if item.nested_key[:1] == ["callbacks/histograms/weight/layers.0"]:
                    of_step = histograms.setdefault(int(values["_step"]), {})
                    of_step[item.nested_key[1]] = json.loads(item.value_json)
    rows = json.loads((tracked / "rows.json").read_text())
    assert losses == pytest.approx({row["step"]: row["loss"] for row in rows})
    assert list(histograms) == [STEPS]
    assert histograms[STEPS]["_type"] == "histogram"
    assert sum(histograms[STEPS]["values"]) == pytest.approx(1, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="Trackio is not installed")
def test_trackio_has_every_step_beside_the_settings(tracked: Path) -> None:
    reader = (
        "import json\n"
        "from trackio import Api\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "(run,) = Api().runs('atom')\n"
        "rows = SQLiteStorage.get_logs('atom', run.name)\n"
        "print(json.dumps([run.name, run.config, rows], default=str))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", reader],
        env=os.environ | {"TRACKIO_DIR": str(tracked / "trackio")},
        capture_output=True,
        text=True,
        check=True,
    )
    name, config, history = json.loads(done.stdout)
    assert name == "run"
    assert config["training"]["steps"] == STEPS
    losses = {row["step"]: row["loss_metrics/global_avg_loss"] for row in history}
    rows = json.loads((tracked / "rows.json").read_text())
    assert losses == pytest.approx({row["step"]: row["loss"] for row in rows})
    drawn = history[-1]["callbacks/histograms/weight/layers.0"]
    assert drawn["_type"] == "trackio.histogram"
    found = [count for count in drawn["values"] if count]
    assert found == pytest.approx([count for count in histogram_of(rows)[1] if count], rel=1e-3)


def evaluated(step: int, value: float) -> evals.Evaluation:
    said = {"evaluator": "olmes", "asked": "code_rc", "package": "p 1", "prompts": "0" * 16}
    return evals.Evaluation(
        **said,
        **{"task": "code_rc", "metric": "acc", "samples": 4, "max_length": 64, "weights": "0"},
        **{"dtype": "float32", "atom": "0.1.0"},
        time=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        step=step,
        value=value,
    )


def test_an_evaluation_is_tracked_at_its_step(tmp_path: Path) -> None:
    """With the next row, or as the run ends: training did not wait for it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from atom.titan import translate
    from atom.titan.train.trackers import Container

    evals.record(tmp_path, [evaluated(2, 0.25)])  # of an earlier start of the run
    trackers = Container()
    config = translate.config("metrics", enable_tensorboard=True)
    trackers.start(config, tmp_path, None)
    trackers.follow(tmp_path)
    trackers.go_back(3, 0)
    evals.record(tmp_path, [evaluated(4, 0.5), evaluated(4, float("nan"))])
    trackers.log({"loss_metrics/global_avg_loss": 3.0}, 6)
    evals.record(tmp_path, [evaluated(6, 0.75)])
    trackers.close()
    found = EventAccumulator(str(tmp_path / "tb"))
    found.Reload()
    points = [(event.step, event.value) for event in found.Scalars("evaluation/code_rc/acc")]
    assert points == [(4, 0.5), (6, 0.75)]


@pytest.mark.slow
def test_an_evaluation_of_the_last_checkpoint_is_tracked_after_the_run(
    tracked: Path, atom: Callable
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    evals.record(tracked, [evaluated(STEPS, 0.5)])
    before = set(tracked.glob("tb/events.out.tfevents.*"))
    done = atom("-m", "atom.launch.late_evaluations", str(tracked))
    assert done.returncode == 0, done.stderr
    (file,) = set(tracked.glob("tb/events.out.tfevents.*")) - before
    found = EventAccumulator(str(file))
    found.Reload()
    (point,) = found.Scalars("evaluation/code_rc/acc")
    assert (point.step, point.value) == (STEPS, 0.5)
    if importlib.util.find_spec("wandb") is not None:
        kept = b"".join(path.read_bytes() for path in tracked.glob("tb/wandb/*/run-*.wandb"))
        assert b"evaluation/code_rc/acc" in kept
        assert b"evaluation/step" in kept


@pytest.mark.slow
def test_a_tracker_that_cannot_start_ends_the_run(
    atom: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    """No key and no network: torchtitan would log an error and train without it."""
    result = atom(
        "train", *small, "metrics=wandb", "launch.max_restarts=0", f"run.dir={tmp_path / 'run'}",
        WANDB_API_KEY="", WANDB_MODE="online", HOME=str(tmp_path), NETRC=str(tmp_path / "netrc"),
        WANDB_CONFIG_DIR=str(tmp_path), WANDB_BASE_URL="http://127.0.0.1:9",
    )  # fmt: skip
    assert result.returncode == 1, result.stdout
    assert "metrics.wandb_mode=offline" in result.stderr
