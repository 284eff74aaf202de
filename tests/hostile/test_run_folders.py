"""A run folder from a stranger, or damaged: nothing outside is read or written, nothing is waited
for, and of many run folders the others are shown."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import finished

from atom.errors import UserError
from atom.io.files import NotAFileError
from atom.io.strangers import check
from atom.titan.hugging_face import tokenizer as hf_tokenizer
from atom_tokenizers.files import locked

SECRET = "ssh-ed25519 AAAA victim\n"


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
    with pytest.raises(UserError, match="cannot be written to"), locked(folder):
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
