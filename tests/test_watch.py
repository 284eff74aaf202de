"""Looking at runs from outside: `atom runs`, `logs`, `stop`, `compare`."""

from __future__ import annotations

import fcntl
import json
import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from atom.cli import main
from atom.recipe.run import parse
from atom.run_dir import claim, events
from atom.run_dir.metrics import FILE_NAME, StepMetrics
from atom.run_dir.validated import SetResult
from atom.watch import compare

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e&\"'"


def row(step: int, loss: float) -> StepMetrics:
    return StepMetrics(
        step=step,
        loss=loss,
        grad_norm=loss / 2,
        lr=1e-3 / step,
        tokens_seen=512 * step,
        tokens_per_second=1000.0 + step,
        step_seconds=0.5,
        memory_gib=0.5,
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the folder of a run that has ended, as ATOM would have left it."""

    def folder(name: str, losses: list[float], *, last: str = events.FINISHED, **run: dict) -> Path:
        place = tmp_path / name
        (place / "logs").mkdir(parents=True)
        sections = {
            "architecture": {"name": "llama3", "dim": 64},
            "tokenizer": {"name": "bytes"},
            "optimizer": {"name": "AdamW"},
            "dataset": {"name": "stdlib"},
            "parallelism": {"name": "mesh"},
            "training": {"steps": max(len(losses), 1), "seq_len": 64},
        }
        parse(sections | run).write(place / "run.yaml")
        rows = [row(step, loss).to_json() for step, loss in enumerate(losses, start=1)]
        (place / FILE_NAME).write_text("".join(f"{line}\n" for line in rows))
        events.record(place, events.STARTED, ranks=1, attempt=1)
        reason = {"reason": HOSTILE} if last != events.FINISHED else {}
        events.record(place, last, step=len(losses), **reason, restart=False)
        return place

    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------------------- atom runs


def test_runs_lists_what_is_below(
    write: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("first", [3.0, 2.5])
    write("sweep/0", [3.0, math.nan], last=events.FAILED)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.yaml").write_text("- no run")
    (tmp_path / "first" / "checkpoint").mkdir()
    lines = said(capsys, "runs", tmp_path).splitlines()
    assert lines[0].split() == ["state", "step", "loss", "tokens/s", "goodput", "age", "folder"]
    told = {line.split()[-1]: line.split() for line in lines[1:]}
    assert told["first"][:4] == ["finished", "2/2", "2.5000", "1,002"]
    assert told["sweep/0"][:3] == ["failed", "2/2", "nan"]
    assert told["broken"][0] == "unreadable"
    found = {
        Path(one["folder"]).name: one
        for one in json.loads(said(capsys, "runs", tmp_path, "--json"))
    }
    assert found["first"]["loss"] == 2.5
    assert found["0"]["loss"] is None, "NaN is no JSON"
    assert "no sections" in found["broken"]["problem"]


def test_nothing_in_a_run_steers_the_terminal(
    write: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("bad", [1.0], last=events.FAILED)
    out = said(capsys, "runs", tmp_path)
    assert "alert(1)" in out
    assert "\x1b" not in out


def test_wrong_folders_are_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["runs", "none"],
        ["logs", "none"],
        ["stop", "none"],
        ["compare", "none", "x"],
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith("atom: none ")
    assert main(["compare", str(tmp_path)]) == 2
    assert "alone cannot be compared" in capsys.readouterr().err


@pytest.mark.slow
def test_none_of_them_imports_torch(write: Callable, tmp_path: Path) -> None:
    places = [str(write("a", [2.0, 1.0])), str(write("b", [2.0, 1.5]))]
    script = (
        "import sys; from atom.cli import main\n"
        f"main(['runs', {str(tmp_path)!r}])\n"
        f"main(['compare', *{places!r}, '--out', {str(tmp_path / 'c.svg')!r}])\n"
        f"main(['report', {places[0]!r}])\n"
        "from atom.cli import logs, stop\n"
        "assert not {'torch', 'torchtitan'} & set(sys.modules), 'imported'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


# ---------------------------------------------------------------------------- atom logs


@pytest.fixture
def logged(write: Callable) -> Path:
    place: Path = write("run", [1.0])
    for source, seconds in (("launcher", (1, 5)), ("rank_0", (2, 6)), ("rank_12", (3, 4))):
        lines = [
            {
                "time": f"2026-11-26T10:00:0{second}.000Z",
                "level": "error" if second > 3 else "info",
                "event": f"{source} at {second}",
                "logger": "atom",
                "step": second,
            }
            for second in seconds
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (place / "logs" / f"{source}.jsonl").write_text(text)
    with (place / "logs" / "rank_12.jsonl").open("a") as file:
        file.write("no \x1b JSON\n")
    return place


def test_logs_are_shown_by_time(logged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def order(*arguments: str) -> list[str]:
        lines = said(capsys, "logs", logged, *arguments).splitlines()
        return [line.split(" at ")[1][0] for line in lines if " at " in line]

    assert order() == ["1", "2", "5", "6"]
    assert order("--rank", "all") == ["1", "2", "3", "4", "5", "6"]
    assert order("--rank", "12", "--rank", "0", "--level", "error") == ["4", "6"]
    out = said(capsys, "logs", logged, "--rank", "12")
    assert "no ? JSON" in out
    assert "step=4" in out
    assert main(["logs", str(logged), "--rank", "3"]) == 2
    assert "valid: all, launcher, 0, 12" in capsys.readouterr().err


def test_raw_logs_are_the_lines_themselves(
    logged: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["logs", str(logged), "--rank", "12", "--json"]) == 0
    written = (logged / "logs" / "rank_12.jsonl").read_bytes()
    # What would steer a terminal is escaped, as JSON has it.
    assert capfdbinary.readouterr().out == written.replace(b"\x1b", b"\\u001b")


# ---------------------------------------------------------------------------- atom stop


JOB = """
import signal, sys, time
from pathlib import Path
from atom.run_dir import claim
from atom.run_dir import events
run = Path(sys.argv[1])
claim.claim(run)
print("claimed", flush=True)
time.sleep(float(sys.argv[2]))
def asked(*_):
    events.record(run, events.STOPPED, step=2, reason="SIGUSR1")
    sys.exit()
signal.signal(signal.SIGUSR1, asked)
time.sleep(60)
"""


@pytest.fixture
def job() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A process that holds a run and listens for the request only after a while."""
    started: list[subprocess.Popen[str]] = []

    def run(place: Path, deaf_seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", JOB, str(place), str(deaf_seconds)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "claimed\n"
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_stop_waits_for_a_job_that_does_not_listen_yet(
    write: Callable, job: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write("run", [2.0, 1.0])
    process = job(place, 0.6)
    assert "running" in said(capsys, "runs", place)
    assert main(["stop", str(place), "--timeout", "0.1"]) == 1, "SIGUSR1 would have killed it"
    assert "has not ended in 0.1 s" in capsys.readouterr().err
    out = said(capsys, "stop", place)
    assert out.startswith(f"asked process {process.pid} ")
    assert out.endswith("stopped after step 2, no checkpoint\n")
    assert process.wait(10) == 0
    assert main(["stop", str(place)]) == 2
    assert "no job is at work" in capsys.readouterr().err


def test_stop_names_the_host_of_a_job_elsewhere(
    write: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write("run", [2.0])
    claimed = place / claim.FILE_NAME
    claimed.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "now"}))
    with claimed.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["stop", str(place)]) == 2
    assert "process 7 on elsewhere" in capsys.readouterr().err


def test_stop_signals_no_process_that_only_has_the_number(write: Callable) -> None:
    """The launcher was killed and what it started is ending; its number is another's by now."""
    place = write("run", [2.0])
    claimed = place / claim.FILE_NAME
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    who = {"pid": other.pid, "host": socket.gethostname(), "since": "now"}
    claimed.write_text(json.dumps(who))
    try:
        with claimed.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert main(["stop", str(place), "--timeout", "0.3"]) == 1
        time.sleep(0.1)
        assert other.poll() is None, "a stranger was signalled"
        assert not heard
    finally:
        signal.signal(signal.SIGUSR1, before)
        other.kill()
        other.wait()


# ---------------------------------------------------------------------------- atom compare


def test_compare_shows_what_differs(
    write: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write("a/x", [3.0, 2.0, 2.5], optimizer={"name": "AdamW", "lr": 1e-3})
    second = write("b/x", [3.0, 1.5], optimizer={"name": "AdamW", "lr": 3e-3})
    out = said(capsys, "compare", first, second, "--out", tmp_path / "curves.svg")
    lines = [line.split() for line in out.splitlines()]
    assert ["optimizer.lr", "0.001", "0.003"] in lines
    assert ["training.steps", "3", "2"] in lines
    assert not any(line[:1] == ["architecture.dim"] for line in lines), "the same in both"
    assert ["setting", "a/x", "b/x"] in lines
    assert ["lowest", "loss", "2.0000", "1.5000"] in lines
    drawn = ElementTree.parse(tmp_path / "curves.svg").getroot()
    labels = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a/x", "b/x", "loss, nats per token"} <= set(labels)
    told = json.loads(said(capsys, "compare", first, second, "--json"))
    assert told["settings"]["optimizer.lr"] == [1e-3, 3e-3]
    assert [run["loss"] for run in told["runs"]] == [2.5, 1.5]


def test_compare_shows_validation_sets(
    write: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of any run, and whether their text is the same."""
    places = [write(name, [3.0, 2.0]) for name in ("a", "b", "c")]
    sets = [
        {"web": SetResult(loss=2.0, tokens=4, bytes=8, data="0" * 16)},
        {"web": SetResult(loss=1.5, tokens=4, bytes=8, data="1" * 16)},
        {"wiki": SetResult(loss=1.0, tokens=4)},
    ]
    for place, validation in zip(places, sets, strict=True):
        rows = [replace(row(step, 2.0), validation=validation) for step in (1, 2)]
        text = "".join(f"{each.to_json()}\n" for each in rows)
        (place / FILE_NAME).write_text(text)
    out = said(capsys, "compare", *places, "--out", tmp_path / "curves.svg")
    lines = [line.split() for line in out.splitlines()]
    assert ["web", "loss", "2.0000", "1.5000", "–"] in lines
    assert ["web", "bits/byte", "1.4427", "1.0820", "–"] in lines
    assert ["web", "data", "00000000", "11111111", "–"] in lines
    assert ["wiki", "loss", "–", "–", "1.0000"] in lines
    drawn = (tmp_path / "curves.svg").read_text()
    assert "validation loss of web, nats per token" in drawn
    assert "validation loss of wiki, nats per token" in drawn


def test_a_run_that_has_taken_no_step_can_be_compared(
    write: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write("a", []), write("b", [math.nan, math.inf])
    assert "lowest loss" in said(capsys, "compare", first, second, "--out", tmp_path / "c.svg")


def test_compare_says_whether_runs_saw_the_same_data() -> None:
    def compared(*digests: str | None) -> compare.Compared:
        rows = [replace(row(step, 2.0), data=data) for step, data in enumerate(digests, 1)]
        return compare.Compared("", Path(), None, {}, rows)  # type: ignore[arg-type]

    a, b, c = "0" * 16, "1" * 16, "2" * 16
    runs = [compared(a, b, c), compared(a, b), compared(a, c, c), compared(None)]
    assert compare.data(runs) == [
        "of 3 steps",
        "the same in 2 steps",
        "other from step 2 on",
        None,
    ]


def test_names_tell_runs_apart() -> None:
    assert compare.names([Path("/r/a/0"), Path("/r/a/1")]) == ["0", "1"]
    assert compare.names([Path("/r/a/0"), Path("/r/b/0")]) == ["a/0", "b/0"]
    assert compare.names([Path("/r/a"), Path("/r/a")]) == ["a", "a"]


# ---------------------------------------------------------------------------- a run at work


@pytest.mark.slow
def test_a_run_is_watched_and_stopped(
    start: Callable, atom: Callable, environment: dict[str, str]
) -> None:
    job = start("watched", "training.steps=5000", "checkpoint.interval=1000")
    job.wait_for_step(2)
    origins = json.loads((job.place / "origins.json").read_text())
    assert origins["training.steps"] == "command line"
    assert origins["architecture.n_heads"].endswith("conf/architecture/llama3_tiny.yaml")
    assert origins["training.max_norm"] == "default"
    follower = subprocess.Popen(
        [sys.executable, "-m", "atom", "logs", "-f", str(job.place)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    (told,) = json.loads(atom("runs", str(job.place.parent), "--json").stdout)
    assert told["state"] == "running"
    assert told["pid"] == job.process.pid
    result = atom("stop", str(job.place))
    assert result.returncode == 0, result.stderr
    code, _, _ = job.end()
    assert code == 75
    step = job.step()
    assert f"stopped after step {step:,}, checkpoint of step {step:,}" in result.stdout
    logged, _ = follower.communicate(timeout=30)
    assert follower.returncode == 0, "it ends with the job"
    assert f"step: {step:2}" in logged
