"""What a person sees: on a real terminal, in a pipe, in any encoding and at any width."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import subprocess
from pathlib import Path

import pytest
from screens import HEADER, WHOLE_RUN, Piped, row, script

from atom.io.numbers import clock, sparkline
from atom.run_dir.metrics import SHOWN, Shown, StepMetrics
from atom.watch import step_text

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
    heads = [column.head for column in step_text.columns(row(1), 10, 200)]
    assert heads[-1] == "tokens"
    assert "tokens" not in [column.head for column in step_text.columns(row(1), 10, 60)]


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
    assert summary(rows, tmp_path, resumed_from=50)[0] == "steps    none done in 3:21"


def test_no_step_has_a_summary_too(tmp_path: Path) -> None:
    assert summary([], tmp_path) == ["steps    none done in 3:21"]


def test_one_step_and_a_diverged_run_have_a_summary(tmp_path: Path) -> None:
    assert summary([row(1)], tmp_path)[2] == "         ▅"
    lines = summary([row(1, loss=3.0), row(2, loss=2.0), row(3, loss=math.nan)], tmp_path)
    assert lines[1:3] == ["loss     3.0000 → nan", "         █▁×"]


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
