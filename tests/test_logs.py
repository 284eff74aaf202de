"""What processes say ends in their own files, whole, and not on the terminal."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atom.run_dir import logs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def in_child(function: Callable[[], None], terminal: Path | None = None) -> None:
    """Call ``function`` in a forked child whose standard output and error are ``terminal``."""
    pid = os.fork()
    if pid == 0:
        try:
            with Path(terminal or os.devnull).open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            function()
            sys.stdout.flush()
        except BaseException:
            (terminal or Path(os.devnull)).write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, terminal and terminal.read_text()


def records(path: Path) -> list[dict[str, object]]:
    def refuse(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def fail() -> None:
    raise ZeroDivisionError("by zero")


def test_structlog_and_logging_write_the_same_keys_in_the_same_order(folder: Path) -> None:
    def rank() -> None:
        logs.setup_rank(folder, 3)
        structlog.get_logger("atom.test").info("built %s", "model", parameters=7)
        logging.getLogger("atom.test").info("built %s", "model", extra={"parameters": 7})

    in_child(rank)
    first, second = records(folder / "rank_3.jsonl")
    assert list(first) == ["time", "level", "event", "rank", "logger", "parameters"]
    assert [*first] == [*second]
    del first["time"]
    stamp = second.pop("time")
    assert isinstance(stamp, str)
    assert stamp.endswith("Z")
    assert datetime.fromisoformat(stamp).utcoffset() == timedelta(0)
    assert first == second
    assert first == {
        "level": "info",
        "event": "built model",
        "rank": 3,
        "logger": "atom.test",
        "parameters": 7,
    }


def test_only_what_is_worth_telling_is_written(folder: Path) -> None:
    def rank() -> None:
        logs.setup_rank(folder, 0)
        logging.getLogger().debug("detail")
        structlog.get_logger().debug("detail")
        logging.getLogger().warning("odd")

    in_child(rank)
    (record,) = records(folder / "rank_0.jsonl")
    assert (record["level"], record["event"], record["logger"]) == ("warning", "odd", "root")


def test_exceptions_are_a_field(folder: Path) -> None:
    def rank() -> None:
        logs.setup_rank(folder, 0)
        for logger in (structlog.get_logger(), logging.getLogger()):
            try:
                fail()
            except ZeroDivisionError:
                logger.exception("failed")

    in_child(rank)
    written = records(folder / "rank_0.jsonl")
    assert len(written) == 2
    for record in written:
        assert record["level"] == "error"
        assert str(record["exception"]).startswith("Traceback")
        assert str(record["exception"]).endswith("ZeroDivisionError: by zero")


def test_warnings_are_records(folder: Path) -> None:
    def rank() -> None:
        warnings.simplefilter("always")
        logs.setup_rank(folder, 0)
        warnings.warn("careful", stacklevel=1)

    in_child(rank)
    (record,) = records(folder / "rank_0.jsonl")
    assert (record["level"], record["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: careful" in str(record["event"])


def test_a_field_with_the_name_of_one_of_ours_is_kept_beside_it(folder: Path) -> None:
    def rank() -> None:
        logs.setup_rank(folder, 1)
        structlog.get_logger().info("moved", rank=5, time="noon")

    in_child(rank)
    (record,) = records(folder / "rank_1.jsonl")
    assert (record["rank"], record["rank_"], record["time_"]) == (1, 5, "noon")


def test_colors_of_a_message_are_left_out(folder: Path) -> None:
    def rank() -> None:
        logs.setup_rank(folder, 0)
        logging.getLogger().info("\x1b[31mstep: %d\x1b[0m", 3)

    in_child(rank)
    (record,) = records(folder / "rank_0.jsonl")
    assert record["event"] == "step: 3"


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary()
    | st.builds(Opaque)
    # Surrogates too: paths that are not UTF-8 hold them.
    | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.tuples(st.integers()), inner),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(event=st.text(st.characters()), value=values)
def test_whatever_is_logged_is_one_line_of_json(folder: Path, event: str, value: object) -> None:
    handler = logs._json_handler(folder / "any.jsonl", rank=0)
    record = logging.makeLogRecord({"msg": event, "levelname": "INFO", "value": value})
    before = (folder / "any.jsonl").stat().st_size
    handler.emit(record)
    handler.close()
    content = (folder / "any.jsonl").read_bytes()[before:]
    assert content.count(b"\n") == 1
    assert content.endswith(b"\n")
    written = json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert written["event"] == event
    assert "value" in written


def test_lines_stay_whole_when_forked_processes_share_a_file(folder: Path) -> None:
    def rank() -> None:
        logs.setup_rank(folder, 0)
        children = []
        for child in range(4):
            pid = os.fork()
            if pid == 0:
                for number in range(100):
                    logging.getLogger().info("x" * 20_000, extra={"child": child, "n": number})
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)

    in_child(rank)
    written = records(folder / "rank_0.jsonl")
    assert len(written) == 400
    for child in range(4):
        assert [record["n"] for record in written if record["child"] == child] == list(range(100))


def test_a_forked_rank_leaves_the_launchers_log_alone(folder: Path) -> None:
    def launcher() -> None:
        logs.setup_launcher(folder / "launcher.jsonl")
        logging.getLogger().info("before")
        in_child(rank)
        structlog.get_logger("atom").info("after")

    def rank() -> None:
        logs.setup_rank(folder, 0)
        logging.getLogger().info("inside")

    in_child(launcher)
    assert [record["event"] for record in records(folder / "rank_0.jsonl")] == ["inside"]
    written = records(folder / "launcher.jsonl")
    assert [record["event"] for record in written] == ["before", "after"]
    assert all("rank" not in record for record in written)


def test_setting_up_twice_replaces_the_first_and_leaks_nothing(folder: Path) -> None:
    def rank() -> None:
        logs.redirect_output(folder, 0)
        logs.setup_rank(folder, 0)
        before = open_files()
        for _ in range(5):
            logs.redirect_output(folder, 1)
            logs.setup_rank(folder, 1)
        assert open_files() == before
        logging.getLogger().info("once")
        print("printed")

    in_child(rank, terminal=folder / "terminal")
    assert records(folder / "rank_0.jsonl") == []
    assert [record["event"] for record in records(folder / "rank_1.jsonl")] == ["once"]
    assert (folder / "rank_1.txt").read_text() == "printed\n"
    assert (folder / "terminal").read_text() == ""


# ---------------------------------------------------------------------------- the terminal


def speak() -> None:
    logging.getLogger().info("told", extra={"step": 4})
    print("printed ü")
    sys.stderr.write("complained\n")
    os.write(1, b"raw\n")
    subprocess.run(["sh", "-c", "echo child >&2"], check=True)


def test_nothing_reaches_the_terminal(folder: Path) -> None:
    def rank() -> None:
        print("before", end="")  # still in the buffer, and meant for the terminal
        logs.redirect_output(folder, 2)
        logs.setup_rank(folder, 2)
        speak()

    in_child(rank, terminal=folder / "terminal")
    assert (folder / "terminal").read_text() == "before"
    assert (folder / "rank_2.txt").read_text() == "printed ü\ncomplained\nraw\nchild\n"


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_verbose_shows_rank_0_alone(folder: Path, rank: int, lines: int) -> None:
    def work() -> None:
        logs.redirect_output(folder, rank)
        logs.setup_rank(folder, rank, verbose=True)
        speak()

    in_child(work, terminal=folder / "terminal")
    shown = (folder / "terminal").read_text().splitlines()
    assert len(shown) == lines
    assert all("told" in line and "step=4" in line and "\x1b" not in line for line in shown)
    assert len(records(folder / f"rank_{rank}.jsonl")) == 1


def test_verbose_tracebacks_are_readable(folder: Path) -> None:
    def work() -> None:
        logs.setup_rank(folder, 0, verbose=True)
        try:
            fail()
        except ZeroDivisionError:
            structlog.get_logger().exception("failed")

    in_child(work, terminal=folder / "terminal")
    shown = (folder / "terminal").read_text()
    assert "failed" in shown
    assert shown.rstrip().endswith("ZeroDivisionError: by zero")


def test_empty_output_is_removed(folder: Path) -> None:
    def rank(number: int, says: str) -> None:
        logs.redirect_output(folder, number)
        logs.setup_rank(folder, number)
        sys.stdout.write(says)

    in_child(lambda: rank(0, ""))
    in_child(lambda: rank(1, "x\n"))
    logs.remove_if_empty(folder)
    assert sorted(path.name for path in folder.glob("*.txt")) == ["rank_1.txt"]
    assert sorted(path.name for path in folder.glob("*.jsonl")) == ["rank_0.jsonl", "rank_1.jsonl"]
