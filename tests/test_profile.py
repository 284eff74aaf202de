"""`profile.steps`: a trace of a few steps, and where their time went."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atom.cli import main
from atom.errors import UserError
from atom.recipe.components import ONE
from atom.recipe.run import Run, parse
from atom.run_dir import profile

MAIN, WORKER, OTHER_WORKER, DEVICE = 1, 2, 3, 7


def event(
    name: str, begin: float, end: float, tid: int = MAIN, cat: str = "cpu_op", **args: Any
) -> dict:
    """An event between two times in seconds."""
    times = {"ts": begin * 1e6, "dur": (end - begin) * 1e6}
    return {"ph": "X", "name": name, "cat": cat, "tid": tid, "args": args, **times}


def step(number: int, begin: float, end: float) -> dict:
    return event(f"ProfilerStep#{number}", begin, end, cat="user_annotation")


def test_every_second_of_a_step_is_counted_once() -> None:
    events = [
        {"ph": "M", "name": "process_name"},
        step(9, 100, 110),
        event(profile.DATA, 100, 101, cat="user_annotation"),
        event("aten::stack", 100.2, 100.8),
        event("aten::mm", 101, 104),
        event("aten::inner", 102, 103),
        event("FSDP::pre_forward", 104, 106, cat="user_annotation"),
        event("gloo:all_gather", 103, 105, tid=WORKER, cat="user_annotation"),
        event("evaluate_function", 106, 109),
        event("_c10d_functional::wait_tensor", 107, 108),
        event("gloo:all_reduce", 107, 107.5, tid=OTHER_WORKER, cat="user_annotation"),
        event("gloo:recv", 109, 109.5, cat="user_annotation"),
        event("aten::late", 111, 112),
    ]
    (found,) = profile.shares(
        {"traceEvents": events}, {WORKER: "mesh_dp_shard", OTHER_WORKER: "mesh_tp"}
    )
    assert found.step == 10
    assert found.data == pytest.approx(1)
    assert found.compute == pytest.approx(3 + 2)
    assert found.communication == pytest.approx({"dp_shard": 1, "tp": 0.5, "unknown": 0.5})
    assert found.bubble == pytest.approx(0.5)
    assert found.other == pytest.approx(1.5)
    assert found.seconds == pytest.approx(10)


def test_on_a_gpu_the_device_counts() -> None:
    """As kineto writes kernels; made by hand, for there is no GPU here."""

    def kernel(name: str, begin: float, end: float, **args: Any) -> dict:
        return event(name, begin, end, tid=DEVICE, cat="kernel", **args)

    description = "Process Group Description"
    events = [
        step(0, 0, 10),
        event("aten::mm", 0, 0.1),
        kernel("sm90_gemm", 1, 4),
        kernel("ncclDevKernel_AllGather", 3, 6, **{description: "mesh_fsdp"}),
        kernel("ncclDevKernel_SendRecv", 6, 7, **{description: "mesh_pp"}),
        event("Memcpy HtoD", 7, 8, tid=DEVICE, cat="gpu_memcpy"),
    ]
    (found,) = profile.shares({"traceEvents": events}, {})
    assert (found.compute, found.bubble, found.other) == pytest.approx((4, 1, 3))
    assert found.communication == pytest.approx({"fsdp": 2})


def test_a_trace_without_steps_has_no_shares() -> None:
    assert profile.shares({"traceEvents": [event("aten::mm", 0, 1)]}, {}) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [("12-10", "FIRST-LAST"), ("0", "FIRST-LAST"), ("ten", "FIRST-LAST"), ("-3", "FIRST-LAST")],
)
def test_wrong_steps_are_told(wrong: str, says: str, forked: Callable) -> None:
    result = forked("train", "device=cpu", f"profile.steps={wrong}")
    assert result.returncode == 2
    assert result.stderr.startswith(f"atom: profile.steps={wrong} (command line): ")
    assert says in result.stderr


def test_steps_become_the_profiler_of_torchtitan() -> None:
    from torchtitan.tools.profiler import Profiler

    from atom.titan.train import profiling

    def asked(steps: int | str | None) -> Run:
        sections = {kind: {"name": "x"} for kind in ONE}
        return parse(sections | {"profile": {"steps": steps}})

    given = Profiler.Config()
    assert profiling.config(asked(None), given, steps=20, device="cpu") is given
    found = profiling.config(asked("10-12"), given, steps=20, device="cpu")
    schedule = (found.profiler_skip_first, found.profiler_warmup, found.profiler_active)
    assert schedule == (8, 1, 3)
    assert not found.enable_memory_snapshot, "a CPU has none"
    assert profiling.config(asked(1), given, steps=1, device="cuda").enable_memory_snapshot
    with pytest.raises(UserError, match="ends after step 11"):
        profiling.config(asked("10-12"), given, steps=11, device="cpu")
    with pytest.raises(UserError, match="one of the two"):
        profiling.config(asked(2), Profiler.Config(enable_profiling=True), steps=11, device="cpu")


@pytest.mark.slow
def test_steps_of_a_run_are_profiled(train: Callable[..., list[dict]], tmp_path: Path) -> None:
    place = tmp_path / "run"
    rows = train(
        place, "parallelism=tp", "launch.ranks=2", "profile.steps=2-3", "training.steps=4",
        "checkpoint.enable=false",
    )  # fmt: skip
    found = profile.read(place)
    assert list(found) == [0, 1]
    traces = sorted(place.glob("profile/*/rank*_trace.json.gz"))
    assert len(traces) == 2
    steps = []
    for shares, path in zip(found.values(), traces, strict=True):
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
        assert {"aten::mm", profile.DATA, "gloo:all_reduce"} <= {one.get("name") for one in events}
        whole = {
            int(one["name"].partition("#")[2]) + 1: (one["ts"] / 1e6, one["dur"] / 1e6)
            for one in events
            if one["name"].startswith("ProfilerStep#") and one["cat"] == "user_annotation"
        }
        # torch counts the steps that have ended.
        assert [one.step for one in shares] == sorted(whole) == [2, 3]
        for one in shares:
            assert one.compute > 0
            # Tensor parallelism over all ranks uses the group of all ranks.
            assert one.communication["world"] > 0
            assert one.data > 0
            assert one.bubble == 0
            assert one.seconds == pytest.approx(whole[one.step][1], rel=1e-6)
        steps.append(whole)
    # The run times a step from one row to the next, within the steps of the trace: what the rank
    # does between (start the profiler, let another process run) belongs to one of two neighbours.
    second, third = found[0]
    timed = {row["step"]: row["step_seconds"] for row in rows}
    assert second.seconds < timed[2] + timed[3]
    assert third.seconds < timed[3] + timed[4]
    assert timed[3] < (sum(steps[0][3]) - steps[0][2][0]) * 1.01
    for one in second, third:
        assert 0 < rows[one.step - 1]["data_seconds"] < one.data * 1.01 < timed[one.step] * 1.02
    assert main(["report", str(place)]) == 0
    page = (place / "report.html").read_text()
    assert "world exposed" in page
    assert "Steps 2 to 3" in page
