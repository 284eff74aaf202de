"""Measure startup time and memory as functions of the number of installed plugins.

    python benchmarks/plugins.py [--plugins 0 10 100 1000] [--repeat 5] [--write FILE.md]

For each number, that many packages are written into a temporary folder, each with an entry point,
six components (one of each kind) and a config group file for each component. The folder is added to
the import path, beside the installed packages. Then each command below runs in a new process, and
the median of the repetitions is reported. The cost per plugin uses CPU seconds, because the machine
may have other load. The first run of each number compiles the packages to bytecode and is left out.

The target is less than 2 ms per plugin, and memory that grows linearly by a small amount.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

TARGET = 2.0
"""Milliseconds that a plugin may add to the start of a command."""

ENOUGH = 100
"""With fewer plugins, the cost is below the difference between two runs of the same command."""

COMPOSE = """
import sys
from atom.compose import compose
from atom.registry.host import Host
host = Host.load()
compose.main(sys.argv[1:], lambda config: print(compose.run_of(config, host).architecture), host)
"""

DECLARATIONS = '''
"""A plugin of the benchmark."""

from atom.plugin import Architecture, Dataset, Kernel, Launcher, Parallelism, Tokenizer, hookimpl


@hookimpl
def atom_tokenizers():
    yield Tokenizer(
        name="{name}_text",
        summary="text to ids",
        config="{name}.config:Parameters",
        prepare="{name}.build:prepare",
        build="{name}.build:tokenizer",
    )


@hookimpl
def atom_architectures():
    yield Architecture(
        name="{name}_net",
        summary="a decoder",
        config="{name}.config:Parameters",
        build="{name}.build:model",
    )


@hookimpl
def atom_parallelisms():
    yield Parallelism(name="{name}_mesh", summary="a mesh", build="{name}.build:layout")


@hookimpl
def atom_kernels():
    yield Kernel(
        name="{name}_norm",
        summary="a kernel",
        operation="rms_norm",
        override="{name}.build:norm",
        priority=-1,
    )


@hookimpl
def atom_datasets():
    yield Dataset(
        name="{name}_data",
        summary="documents",
        config="{name}.config:Parameters",
        source="{name}.build:documents",
    )


@hookimpl
def atom_launchers():
    yield Launcher(name="{name}_queue", summary="a queue", plan="{name}.build:plan")
'''

GROUPS = {
    "tokenizer": "name: {name}_text\nwidth: 64\n",
    "architecture": "name: {name}_net\nwidth: 64\n",
    "parallelism": "name: {name}_mesh\ndata_parallel_shard_degree: 2\n",
    "kernels": "rms_norm: {name}_norm\n",
    "dataset": "name: {name}_data\nwidth: 64\n",
    "launcher": "name: {name}_queue\n",
}


@dataclass(frozen=True)
class Cost:
    """Cost of a process: wall-clock seconds, CPU seconds, and peak memory in MiB."""

    seconds: float
    cpu: float
    memory: float


def install(folder: Path, count: int) -> None:
    """Write ``count`` packages into ``folder`` as an installer would."""
    for number in range(count):
        name = f"bench_{number:04}"
        package = folder / name
        for group, text in GROUPS.items():
            place = package / "conf" / group
            place.mkdir(parents=True)
            (place / f"{name}.yaml").write_text(text.format(name=name))
        (package / "__init__.py").write_text(DECLARATIONS.format(name=name))
        (package / "config.py").write_text(
            "from pydantic import BaseModel\n\n\nclass Parameters(BaseModel):\n    width: int\n"
        )
        described = folder / f"{name}-1.0.dist-info"
        described.mkdir()
        title = name.replace("_", "-")
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {title}\nVersion: 1.0\n")
        (described / "entry_points.txt").write_text(f"[atom]\n{name} = {name}\n")
        files = [p for p in (*package.rglob("*"), *described.iterdir()) if p.is_file()]
        record = "".join(f"{file.relative_to(folder)},,\n" for file in files)
        (described / "RECORD").write_text(record)


def commands(count: int) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the measured commands: name -> command line and environment variables."""
    atom = [sys.executable, "-m", "atom"]
    choices = ["architecture=llama3_tiny", "tokenizer=bytes"]
    if count:
        choices = [f"architecture=bench_{count // 2:04}", f"dataset=bench_{count - 1:04}"]
    line = "atom train architecture="
    completion = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    return {
        "atom plugins": ([*atom, "plugins"], {}),
        "atom completion": ([*atom, "completion", "query"], completion),
        "composing a run": ([sys.executable, "-c", COMPOSE, *choices, "parallelism=single"], {}),
    }


def cost(command: list[str], environment: dict[str, str]) -> Cost:
    """Run ``command`` to its end."""
    with tempfile.TemporaryFile("w+") as said:
        begin = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)}\nfailed:\n{said.read()[-3000:]}")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def measure(count: int, repeat: int) -> dict[str, Cost]:
    """Return the median cost of each command with ``count`` more plugins installed."""
    medians = {}
    with tempfile.TemporaryDirectory() as scratch:
        install(Path(scratch), count)
        for name, (command, extra) in commands(count).items():
            environment = os.environ | {"PYTHONPATH": scratch} | extra
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            costs = [cost(command, environment) for _ in range(repeat + 1)][1:]
            columns = zip(*map(astuple, costs), strict=True)
            medians[name] = Cost(*map(statistics.median, columns))
    return medians


def table(measured: dict[int, dict[str, Cost]]) -> str:
    """Return the results as Markdown, with the cost per plugin relative to the first row."""
    base = min(measured)
    lines = [
        "| command | plugins added | seconds | CPU seconds | ms a plugin | MiB | KiB a plugin |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in measured[base]:
        for count, costs in measured.items():
            cost, first = costs[name], measured[base][name]
            each = memory = "-"
            if count - base >= ENOUGH:
                each = f"{(cost.cpu - first.cpu) / (count - base) * 1000:.2f}"
                memory = f"{(cost.memory - first.memory) / (count - base) * 1024:.0f}"
            lines.append(
                f"| {name} | {count} | {cost.seconds:.2f} | {cost.cpu:.2f} | {each} "
                f"| {cost.memory:.0f} | {memory} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Measure and print; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plugins", type=int, nargs="+", default=[0, 10, 100, 1000])
    parser.add_argument("--repeat", type=int, default=5, help="runs of each command")
    parser.add_argument("--write", type=Path, help="a Markdown file for the results")
    options = parser.parse_args()
    measured = {}
    for count in sorted(set(options.plugins)):
        measured[count] = measure(count, options.repeat)
        for name, cost in measured[count].items():
            spent = f"{cost.seconds:.2f} s, {cost.cpu:.2f} s on a CPU, {cost.memory:.0f} MiB"
            print(f"{count} plugins, {name}: {spent}", flush=True)
    results = table(measured)
    print(f"\n{results}")
    if options.write:
        cores = len(os.sched_getaffinity(0))
        machine = f"{cores}-core {platform.machine().replace('_', '-')} {platform.system()}"
        versions = ", ".join(
            f"{package} {metadata.version(package)}"
            for package in ("atom-train", "hydra-core", "pluggy", "pydantic")
        )
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(
            "# What installed plugins cost\n\n"
            "Each plugin is a package with six components and six config group files. Made by\n"
            f"`python benchmarks/plugins.py`, the median of {options.repeat} runs.\n\n"
            f"{date.today()}, {machine}, {platform.python_implementation()} "
            f"{'.'.join(platform.python_version_tuple()[:2])}, {versions}.\n\n{results}\n\n"
            f"The target is less than {TARGET:g} ms a plugin.\n"
        )
    first, last = measured[min(measured)], measured[max(measured)]
    added = max(max(measured) - min(measured), 1)
    slow = [n for n in last if (last[n].cpu - first[n].cpu) / added * 1000 > TARGET]
    for name in slow:
        print(f"{name} takes more than {TARGET:g} ms a plugin", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
