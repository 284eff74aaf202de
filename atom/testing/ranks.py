"""Run training runs on real ranks over gloo, one after another, from one server process.

Importing torchtitan takes longer than a small run. So one process imports it once, and forks for
each run the process that ``atom train`` would be. Everything after that is the same as in a user's
run: checks, run folder, forked ranks, trainer, metrics.
"""

from __future__ import annotations

import atexit
import functools
import gc
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from atom.errors import RunError, UserError
from atom.run_dir import metrics
from atom.run_dir.metrics import StepMetrics
from atom.testing import partners

Sections = dict[str, Any]

MOST_RANKS = 16
"""Maximum ranks of one run; each is a process."""


def shared(*, interpreted: bool = False) -> Ranks:
    """Return the ranks shared in this process, which live as long as it does.

    With ``interpreted``, Triton kernels run in Triton's interpreter.
    """
    return _shared(interpreted)


@functools.cache
def _shared(interpreted: bool) -> Ranks:
    ranks = Ranks({"TRITON_INTERPRET": "1"} if interpreted else {})
    atexit.register(ranks.close)
    return ranks


class Ranks:
    """A runner that trains each run only once, so that several tests can share a reference run.

    The folder of a failed run is kept, because its error names a log there.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._folder = Path(tempfile.mkdtemp(prefix="atom-conformance-"))
        self._server: subprocess.Popen[str] | None = None
        self._failed: set[Path] = set()

    def train(self, sections: Sections, *, after: Sections | None = None) -> list[StepMetrics]:
        """Train a run and return the metrics of its steps.

        Args:
            sections: sections of the run, as in :class:`atom.recipe.run.Run`.
            after: another run; the run resumes from its last checkpoint, and the metrics of both
                are
                returned.

        Raises:
            UserError: the run is invalid.
            RunError: a rank failed.
        """
        folder = self.place(sections, after)
        if not (folder / "done").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            if after is not None:
                self.train(after)
                shutil.copytree(self.place(after), folder)
                (folder / "done").unlink()
            try:
                self._run(sections, folder)
            except RunError:
                self._failed.add(folder)
                raise
            (folder / "done").touch()
        return list(metrics.read(folder / metrics.FILE_NAME))

    def close(self) -> None:
        """End the server process and remove the folders of the runs that did not fail."""
        if self._server is not None:
            self._server.communicate()
        for path in self._folder.iterdir() if self._failed else [self._folder]:
            if path.is_dir() and path not in self._failed:
                shutil.rmtree(path, ignore_errors=True)

    def place(self, sections: Sections, after: Sections | None = None) -> Path:
        """Return the folder of a run, which :meth:`train` fills."""
        text = json.dumps([sections, after], sort_keys=True)
        return self._folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def _run(self, sections: Sections, folder: Path) -> None:
        if self._server is None:
            self._server = self._start()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([sections, str(folder)]) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of the ranks has ended: {self._log().read_text()}")
        error, words = json.loads(answer)
        if error:
            raise {"UserError": UserError, "RunError": RunError}.get(error, RuntimeError)(words)

    def _start(self) -> subprocess.Popen[str]:
        packages = self._folder / "packages"
        partners.write_entry_point(packages)
        # A test that happens to start the server must not decide for those that come after it.
        of_the_test = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TRITON_INTERPRET")
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in of_the_test and not name.startswith("SLURM_")
        }
        # Not PYTHONPATH: the folder must come after the installed packages.
        command = [sys.executable, "-P", "-m", __name__, str(packages)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log().open("w"),
            # One thread per rank: the models are so small that more threads only add contention.
            env=kept
            | {"ATOM_CACHE": str(self._folder / "cache"), "OMP_NUM_THREADS": "1"}
            | dict(self._environment),
            text=True,
        )

    def _log(self) -> Path:
        return self._folder / "ranks.log"


# ---------------------------------------------------------------------------- the other process


def _serve(packages: str) -> None:
    """Answer each line ``[sections, folder]`` of stdin with a line ``[error, words]``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not be read as an answer
    sys.path.append(packages)

    from atom.io.process import call
    from atom.titan.boot import boot

    boot("cpu")
    # Imports that every run needs, done once; none of them may start a thread.
    from atom.launch import agent, rank  # noqa: F401
    from atom.titan import trainer_config  # noqa: F401
    from atom.titan.preflight import preflight, run_plan  # noqa: F401

    imported: set[str] = set()
    for line in sys.stdin:
        sections, folder = json.loads(line)
        if (name := sections["architecture"]["name"]) not in imported:
            imported.add(name)
            with suppress(Exception):  # the run itself reports it
                _import(name)
            gc.collect()
            gc.freeze()  # a GC pass in a child would break copy-on-write sharing with this process
        try:
            call(partial(_train, sections, Path(folder)))
            answer = ["", ""]
        except Exception as error:
            answer = [type(error).__name__, str(error)]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import(architecture: str) -> None:
    """Import the code of an architecture, for all of its runs: Qwen3.5 takes two seconds."""
    from atom.plugin import Architecture
    from atom.registry.host import Host

    found = Host.load().find("architecture", architecture, key="architecture.name").declaration
    assert isinstance(found, Architecture)
    importlib.import_module(found.build.partition(":")[0])


def _train(sections: Sections, folder: Path) -> None:
    from atom.launch import local
    from atom.launch.start import prepare_folder
    from atom.recipe.run import parse
    from atom.registry.host import Host

    ready = prepare_folder(parse(sections), Host.load(), folder, {})
    if ready is None:  # nothing is left to train
        return
    resolved = ready.resolved
    local.start(folder, resolved.world_size, resolved.device, ready.run.launch)


if __name__ == "__main__":
    _serve(sys.argv[1])
    os._exit(0)  # taking the interpreter apart takes seconds
