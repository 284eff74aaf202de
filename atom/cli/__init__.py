"""Run the ``atom`` command: find the sub-command, and distinguish user errors from bugs."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import select
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import atom
from atom.errors import EX_STOPPED, RunError, RunStoppedError, UserError, nearest
from atom.io import notices
from atom.io.files import NotAFileError, TooLargeError
from atom.io.printing import protected

COMMANDS: dict[str, tuple[str, str]] = {
    "recipe": ("atom.cli.recipe", "run a recipe: stages from a corpus to a model"),
    "plan": ("atom.cli.plan", "divide a budget by a scaling law, or fit one to finished runs"),
    "train": ("atom.cli.train", "compose a training run from plugins, and run it"),
    "data": ("atom.cli.data", "prepare token shards of a dataset, inspect and verify them"),
    "runs": ("atom.cli.runs", "list the runs under a folder, with their status"),
    "status": ("atom.cli.status", "show the status of a run"),
    "logs": ("atom.cli.logs", "show the logs of a run"),
    "stop": ("atom.cli.stop", "end a run early, with a checkpoint"),
    "compare": ("atom.cli.compare", "compare the settings and results of runs"),
    "report": (
        "atom.cli.report",
        "write a page about a run: curves, settings, layout, environment",
    ),
    "export": ("atom.cli.export", "export a run's weights in Hugging Face's format"),
    "average": ("atom.cli.average", "average the weights of checkpoints"),
    "generate": ("atom.cli.generate", "generate text with a run's model"),
    "chat": ("atom.cli.chat", "converse with a model that has a chat template"),
    "validate": ("atom.cli.validate", "compute the loss of a run's model on sets of text"),
    "eval": ("atom.cli.eval", "score a run's model on tasks of evaluators"),
    "release": ("atom.cli.release", "write a folder of runs that others can check and repeat"),
    "verify": ("atom.cli.verify", "check a release: files, signature, cards, verdicts"),
    "reproduce": ("atom.cli.reproduce", "train segments of a release again, and compare bits"),
    "kernels": ("atom.cli.kernels", "list the kernels, or explain which ones a run uses"),
    "bench": ("atom.cli.bench", "time the installed kernels on this device"),
    "plugins": ("atom.cli.plugins", "list the installed plugins, and why one is broken"),
    "new": ("atom.cli.new", "create a plugin package"),
    "completion": ("atom.cli.completion", "print a script for completion in a shell"),
}
"""Name -> module with ``main(arguments) -> exit code``, and one line of help."""

OPTIONS = ("--help", "--version")

_MACHINE = {
    errno.ENOSPC: "",
    errno.EDQUOT: "",
    errno.EIO: "",
    errno.ESTALE: "",
    errno.EROFS: "",
    errno.EACCES: "",
    errno.EPERM: "",
    errno.ENOTDIR: "",
    errno.ELOOP: "",
    errno.ENOMEM: "",
    errno.EMFILE: "; `ulimit -n` shows and sets the maximum number of open files",
    errno.ENFILE: "",
    errno.EAGAIN: "; `ulimit -u` shows and sets the maximum number of processes",
}
"""errno -> hint, for faults of the machine or of file names, which are not bugs."""

_SHOWN_CHARACTERS = 60
"""Number of characters shown of a text that is too long."""


class Parser(argparse.ArgumentParser):
    """An argument parser of a sub-command that raises :class:`UserError` for invalid arguments."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False)

    def add_average(self) -> None:
        """Add ``--average``, for a command that reads the weights of a run."""
        self.add_argument(
            "--average",
            metavar="CALLBACK",
            help="read the weights that a callback of the run has averaged, such as ema; default: "
            "the weights of the run",
        )

    def error(self, message: str) -> NoReturn:
        _, unknown, words = message.partition("unrecognized arguments: ")
        hint = f"; {nearest(words.split()[0], self._option_string_actions)}" if unknown else ""
        raise UserError(f"{self.prog}: {message}{hint}")


def named(option: str, given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the values of an option that may be repeated, by name.

    Raises:
        UserError: a name is given twice.
    """
    found: dict[str, Any] = {}
    for name, value in given:
        if name in found:
            raise UserError("is given twice", key=option, value=name)
        found[name] = value
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the ``atom`` command.

    Args:
        argv: the arguments after ``atom``; None for those of this process.

    Returns:
        The exit code: 0; 1 after a failed run, an interrupt or a bug; 2 after a user error; 75
        (``EX_STOPPED``) after a run that stopped on request.
    """
    arguments = sys.argv[1:] if argv is None else argv
    # Keeps child processes, such as torch's compilers, from importing modules of the current
    # folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    _replace_closed_streams()
    with protected():
        notices.show()
        return _to_its_end(arguments)


def _to_its_end(arguments: list[str]) -> int:
    try:
        code = _run(arguments)
        print(end="", flush=True)
    except OSError as error:
        # Python flushes again at exit and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 1
        return _say(f"the output cannot be written: {error.strerror}", code=1)
    return code


def _run(arguments: list[str]) -> int:
    try:
        return _command(arguments)
    except UserError as error:
        return _say(error.sentence(), code=2)
    except (NotAFileError, TooLargeError) as error:
        return _say(str(error), code=2)
    except RunError as error:
        return _say(str(error), code=1)
    except RunStoppedError as error:
        return _say(str(error), code=EX_STOPPED)
    except KeyboardInterrupt:
        return _say("interrupted", code=1)
    except SystemExit as end:
        if isinstance(end.code, str):
            return _say(end.code, code=1)
        return end.code or 0
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _say(_too_long(str(error.filename), arguments), code=2)
        if isinstance(error, OSError) and error.errno in _MACHINE:
            print(end="", flush=True)  # raises if the disk of the output is full
            where = f"{error.filename}: " if error.filename is not None else ""
            return _say(f"{where}{error.strerror}{_MACHINE[error.errno]}", code=1)
        if isinstance(error, FileNotFoundError) and not _has_folder():
            return _say("the current folder has been removed; valid: cd to another", code=2)
        traceback.print_exc()
        return _say(f"this is a bug ({type(error).__name__}), in ATOM or in a plugin", code=1)


def _command(arguments: list[str]) -> int:
    """Run the command in ``arguments``; return the exit code."""
    if not arguments:
        print(_help(), file=sys.stderr)
        return 2
    name, *rest = arguments
    if name in ("--help", "-h"):
        print(_help())
        return 0
    if name == "--version":
        print(f"atom {atom.__version__}")
        return 0
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        valid = OPTIONS if name.startswith("-") else COMMANDS
        raise UserError(f"there is no {what} {name}; {nearest(name, valid, most=len(COMMANDS))}")
    module, _ = COMMANDS[name]
    code: int = importlib.import_module(module).main(rest)
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return (
        f"usage: atom COMMAND [ARGUMENT ...]\n\nTrain truly open language models.\n\n{commands}\n\n"
        "`atom COMMAND --help` explains a command; `atom --version` prints the version."
    )


def _say(sentence: str, *, code: int) -> int:
    with suppress(OSError):  # nobody reads the output; the exit code reports the failure
        print(f"atom: {sentence}", file=sys.stderr, flush=True)
    return code


def _too_long(path: str, arguments: list[str]) -> str:
    """Return a sentence about a name that is too long for a file, and where the user gave it."""
    name = max(Path(path).parts, key=len, default="")
    given = next((argument for argument in arguments if name in argument), path)
    if len(given) > _SHOWN_CHARACTERS:
        given = f"{given[:_SHOWN_CHARACTERS]}…"
    return f"{given}: is too long for a file name; valid: a shorter name"


def _has_folder() -> bool:
    """Return whether the current folder still exists."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _replace_closed_streams() -> None:
    """Replace streams that the caller has closed (``>&-``), which Python sets to None, by null
    streams.

    Streams replace characters that their encoding lacks.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(out := getattr(sys, stream), io.TextIOWrapper):
            out.reconfigure(errors="replace")


def _nobody_reads() -> bool:
    """Return whether the reader of this process's output has ended, as in ``atom plugins | head``.

    Another pipe, such as one of a run, can break too, but that is a real failure.
    """
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
