"""``atom …`` and ``python -m …`` from a process that has imported torchtitan, which takes longer
than a small run.

The process listens on a socket and forks for each command, which has a session of its own, and the
environment, folder and pipes of whoever asks. From there on everything is what it is for a user;
only the imports are done, and the end does not take the interpreter down piece by piece, which
takes longer than many a command.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

_LOOK_SECONDS = 0.01


class Warm:
    """The process that has everything imported.

    Args:
        place: an empty folder, whose path is short enough for a socket's.
        environment: what the imports may look at.
    """

    def __init__(self, place: Path, environment: Mapping[str, str]) -> None:
        self._path = place / "warm"
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(self._path)], env=environment, stdin=subprocess.DEVNULL
        )

    def start(
        self,
        arguments: list[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        file_size: int | None = None,
    ) -> Process:
        """Start a command; ``file_size`` is the most bytes that a file of its may have."""
        while not self._path.exists():
            assert self._server.poll() is None, "the process with the imports has ended"
            time.sleep(_LOOK_SECONDS)
        out, err = os.pipe(), os.pipe()
        asked = socket.socket(socket.AF_UNIX)
        asked.connect(str(self._path))
        request = json.dumps([arguments, str(cwd), dict(environment), file_size]).encode()
        socket.send_fds(asked, [len(request).to_bytes(4, "big")], [out[1], err[1]])
        asked.sendall(request)
        os.close(out[1])
        os.close(err[1])
        answers = asked.makefile()
        return Process(int(answers.readline()), answers, os.fdopen(out[0]), os.fdopen(err[0]))

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


class Process:
    """A command at work, as :class:`subprocess.Popen` has it; its parent is not this process."""

    def __init__(self, pid: int, answers: IO[str], out: IO[str], err: IO[str]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._answers = answers
        self._pipes = (out, err)
        # Read all the time, so that the command never waits.
        self._reading = ThreadPoolExecutor(2)
        self._said = [self._reading.submit(pipe.read) for pipe in self._pipes]

    def poll(self) -> int | None:
        """Return the exit code, or None of a command at work."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code, -N after signal N."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("atom", timeout or 0)
            self.returncode = int(self._answers.readline())
        return self.returncode

    def end(self) -> None:
        """End it, and all in its session, if it is at work."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and for that of all that write to its pipes; return what was said."""
        try:
            out, err = (said.result(timeout) for said in self._said)
        except FutureTimeout:
            raise subprocess.TimeoutExpired("atom", timeout or 0) from None
        self.wait(timeout)
        self._reading.shutdown()
        self._answers.close()
        for pipe in self._pipes:
            pipe.close()
        return out, err


# ---------------------------------------------------------------------------- the other process


def compose_once() -> None:
    """Fill the caches of parsers with what most commands parse; nothing else is left behind."""
    from hydra.core.singleton import Singleton
    from hydra.types import RunMode

    from atom.compose.compose import config_loader
    from atom.compose.groups import CONFIG_NAME
    from atom.registry.host import Host

    state = Singleton.get_state()
    overrides = ["tokenizer=bytes", "++architecture.dim=64", "++optimizer.lr=1e-3"]
    config_loader(Host.load()).load_configuration(CONFIG_NAME, overrides, RunMode.RUN)
    Singleton.set_state(state)


COMPONENTS = {"llama3", "bytes", "stdlib", "mesh", "reference"}
"""Names of what most runs of the tests are made of."""


def _import_components() -> None:
    """Import the code of :data:`COMPONENTS`, and the models of all parameters."""
    from atom.registry.host import Host, resolve

    for component in Host.load().components:
        declaration = component.declaration
        whole = declaration.name in COMPONENTS
        for attribute in declaration.references if whole else ("config",):
            if (reference := getattr(declaration, attribute)) is not None:
                resolve(reference, component)


def _serve(path: str) -> NoReturn:
    """Answer requests for ever, each in a process of its own."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    from atom.titan.boot import boot

    boot("cpu")
    # What commands need; nothing here may start a thread.
    from atom.cli import COMMANDS
    from atom.compose import compose  # noqa: F401
    from atom.launch import agent, rank  # noqa: F401
    from atom.titan import trainer_config  # noqa: F401
    from atom.titan.preflight import checks, preflight, run_plan  # noqa: F401

    for module, _ in COMMANDS.values():
        importlib.import_module(module)
    _import_components()
    compose_once()
    # A collection in a child would write to all that it shares with this process.
    gc.collect()
    gc.freeze()
    ended, tells = os.pipe()
    for end in (ended, tells):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    listener.listen(64)
    Path(path + ".new").rename(path)
    asking: dict[int, socket.socket] = {}  # by the process of the command
    while True:
        ready, _, _ = select.select([listener, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            for command in list(asking):
                number, status = os.waitpid(command, os.WNOHANG)
                if number:
                    with asking.pop(command) as connection, suppress(ConnectionError):
                        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        if listener not in ready:
            continue
        connection, _ = listener.accept()
        length, pipes, _, _ = socket.recv_fds(connection, 4, 2)
        request = connection.makefile("rb").read(int.from_bytes(length, "big"))
        command = os.fork()
        if command == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGHUP):  # the tests may run under nohup
                signal.signal(number, signal.SIG_DFL)
            for inherited in (listener, connection, *asking.values()):
                inherited.close()
            os.close(ended)
            os.close(tells)
            _run(*json.loads(request), *pipes)
        for pipe in pipes:
            os.close(pipe)
        asking[command] = connection
        connection.sendall(f"{command}\n".encode())


def _run(
    arguments: list[str],
    cwd: str,
    environment: dict[str, str],
    file_size: int | None,
    out: int,
    err: int,
) -> NoReturn:
    os.setsid()
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, name, pipe in ((1, "stdout", out), (2, "stderr", err)):
        os.dup2(pipe, number)
        os.close(pipe)
        setattr(sys, name, os.fdopen(number, "w", closefd=False))
    sys.argv = arguments[1:] if arguments[0] == "-m" else ["atom", *arguments]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    importlib.invalidate_caches()
    tempfile.tempdir = None  # that of the environment
    if arguments[0] == "-m":
        try:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            _end(int(end.code or 0))
        _end(0)
    import audit

    import atom.cli

    audit.install()
    _end(atom.cli.main(arguments))


def _end(code: int) -> NoReturn:
    """End this process as Python would, but without taking its modules apart."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    import audit  # noqa: F401

    sys.path.pop(0)  # this folder
    _serve(sys.argv[1])
