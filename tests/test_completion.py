"""``atom completion``: what it offers, in the shells that are here, without torch."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from atom.cli import COMMANDS
from atom.cli.completion import SCRIPTS, candidates

BIN = Path(sys.executable).parent

# The line up to the cursor, and what it offers: all of it.
EXACTLY = {
    "atom ": {*COMMANDS},
    "atom pl": {"plan", "plugins"},
    "atom --v": {"--version"},
    "atom nosuch ": set(),
    "atom plugins ": {"lock", "--help", "--json", "--kind"},
    "atom plugins --kind ": {
        *("tokenizer", "architecture", "parallelism", "kernel", "dataset", "objective"),
        *("launcher", "callback", "evaluator", "optimizer"),
    },
    "atom plugins --kind=t": {"--kind=tokenizer"},
    "atom plugins --kind dataset --j": {"--json"},
    "atom plugins lock ": set(),
    "atom bench ": {"kernels", "--help"},
    "atom bench kernels --device ": {"auto", "cpu", "cuda"},
    "atom bench kernels --no": {"--no-compile"},
    "atom completion ": {"bash", "zsh", "fish"},
    "atom completion bash ": {"--help"},
    "atom train --config-d": {"--config-dir"},
    "atom train --config-dir ": set(),
    "atom train --cfg ": {"job", "hydra", "all"},
    "atom train --info=def": {"--info=defaults", "--info=defaults-tree"},
    "atom train tokenizer=b": {"tokenizer=bpe", "tokenizer=bytes"},
    "atom train -v --cfg job tokenizer=b": {"tokenizer=bpe", "tokenizer=bytes"},
    "atom train -m tokenizer=bytes,b": {"tokenizer=bytes,bpe"},
    "atom train +exp": {"+experiment="},
    "atom train ++optimizer.e": {"++optimizer.eps="},
    "atom train ~run.": {"~run.dir"},
    "atom train token": {"tokenizer=", "tokenizer."},
    "atom train training.ste": {"training.steps="},
    "atom train training.steps=": {"training.steps=100"},
    "atom train device=": {"device=auto", "device=cpu", "device=cuda"},
    "atom train checkpoint.enable=": {"checkpoint.enable=false", "checkpoint.enable=true"},
    "atom train architecture.n_l": {"architecture.n_layers="},
    "atom train architecture.tie_embeddings=": {
        "architecture.tie_embeddings=false",
        "architecture.tie_embeddings=true",
    },
    "atom train kernels.attention=flex": {
        "kernels.attention=flex",
        "kernels.attention=flex_flash",
    },
    # The shell completes paths.
    "atom train run.dir=": set(),
    "atom train run.dir=./": set(),
    # What is wrong so far keeps nothing from being offered.
    "atom train training.steps=[1, tokenizer=by": {"tokenizer=bytes"},
    "atom train trainig.steps=1 tokenizer=by": {"tokenizer=bytes"},
    "atom train 'training.steps=1' tokenizer=by": {"tokenizer=bytes"},
    "atom train nosuch=": set(),
}


@pytest.mark.parametrize(("line", "offered"), EXACTLY.items(), ids=EXACTLY)
def test_candidates(line: str, offered: set[str]) -> None:
    found = candidates(line)
    assert set(found) == offered
    assert len(found) == len(offered), "something is offered twice"


def test_groups_of_installed_plugins() -> None:
    offered = {"llama3_tiny", "llama3_1b", "llama3_3b", "llama3_8b", "llama3_70b", "llama3_405b"}
    found = candidates("atom train architecture=llama3_")
    assert found == sorted(found)
    assert {f"architecture={name}" for name in offered} == set(found)


def test_keys_follow_the_options_chosen_in_front() -> None:
    """``dataset.path`` is a key of one dataset, and not of the one that is the default."""
    assert candidates("atom train dataset.path") == []
    assert candidates("atom train dataset=local dataset.path") == ["dataset.path="]


def test_every_key_of_train_yaml_is_offered() -> None:
    found = set(candidates("atom train "))
    assert {"training.", "optimizer.", "device=", "run.", "architecture=", "dataset="} <= found
    assert "resolved." not in found
    assert "resolved=" not in found


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "architecture").mkdir()
    (tmp_path / "architecture" / "minute.yaml").write_text("name: llama3\ndim: 16\n")
    for option in (f"--config-dir {tmp_path}", f"--config-dir={tmp_path}"):
        line = f"atom train {option} architecture=minu"
        assert candidates(line) == ["architecture=minute"]


def test_a_file_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressing a key shows no variable to a file, and runs none of its resolvers."""
    monkeypatch.setenv("SECRET", "swordfish")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "x.yaml").write_text(
        "# @package _global_\nlaunch:\n  ranks: ${oc.env:SECRET}\n"
    )
    line = f"atom train --config-dir {tmp_path} +experiment=x launch.rank"
    assert candidates(line) == ["launch.ranks="]
    assert candidates(f"{line}s=") == ["launch.ranks=null"]


def test_blocked_plugins_are_not_offered() -> None:
    assert candidates("atom train plugins.block=[atom-tokenizers] tokenizer=") == []


@pytest.mark.slow
def test_no_torch() -> None:
    """Nor any other heavy package; and the answer is of the line up to the cursor."""
    code = (
        "import sys, atom.cli\n"
        "assert atom.cli.main(['completion', 'query']) == 0\n"
        "heavy = {'torch', 'torchtitan', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    line = "atom train architecture=qwen3_tiny architecture.n_lay"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"COMP_LINE": f"{line}nonsense more", "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "architecture.n_layers=\n"
    assert not result.stderr


# What is called in bash as bash would, and what stands in COMPREPLY then: bash puts it in the place
# of what follows the last `=` or `:`. A finished word ends in a space.
IN_BASH = {
    "atom train +experiment=f": ["first_run "],
    "atom train -m tokenizer=bytes,b": ["bytes,bpe "],
    "atom train toke": ["tokenizer.", "tokenizer="],
    "atom nosuch ": [],
}


@pytest.mark.slow
def test_the_function_in_bash(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(_printed("bash"))
    driver = 'source "$1"\n' + "complete -p atom\n"
    driver += (
        "while IFS= read -r COMP_LINE; do\n"
        "  COMP_POINT=${#COMP_LINE} COMP_WORDS=($COMP_LINE)\n"
        "  _atom_completion\n"
        '  printf "%s|" "${COMPREPLY[@]}"; echo\n'
        "done\n"
    )
    result = subprocess.run(
        ["bash", "--norc", "-c", driver, "bash", str(script)],
        input="".join(f"{line}\n" for line in IN_BASH),
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    bound, *replies = result.stdout.splitlines()
    assert bound == "complete -o bashdefault -o default -o nospace -F _atom_completion atom"
    assert result.stderr == ""
    replied = [[word for word in line.split("|") if word] for line in replies]
    assert dict(zip(IN_BASH, replied, strict=True)) == IN_BASH


# How each shell is started without the user's own files, and made to say when it is ready.
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i", "-C", "function fish_prompt; echo READY; end"],
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_the_key_is_pressed_in_a_terminal(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script, typed = tmp_path / "script", tmp_path / "typed"
    script.write_text(_printed(shell))
    (tmp_path / "some-folder").mkdir()
    with Terminal(SHELLS[shell], cwd=tmp_path) as terminal:
        terminal.press(f"source {script}\n")
        for line in (
            "atom plugi\t",
            "atom train architecture=llama3_ti\t",
            "atom train optimizer.l\t1",
            "atom train run.dir=./some-f\t",
        ):
            # The line is then turned into one that writes itself down.
            terminal.press(f"{line}\x01echo \x05 >> {typed}\n")
        terminal.until(lambda: typed.exists() and len(typed.read_text().splitlines()) == 4)
    # Some shells take the / away again.
    assert [word.rstrip("/") for word in typed.read_text().split()] == [
        *("atom", "plugins"),
        *("atom", "train", "architecture=llama3_tiny"),
        *("atom", "train", "optimizer.lr=1"),
        *("atom", "train", "run.dir=./some-folder"),
    ]


class Terminal:
    """A shell in a terminal of its own."""

    def __init__(self, command: list[str], *, cwd: Path) -> None:
        self._command, self._cwd = command, cwd
        self._seen = ""

    def __enter__(self) -> Terminal:
        self._ours, theirs = pty.openpty()
        self._shell = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=os.environ
            | {
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "HOME": str(self._cwd),
                "PS1": "READY ",
                "TERM": "xterm",
            },
            preexec_fn=partial(os.login_tty, theirs),
        )
        os.close(theirs)
        self.until(lambda: "READY" in self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._ours)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, done: Callable[[], bool]) -> None:
        """Wait; read what the shell prints, so that it can go on."""
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end, f"the shell shows: {self._seen}"
            if select.select([self._ours], [], [], 0.05)[0]:
                self._seen += os.read(self._ours, 65536).decode(errors="replace")


def _printed(shell: str) -> str:
    """Return what ``atom completion SHELL`` prints."""
    assert shell in SCRIPTS
    command = [BIN / "atom", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
