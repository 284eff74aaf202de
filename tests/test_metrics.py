"""``metrics.jsonl`` holds each step once, whole, whatever happens to the processes around it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.errors import UserError
from atom.run_dir.histograms import Histogram, Histograms
from atom.run_dir.metrics import FILE_NAME, MetricsWriter, StepMetrics, follow, last_step, read

DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"

WRITER = """
import sys, time
from pathlib import Path
from atom.run_dir.metrics import MetricsWriter, StepMetrics

path, first, last, pause = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
writer = MetricsWriter(path)
for step in range(first, last + 1):
    writer.append(StepMetrics(
        step=step, loss=1 / step, grad_norm=1.0, lr=1e-3, tokens_seen=step,
        tokens_per_second=time.perf_counter(), step_seconds=1.0, memory_gib=1.0,
    ))
    time.sleep(pause)
"""

naturals = st.integers(min_value=0, max_value=2**63)
rows = st.builds(
    StepMetrics,
    step=naturals,
    loss=st.floats(),
    grad_norm=st.floats(),
    lr=st.floats(),
    tokens_seen=naturals,
    tokens_per_second=st.floats(),
    step_seconds=st.floats(),
    memory_gib=st.floats(),
    mfu=st.none() | st.floats(),
    data=st.none() | st.from_regex("[0-9a-f]{16}", fullmatch=True),
    data_seconds=st.none() | st.floats(),
)


def row(step: int, loss: float = 2.5) -> StepMetrics:
    return StepMetrics(
        step=step,
        loss=loss,
        grad_norm=1.25,
        lr=3e-4,
        tokens_seen=step * 2048,
        tokens_per_second=1000.0,
        step_seconds=2.048,
        memory_gib=0.5,
    )


def write(path: Path, *steps: int, loss: float = 2.5) -> None:
    """Append as one process would, from its first row to its end."""
    writer = MetricsWriter(path)
    for step in steps:
        writer.append(row(step, loss))
    writer.close()


def steps(path: Path) -> list[int]:
    return [metrics.step for metrics in read(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


# ---------------------------------------------------------------------------- one row


@given(rows)
def test_a_row_survives_json(metrics: StepMetrics) -> None:
    line = metrics.to_json()
    assert "\n" not in line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = StepMetrics.from_json(line)
    for field in dataclasses.fields(StepMetrics):
        before, after = getattr(metrics, field.name), getattr(back, field.name)
        if before is None or isinstance(before, str) or math.isfinite(before):
            assert after == before
            assert type(after) is type(before)
        else:
            assert math.isnan(after)


def test_unknown_mfu_is_left_out_and_not_finite_is_null() -> None:
    values = json.loads(row(1, loss=math.inf).to_json())
    assert "mfu" not in values
    assert values["loss"] is None


def test_histograms_survive_json() -> None:
    found = {"h": Histograms([-1.0, 0.0, 2.0], {"w/0": [0.123456, 7], "w/1": [0, 0]})}
    line = dataclasses.replace(row(1), histograms=found).to_json()
    assert json.loads(line)["histograms"]["h"]["counts"] == {"w/0": [0.1235, 7], "w/1": [0, 0]}
    back = (StepMetrics.from_json(line).histograms or {})["h"]
    drawn = {name: each.trimmed() for name, each in back.each()}
    assert drawn == {"w/0": Histogram([-1.0, 0.0, 2.0], [0.1235, 7]), "w/1": None}
    assert Histogram([0, 1, 2, 3, 4], [0, 5, 0, 0]).trimmed() == Histogram([1, 2], [5])
    assert "histograms" not in json.loads(row(1).to_json())


def test_values_of_callbacks_survive_json() -> None:
    values = {"norms": {"grad/0": 0.5, "grad/1": math.inf}, "none": {}}
    line = dataclasses.replace(row(1), callbacks=values).to_json()
    assert json.loads(line)["callbacks"]["norms"] == {"grad/0": 0.5, "grad/1": None}
    back = StepMetrics.from_json(line).callbacks
    assert back is not None
    assert math.isnan(back["norms"].pop("grad/1"))
    assert back == {"norms": {"grad/0": 0.5}, "none": {}}
    assert "callbacks" not in json.loads(row(1).to_json())


def test_keys_of_a_later_version_are_passed_over() -> None:
    values = json.loads(row(1).to_json())
    assert StepMetrics.from_json(json.dumps(values | {"added_later": [1]})) == row(1)


@pytest.mark.parametrize(
    "change",
    [
        *({"step": 1.5}, {"step": None}, {"step": True}),
        *({"loss": "low"}, {"loss": False}, {"lr": []}),
        *({"histograms": 1}, {"histograms": {"h": {"edges": [0, 1]}}}),
        *(
            {"histograms": {"h": {"edges": edges, "counts": {"w": counts}}}}
            for edges, counts in (
                *(([0, 1], [1, 2]), ([1, 0], [1]), ([0], []), ([0, 1], [-1]), ([0, 1], ["1"])),
                *(([0, None], [1]), ([0, 1], [True]), ([0, 1], 1), (list(range(514)), [0] * 513)),
            )
        ),
        *({"callbacks": 1}, {"callbacks": {"norms": 1}}, {"callbacks": {"norms": {"a": True}}}),
    ],
)
def test_a_wrong_type_is_refused_by_name(change: dict[str, object]) -> None:
    values = json.loads(row(1).to_json())
    with pytest.raises(ValueError, match=next(iter(change))):
        StepMetrics.from_json(json.dumps(values | change))


@pytest.mark.parametrize("line", ["", "{", "[]", "7", "{}", "\0\0\0"])
def test_what_is_no_row_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each line is wrong in its own way)
        StepMetrics.from_json(line)


# ---------------------------------------------------------------------------- read


def test_no_file_has_no_rows(path: Path) -> None:
    assert read(path) == []


def test_a_half_line_is_not_read(path: Path) -> None:
    write(path, 1, 2)
    with path.open("a") as file:
        file.write(row(3).to_json())
    assert steps(path) == [1, 2]


@pytest.mark.parametrize("size", [0, 100, 400, 5000])
def test_the_last_step_is_found_whatever_the_length_of_rows(size: int, path: Path) -> None:
    """Callbacks of large models log thousands of values."""
    assert last_step(path) == 0
    values = {"norms": {f"gradient/layers.{n}": 0.5 for n in range(size)}}
    for step in (1, 2, 3):
        writer = MetricsWriter(path)
        writer.append(dataclasses.replace(row(step), callbacks=values))
        writer.close()
        assert last_step(path) == step
    with path.open("a") as file:
        file.write(row(4).to_json())
    assert last_step(path) == 3


def test_a_foreign_line_is_an_error_that_says_where(path: Path) -> None:
    write(path, 1)
    with path.open("a") as file:
        file.write("hello\n")
    with pytest.raises(UserError, match=f"line 2 of {re.escape(str(path))}"):
        read(path)


# ---------------------------------------------------------------------------- restarts


@given(
    lives=st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=8),  # checkpoint to resume from, if so far
            st.integers(min_value=1, max_value=6),  # steps taken until killed
            st.integers(min_value=0, max_value=40),  # bytes of the next row, written when killed
        ),
        min_size=1,
        max_size=6,
    )
)
def test_each_step_is_there_once_after_any_restarts(
    tmp_path_factory: pytest.TempPathFactory, lives: list[tuple[int, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("run") / FILE_NAME
    expected: dict[int, float] = {}
    rolled_back: list[tuple[int, float]] = []
    for life, (checkpoint, taken, torn) in enumerate(lives):
        first = min(checkpoint, len(expected)) + 1
        rolled_back += [(step, loss) for step, loss in expected.items() if step >= first]
        expected = {step: loss for step, loss in expected.items() if step < first}
        expected |= {step: float(life) for step in range(first, first + taken)}
        write(path, *range(first, first + taken), loss=life)
        with path.open("ab") as file:
            file.write(row(first + taken).to_json().encode()[:torn])

    assert [(metrics.step, metrics.loss) for metrics in read(path)] == list(expected.items())
    aside = read(path.with_name("metrics.rolled_back.jsonl"))
    assert [(metrics.step, metrics.loss) for metrics in aside] == rolled_back


def test_the_file_is_kept_where_nothing_is_rolled_back(path: Path) -> None:
    write(path, 1, 2)
    inode = path.stat().st_ino
    write(path, 3)
    assert (steps(path), path.stat().st_ino) == ([1, 2, 3], inode)
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]


def test_a_step_back_within_a_process_rolls_back_too(path: Path) -> None:
    write(path, 1, 2, 3, 2)
    assert steps(path) == [1, 2]
    assert steps(path.with_name("metrics.rolled_back.jsonl")) == [2, 3]


def test_a_foreign_line_is_moved_aside(path: Path) -> None:
    write(path, 1)
    with path.open("a") as file:
        file.write("hello\n")
    write(path, 2)
    assert steps(path) == [1, 2]
    assert path.with_name("metrics.rolled_back.jsonl").read_text() == "hello\n"


def test_a_kill_between_the_two_files_moves_no_row_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, 1, 2, 3)
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == path:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(path, 2)
    assert steps(path) == [1, 2, 3]
    write(path, 2)
    assert steps(path) == [1, 2]
    assert steps(path.with_name("metrics.rolled_back.jsonl")) == [2, 3]


def test_a_full_disk_holds_back_whole_rows_and_only_the_end_insists(path: Path) -> None:
    write(path, 1, 2)
    size = path.stat().st_size
    limit = size + 10
    appended = "print('appended')\n"
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            script + WRITER + appended + "writer.close()",
            str(path),
            "3",
            "3",
            "0",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stdout == "appended\n"
    assert "No space left on device" in child.stderr
    assert path.stat().st_size == size
    write(path, 3)
    assert steps(path) == [1, 2, 3]


# ---------------------------------------------------------------------------- follow


def process(path: Path, first: int, last: int, pause: float = 0.0) -> subprocess.Popen[bytes]:
    arguments = [str(path), str(first), str(last), str(pause)]
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments])


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``follow`` look often, so that tests need not wait for it."""
    monkeypatch.setattr("atom.run_dir.metrics.POLL_SECONDS", 0.02)


class Follower:
    """``follow`` at work in a thread."""

    def __init__(self, path: Path, *, from_now: bool = False) -> None:
        self.steps: list[int] = []
        self._stop = threading.Event()
        rows = follow(path, self._stop, from_now=from_now)
        self._thread = threading.Thread(target=self._run, args=(rows,))
        self._thread.start()

    def _run(self, rows: Iterator[StepMetrics]) -> None:
        for metrics in rows:
            self.steps.append(metrics.step)

    def wait_for(self, step: int) -> None:
        end = time.monotonic() + 10
        while step not in self.steps:
            assert time.monotonic() < end, f"step {step} is not among {self.steps}"
            time.sleep(0.02)

    def stop(self) -> list[int]:
        self._stop.set()
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()
        return self.steps


def test_follow_sees_every_row_of_a_fast_writer_once(path: Path) -> None:
    follower = Follower(path)  # the file does not exist yet
    assert process(path, 1, 3000).wait() == 0
    assert follower.stop() == list(range(1, 3001))


def test_follow_goes_on_through_a_kill_and_a_roll_back(path: Path) -> None:
    follower = Follower(path)
    killed = process(path, 1, 1000, pause=0.02)
    follower.wait_for(7)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    reached = steps(path)[-1]
    with path.open("a") as file:
        file.write('{"step": 1')
    assert process(path, 5, 9).wait() == 0
    assert follower.stop() == [*range(1, reached + 1), *range(5, 10)]
    assert steps(path) == list(range(1, 10))


def test_follow_from_now_leaves_out_what_is_there_even_after_a_roll_back(path: Path) -> None:
    write(path, *range(1, 8))
    follower = Follower(path, from_now=True)
    assert process(path, 5, 9).wait() == 0
    assert follower.stop() == [5, 6, 7, 8, 9]


def test_from_now_means_the_call_and_not_the_first_row(path: Path) -> None:
    write(path, 1)
    followed = follow(path, stop=lambda: True, from_now=True)
    write(path, 2)
    assert [metrics.step for metrics in followed] == [2]


def test_follow_yields_what_was_written_before_it_was_stopped(path: Path) -> None:
    def stop() -> bool:
        write(path, 1)
        return True

    assert [metrics.step for metrics in follow(path, stop)] == [1]


def test_follow_starts_again_in_a_truncated_file(path: Path) -> None:
    write(path, 1, 2, 3)
    follower = Follower(path)
    follower.wait_for(3)
    os.truncate(path, 0)
    time.sleep(0.1)
    with path.open("a") as file:
        file.write(row(1).to_json() + "\n")
    assert follower.stop() == [1, 2, 3, 1]


def test_follow_waits_for_the_end_of_a_line(path: Path) -> None:
    whole = row(1).to_json() + "\n"
    path.write_text(whole[:20])
    follower = Follower(path)
    time.sleep(0.1)
    assert follower.steps == []
    with path.open("a") as file:
        file.write(whole[20:])
    assert follower.stop() == [1]


def test_follow_passes_over_a_foreign_line(path: Path) -> None:
    path.write_text(f"hello\n{row(1).to_json()}\n")
    assert [metrics.step for metrics in follow(path, stop=lambda: True)] == [1]


def test_nothing_is_left_open(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        write(path, 1, 2, 1)
        assert list(follow(path, stop=lambda: True, from_now=True)) == []
        followed = follow(path, stop=lambda: False)
        next(followed)
        followed.close()  # type: ignore[attr-defined]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ---------------------------------------------------------------------------- documentation


def test_the_documentation_lists_every_field_in_order() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), flags=re.MULTILINE)
    assert documented == [field.name for field in dataclasses.fields(StepMetrics)]


def test_the_documented_lines_are_rows() -> None:
    block = re.search(r"```json\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert block is not None
    for line in block[1].splitlines():
        assert json.loads(StepMetrics.from_json(line).to_json()) == json.loads(line)
