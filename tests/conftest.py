"""Drive the real command."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from atom.run_dir import metrics
from atom.testing.installing import describe

sys.path.append(str(Path(__file__).parent))

import audit
import installed as packages
from warm import Process, Warm, compose_once

# Small enough for seconds, large enough for every layout: 4 heads, 2 key-value heads, 4 layers.
SMALL = (
    "architecture=llama3_tiny",
    "architecture.dim=64",
    "architecture.n_layers=4",
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.steps=5",
    "optimizer.lr=1e-3",
    "lr_scheduler.warmup_steps=1",
    "lr_scheduler.total_steps=20",
    "lr_scheduler.min_lr_factor=0.1",
    "metrics.enable_tensorboard=false",
    "device=cpu",
)

Command = Callable[..., subprocess.CompletedProcess[str]]

THROUGH_THE_COMMAND = {"user_cases", "hostile"}
"""Folders of tests that run the command hundreds of times: together they take minutes."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tables of the real command as slow, before slow tests are left out."""
    for item in items:
        if THROUGH_THE_COMMAND & set(item.path.parts):
            item.add_marker(pytest.mark.slow)


SAFE_PATH = {name: value for name, value in os.environ.items() if name == "PYTHONSAFEPATH"}


@pytest.fixture(autouse=True)
def safe_path() -> None:
    """Give each test the environment that pytest was started in: the command sets this for what it
    starts, and some tests and fixtures are the command."""
    os.environ.pop("PYTHONSAFEPATH", None)
    os.environ.update(SAFE_PATH)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache: Path) -> dict[str, str]:
    """The user's environment, less what would make this process look like a rank or a terminal, and
    what a command in an earlier test of this process has set: see :func:`safe_path`."""
    left_out = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PYTHONSAFEPATH")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in left_out and not name.startswith("SLURM_")
    }
    return kept | SAFE_PATH | {"ATOM_CACHE": str(cache), "COLUMNS": "100"}


@pytest.fixture(scope="session")
def free_port() -> Callable[..., int]:
    """Return a port that is free, as are those that follow it by the given distances: launchers'
    own is one for all, and other tests run at the same time. The system gives none of these to
    whoever asks for any port, so no connection of another process takes one before the test."""

    def find(*distances: int) -> int:
        while True:
            number = random.SystemRandom().randrange(10_000, 24_000)
            with suppress(OSError), ExitStack() as held:
                for distance in (0, *distances):
                    held.enter_context(socket.create_server(("", number + distance)))
                return number

    return find


@pytest.fixture
def port(free_port: Callable[..., int]) -> int:
    return free_port()


@pytest.fixture(scope="session")
def warm(environment: dict[str, str]) -> Iterator[Warm]:
    with tempfile.TemporaryDirectory() as place:
        process = Warm(Path(place), environment)
        yield process
        process.close()


@pytest.fixture(scope="session")
def atom(warm: Warm, environment: dict[str, str]) -> Command:
    """Run ``atom …`` as a user would, but for the imports, which take longest; the result's text is
    in stdout and stderr."""

    def run(
        *arguments: str, cwd: Path | None = None, timeout: float = 600, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        process = warm.start(
            list(arguments), cwd=cwd or Path.cwd(), environment=environment | extra
        )
        try:
            said = process.communicate(timeout)
        finally:
            process.end()
        return subprocess.CompletedProcess(arguments, process.wait(), *said)

    return run


@pytest.fixture(scope="session")
def conforms(atom: Command) -> Command:
    """Run ``pytest …`` as the author of a plugin would, but for the imports, which take longest; of
    pytest's plugins only the conformance kit is loaded."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        plugins = ("-p", "atom.testing.plugin", "-p", "no:cacheprovider")
        return atom("-m", "pytest", "-q", *plugins, *arguments, **options | alone)

    return run


@pytest.fixture(scope="session")
def forked(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Command:
    """As ``atom``, in a fork of this process: without the imports, which take longest.

    What ``PYTHONPATH`` names is put in front of what is imported here.
    """
    import atom.cli
    import atom.cli.plugins
    import atom.cli.train

    compose_once()
    said = tmp_path_factory.mktemp("said")

    def run(
        *arguments: str, cwd: Path | None = None, timeout: float = 60, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        outputs = [said / "out", said / "err"]
        child = os.fork()
        if child == 0:
            code = 70
            try:
                signal.alarm(int(timeout))
                os.environ.clear()
                os.environ.update(environment | extra)
                os.chdir(cwd or Path.cwd())
                for number, (name, path) in enumerate(
                    zip(("stdout", "stderr"), outputs, strict=True), 1
                ):
                    os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
                    setattr(sys, name, os.fdopen(number, "w", closefd=False))
                sys.path[:0] = filter(None, extra.get("PYTHONPATH", "").split(os.pathsep))
                importlib.invalidate_caches()
                audit.install()
                code = atom.cli.main(list(arguments))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        out, err = (path.read_text() for path in outputs)
        return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), out, err)

    return run


class Job:
    """A run in the background, in a process group of its own."""

    def __init__(self, process: Process, place: Path) -> None:
        self.process = process
        self.place = place

    def members(self) -> dict[int, int]:
        """Return the processes of the group that are at work, with their parents."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent, group, *_ = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(group) == self.process.pid and state != "Z":
                found[int(stat.parent.name)] = int(parent)
        return found

    def ranks(self) -> list[int]:
        """Return the ranks, in order: the launcher's child has a child that starts them."""
        members, parents = self.members(), [self.process.pid]
        for _ in range(3):
            parents = sorted(pid for pid, parent in members.items() if parent in parents)
        return parents

    def step(self) -> int:
        return metrics.last_step(self.place / metrics.FILE_NAME)

    def wait_for(self, what: Callable[[], bool], seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None or what(), self.process.communicate()
            assert time.monotonic() < deadline, f"waited in vain at step {self.step()}"
            time.sleep(0.05)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: self.step() >= step)

    def end(self, seconds: float = 300) -> tuple[int, str, str]:
        """Wait for the launcher and all of its processes; return code, output and errors."""
        shown, said = self.process.communicate(timeout=seconds)
        deadline = time.monotonic() + 60
        while members := self.members():
            assert time.monotonic() < deadline, f"still there: {members}"
            time.sleep(0.05)
        return self.process.returncode, shown, said


@pytest.fixture
def start(warm: Warm, environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Start ``atom train`` on the small model in the background; ``place`` is the run folder."""
    jobs: list[Job] = []

    def run(
        place: str,
        *overrides: str,
        env: Mapping[str, str] | None = None,
        file_size: int | None = None,
    ) -> Job:
        process = warm.start(
            ["train", *SMALL, f"run.dir={place}", *overrides],
            cwd=tmp_path,
            environment=env or environment,
            file_size=file_size,
        )
        jobs.append(Job(process, tmp_path / place))
        return jobs[-1]

    yield run
    for job in jobs:
        for pid in job.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.process.communicate()


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Path]:
    """Put a package into a folder as an installer would; the folder is for ``PYTHONPATH``."""

    def package(name: str, files: dict[str, str], *, version: str = "1.0") -> Path:
        site = tmp_path / "site"
        record = describe(site, name, version=version) / "RECORD"
        paths = [site / name.replace("-", "_") / path for path in files]
        for path, text in zip(paths, files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        paths += [*record.parent.iterdir(), record]
        record.write_text("".join(f"{path.relative_to(site)},,\n" for path in paths))
        return site

    return package


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheels of the core and the plugins."""
    return packages.wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="session")
def installed(
    wheels: list[Path], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Command:
    """Run a command in an environment of its own with the wheels; a test that installs something
    there takes it away again."""
    place = tmp_path_factory.mktemp("installed")
    return packages.Environment(place, wheels, environment).run


@pytest.fixture(scope="session")
def train(atom: Command) -> Callable[..., list[dict]]:
    """Train the small model in a folder; return the rows of its metrics.jsonl."""

    def run(place: Path, *overrides: str) -> list[dict]:
        result = atom("train", *SMALL, f"run.dir={place}", *overrides)
        assert result.returncode == 0, result.stdout + result.stderr
        return _rows(place)

    return run


@pytest.fixture(scope="session")
def measured() -> Callable[..., Any]:
    """Run a program beside the benchmarks and return the JSON of its last line. It has a process of
    its own, for it forks, and this one has threads."""

    def run(program: str, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "benchmarks")},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    return SMALL


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict]]:
    """Read the rows of a run's metrics.jsonl."""
    return _rows


def _rows(place: Path) -> list[dict]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
