"""What a person sees: on a real terminal, in a pipe, in any encoding and at any width."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import math
import os
import pty
import re
import statistics
import struct
import subprocess
import sys
import termios
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from atom.io.numbers import clock, human, sparkline
from atom.run_dir.metrics import SHOWN, Shown, StepMetrics
from atom.watch.screen import Header, Screen, _columns

HEADER = Header(
    run_dir="outputs/2026-11-24/16-14-50",
    model="llama3_tiny (llama3)",
    parameters=6_123_456,
    tokenizer="bpe",
    vocab_size=4096,
    dataset="stdlib",
    device="cpu",
    ranks=16,
    layout=[("dp_replicate", 1), ("dp_shard", 2), ("tp", 2), ("pp", 2), ("cp", 2)],
    schedule="1F1B",
    batch="8 sequences × 256 tokens = 2,048 tokens a step",
    steps=50,
    kernels=[
        ("attention", "sdpa"),
        *((name, "torch") for name in ("rms_norm", "rope", "swiglu", "cross_entropy", "linear")),
        ("optimizer", "fused"),
    ],
    resumed_from=None,
)


def row(step: int, loss: float | None = None, mfu: float | None = None) -> StepMetrics:
    return StepMetrics(
        step=step,
        loss=10 - step / 10 if loss is None else loss,
        grad_norm=1.234,
        lr=3e-4,
        tokens_seen=2048 * step,
        tokens_per_second=12_345.4,
        step_seconds=0.45,
        memory_gib=1.21,
        mfu=mfu,
    )


class Piped:
    """A screen whose stream is no terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self._stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        self.screen = Screen(self._stream)

    @property
    def text(self) -> str:
        self._stream.flush()
        return self._stream.buffer.getvalue().decode(self._stream.encoding)  # type: ignore[attr-defined]


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from atom.watch.screen import Screen
from test_screen import HEADER, row

screen = Screen(verbose="-v" in sys.argv)
"""


def script(body: str) -> list[str]:
    head = SCRIPT.format(tests=str(Path(__file__).parent))
    return [sys.executable, "-c", head + textwrap.dedent(body)]


WHOLE_RUN = """
screen.header(HEADER)
screen.starting("starting 16 ranks")
time.sleep(0.1)
for step in range(1, 51):
    screen.step(row(step))
    time.sleep(0.3 if step == 25 else 0)
    if step == 7:
        screen.note("a note")
screen.close()
screen.summary([row(step) for step in range(1, 51)], "outputs/none", 27.2)
"""


def on_terminal(
    body: str, *arguments: str, columns: int = 80, **environment: str
) -> tuple[int, str]:
    """Run ``body`` on a pseudo terminal; return its exit code and all that it wrote."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE")
    }
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    child = subprocess.Popen(
        [*script(body), *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=kept | {"TERM": "xterm-256color"} | environment,
    )
    os.close(slave)
    written = b""
    try:
        while block := os.read(master, 1 << 16):
            written += block
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    os.close(master)
    return child.wait(), written.decode()


def displayed(written: str) -> list[str]:
    """Return the lines that a terminal shows after it was sent ``written``."""
    lines, y, x = [""], 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\s\S]", written):
        if token == "\n":
            y += 1
            lines += [""] * (y + 1 - len(lines))
        elif token == "\r":
            x = 0
        elif token == "\x1b[2K":
            lines[y] = ""
        elif match := re.fullmatch(r"\x1b\[(\d*)A", token):
            y -= int(match[1] or 1)
        elif not re.fullmatch(r"\x1b\[([\d;]*m|\?25[lh])", token):
            assert token.isprintable(), f"{token!r} is not expected"
            lines[y] = lines[y].ljust(x)[:x] + token + lines[y][x + 1 :]
            x += 1
    return [line.rstrip() for line in lines]


@pytest.fixture(scope="module")
def whole_run() -> str:
    code, written = on_terminal(WHOLE_RUN)
    assert code == 0, written
    return written


# ---------------------------------------------------------------------------- in a pipe


def test_a_step_is_one_line() -> None:
    piped = Piped()
    piped.screen.header(HEADER)
    before = piped.text
    piped.screen.step(row(10, loss=5.12344))
    assert piped.text.removeprefix(before) == (
        "step 10/50  loss 5.1234  grad_norm 1.23  lr 3.0e-04  12,345 tok/s  0.45 s/step  1.2 GiB"
        "  left 0:18\n"
    )


def test_mfu_is_told_where_it_is_known() -> None:
    piped = Piped()
    piped.screen.step(row(1))
    assert "mfu" not in piped.text
    piped.screen.step(row(2, mfu=0.412))
    assert "mfu 41.2%" in piped.text


def test_a_field_is_shown_as_its_row_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a measured metric is one field, how it is shown, and its value: two files."""
    shown = Shown("{:,.0f}".format, "{} tokens", "tokens", 9)
    monkeypatch.setitem(SHOWN, "tokens_seen", shown)
    piped = Piped()
    piped.screen.step(row(1))
    assert "1.2 GiB  2,048 tokens\n" in piped.text
    heads = [column.head for column in _columns(row(1), 10, 200)]
    assert heads[-1] == "tokens"
    assert "tokens" not in [column.head for column in _columns(row(1), 10, 60)]


def test_without_a_header_the_end_is_not_known() -> None:
    piped = Piped()
    piped.screen.step(row(3))
    assert piped.text.startswith("step 3  loss 9.7000")
    assert "left" not in piped.text


def test_a_pipe_gets_plain_lines() -> None:
    kept = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    environment = kept | {"TERM": "xterm-256color", "COLUMNS": "60"}
    piped = subprocess.run(
        script(WHOLE_RUN), capture_output=True, check=True, text=True, env=environment
    )
    lines = piped.stdout.split("\n")
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line != line.rstrip()] == []
    assert lines.count("starting 16 ranks …") == 1
    assert lines.count("a note") == 1
    steps = [line for line in lines if line.startswith("step ")]
    assert [int(line[5:7]) for line in steps] == list(range(1, 51))
    assert all("left" in line for line in steps)


def test_a_screen_without_a_header_can_be_told_the_end() -> None:
    piped = Piped()
    piped.screen.starting("starting", steps=50)
    piped.screen.step(row(3))
    assert "step  3/50" in piped.text
    assert "left 0:21" in piped.text


def test_the_header_says_what_will_run() -> None:
    piped = Piped()
    piped.screen.header(dataclasses.replace(HEADER, resumed_from=20))
    lines = piped.text.splitlines()
    assert lines[0] == "llama3_tiny (llama3), 6.1 M parameters"
    assert "steps    50, resumed after step 20" in lines
    assert "layout   16 ranks on cpu" in lines
    assert "         dp_shard  2  parameters (FSDP)" in lines
    assert "         pp        2  layers, schedule 1F1B" in lines
    assert "         not split: dp_replicate" in lines
    assert "kernels  sdpa   attention" in lines
    assert "         torch  rms_norm, rope, swiglu, cross_entropy, linear" in lines


def test_a_single_rank_splits_nothing() -> None:
    piped = Piped()
    layout = [(name, 1) for name, _ in HEADER.layout]
    piped.screen.header(dataclasses.replace(HEADER, ranks=1, layout=layout, kernels=[]))
    assert "layout   1 rank on cpu" in piped.text
    assert "not split: dp_replicate, dp_shard, tp, pp, cp" in piped.text
    assert "kernels" not in piped.text


def test_names_cannot_steer_the_terminal() -> None:
    piped = Piped()
    evil = "a\x1b[2Jb\r\x9b1A"
    piped.screen.header(dataclasses.replace(HEADER, run_dir=evil, model=evil, dataset=evil))
    piped.screen.starting(evil)
    piped.screen.note(f"{evil}\nsecond line")
    assert all(line.isprintable() for line in piped.text.split("\n"))
    assert "second line\n" in piped.text


def test_square_brackets_are_text() -> None:
    piped = Piped()
    piped.screen.note("[red]loss[/red] :warning:")
    assert piped.text == "[red]loss[/red] :warning:\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_can_show_a_run(encoding: str) -> None:
    piped = Piped(encoding)
    piped.screen.header(dataclasses.replace(HEADER, run_dir="äußerst/日本/\udcff"))
    piped.screen.starting("starting")
    losses = [row(step) for step in range(1, 20)]
    piped.screen.step(losses[0])
    piped.screen.summary(losses, "outputs/äußerst", 3)
    assert ("█" in piped.text) is (encoding == "utf-8")
    if encoding == "ascii":
        assert "8 sequences x 256 tokens" in piped.text
        assert "loss     9.9000 -> 8.1000" in piped.text


# ---------------------------------------------------------------------------- on a terminal


def test_a_terminal_keeps_about_ten_rows_and_no_bar(whole_run: str) -> None:
    written = whole_run
    assert "25/50" in written
    assert "left 0:11" in written
    assert re.search(r"starting 16 ranks …\S* 0:00", written)
    lines = displayed(written)
    kept = [int(line[:4]) for line in lines if re.match(r" *\d+ ", line)]
    assert kept == [1, *range(5, 51, 5)]
    assert not any("left" in line or "starting" in line or "━" in line for line in lines)
    assert lines.count("a note") == 1
    assert any(line.startswith("loss     9.9000 → 5.0000") for line in lines)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_the_bar_moves_between_rows_too() -> None:
    """Of a run that logs few of its steps."""
    code, written = on_terminal(
        """
        screen.header(HEADER)
        screen.starting("starting 16 ranks")
        assert not screen.has_steps
        screen.reached(3)
        assert screen.has_steps
        time.sleep(0.3)
        screen.step(row(10))
        screen.reached(17)
        time.sleep(0.3)
        screen.close()
        """
    )
    assert code == 0, written
    assert "step 3/50" in written
    assert "17/50" in written
    kept = [int(line[:4]) for line in displayed(written) if re.match(r" *\d+ ", line)]
    assert kept == [10]


def test_the_bar_does_not_lag_behind_the_row_above_it(whole_run: str) -> None:
    rows = list(re.finditer(r"(?:K|\n) *(\d+) [^\n]*GiB", whole_run))
    assert len(rows) == 11
    for found in rows[:-1]:
        # Once with the row, as it was, and once at once after it.
        _, bar = re.findall(r"(\d+)/50", whole_run[found.end() :])[:2]
        assert int(bar) >= int(found[1])


@pytest.mark.parametrize("columns", [60, 80, 132])
def test_nothing_is_wider_than_the_terminal(columns: int) -> None:
    body = """
    import dataclasses
    names = [(name, name[::-1]) for name in "attention rms_norm rope swiglu grouped_mm".split()]
    many = [(f"operation_{number}", "a_rather_long_kernel") for number in range(12)]
    screen.header(dataclasses.replace(
        HEADER, run_dir="/a/very/long/path" * 9, kernels=names + many, steps=1_000_000,
        model="a model with a long name " * 4, schedule="InterleavedZeroBubble" * 3,
    ))
    screen.starting("starting " + "a great many " * 12 + "ranks")
    time.sleep(0.25)
    for step in (1, 999_999):
        big = dict(tokens_per_second=123_456_789.0, loss=1e30, grad_norm=1e-9, mfu=1.0)
        screen.step(dataclasses.replace(row(step), memory_gib=1234.5, **big))
    screen.summary([row(step) for step in range(1, 300)], "/b/very/long/path" * 9, 1e6)
    """
    code, written = on_terminal(body, columns=columns)
    assert code == 0, written
    plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", written)
    widths = [cell_len(line) for line in re.split(r"[\r\n]+", plain)]
    assert max(widths) <= columns
    assert max(widths) > columns - 8, "the width is not used"


def test_no_color_is_respected(whole_run: str) -> None:
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
    assert colour.search(whole_run)
    assert not colour.search(on_terminal(WHOLE_RUN, NO_COLOR="1")[1])


@pytest.mark.parametrize("how", [("-v", "xterm"), ("", "dumb")])
def test_verbose_and_dumb_terminals_get_a_line_a_step(how: tuple[str, str]) -> None:
    argument, terminal = how
    code, written = on_terminal(WHOLE_RUN, argument, columns=120, TERM=terminal)
    assert code == 0
    assert not re.search(r"\x1b\[[?\d]*[^m\d?;]", written), "the cursor is moved"
    assert len(re.findall(r"^step +\d+/50  loss", written, flags=re.MULTILINE)) == 50


def test_a_terminal_that_is_not_utf8_can_show_a_run() -> None:
    code, written = on_terminal(WHOLE_RUN, PYTHONIOENCODING="ascii")
    assert code == 0, written
    assert written.isascii()
    assert "loss     9.9000 -> 5.0000" in "\n".join(displayed(written))


@pytest.mark.parametrize("end", ["", "raise ValueError('lost')", "raise SystemExit(3)"])
def test_the_cursor_comes_back_however_the_process_ends(end: str) -> None:
    code, written = on_terminal(f"screen.starting('starting')\ntime.sleep(0.1)\n{end}")
    assert (code != 0) is bool(end)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_the_latest_step_stays_when_a_run_breaks_off() -> None:
    body = """
    screen.header(HEADER)
    for step in range(1, 9):
        screen.step(row(step))
    screen.close()
    """
    _, written = on_terminal(body)
    assert [line.split()[0] for line in displayed(written) if "GiB" in line] == ["1", "5", "8"]


def test_steps_done_again_are_shown_again() -> None:
    body = """
    screen.header(HEADER)
    for step in (1, 2, 3, 2, 3, 4, 5):
        screen.step(row(step))
    screen.close()
    """
    _, written = on_terminal(body)
    assert [line.split()[0] for line in displayed(written) if "GiB" in line] == ["1", "2", "5"]


def test_close_leaves_no_thread_and_may_be_repeated() -> None:
    body = """
    import threading
    screen.starting("starting")
    assert threading.active_count() == 2
    screen.close()
    assert threading.active_count() == 1
    screen.step(row(1))
    screen.close()
    screen.close()
    assert threading.active_count() == 1
    """
    code, written = on_terminal(body)
    assert code == 0, written


def test_a_pipe_needs_no_thread() -> None:
    before = set(threading.enumerate())
    Piped().screen.starting("starting")
    assert set(threading.enumerate()) == before


# ---------------------------------------------------------------------------- the summary


def summary(rows: list[StepMetrics], place: Path, resumed_from: int = 0) -> list[str]:
    """Return the summary of a process that took the steps after ``resumed_from``."""
    piped = Piped()
    for each in rows[resumed_from:]:
        piped.screen.step(each)
    before = piped.text
    piped.screen.summary(rows, str(place), 201.0)
    return piped.text.removeprefix(before).splitlines()[1:]


def test_the_summary_says_what_came_out_and_where(tmp_path: Path) -> None:
    for step in (25, 50):
        (tmp_path / f"checkpoint/step-{step}").mkdir(parents=True)
    assert summary([row(step) for step in range(1, 51)], tmp_path) == [
        "steps    50 in 3:21",
        "loss     9.9000 → 5.0000",
        f"         {sparkline([row(step).loss for step in range(1, 51)], 60)}",
        "tokens   102,400 seen, 12,345 tokens/s",
        f"metrics  {tmp_path}/metrics.jsonl",
        f"weights  {tmp_path}/checkpoint/step-50",
    ]


def test_the_summary_of_a_resumed_run_tells_its_own_steps(tmp_path: Path) -> None:
    rows = [row(step) for step in range(1, 51)]
    lines = summary(rows, tmp_path, resumed_from=20)
    assert lines[:2] == ["steps    21 to 50 in 3:21", "loss     9.9000 → 5.0000"]
    assert summary(rows, tmp_path, resumed_from=50)[0] == "steps    none taken in 3:21"


def test_no_step_has_a_summary_too(tmp_path: Path) -> None:
    assert summary([], tmp_path) == ["steps    none taken in 3:21"]


def test_one_step_and_a_diverged_run_have_a_summary(tmp_path: Path) -> None:
    assert summary([row(1)], tmp_path)[2] == "         ▅"
    lines = summary([row(1, loss=3.0), row(2, loss=2.0), row(3, loss=math.nan)], tmp_path)
    assert lines[1:3] == ["loss     3.0000 → nan", "         █▁×"]


# ---------------------------------------------------------------------------- words

BLOCKS, SIGNS = "▁▂▃▄▅▆▇█", ".:-=+*#@"


@given(st.lists(st.floats(), max_size=300), st.integers(1, 80), st.booleans())
def test_a_curve_fits_and_shows_what_is_finite(
    values: list[float], columns: int, ascii_only: bool
) -> None:
    curve = sparkline(values, columns, ascii_only=ascii_only)
    levels, gap = (SIGNS, "x") if ascii_only else (BLOCKS, "×")
    assert len(curve) == min(len(values), columns)
    assert set(curve) <= {*levels, gap}
    if len(values) <= columns:
        assert [sign == gap for sign in curve] == [not math.isfinite(value) for value in values]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=60))
def test_a_curve_keeps_the_order_of_values(values: list[float]) -> None:
    levels = [BLOCKS.index(sign) for sign in sparkline(values, 60)]
    by_value = [level for _, level in sorted(zip(values, levels, strict=True))]
    assert by_value == sorted(by_value)
    if max(values) / 2 > min(values) / 2:
        assert (by_value[0], by_value[-1]) == (0, 7)
    else:
        assert len(set(levels)) == 1


def test_a_long_fall_stays_a_fall() -> None:
    curve = sparkline([10 * math.exp(-step / 3000) for step in range(10_000)], 60)
    assert len(curve) == 60
    assert list(curve) == sorted(curve, reverse=True)
    assert (curve[0], curve[-1]) == ("█", "▁")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0 K"),
        (6_123_456, "6.1 M"),
        (99_949_999, "99.9 M"),
        (99_950_000, "100 M"),
        (999_499_999, "999 M"),
        (999_500_000, "1.0 B"),
        (8_030_261_248, "8.0 B"),
        (405e9, "405 B"),
        (1.5e18, "1,500,000 T"),
        (math.nan, "nan"),
    ],
)
def test_counts_are_short(number: float, words: str) -> None:
    assert human(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0:00"),
        (-3, "0:00"),
        (31.4, "0:31"),
        (59.6, "1:00"),
        (3599.9, "1:00:00"),
        (3723, "1:02:03"),
        (100 * 3600, "4 d 4 h"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_durations_are_clocks(seconds: float, words: str) -> None:
    assert clock(seconds) == words


def test_time_left_follows_the_latest_steps_and_not_the_first() -> None:
    def left(seconds: list[float]) -> str:
        piped = Piped()
        piped.screen.header(HEADER)
        for step, each in enumerate(seconds, start=1):
            piped.screen.step(dataclasses.replace(row(step), step_seconds=each))
        return piped.text.split()[-1]

    assert left([60]) == clock(60 * 49)
    assert left([60, 1, 1]) == clock(47)
    assert left([1.0] * 20 + [2.0] * 20) == clock(2 * 10)
    assert left([math.nan]) == "?"
    assert left([60, 1, math.nan, 3]) == clock(statistics.fmean([1, 3]) * 46)
