"""What a person sees on a real terminal, of any kind and at any width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading

import pytest
from rich.cells import cell_len
from screens import WHOLE_RUN, Piped, script

pytestmark = pytest.mark.slow

QUICK_RUN = WHOLE_RUN.replace("0.3 if", "0 if")
"""A run whose bar nobody sees move."""


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
    assert not colour.search(on_terminal(QUICK_RUN, NO_COLOR="1")[1])


@pytest.mark.parametrize("how", [("-v", "xterm"), ("", "dumb")])
def test_verbose_and_dumb_terminals_get_a_line_a_step(how: tuple[str, str]) -> None:
    argument, terminal = how
    code, written = on_terminal(QUICK_RUN, argument, columns=120, TERM=terminal)
    assert code == 0
    assert not re.search(r"\x1b\[[?\d]*[^m\d?;]", written), "the cursor is moved"
    assert len(re.findall(r"^step +\d+/50  loss", written, flags=re.MULTILINE)) == 50


def test_a_terminal_that_is_not_utf8_can_show_a_run() -> None:
    code, written = on_terminal(QUICK_RUN, PYTHONIOENCODING="ascii")
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
