"""The ``atom`` command itself: help, mistakes, bugs, interrupts, and readers that go away.

Exit codes: 0 done, 2 the user's mistake, 1 anything else.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import atom as atom_package
from atom import cli
from atom.cli import COMMANDS, main

ATOM = Path(sys.executable).with_name("atom")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for, it is the answer; nothing asked for is a mistake, and help is the way out."""
    assert main(["--help"]) == 0
    asked = capsys.readouterr()
    assert asked.err == ""
    assert main(["-h"]) == 0
    assert capsys.readouterr().out == asked.out
    assert main([]) == 2
    not_asked = capsys.readouterr()
    assert (not_asked.out, not_asked.err) == ("", asked.out)
    lines = [line.split(maxsplit=1) for line in asked.out.splitlines() if line.startswith("  ")]
    assert lines == [[name, summary] for name, (_, summary) in COMMANDS.items()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr()
    assert f"atom {command}" in said.out
    assert said.err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"atom {atom_package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "there is no command trian; did you mean train?"),
        (["plugin"], "there is no command plugin; did you mean plugins or plan?"),
        (["qqq"], f"there is no command qqq; valid: {', '.join(sorted(COMMANDS))}"),
        (["--versoin"], "there is no option --versoin; did you mean --version?"),
        (["-x"], "there is no option -x; valid: --help, --version"),
        ([""], f"there is no command ; valid: {', '.join(sorted(COMMANDS))}"),
    ],
)
def test_unknown(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"atom: {sentence}\n")


@pytest.mark.parametrize("command", [[str(ATOM)], [sys.executable, "-m", "atom"]])
def test_ways_to_start_it(command: list[str]) -> None:
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"atom {atom_package.__version__}\n")
    result = subprocess.run([*command, "trian"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "atom: there is no command trian; did you mean train?\n"


@pytest.mark.parametrize("option", ["--experimental-rerun", "--experimental", "--e"])
def test_no_pickle_is_read(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra has an option that reads one, and takes any beginning of its name."""
    trap = tmp_path / "run.pickle"
    trap.write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    for arguments in ([option, str(trap)], [f"{option}={trap}"]):
        assert main(["train", *arguments]) == 2
        refused = "--experimental-rerun executes a pickle"
        if option != "--experimental-rerun":  # ATOM takes no beginning of a name
            refused = f"atom train: there is no option {option}"
        assert capsys.readouterr().err.startswith(f"atom: {refused}")
    assert not (tmp_path / "sprung").exists()


class Trap:
    """A pickle of it makes a folder for whoever reads it."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.place,)


# ---------------------------------------------------------------------------- what goes wrong


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make ``atom x`` a command with a body of one's own."""

    def make(body: str) -> None:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / "command_x.py").write_text(
            f"from atom.errors import RunError, UserError\n\n\ndef main(arguments):\n{lines}"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "command_x", raising=False)
        monkeypatch.setitem(cli.COMMANDS, "x", ("command_x", "a command"))

    return make


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("return 0", 0, ""),
        ("raise UserError('is wrong', key='a.b', value=None)", 2, "a.b=null: is wrong"),
        ("raise RunError('rank 3 failed')", 1, "rank 3 failed"),
        ("raise KeyboardInterrupt", 1, "interrupted"),
        ("import sys; sys.exit(0)", 0, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(2)", 2, ""),
        ("import sys; sys.exit('no good')", 1, "no good"),
    ],
)
def test_ends(
    body: str, code: int, said: str, command: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence each, and no traceback."""
    command(body)
    assert main(["x"]) == code
    assert capsys.readouterr().err == (f"atom: {said}\n" if said else "")


def test_a_bug_has_a_traceback_and_one_line(
    command: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    command("return {}['missing']")
    assert main(["x"]) == 1
    first, *lines, error, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert any("return {}['missing']" in line for line in lines)
    assert error == "KeyError: 'missing'"
    assert last == "atom: this is a bug (KeyError), in ATOM or in a plugin"


def test_a_pipe_of_its_own_that_breaks_is_a_bug(
    command: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    """Quiet is only what concerns the reader of the command's output."""
    command("raise BrokenPipeError")
    assert main(["x"]) == 1
    assert "this is a bug (BrokenPipeError)" in capfd.readouterr().err


def test_interrupted_for_real(install: Callable, environment: dict[str, str]) -> None:
    """Ctrl-C while a plugin is being imported, where ATOM waits for others."""
    site = install("sleepy", {"__init__.py": "import time\nprint('asleep')\ntime.sleep(60)\n"})
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "atom", "plugins"],
        env=environment | {"PYTHONPATH": str(site)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "asleep\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 1
        assert process.stderr.read() == "atom: interrupted\n"


# ---------------------------------------------------------------------------- its output


def test_a_reader_that_has_enough(environment: dict[str, str]) -> None:
    script = f'"{ATOM}" plugins | head -1; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.split()[:3] == ["KIND", "NAME", "PACKAGE"]
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""
    assert result.returncode in (0, 1)  # 0: all was written before the reader went


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_is_gone(environment: dict[str, str], unbuffered: str) -> None:
    """What is written meets a broken pipe: at once, or as Python empties its buffer."""
    ours, theirs = os.pipe()
    os.close(ours)
    result = subprocess.run(
        [ATOM, "plugins"],
        env=environment | {"PYTHONUNBUFFERED": unbuffered},
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(theirs)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize("arguments", ["plugins", "--help"])
def test_a_disk_that_is_full(environment: dict[str, str], arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [ATOM, arguments],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == "atom: the output cannot be written: No space left on device\n"


def test_a_file_that_does_not_fit(command: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no bug; and not always known which file, for the system does not say."""
    command("with open('/dev/full', 'w') as file: file.write('x')")
    assert main(["x"]) == 1
    assert capsys.readouterr().err == "atom: No space left on device\n"
    command("import errno; raise OSError(errno.ENOSPC, 'No space left on device', 'a/b.bin')")
    assert main(["x"]) == 1
    assert capsys.readouterr().err == "atom: a/b.bin: No space left on device\n"


def test_closed_output(environment: dict[str, str]) -> None:
    """``>&-``: Python has no stream then."""
    for script, said in (("plugins >&-", ""), ("trian 2>&-", ""), ("plugins --json >&- 2>&-", "")):
        result = subprocess.run(
            ["bash", "-c", f'"{ATOM}" {script}'],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.stdout, result.stderr) == ("", said)
        assert result.returncode == (2 if "trian" in script else 0)
