"""What people type, and what their shells and editors make of it: told or taken, never garbled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atom.compose import command_line

SHOWN = ("--cfg", "job", "--package", "run")

AS_TYPED = [
    "out/é",
    "a=b",
    "a#b",
    "a,b",
    "a b",
    " a ",
    "2024_01_15",
    "12e4567",
    "1e5",
    "0x10",
    "007",
    "true",
    "nan",
    "-x",
    "a/",
    "it's",
    'say "a"',
    "[a]",
    "{a: 1}",
    "a[",
    "(a)",
    "f(1)",
    "str(1)",
    "a$b",
    "100%",
    "a:b",
    "C:\\new\\",
    "a\\b",
    "~user_that_is_none",
    "a~",
    "名前",
    "a;b|c&d*?!<>`^",
]
"""Paths that Hydra's grammar reads otherwise, or not at all."""


@pytest.mark.parametrize("path", AS_TYPED)
def test_a_path_is_taken_as_it_was_typed(path: str) -> None:
    override = command_line.literal(f"run.dir={path}", command_line.taken("run.dir="))
    found = command_line.OverridesParser.create().parse_override(override)
    assert (found.is_sweep_override(), found.value()) == (False, path)
    swept = command_line.literal(f"run.dir={path}", command_line.taken("run.dir="), sweep=True)
    values = command_line.OverridesParser.create().parse_override(swept)
    if values.is_sweep_override():
        assert ",".join(map(str, values.sweep_iterator())).replace("'", "") == path
    else:
        assert values.value() == path


@pytest.mark.parametrize("path", ["out/é", "a=b", "a#b", "a,b", "2024_01_15", "it's [x] {y} $z %"])
def test_the_command_takes_it_so(forked: Callable, tmp_path: Path, path: str) -> None:
    result = forked("train", f"run.dir={path}", *SHOWN, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("dir: ")]
    assert line.removeprefix("dir: ").strip("'").replace("''", "'") == path


@pytest.mark.parametrize(
    ("key", "typed", "reads"),
    [
        ("run.dir", "'a b'", "a b"),  # quotes of one's own are Hydra's, as ever
        ("run.dir", '"a,b"', "a,b"),
        ("run.dir", "null", None),
        ("run.dir", "runs/${optimizer.lr}", "runs/${optimizer.lr}"),
        ("plugins.locked", "out/é", "out/é"),
        ("checkpoint.initial_load", "hf:a b=c", "hf:a b=c"),
        ("optimizer.lr", "1e-3", 1e-3),
        ("optimizer.betas", "[0.9,0.95]", [0.9, 0.95]),
        ("launcher.environment.A", "x=y", "x=y"),
        ("profile.steps", "10", 10),
        ("profile.steps", "10-12", "10-12"),
        ("kernels.linear", "[a,b]", ["a", "b"]),
        ("nobody.knows", "1", 1),
        ("nobody.knows", "é", "é"),
    ],
)
def test_values_that_keys_take(key: str, typed: str, reads: object) -> None:
    override = command_line.literal(f"{key}={typed}", command_line.taken(f"{key}="))
    assert command_line.OverridesParser.create().parse_override(override).value() == reads


@pytest.mark.parametrize(
    ("typed", "runs"),
    [
        ("run.dir=a,b", ["'a'", "'b'"]),
        ("run.dir=out/é,x=1", ["out/é", "x=1"]),
        ("run.dir='a,b',c", ["a,b", "c"]),
        ("run.dir=2024_01,2024_02", ["2024_01", "2024_02"]),
        ("optimizer.lr=1e-3,3e-3", ["0.001", "0.003"]),
        ("optimizer.betas=[0.9,0.95],[0.8,0.9]", ["[0.9,0.95]", "[0.8,0.9]"]),
        ("optimizer.name=choice(Adam,AdamW)", ["Adam", "AdamW"]),
        ("launch.ranks=range(1,3)", ["1", "2"]),
    ],
)
def test_a_sweep_has_a_run_for_each(typed: str, runs: list[str]) -> None:
    override = command_line.literal(typed, command_line.taken(typed), sweep=True)
    found = command_line.OverridesParser.create().parse_override(override)
    values = [value.strip("'") for value in found.sweep_string_iterator()]
    assert values == [run.strip("'") for run in runs]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # Nothing was typed of `++run.dir`, nor of a usage of Hydra's.
        (["words"], "words (command line): is no override; valid: KEY=VALUE"),
        (["é=1"], "é=1 (command line): is no override"),
        ([""], " (command line): is no override"),
        (["--multi"], "atom train: there is no option --multi; did you mean --multirun"),
        (["--cfg"], "atom train: --cfg needs a value; valid: job, hydra, all"),
        (["--cfg", "x"], "atom train: --cfg x is not known; valid: job, hydra, all"),
        (["--resolve=1"], "atom train: --resolve takes no value"),
        (["run.dir="], "run.dir= (command line): is empty; valid: a path"),
        (["run.dir=\udcff"], r"run.dir=\xff (command line): is not UTF-8 text"),
        (["optimizer.lr=1,2"], "optimizer.lr=1,2 (command line): holds several values; valid: -m"),
        (
            ["optimizer.betas=0.9,0.95"],
            "optimizer.betas=0.9,0.95 (command line): holds several values; valid: "
            '"optimizer.betas=[0.9,0.95]" for a list, -m optimizer.betas=0.9,0.95 for a run of '
            "each",
        ),
        (
            ["dataset=local", "dataset.path=a,b"],
            'dataset.path=a,b (command line): holds several values; valid: "dataset.path=[a,b]" '
            "for a list, -m dataset.path=a,b for a run of each, "
            "\"dataset.path='a,b'\" for one text",
        ),
        (["optimizer.lr=1 é"], "optimizer.lr=1 é (command line): must be a number"),
        (["optimizer.lr=["], "optimizer.lr=[ (command line): must be a number"),
        (["tokenizer=é"], "tokenizer=é (command line): there is no such option"),
        (["run.dir=a${b"], "run.dir (command line): ${ begins a reference to another key; valid"),
        (["launch.ranks=1.5"], "launch.ranks=1.5 (command line): must be a whole number"),
        (["launch.ranks=0"], "launch.ranks=0 (command line): must be greater than 0"),
        (["resume.force=maybe"], "resume.force=maybe (command line): must be true or false"),
        (["optimizer.betas=[0.9]"], "optimizer.betas (command line): has too few entries"),
        (
            ["faults.spik=1"],
            "faults.spik=1 (command line): spik is no key here; did you mean spike?",
        ),
        (
            ["launch.retry.x=1"],
            "launch.retry.x=1 (command line): retry is no key here; valid: hang",
        ),
        (
            ["experiment=first_run"],
            "experiment=first_run (command line): no experiment is chosen by default, so it must "
            "be added; valid: +experiment=first_run",
        ),
        (["--version"], "atom train: --version is an option of atom; valid: atom --version"),
        (["launcher.time=x"], "launcher.time=x (command line): must be MINUTES, HOURS:MM:SS or"),
        (
            ["launcher=kubernetes", "launcher.image=x", "launcher.memory=x"],
            "launcher.memory=x (command line): must be an amount, such as 64Gi",
        ),
        (["lr_scheduler=3"], "lr_scheduler=3 (command line): must be a section of keys"),
        (
            ["dataset=local", "dataset.path={a: 1}"],
            "dataset.path={a: 1} (command line): must be text or a list, such as [a,b]",
        ),
        # Nothing happened, and nothing was said.
        (["~metrics"], "~metrics (command line): removes nothing: the run is the same without"),
        (["~launcher"], "~launcher (command line): removes nothing"),
        (["-m", "~batch"], "~batch (command line): removes nothing: the run is the same"),
        # These were answered in Hydra's words.
        (["~run.dir"], "~run.dir (command line): removes nothing, because run.dir has no value"),
        (["~nothing"], "~nothing (command line): removes nothing, because nothing has no value"),
        (["~metrics=none"], "~metrics=none (command line): removes nothing, because that is not"),
        (["~optimizer.lr=3"], "~optimizer.lr=3 (command line): removes nothing, because it is 0.0"),
        (["+optimizer.lr=3"], "+optimizer.lr=3 (command line): has a value already; valid: opt"),
        (
            ["architecture@architecture=llama3_tiny"],
            "architecture@architecture=llama3_tiny (command line): an option belongs to the "
            "section of its group; valid: architecture=llama3_tiny",
        ),
        (
            ["+architecture=llama3_tiny"],
            "+architecture=llama3_tiny (command line): an option of this group is chosen without "
            "+; valid: architecture=llama3_tiny",
        ),
        (
            ["+hydra/launcher=joblib"],
            "+hydra/launcher=joblib (command line): an option of this group is chosen without +; "
            "valid: hydra/launcher=joblib",
        ),
        (
            ["++architecture=llama3_tiny"],
            "++architecture=llama3_tiny (command line): an option is chosen without ++; "
            "valid: architecture=llama3_tiny",
        ),
        # Hydra mixes the options: the name of the last one, with what parameters the first had.
        (["tokenizer=[bytes,bpe]"], "tokenizer (command line): takes one option, and no list"),
        (["metrics=null"], "metrics=null (command line): names no option; `atom train --help`"),
        (["hydra=x"], "hydra=x (command line): replaces Hydra's whole section; valid: one"),
        (
            ["hydra.foo=3"],
            "hydra.foo (command line): is not a key of Hydra; `atom train --cfg hydra`",
        ),
        (
            ["--config-path=x"],
            "--config-path=x (command line): is not a folder with a configuration",
        ),
        (["--config-path=/x"], "--config-path=/x (command line): is not a folder with a config"),
        (["--config-name=x"], "--config-name=x (command line): is not in the config folders"),
        (["-m", "--cfg", "job"], "atom train: --multirun and --cfg cannot be combined; valid: one"),
        (["--resolve"], "atom train: --resolve applies only to the output of --cfg or --help"),
        (
            ["--hydra-help"],
            "atom train: --hydra-help cannot be combined with other arguments; valid: no overrides",
        ),
        (
            ["--shell-completion"],
            "atom train: --shell-completion is not supported; valid: atom com",
        ),
        # resolved.device was said to be required.
        (
            ["resolved.zzz=1"],
            "resolved.zzz (command line): is determined by ATOM before a run; val",
        ),
        (["resolved.device=cpu"], "resolved.device (command line): is determined by ATOM before"),
        (["resolved=3"], "resolved (command line): is determined by ATOM before a run"),
    ],
)
def test_a_mistake_is_told_in_words_of_the_users(
    forked: Callable, tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = forked("train", "tokenizer=bytes", *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stdout
    assert result.stderr.startswith(f"atom: {words}"), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_removal_with_an_effect_is_one(forked: Callable, tmp_path: Path) -> None:
    shown = ("--cfg", "job", "--package", "lr_scheduler")
    removed = forked("train", "~lr_scheduler.warmup_steps", *shown, cwd=tmp_path)
    assert (removed.returncode, removed.stdout.splitlines()[-1]) == (0, "{}")
    # It is refused for what follows, not for the removal.
    asked = ("~lr_scheduler.warmup_steps", "metrics=wandb", "~metrics", "training.steps=-5")
    refused = forked("train", "tokenizer=bytes", *asked, cwd=tmp_path)
    assert refused.stderr.startswith("atom: training.steps=-5 ")


@pytest.mark.parametrize(
    ("arguments", "arranged"),
    [
        (["a=b", "-m", "c=d"], ["a=b", "c=d", "--multirun"]),
        (["--cfg", "job", "a=b"], ["a=b", "--cfg=job"]),
        (["-c", "job", "a=b", "-p", "run"], ["a=b", "--cfg=job", "--package=run"]),
        (["--info", "a=b"], ["a=b", "--info"]),
        (["--info", "defaults", "a=b"], ["a=b", "--info=defaults"]),
        (["a=b", "-i"], ["a=b", "--info"]),
        (["-cd", "x", "a=b"], ["a=b", "--config-dir=x"]),
        (["-cd=x", "a=b", "c=-d"], ["a=b", "c=-d", "--config-dir=x"]),
        (["-m", "--", "a=b", "c=d"], ["a=b", "c=d", "--multirun"]),
    ],
)
def test_options_and_overrides_in_any_order(arguments: list[str], arranged: list[str]) -> None:
    assert command_line.arranged(arguments) == arranged


def test_home_is_what_a_shell_makes_of_it(forked: Callable, tmp_path: Path) -> None:
    # No shell expands `run.dir=~/x`, nor what stands in a file.
    (tmp_path / "x").write_text("")
    experiment = tmp_path / "conf" / "experiment"
    experiment.mkdir(parents=True)
    (experiment / "home.yaml").write_text("# @package _global_\nrun: {dir: ~/x}\n")
    for overrides in (["run.dir=~/x"], ["--config-dir=~/conf", "+experiment=home"]):
        result = forked("train", *overrides, "tokenizer=bytes", cwd=tmp_path, HOME=str(tmp_path))
        assert result.returncode == 2
        assert f"run.dir={tmp_path}/x" in result.stderr
        assert "is a file; valid: a folder" in result.stderr


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"\xef\xbb\xbf# @package _global_\nrun: {dir: there}\n", 0, "dir: there"),
        ("# @package _global_\nrun: {dir: é}\n".encode("latin-1"), 2, "is not UTF-8 text"),
        ("# @package _global_\nrun: {dir: x}\n".encode("utf-16"), 2, "is not UTF-8 text"),
        (
            b"# @package _global_\nrun: {dir: 2024_01_15}\n",
            2,
            "must be a path; YAML reads this as a number: put it in quotes there",
        ),
        (b"# @package _global_\nrun: {dir: [a]}\n", 2, "must be a path"),
        (b"# @package _global_\nrun: {dir: 'a${b'}\n", 2, "begins a reference to another key"),
    ],
)
def test_files_of_any_editor(
    forked: Callable, tmp_path: Path, content: bytes, code: int, words: str
) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_bytes(content)
    shown = SHOWN if code == 0 else ()
    result = forked("train", "--config-dir=conf", "+experiment=mine", *shown, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert words in (result.stderr if code else result.stdout)
    assert code == 0 or "mine.yaml" in result.stderr


def test_a_config_folder_may_hold_itself(forked: Callable, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "again").symlink_to(tmp_path / "conf")
    for shown in (["--help"], SHOWN):
        assert forked("train", "--config-dir=conf", *shown, cwd=tmp_path).returncode == 0
