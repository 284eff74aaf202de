"""A run folder from a stranger, or damaged: nothing outside is read or written, nothing is waited
for, and of many run folders the others are shown."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.cli import main
from atom.errors import UserError
from atom.io.files import NotAFileError
from atom.io.strangers import check
from atom.recipe.run import parse
from atom.run_dir import events
from atom.run_dir.metrics import StepMetrics
from atom.titan.hugging_face import tokenizer as hf_tokenizer
from atom_tokenizers.files import locked

SECRET = "ssh-ed25519 AAAA victim\n"
SECTIONS = {
    "architecture": {"name": "llama3", "dim": 64},
    "tokenizer": {"name": "bytes"},
    "dataset": {"name": "stdlib"},
    "parallelism": {"name": "mesh"},
    "training": {"steps": 2, "seq_len": 64},
}


def row(step: int) -> str:
    numbers = {"grad_norm": 1.0, "lr": 1e-3, "tokens_per_second": 9.0, "step_seconds": 0.5}
    made = StepMetrics(step=step, loss=2.5, tokens_seen=512 * step, memory_gib=0.5, **numbers)
    return made.to_json()


def finished(place: Path) -> Path:
    """Write the folder of a run that has ended, as ATOM leaves it."""
    for name in ("logs", "tokenizer", "checkpoint/step-2", "history/1", "profile"):
        (place / name).mkdir(parents=True)
    parse(SECTIONS).write(place / "run.yaml")
    shutil.copy(place / "run.yaml", place / "history/1/run.yaml")
    (place / "metrics.jsonl").write_text(f"{row(1)}\n{row(2)}\n")
    events.record(place, events.STARTED, ranks=1, attempt=1)
    events.record(place, events.UNDER_WAY, step=1, seconds={"imports": 1.0})
    events.record(place, events.CHANGED, step=1, kept="history/1", settings={}, versions={})
    events.record(place, events.UNDER_WAY, step=2)
    events.record(place, events.FINISHED, step=2, tokens_seen=1024)
    line = {"time": "2026-01-01T00:00:00Z", "level": "info", "event": "hello"}
    for name in ("launcher", "rank_0"):
        (place / f"logs/{name}.jsonl").write_text(f"{json.dumps(line)}\n")
    (place / "logs/heartbeat").write_text(f"{2:<20}{2:<20}{1024:<20}\n")
    (place / "checkpoint/step-2/weights").write_bytes(b"123")
    manifest = {"step": 2, "model_only": False, "files": {"weights": [3, "0" * 64]}}
    (place / "checkpoint/step-2/manifest.json").write_text(json.dumps(manifest))
    for name in ("lock.json", "origins.json"):
        (place / name).write_text("{}")
    (place / "tokenizer/tokenizer.json").write_text("{}")
    (place / "profile/rank_0.json").write_text(json.dumps({"rank": 0, "steps": []}))
    (place / "running.json").write_text("{}\n")
    return place


# ---------------------------------------------------------------------------- links and pipes

PLACES = (
    "report.html",
    "running.json",
    "run.yaml",
    "lock.json",
    "origins.json",
    "inputs.json",
    "events.jsonl",
    "metrics.jsonl",
    "metrics.rolled_back.jsonl",
    "logs",
    "logs/launcher.jsonl",
    "logs/rank_0.jsonl",
    "logs/heartbeat",
    "tokenizer",
    "tokenizer/tokenizer.json",
    "tokenizer/anything",
    "checkpoint",
    "checkpoint/step-2",
    "checkpoint/.step-3.partial",
    "history",
    "history/1/run.yaml",
    "profile/rank_0.json",
    ".atom-write-test",
)
"""What ATOM reads, writes or probes in a run folder."""

COMMANDS = {
    "train": ("train", "tokenizer=bytes", "device=cpu", "run.dir={run}"),
    "status": ("status", "{run}"),
    "report": ("report", "{run}"),
    "compare": ("compare", "{run}", "{good}"),
    "logs": ("logs", "{run}", "--rank", "all"),
    "stop": ("stop", "{run}"),
}


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process, which ends if it waits; return code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        signal.alarm(60)
        code = main([str(argument) for argument in arguments])
        signal.alarm(0)
        out, err = capsys.readouterr()
        return code, out, err.strip()

    return run


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A home with a secret file and a secret folder, which nothing may touch."""
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    (home / "authorized_keys").write_text(SECRET)
    (home / "folder/id").write_text(SECRET)
    return home


def untouched(home: Path) -> bool:
    files = [path for path in sorted(home.rglob("*")) if path.is_file()]
    return [path.read_text() for path in files] == [SECRET] * 2


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_is_refused(
    name: str, kind: str, victim: Path, tmp_path: Path, here: Callable
) -> None:
    """One sentence by every command that writes into the folder or reads it; nothing is touched."""
    good, run = finished(tmp_path / "good"), finished(tmp_path / "run")
    target = victim / ("folder" if (run / name).is_dir() else "authorized_keys")
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).unlink(missing_ok=True)
    if kind == "link":
        (run / name).symlink_to(target)
    else:
        os.mkfifo(run / name)
    before = sorted(run.rglob("*"))
    for command in COMMANDS.values():
        words = [word.format(run=run, good=good) for word in command]
        code, out, said = here(*words)
        assert code == 2, (words, out, said)
        assert len(said.splitlines()) == 1, (words, said)
        assert said.startswith("atom: "), (words, said)
        if name != "run.yaml":
            assert f"({name})" in said, (words, said)
        assert "victim" not in out + said
    assert untouched(victim)
    assert sorted(run.rglob("*")) == before


def test_a_run_folder_may_be_a_link(tmp_path: Path, forked: Callable) -> None:
    finished(tmp_path / "run")
    (tmp_path / "latest").symlink_to("run")
    check(tmp_path / "latest")
    assert "finished" in forked("status", "latest", cwd=tmp_path).stdout
    assert forked("report", "latest", cwd=tmp_path).returncode == 0
    assert (tmp_path / "run/report.html").is_file()


def test_a_report_replaces_a_link_within_the_folder(tmp_path: Path, forked: Callable) -> None:
    """A link that stays in the folder is allowed, and still not followed."""
    run = finished(tmp_path / "run")
    before = (run / "events.jsonl").read_bytes()
    (run / "report.html").symlink_to("events.jsonl")
    assert forked("report", str(run)).returncode == 0
    assert (run / "events.jsonl").read_bytes() == before
    assert not (run / "report.html").is_symlink()


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
    assert f"Left out, as it is damaged: {name} cannot be read" in page


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


# ---------------------------------------------------------------------------- folders around a run


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_tokenizer_folder_names_no_file_outside(
    name: str, victim: Path, tmp_path: Path, here: Callable
) -> None:
    """A link in a folder of Hugging Face's format would be copied into the run, and its export."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim / "authorized_keys")
    run = tmp_path / "run"
    code, _, said = here(
        "train", "tokenizer=hf", f"tokenizer.path={folder}", "device=cpu", f"run.dir={run}"
    )
    assert code == 2
    assert f"holds {name}, a link that leads out of it" in said
    assert not run.exists()
    assert untouched(victim)


def test_the_lock_of_a_cache_is_no_link(victim: Path, tmp_path: Path) -> None:
    """It was opened to write, which empties the file that a link stands for."""
    folder = tmp_path / "bpe-x"
    folder.mkdir()
    (folder / ".lock").symlink_to(victim / "authorized_keys")
    with pytest.raises(UserError, match="cannot be kept"), locked(folder):
        pass
    assert untouched(victim)


def test_what_an_export_copies(victim: Path, tmp_path: Path) -> None:
    """Of the tokenizer's folder, its own files; a link that appears there ends it."""
    run = finished(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (run / "tokenizer/extra.json").symlink_to(victim / "authorized_keys")
    with pytest.raises(NotAFileError):
        hf_tokenizer.copy(run / "tokenizer", out, bos_id=None)
    (run / "tokenizer/extra.json").unlink()
    (run / "tokenizer").rename(tmp_path / "elsewhere")
    (run / "tokenizer").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotAFileError):
        hf_tokenizer.copy(run / "tokenizer", out, bos_id=None)
    assert SECRET not in [path.read_text() for path in out.iterdir()]


@pytest.mark.slow
def test_an_export_of_a_folder_with_a_link(victim: Path, tmp_path: Path, atom: Callable) -> None:
    run, out = finished(tmp_path / "run"), tmp_path / "out"
    (run / "tokenizer/extra.json").symlink_to(victim / "authorized_keys")
    for words in (
        ("export", str(run), "--to", "hf", "--out", str(out)),
        ("generate", str(run), "x"),
    ):
        result = atom(*words)
        assert result.returncode == 2
        assert "a link that leads out of it (tokenizer/extra.json)" in result.stderr
    assert not out.exists()
