"""What a hostile reader of the documentation has tried, and what has come of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.testing.installing import describe

Command = Callable[..., subprocess.CompletedProcess[str]]

TINY = (
    *("architecture=llama3_tiny", "architecture.n_layers=2", "architecture.dim=64"),
    *("tokenizer=bytes", "training.seq_len=64", "training.global_batch_size=4"),
    *("training.steps=2", "device=cpu", "metrics=none"),
)


@pytest.fixture
def site(tmp_path: Path, forked: Command) -> Path:
    """A folder for ``PYTHONPATH`` with the launcher of ``atom new``, less the environment."""
    made = forked("new", "launcher", "my-launcher", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    _replace(
        tmp_path / "my-launcher" / "my_launcher" / "plan.py",
        'lines = [f"export {key}={shlex.quote(text)}" for key, text in '
        "resources.environment.items()]",
        "lines = []",
    )
    describe(tmp_path / "my-launcher", "my-launcher")
    return tmp_path / "my-launcher"


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        ("launcher.time=30",),
        ("launcher.mounts=[/data:/data]",),
        ("launcher.environment.LEVEL=3",),
        ("launcher.nodes=2", "parallelism=fsdp", "launch.ranks=2"),
    ],
)
def test_a_resource_that_a_launcher_does_not_look_at_is_refused(
    asked: tuple[str, ...], site: Path, atom: Command
) -> None:
    """It trained without the limit, the mount and the second machine, with exit code 0."""
    result = atom(
        *("train", *TINY, "launcher=my_launcher", *asked, "run.dir=run"),
        cwd=site.parent,
        PYTHONPATH=str(site),
    )
    assert result.returncode == 2, result.stdout + result.stderr
    key = asked[0].partition("=")[0].removesuffix(".LEVEL")
    assert f"atom: {key}=" in result.stderr
    assert "(command line)" in result.stderr
    assert "has no effect with launcher.name=my_launcher; valid: " in result.stderr
    assert not (site.parent / "run").exists()


@pytest.mark.slow
def test_the_kit_finds_a_resource_that_a_launcher_does_not_look_at(
    site: Path, conforms: Command
) -> None:
    test = site / "test_it.py"
    test.write_text(
        "from atom.testing import conformance\n"
        "TestAll = conformance('launcher:my_launcher')\n"
        "TestLess = conformance('launcher:my_launcher').having(unsupported=dict.fromkeys("
        "('nodes', 'time', 'image', 'mounts', 'environment'), 'a script'))\n"
    )
    alone = (f"--rootdir={site}", "-c", os.devnull)
    chosen = ("-rf", str(test), "-k", "handed_on or lacks")
    result = conforms(*alone, *chosen, cwd=site, PYTHONPATH=str(site))
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1, result.stdout
    assert "TestAll::test_resources_are_handed_on" in failed[0]
    assert "launcher.nodes: the plan has not looked at this" in result.stdout, result.stdout


LONG = "n" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("train", *TINY, "dataset=local", f"dataset.path=/tmp/{LONG}"),
        ("train", *TINY, f"{LONG}=1"),
        ("train", *TINY, "--config-dir", LONG),
        ("logs", LONG),
        ("new", "dataset", LONG),
    ],
)
def test_a_name_that_no_file_can_have_is_the_users_mistake(
    words: tuple[str, ...], tmp_path: Path, forked: Command
) -> None:
    """It ended with exit code 1, and named a file within Hydra."""
    result = forked(*words, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    said = next(word for word in words if LONG in word)[:60]
    assert result.stderr == (f"atom: {said}…: is too long for a file name; valid: a shorter name\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_text_that_is_too_short_has_characters(tmp_path: Path, atom: Command) -> None:
    """It had "at least 3 entries"."""
    result = atom("train", *TINY, "launcher=skypilot", "launcher.bucket=b", cwd=tmp_path)
    assert result.returncode == 2
    assert "launcher.bucket=b (command line): must have at least 3 characters" in result.stderr


@pytest.mark.slow
def test_an_export_has_the_ids_of_its_run(
    tmp_path: Path, forked: Command, atom: Command, conforms: Command
) -> None:
    """A plugin's ``tokenizer.json`` was copied whatever it makes; the kit did not look at it."""
    made = forked("new", "tokenizer", "my-tokenizer", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    site = tmp_path / "my-tokenizer"
    describe(site, "my-tokenizer")
    _replace(
        site / "my_tokenizer" / "prepare.py",
        "files={CHARACTERS: path})",
        "files={CHARACTERS: path, 'tokenizer.json': _other(folder)})\n\n\n"
        "def _other(folder: Path) -> Path:\n"
        "    from tokenizers import Tokenizer, models, pre_tokenizers\n"
        "    letters = sorted(pre_tokenizers.ByteLevel.alphabet())\n"
        "    vocab = {letter: number for number, letter in enumerate(letters)}\n"
        "    other = Tokenizer(models.BPE(vocab, []))\n"
        "    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)\n"
        "    other.save(str(folder / 'tokenizer.json'))\n"
        "    return folder / 'tokenizer.json'",
    )
    overrides = [word for word in TINY if word != "tokenizer=bytes"]
    there = {"cwd": tmp_path, "PYTHONPATH": str(site)}
    trained = atom("train", *overrides, "tokenizer=my_tokenizer", "run.dir=run", **there)
    assert trained.returncode == 0, trained.stderr
    result = atom("export", "run", "--to", "hf", "--out", "out", **there)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "run/tokenizer/tokenizer.json encodes 'The' to other ids than the run's" in result.stderr
    assert not (tmp_path / "out").exists()

    alone = (f"--rootdir={site}", "-c", os.devnull)
    chosen = ("-rf", "tests/test_conformance.py", "-k", "tokenizer_json")
    kit = conforms(*alone, *chosen, cwd=site, PYTHONPATH=str(site))
    assert kit.returncode == 1
    assert "tokenizer.json makes other ids of 'The'" in kit.stdout


@pytest.mark.slow
def test_kernels_that_are_said_to_be_valid_fit(tmp_path: Path, atom: Command) -> None:
    """The one that was refused was among them, and others that need a GPU."""
    refused = atom("train", *TINY, "kernels.attention=varlen_fa3", cwd=tmp_path)
    assert refused.returncode == 2
    valid = refused.stderr.rpartition("; valid: ")[2].strip().split(", ")
    assert valid == ["auto", "reference"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "valid"),
    [
        (("parallelism=pp", "launch.ranks=3"), "2"),
        (
            ("parallelism=pp", "launch.ranks=4"),
            "2, or parallelism.data_parallel_shard_degree=-1 to use the remaining ranks",
        ),
    ],
)
def test_what_a_layout_is_said_to_take_is_taken(
    asked: tuple[str, ...], valid: str, tmp_path: Path, atom: Command
) -> None:
    """A degree of -1 was the remedy where no degree divides the ranks."""
    refused = atom("train", *TINY, *asked, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.endswith(f"; valid: {valid}\n")
    if "parallelism." in valid:
        left = valid.split()[2]
        taken = atom("train", *TINY, *asked, left, "dry_run=true", cwd=tmp_path)
        assert taken.returncode == 0, taken.stderr
