"""Commands that are watched while they handle what strangers made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import audit
import pytest

from atom.cli import main

Command = Callable[..., subprocess.CompletedProcess[str]]

SOURCES = Path(__file__).parents[2]
"""ATOM and its plugins, which are installed from here."""


class Watched:
    """A command that is held to what it may do while it refuses, or looks at, a stranger's files.

    It starts no process, connects to nothing, runs no code but what is installed, opens no file
    whose name is in ``private``, and writes to nothing but caches, temporary files, the bytecode of
    what is installed, and what is below one of ``places``.
    """

    def __init__(self, command: Command, tmp_path: Path, cache: Path) -> None:
        self._command, self._tmp_path, self._cache = command, tmp_path, cache
        self.private = {"secret.txt", "authorized_keys", "mark"}
        self.places: list[Path] = []
        self.installed: list[Path] = []
        """Where packages are that the user has installed."""

    def __call__(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        descriptor, name = tempfile.mkstemp(prefix="atom-audit-")
        os.close(descriptor)
        log = Path(name)
        try:
            result = self._command(*arguments, **options, **{audit.VARIABLE: name})
            done = audit.read(log)
        finally:
            log.unlink()
        assert done, "nobody has watched"
        assert not (wrong := sorted(set(self._wrong(done)))), (arguments, wrong[:9], result.stderr)
        return result

    def _wrong(self, done: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
        for verb, what in done:
            if verb == "reads":
                if self.private & set(Path(what).parts):
                    yield verb, what
            elif verb == "runs":
                if not any(Path(what).is_relative_to(place) for place in self.installed):
                    yield verb, what
            elif verb != "writes" or not self._may_write(Path(what)):
                yield verb, what

    def _may_write(self, path: Path) -> bool:
        caches = [self._cache]
        if (datasets := sys.modules.get("datasets")) is not None:
            # A process that has imported it before keeps to the cache that it had then.
            caches.append(Path(datasets.config.HF_DATASETS_CACHE))
        if any(path.is_relative_to(place) for place in (*caches, *self.places, "/dev/null")):
            return True
        if path.name.startswith(".atom-write-test-"):  # which is removed at once
            return True
        if "__pycache__" in path.parts and any(
            path.is_relative_to(place) for place in (sys.prefix, SOURCES, *self.installed)
        ):
            return True
        # Other temporary files, and not the test's own folder, which is one as well.
        below = path.is_relative_to(tempfile.gettempdir())
        return below and not path.is_relative_to(self._tmp_path)


@pytest.fixture
def watched(forked: Command, tmp_path: Path, cache: Path) -> Watched:
    """The fixture ``forked``, watched."""
    return Watched(forked, tmp_path, cache)


@pytest.fixture
def watched_atom(atom: Command, tmp_path: Path, cache: Path) -> Watched:
    """The fixture ``atom``, watched."""
    return Watched(atom, tmp_path, cache)


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
