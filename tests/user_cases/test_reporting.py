"""What a run reports is what happened: every view is compared with the steps that were done."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damaged import damaged  # noqa: F401

from atom.run_dir import checkpoint, events, heartbeat, metrics, progress
from atom.run_dir.status import status

TOKENS = 4 * 64
"""Of a step."""

SIZE = ("training.global_batch_size=4", "lr_scheduler.total_steps=600", "architecture.n_layers=2")
TRACKERS = (
    "metrics=wandb_offline",
    "metrics.enable_tensorboard=true",
    "metrics.enable_trackio=true",
)
OFTEN = (
    *("checkpoint.interval=4", "checkpoint.keep_latest_k=2", "faults.non_finite=rollback"),
    *("checkpoint.async_mode=disabled", *SIZE),
)


def rows(place: Path) -> list[metrics.StepMetrics]:
    return metrics.read(place / metrics.FILE_NAME)


def happened(place: Path, name: str) -> list[dict]:
    return [event for event in events.read(place) if event["event"] == name]


# ---------------------------------------------------------------------------- views of a run


def views(place: Path, forked: Callable) -> dict[str, tuple[int, int]]:
    """Return the step and the tokens that each view tells."""
    told = json.loads(forked("status", str(place), "--json").stdout)
    found = {"status --json": (told["step"], told["tokens_seen"])}
    lines = dict(line.split(None, 1) for line in forked("status", str(place)).stdout.splitlines())
    found["status"] = (_number(lines["step"]), _number(lines["tokens"]))
    (run,) = json.loads(forked("runs", str(place), "--json").stdout)
    found["runs"] = (run["step"], run["tokens_seen"])
    page = place.parent / "report.html"
    assert forked("report", str(place), "--out", str(page)).returncode == 0
    text = html.unescape(re.sub(r"<[^>]*>", " ", page.read_text()))
    seen = re.search(r"seen\s+([\d,]+) tokens\s+([\d,]+) steps", text)
    head = re.search(r"steps\s+([\d,]+) of", text)
    assert seen is not None
    assert head is not None
    assert _number(seen[2]) == _number(head[1])
    found["report"] = (_number(head[1]), _number(seen[1]))
    beat = heartbeat.last(place)
    assert beat is not None
    assert beat.tokens_seen is not None
    found["heartbeat"] = (beat.step, beat.tokens_seen)
    last = events.read(place)[-1]
    if last["event"] in (events.STOPPED, events.FINISHED):
        found["event"] = (last["step"], last["tokens_seen"])
    return found


def _number(words: str) -> int:
    match = re.search(r"[\d,]+", words)
    assert match is not None, words
    return int(match[0].replace(",", ""))


def tensorboard(place: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(place / "tb"))
    found.Reload()
    points = [(event.step, event.value) for event in found.Scalars(name)]
    assert len({step for step, _ in points}) == len(points), points
    return dict(points)


def wandb(place: Path) -> tuple[set[str], list[dict]]:
    """Return W&B's names of runs, and all that was logged, in the order of files."""
    from wandb.proto.wandb_internal_pb2 import Record

    names, points = set(), []
    for file in sorted(place.glob("tb/wandb/offline-run-*/run-*.wandb")):
        for data in _leveldb_records(file.read_bytes()[7:]):  # behind W&B's own header
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                names.add(record.run.run_id)
            elif record.WhichOneof("record_type") == "history":
                points.append(
                    {
                        item.nested_key[0] if item.nested_key else item.key: json.loads(
                            item.value_json
                        )
                        for item in record.history.item
                    }
                )
    return names, points


def _leveldb_records(log: bytes, block: int = 32768) -> Iterator[bytes]:
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


def trackio(place: Path) -> list[dict]:
    reader = (
        "import json\n"
        "from trackio import Api\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "(run,) = Api().runs('atom')\n"
        "print(json.dumps(SQLiteStorage.get_logs('atom', run.name), default=str))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", reader],
        env=os.environ | {"TRACKIO_DIR": str(place / "trackio")},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[dict] = json.loads(said.stdout)
    return found


def that_count(points: list[dict]) -> dict[int, float]:
    """Return the losses of the steps that were not discarded, as docs/watch.md says."""
    return {
        int(point["step"]): point["loss_metrics/global_avg_loss"]
        for number, point in enumerate(points)
        if not any(
            later["steps_discarded"] > point["steps_discarded"]
            and later["goes_on_from"] < point["step"]
            for later in points[number:]
        )
    }


# ---------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_all_views_tell_the_steps_that_were_done(
    damaged: Callable,  # noqa: F811
    start: Callable,
    forked: Callable,
    tmp_path: Path,
) -> None:
    """A run that goes back, is stopped, killed, and ends under another layout and another
    ``metrics.log_freq``, whose last step is a multiple of none."""
    # The gradients of step 7 are not finite. That step is neither logged nor saved, so its values
    # are read a step later, or before an end that was asked for meanwhile: here.
    job = damaged(
        *OFTEN, *TRACKERS, "training.steps=600", "metrics.log_freq=3", forwards=(7,), asked_in=6
    )
    code, shown, said = job.end()
    place = job.place
    assert code == 75, said
    (fault,) = happened(place, events.NUMERICAL_FAULT)
    told = {name: fault[name] for name in ("step", "decision", "to_step", "done")}
    assert told == {"step": 7, "decision": "rollback", "to_step": 4, "done": 7}
    assert "rolling back to step 4, without the data since" in shown
    (stopped,) = happened(place, events.STOPPED)
    assert (stopped["step"], stopped["reason"]) == (5, "SIGUSR1")
    assert [row.step for row in rows(place)] == [1, 3, 5]
    assert status(place).steps_lost == 3
    assert set(views(place, forked).values()) == {(5, 5 * TOKENS)}
    assert set(checkpoint.steps(place / "checkpoint")) == {4, 5}

    # One rank goes on, and is stopped by a signal to its launcher.
    alone = (*OFTEN, "training.steps=600", "metrics.log_freq=3")
    job = start("run", *alone, *TRACKERS)
    job.wait_for(lambda: progress.of(place).step >= 8)
    os.kill(job.process.pid, signal.SIGTERM)
    code, _, said = job.end()
    assert code == 75, said
    stopped = happened(place, events.STOPPED)[-1]
    assert stopped["reason"] == "SIGTERM"
    assert "stopped by SIGTERM after step" in said
    at = stopped["step"]
    assert rows(place)[-1].step == at
    assert set(views(place, forked).values()) == {(at, at * TOKENS)}

    # It is killed: nobody can say more than what the last sign of life does. (Of W&B and Trackio a
    # process that is killed may leave nothing; they are off here.)
    job = start("run", *alone, *TRACKERS[1:2])
    job.wait_for(lambda: progress.of(place).step > at + 5)
    for pid in job.members():
        os.kill(pid, signal.SIGKILL)
    job.end()
    reached = progress.of(place).step
    assert set(views(place, forked).values()) == {(reached, reached * TOKENS)}
    text = forked("status", str(place)).stdout
    assert re.search(rf"^state +interrupted$\n^step +at least {reached:,} of 600$", text, re.M)
    logged = rows(place)[-1]
    page = (tmp_path / "report.html").read_text()
    where = f" (step {logged.step})"
    for shown in (text, page):
        assert (where in shown) == (logged.step < reached)
    killed = tmp_path / "killed"
    shutil.copytree(place, killed)

    # It ends under pipeline parallelism, where another rank than the first writes rows.
    saved = checkpoint.resumable(place / "checkpoint")[0]
    last = reached + 3
    last += last % 4 == 0
    layout = ("parallelism=pp", "launch.ranks=2", "metrics.log_freq=4")
    job = start("run", *OFTEN, *TRACKERS, *layout, f"training.steps={last}")
    code, shown, said = job.end()
    assert code == 0, said
    assert set(views(place, forked).values()) == {(last, last * TOKENS)}
    assert f"steps    {saved + 1} to {last} in" in shown
    assert f"tokens   {last * TOKENS:,} seen" in shown
    assert checkpoint.steps(place / "checkpoint")[-1] == last
    assert len(checkpoint.steps(place / "checkpoint")) == 2
    found = status(place)
    (interrupted,) = happened(place, events.INTERRUPTED)
    assert (interrupted["step"], interrupted["from_step"]) == (reached, saved)
    assert found.steps_lost == 3 + reached - saved
    after = rows(place)
    assert [row.step for row in after] == sorted({row.step for row in after})
    assert all(row.step % 4 == 0 for row in after if saved < row.step < last)
    assert after[-1].step == last
    assert f"loss     {after[0].loss:.4f} → {after[-1].loss:.4f}" in shown

    # Rates and times belong to one another: no tokens are counted twice, or without their time.
    for row in after:
        assert row.tokens_seen == row.step * TOKENS
        assert row.tokens_per_second * row.step_seconds == pytest.approx(TOKENS, rel=1e-9)

    # Trackers tell the same rows.
    losses = {row.step: row.loss for row in after}
    assert tensorboard(place, "loss_metrics/global_avg_loss") == pytest.approx(losses, rel=1e-6)
    seconds = {row.step: row.step_seconds for row in after}
    assert tensorboard(place, "time_metrics/end_to_end(s)") == pytest.approx(seconds, rel=1e-6)
    speed = {row.step: row.tokens_per_second for row in after}
    ranks = {row.step: 1 if 5 < row.step <= saved else 2 for row in after}
    told_speed = tensorboard(place, "throughput(tps)")
    assert {step: value * ranks[step] for step, value in told_speed.items()} == pytest.approx(
        speed, rel=1e-6
    )
    names, history = wandb(place)
    assert len(names) == 1
    internal = [point["_step"] for point in history]
    assert internal == sorted(set(internal))
    told_them = {step: loss for step, loss in losses.items() if not at < step <= saved}
    for points in (history, trackio(place)):
        counted = that_count(points)
        assert counted == pytest.approx(told_them)

    # The two that are compared have other numbers of rows.
    compared = json.loads(forked("compare", str(place), str(killed), "--json").stdout)["runs"]
    keys = ("step", "tokens seen", "loss of step")
    assert [tuple(run[key] for key in keys) for run in compared] == [
        (last, last * TOKENS, last),
        (reached, reached * TOKENS, logged.step),
    ]


@pytest.mark.slow
def test_unrelated_failures_between_logged_rows_do_not_end_a_run(damaged: Callable) -> None:  # noqa: F811
    """Each process raises in its fourth step: steps 4 and 6, with rows of step 1 alone."""
    job = damaged(
        *("training.steps=7", "metrics.log_freq=10", "checkpoint.interval=2", *SIZE),
        *("checkpoint.async_mode=disabled", "checkpoint.keep_latest_k=2", "launch.ranks=1"),
        layout="single",
        forwards=(4,),
        raises=True,
        rank=0,
    )
    code, shown, said = job.end()
    assert code == 0, said
    failed = happened(job.place, events.FAILED)
    assert [(event["step"], event["restart"]) for event in failed] == [(3, True), (5, True)]
    assert [row.step for row in rows(job.place)] == [1, 7]
    assert "7 in" in shown
    assert checkpoint.steps(job.place / "checkpoint") == [6, 7]
    assert f"weights  {Path('run/checkpoint/step-7')}" in shown
    assert status(job.place).checkpoint == 7
    assert status(job.place).tokens_seen == 7 * TOKENS


@pytest.mark.slow
def test_a_stop_without_a_checkpoint_says_so(damaged: Callable) -> None:  # noqa: F811
    job = damaged(
        *("training.steps=600", "metrics.log_freq=10", "checkpoint.enable=false", *SIZE),
        *("launch.ranks=1", "faults.replay_check_interval=1"),
        layout="single",
        forwards=(999,),
        asked_in=2,  # the first pass of step 1 again: every step is computed twice
        rank=0,
    )
    code, _, said = job.end()
    assert code == 75
    assert "stopped by SIGUSR1 after step 2, without a checkpoint; the same command" in said
    assert said.rstrip().endswith("starts again at step 1")
    (stopped,) = happened(job.place, events.STOPPED)
    assert (stopped["step"], stopped["saved"]) == (2, False)
    # Tokens of a step that is computed twice count once.
    assert [(row.step, row.tokens_seen) for row in rows(job.place)] == [
        (1, TOKENS),
        (2, 2 * TOKENS),
    ]
    assert status(job.place).checkpoint is None


def test_the_best_checkpoint_is_not_looked_for_where_no_loss_is(forked: Callable) -> None:
    result = forked(
        *("train", "checkpoint.keep_best=2", "checkpoint.interval=4", "metrics.log_freq=10"),
        *("tokenizer=bytes", "device=cpu"),
    )
    assert result.returncode == 2
    assert result.stderr.startswith(
        "atom: metrics.log_freq=10 (command line): leaves checkpoints (checkpoint.interval=4) "
        "without a loss that checkpoint.keep_best=2 could compare; valid: 4 or fewer"
    )


@pytest.mark.slow
def test_keep_latest_k_holds_while_checkpoints_are_written_in_the_background(
    start: Callable,
) -> None:
    """Exactly so many at the end, and never more than one beside them."""
    job = start(
        "run",
        *("training.steps=9", "checkpoint.interval=1", "checkpoint.keep_latest_k=2", *SIZE),
        *("checkpoint.async_mode=async", "checkpoint.last_save_model_only=false"),
    )
    most = 0
    while job.process.poll() is None:
        # A new one has a name of its own until it is whole, and an old one when it goes.
        most = max(most, len(checkpoint.steps(job.place / "checkpoint")))
        time.sleep(0.02)
    code, _, said = job.end()
    assert code == 0, said
    assert most <= 3
    assert checkpoint.steps(job.place / "checkpoint") == [8, 9]
