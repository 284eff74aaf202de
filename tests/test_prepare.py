"""``atom data``: the same bytes however they are prepared, and every altered byte found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atom.data import manifest as manifests
from atom.data import workers
from atom.data.folder import Folder
from atom.data.manifest import SUFFIXES
from atom.data.shards import TokenShards
from atom.errors import RunError, UserError

BYTES = ("tokenizer=bytes",)
SMALL = "training.seq_len=64 training.global_batch_size=4 architecture.n_layers=2"
TRAIN = f"{SMALL} architecture.dim=64 device=cpu metrics=none training.steps=3".split()


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a folder's files, but for what the manifest says of their making."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = json.loads(found[manifests.FILE_NAME])
    del manifest["provenance"]
    return found | {manifests.FILE_NAME: json.dumps(manifest).encode()}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files, then larger ones: 10 shards, of which the last are the larger."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(640):
        line = f"line {number} of a text: größer, 語 \x1b[31m\n"
        (folder / f"{number:03}.txt").write_text(line * (1 if number < 128 else 400))
    (folder / "000.txt").write_text("x")
    return folder


@pytest.fixture(scope="module")
def prepare(atom: Callable, texts: Path) -> Callable:
    def run(out: Path, *arguments: str) -> Any:
        dataset = ("dataset=local", f"dataset.path={texts}", "dataset.max_chars=100000")
        return atom("data", "prepare", *dataset, *BYTES, "--out", str(out), *arguments)

    return run


@pytest.fixture(scope="module")
def whole(prepare: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder; do not change it."""
    folder = tmp_path_factory.mktemp("prepared") / "whole"
    result = prepare(folder, "--workers", "1", "--licence", "CC0", "--origin", "a test")
    assert result.returncode == 0, result.stderr
    assert "640 documents" in result.stdout
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copied")
    return tmp_path / "copied"


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same(
    whole: Path, prepare: Callable, tmp_path: Path
) -> None:
    assert prepare(tmp_path / "three", "--workers", "3").returncode == 0
    assert contents(tmp_path / "three") == contents(whole)


@pytest.mark.slow
def test_a_killed_preparation_resumes(
    whole: Path, prepare: Callable, texts: Path, warm: Any, environment: dict, tmp_path: Path
) -> None:
    """Killed without warning, with a worker in the middle of a shard, whose remains are left."""
    out = tmp_path / "out"
    line = f"data prepare dataset=local dataset.path={texts} dataset.max_chars=100000 --out {out}"
    process = warm.start(
        [*line.split(), *BYTES, "--workers", "2"], cwd=tmp_path, environment=environment
    )
    deadline = time.monotonic() + 120
    while not list(out.glob(".preparing/0*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not manifests.exists(out), "it was too fast for this test"
    (out / ".preparing" / "00009.tokens").write_bytes(b"the beginning of a shard")
    kept = {path: path.stat().st_mtime_ns for path in out.glob(".preparing/0*.json")}
    finished = [out / f"{path.stem}.tokens" for path in kept]
    before = [path.stat().st_mtime_ns for path in finished]
    assert prepare(out, "--workers", "2").returncode == 0
    assert contents(out) == contents(whole)
    assert [path.stat().st_mtime_ns for path in finished] == before, "written again"


@pytest.mark.slow
def test_a_full_disk_leaves_a_state_that_resumes(
    whole: Path, prepare: Callable, texts: Path, warm: Any, environment: dict, tmp_path: Path
) -> None:
    """A limit on the size of files fails the larger shards as a full disk would."""
    out = tmp_path / "out"
    line = f"data prepare dataset=local dataset.path={texts} dataset.max_chars=100000 --out {out}"
    process = warm.start(
        [*line.split(), *BYTES, "--workers", "1"],
        cwd=tmp_path,
        environment=environment,
        file_size=1 << 20,
    )
    _, said = process.communicate(120)
    assert process.returncode == 1
    assert said.count("\n") == 1
    assert "cannot be written: File too large; what is done is kept, and the same command" in said
    assert (out / ".preparing" / "00001.json").exists()
    assert prepare(out).returncode == 0
    assert contents(out) == contents(whole)


def test_a_killed_worker_is_a_sentence() -> None:
    def work() -> Callable:
        return lambda number, told: os.kill(os.getpid(), signal.SIGKILL) if number else told(0)

    with pytest.raises(RunError, match="a worker ended by signal 9, perhaps because memory ran"):
        workers.run(work, range(4), 2, lambda _: None)


def test_workers_do_each_piece_once_and_raise_what_a_piece_raises() -> None:
    def work() -> Callable:
        return lambda number, told: told(number) if number != 7 else told(1 // 0)

    found: list[int | None] = []
    workers.run(work, range(7), 3, found.append)
    assert sorted(number for number in found if number is not None) == list(range(7))
    with pytest.raises(ZeroDivisionError):
        workers.run(work, range(9), 3, lambda _: None)
    workers.run(work, [], 3, found.append)


def test_one_preparation_at_a_time(tmp_path: Path) -> None:
    with Folder(tmp_path / "out").claimed():
        refused = pytest.raises(UserError, match="another process prepares shards in it")
        with refused, Folder(tmp_path / "out").claimed():
            pass
    with Folder(tmp_path / "out").claimed():
        pass


@pytest.mark.slow
def test_the_same_command_again(copied: Path, prepare: Callable) -> None:
    before = contents(copied)
    again = prepare(copied, "--licence", "MIT")
    assert (again.returncode, " is finished: 640 documents" in again.stdout) == (0, True)
    assert contents(copied) == before
    assert json.loads((copied / "manifest.json").read_text())["provenance"]["licence"] == "MIT"
    other = prepare(copied, "tokenizer.pad_to=1")
    assert other.returncode == 2
    assert "holds shards made of something else (other: tokenizer)" in other.stderr
    assert contents(copied) == before


@pytest.mark.slow
def test_too_many_bad_documents_for_all_workers_together(atom: Callable, tmp_path: Path) -> None:
    """Each worker reads fewer than are tolerated, and all of them more."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(256):
        bad = number % 64 == 7
        (texts / f"{number:03}.txt").write_bytes(b"\xff" if bad else b"text")
    line = f"data prepare dataset=local dataset.path={texts} tokenizer=bytes --workers 4".split()
    for fraction, code in ((0.01, 2), (0.016, 0)):
        out = str(tmp_path / str(code))
        result = atom(*line, f"dataset.max_bad_fraction={fraction}", "--out", out)
        assert result.returncode == code, result.stderr
    assert "4 bad" in result.stdout
    left_out = manifests.read(tmp_path / "0").left_out
    assert (left_out.bad, len(left_out.reasons)) == (4, 4)
    assert "007.txt: byte 0xff is not UTF-8" in left_out.reasons[0]
    assert len(TokenShards(tmp_path / "0")[7].tokens) == 0


@pytest.mark.slow
def test_a_stream_is_prepared_by_lanes(atom: Callable, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        rows = [json.dumps({"text": f"text {n} of {number}"}) + "\n" for n in range(20)]
        (tmp_path / "data" / f"{number}.jsonl").write_text("".join(rows))
    line = f"data prepare dataset=huggingface dataset.path={tmp_path / 'data'} tokenizer=bytes"
    for count in ("1", "3"):
        out = str(tmp_path / count)
        result = atom(*line.split(), "--lanes", "5", "--workers", count, "--out", out)
        assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    shards = TokenShards(tmp_path / "1")
    found = sorted(bytes(shards[n].tokens[1:-1].astype(np.uint8)).decode() for n in range(60))
    assert found == sorted(f"text {n} of {number}" for number in range(3) for n in range(20))


# ---------------------------------------------------------------------------- altered files


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


FILES = [f"00005.{kind}" for kind in SUFFIXES]
CHANGES: list[tuple[str, Callable[[Path], object], str]] = [
    *((name, flip, "is altered") for name in (*FILES, "tokenizer/tokenizer.json")),
    *((name, cut, "is truncated: it has ") for name in FILES),
    *((name, Path.unlink, "is missing") for name in FILES),
    (FILES[0], link, "is no regular file"),
    (FILES[1], lambda path: os.mkfifo(path.unlink() or path), "is no regular file"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change", "problem"), CHANGES)
def test_verify_names_the_file_that_is_not_as_it_was(
    name: str, change: Callable, problem: str, copied: Path, forked: Callable
) -> None:
    change(copied / name)
    result = forked("data", "verify", str(copied))
    assert result.returncode == 2
    assert result.stderr.startswith(f"atom: {copied / name}")
    assert problem in result.stderr
    assert result.stderr.count("\n") == 1


# ---------------------------------------------------------------------------- commands


@pytest.mark.slow
def test_inspect_shows_what_is_in_it(whole: Path, forked: Callable) -> None:
    result = forked("data", "inspect", str(whole))
    assert result.returncode == 0
    manifest = manifests.read(whole)
    for text in (
        "documents   640\n",
        f"tokens      {manifest.tokens:,} (",
        "in 10 shards of uint16",
        "tokenizer   bytes pad_to=64 (",
        "320 ids",
        "BOS 256, EOS 257",
        "source      local ",
        "licence     CC0\norigin      a test\n",
        manifest.digest,
    ):
        assert text in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["00000", "64", f"{manifest.shards[0].tokens:,}"] in [row[:3] for row in rows]


@pytest.mark.slow
def test_sample_prints_documents_and_moves_no_cursor(whole: Path, atom: Callable) -> None:
    one, other = (
        atom("data", "sample", str(whole), "--documents", "2", "--seed", seed) for seed in "01"
    )
    assert one.returncode == other.returncode == 0
    assert one.stdout.count(": größer, 語 ?[31m\n") >= 2
    assert one.stdout.count("--- document ") == 2
    assert one.stdout != other.stdout
    assert "\x1b" not in one.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("training.steps=3", "training.steps (command line): has no effect on token shards; val"),
        ("+optimizer.lr=1", "optimizer.lr (command line): has no effect"),
        ("optimizer=adamw", "optimizer (command line): has no effect"),
        ("--works 3", "unrecognized arguments: --works"),
        ("--workers 0", "'0' is not valid; valid: a whole number from 1"),
        ("--lanes 3", "--lanes has no effect: the dataset is no stream"),
        ("-m", "unrecognized arguments: -m"),
        ("dataset.max_chars=128,256", "max_chars"),
        ("dataset.max_char=128", "did you mean"),
        ("tokenizer=bits", "bytes"),
    ],
)
def test_refused_before_anything_is_written(
    arguments: str, problem: str, texts: Path, forked: Callable, tmp_path: Path
) -> None:
    line = f"data prepare dataset=local dataset.path={texts} tokenizer=bytes --out out {arguments}"
    result = forked(*line.split(), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert problem in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "atom data: valid: at, inspect, prepare, sample, verify"),
        (("prepar",), "atom data prepar: did you mean prepare?"),
        (("verify",), "atom data verify: the following arguments are required: folder"),
        (("verify", "nowhere"), "nowhere has no manifest.json"),
        (("inspect", "nowhere"), "nowhere has no manifest.json"),
        (("sample", "nowhere"), "nowhere has no manifest.json"),
        (("prepare", "tokenizer=bytes"), "atom data prepare: the following arguments are req"),
    ],
)
def test_a_mistyped_command(arguments: tuple, problem: str, forked: Callable) -> None:
    result = forked("data", *arguments)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert problem in result.stderr


@pytest.mark.slow
def test_a_folder_of_other_files_is_left_alone(texts: Path, prepare: Callable) -> None:
    before = sorted(texts.iterdir())
    result = prepare(texts)
    assert result.returncode == 2
    assert f"--out {texts}: is not empty; valid: a new folder" in result.stderr
    assert sorted(texts.iterdir()) == before


# ---------------------------------------------------------------------------- training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "arguments", "problem"),
    [
        (lambda folder: cut(folder / FILES[0]), "", "00005.tokens: is truncated"),
        (lambda folder: flip(folder / FILES[0]), "", "00005.tokens: is altered"),
        (lambda folder: (folder / FILES[1]).unlink(), "", "00005.documents: is missing"),
        (lambda folder: link(folder / FILES[2]), "", "00005.ids: is no regular file"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "", "no manifest of token"),
        (lambda _: None, "tokenizer.pad_to=1", "tokenizer.name=bytes"),
        (lambda _: None, "tokenizer=bpe", "is trained on text, and the dataset is stored as tok"),
        (lambda _: None, "dataset.path=nowhere", "nowhere has no manifest.json"),
    ],
)
def test_training_refuses(
    change: Callable, arguments: str, problem: str, copied: Path, forked: Callable
) -> None:
    change(copied)
    line = ["dataset=prepared", f"dataset.path={copied}", *BYTES, *TRAIN, *arguments.split()]
    result = forked("train", *line, f"run.dir={copied.parent / 'run'}", timeout=60)
    assert result.returncode == 2, result.stderr
    assert problem in result.stderr
    assert ("tokenizer.name=" if "tokenizer" in arguments else "dataset.path=") in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (copied.parent / "run").exists()


@pytest.mark.slow
def test_losses_are_those_of_on_the_fly_training(
    atom: Callable, rows: Callable, tmp_path: Path
) -> None:
    """Bit by bit, with empty documents and documents of one letter."""
    texts = tmp_path / "texts.jsonl"
    records = ["", "x", "größer 語 " * 40, "a text\n" * 3, "long " * 400, " "]
    lines = [
        json.dumps({"text": f"{text}{n}" if text else ""}) for n in range(40) for text in records
    ]
    texts.write_text("\n".join(lines))
    dataset = ("dataset=local", f"dataset.path={texts}")
    bpe = ("tokenizer=bpe", "tokenizer.vocab_size=300")
    shards = str(tmp_path / "shards")
    made = atom("data", "prepare", *dataset, *bpe, "--out", shards, "--workers", "2")
    assert made.returncode == 0, made.stderr
    kept = ("tokenizer=hf", f"tokenizer.path={shards}/tokenizer")
    prepared = ("dataset=prepared", f"dataset.path={shards}")
    losses = []
    for number, components in enumerate(((*dataset, *bpe), (*prepared, *kept))):
        place = tmp_path / str(number)
        result = atom("train", *components, *TRAIN, f"run.dir={place}")
        assert result.returncode == 0, result.stdout + result.stderr
        losses.append([row["loss"] for row in rows(place)])
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
