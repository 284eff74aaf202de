"""Damaged run folders: each is one sentence, and of many the others are shown."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import SECTIONS, finished, row

# ---------------------------------------------------------------------------- damage


def _text(name: str, text: str | bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        data = text.encode() if isinstance(text, str) else text
        (run / name).write_bytes(data)

    return damage


def _sparse(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        with (run / name).open("wb") as file:
            file.truncate(8 << 30)

    return damage


def _folder(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return damage


def _event(**fields: object) -> Callable[[Path], None]:
    event = {"time": "2026-01-01T00:00:00Z", "host": "x"} | fields
    return _text("events.jsonl", json.dumps(event) + "\n")


def _row(**values: object) -> Callable[[Path], None]:
    return _text("metrics.jsonl", json.dumps(json.loads(row(1)) | values) + "\n")


DEEP = b'{"event":' + b"[" * 50_000 + b"]" * 50_000 + b"}\n"

DAMAGED = {
    "run.yaml is gone": lambda run: (run / "run.yaml").unlink(),
    "run.yaml is empty": _text("run.yaml", ""),
    "run.yaml is binary": _text("run.yaml", os.urandom(4096)),
    "run.yaml is cut off": _text("run.yaml", "architecture: {name: lla"),
    "run.yaml is huge": _sparse("run.yaml"),
    "run.yaml is a folder": _folder("run.yaml"),
    "run.yaml nests": _text("run.yaml", "a: " + "[" * 5000),
    "run.yaml has steps that are no number": _text(
        "run.yaml", json.dumps(SECTIONS | {"training": {"steps": "many"}})
    ),
    "events are no JSON": _text("events.jsonl", "hello\n"),
    "events are binary": _text("events.jsonl", b"\0\xff\xfe\n" * 100),
    "events are huge": _sparse("events.jsonl"),
    "events are a folder": _folder("events.jsonl"),
    "events nest": _text("events.jsonl", DEEP),
    "an event is a list": _text("events.jsonl", "[1]\n"),
    "an event has no name": _event(event=None),
    "an event has no time": _event(event="started", time=None),
    "an event has a time that is none": _event(event="started", time="yesterday"),
    "an event's step is negative": _event(event="under_way", step=-1),
    "an event's step is too large": _event(event="under_way", step=2**70),
    "an event's seconds are words": _event(event="recovered", seconds="1"),
    "an event's seconds are infinite": _text(
        "events.jsonl",
        '{"time": "2026-01-01T00:00:00Z", "event": "recovered", "seconds": 1e999}\n',
    ),
    "an event names a file outside": _event(event="changed", kept="../../home/folder"),
    "metrics are no JSON": _text("metrics.jsonl", "step 1\n"),
    "metrics are binary": _text("metrics.jsonl", b"\0\xff\n" * 100),
    "metrics are huge": _sparse("metrics.jsonl"),
    "metrics are a folder": _folder("metrics.jsonl"),
    "metrics nest": _text("metrics.jsonl", DEEP),
    "a row's step is words": _row(step="one"),
    "a row's step is negative": _row(step=-1),
    "a row's step is too large": _row(step=2**70),
    "a row's loss is NaN": _text("metrics.jsonl", row(1).replace("2.5", "NaN") + "\n"),
    "running.json is a folder": _folder("running.json"),
    "a link leads out": lambda run: (run / "x").symlink_to("/etc/passwd"),
}
"""Damage that a run cannot be told with."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: a good one, and one a damage."""
    lab = tmp_path_factory.mktemp("lab")
    finished(lab / "good")
    for number, damage in enumerate(DAMAGED.values()):
        damage(finished(lab / f"bad-{number}"))
    return lab


def test_one_bad_folder_blinds_nobody(lab: Path, watched: Callable) -> None:
    """``atom runs`` shows every damaged folder with the reason in a line, and the good one."""
    result = watched("runs", str(lab), timeout=60)
    assert result.returncode == 0, result.stderr
    assert sum(line.startswith("unreadable") for line in result.stdout.splitlines()) == len(DAMAGED)
    assert sum(line.startswith("finished") for line in result.stdout.splitlines()) == 1
    told = {
        Path(one["folder"]).name: one
        for one in json.loads(watched("runs", str(lab), "--json").stdout)
    }
    assert told["good"]["state"] == "finished"
    for number, name in enumerate(DAMAGED):
        problem = told[f"bad-{number}"]["problem"]
        assert problem, name
        assert len(problem.splitlines()) == 1, name


@pytest.mark.parametrize("number", range(len(DAMAGED)), ids=DAMAGED.keys())
def test_a_damaged_folder_is_one_sentence(number: int, lab: Path, here: Callable) -> None:
    """For each command that looks at one; ``logs`` looks at no more than the logs."""
    run = lab / f"bad-{number}"
    for command in (("status", run), ("report", run), ("compare", run, lab / "good")):
        code, out, said = here(*command)
        assert code == 2, (command, out, said)
        assert said.startswith("atom: "), said
        assert len(said.splitlines()) == 1, said
        assert len(said) < 600, said
    code, out, said = here("logs", run)
    assert ("hello" in out) if code == 0 else (code == 2 and said.startswith("atom: ")), said


PUT_UP_WITH = {
    "heartbeat": (_text("logs/heartbeat", b"\xff" * 9000), "finished"),
    "heartbeat of large numbers": (_text("logs/heartbeat", f"{2**70} 1 1"), "finished"),
    "manifest": (_text("checkpoint/step-2/manifest.json", DEEP), "checkpoint none"),
    "manifest of words": (_text("checkpoint/step-2/manifest.json", '{"files": 3}'), "none"),
    "manifest that names a file outside": (
        _text(
            "checkpoint/step-2/manifest.json",
            json.dumps({"step": 2, "model_only": False, "files": {"../x": [3, ""]}}),
        ),
        "none",
    ),
    "huge manifest": (_sparse("checkpoint/step-2/manifest.json"), "none"),
    "running.json": (_text("running.json", DEEP), "finished"),
    "half a line": (_text("metrics.jsonl", f"{row(1)}\n{row(2)}"), "step 2"),
}
"""Damage beside which a run can still be told, and words of its status."""


@pytest.mark.parametrize(("damage", "words"), PUT_UP_WITH.values(), ids=PUT_UP_WITH.keys())
def test_what_a_status_does_without(
    damage: Callable, words: str, tmp_path: Path, here: Callable
) -> None:
    damage(finished(tmp_path / "run"))
    code, out, said = here("status", tmp_path / "run")
    assert code == 0, said
    assert words in " ".join(out.split()), out


LEFT_OUT = {
    "lock.json": _text("lock.json", "["),
    "origins.json": _sparse("origins.json"),
    "profile/rank_0.json": _text("profile/rank_0.json", '{"rank": 0, "steps": [{"step": NaN}]}'),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_report_says_what_it_leaves_out(name: str, tmp_path: Path, here: Callable) -> None:
    LEFT_OUT[name](finished(tmp_path / "run"))
    assert here("report", tmp_path / "run")[0] == 0
    page = (tmp_path / "run/report.html").read_text()
    assert f"Omitted, because it is damaged: {name} cannot be read" in page


LOGS = {
    "binary": (_text("logs/rank_0.jsonl", b"\0\x1b[31m\xff\n"), 0),
    "deep": (_text("logs/rank_0.jsonl", DEEP), 0),
    "huge": (_sparse("logs/rank_0.jsonl"), 2),
    "a folder": (_folder("logs/rank_0.jsonl"), 2),
    "a time of the year 1": (
        _text("logs/rank_0.jsonl", '{"time": "0001-01-01T00:00:00+14:00", "event": "x"}\n'),
        0,
    ),
    "a level that is a list": (_text("logs/rank_0.jsonl", '{"level": [], "event": {}}\n'), 0),
}


@pytest.mark.parametrize(("damage", "code"), LOGS.values(), ids=LOGS.keys())
def test_damaged_logs(damage: Callable, code: int, tmp_path: Path, here: Callable) -> None:
    damage(finished(tmp_path / "run"))
    found, out, said = here("logs", tmp_path / "run", "--rank", "0")
    assert found == code, said
    assert code == 0 or len(said.splitlines()) == 1
    assert "\x1b" not in out


def test_folders_within_folders(tmp_path: Path, forked: Callable) -> None:
    """Deeper than Python recurses, and in a circle."""
    lab = tmp_path / "lab"
    finished(lab / "good")
    (lab / "loop").symlink_to(lab)
    place = lab
    for _ in range(1200):
        place = place / "d"
        place.mkdir()
    try:
        result = forked("runs", str(lab), timeout=60)
    finally:
        subprocess.run(["rm", "-rf", lab / "d"], check=True)
    assert result.returncode == 0, result.stderr
    assert "finished" in result.stdout
