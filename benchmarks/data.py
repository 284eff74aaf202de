"""Measure ATOM's data: loaders, preparation, waiting and scale, beside what others use.

    python benchmarks/data.py [--quick] [--part loaders|preparing|waiting|scale] [--own] [--write]

- ``loaders``: tokens per second of one process on one core, of the same sequences per batch.
- ``preparing``: tokens per processor second, from JSON lines to token files, with one tokenizer.
  The time of the same command on a few documents is subtracted: it is the start of the program.
- ``waiting``: the share of a step of two ranks in which the training thread waits for data.
- ``scale``: time and memory with up to 10¹⁰ documents, 1000 sources and 10,240 ranks.

Subjects alternate; the tables show medians, lowest and highest, and ratios to ATOM in the same
round. The others are installed on first use, each into an environment of its own below ``--cache``
(``--own`` leaves them out). ``--write`` replaces benchmarks/results/data.md and data.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PARTS_FOLDER = HERE / "data_parts"
sys.path.append(str(PARTS_FOLDER))

import corpus  # noqa: E402
import peers  # noqa: E402
import preparing  # noqa: E402
import readers  # noqa: E402
import waiting  # noqa: E402

LENGTH, BATCH = 2048, 8
Measured = dict[str, list[dict[str, float]]]


class Benchmark:
    """The measurements of one command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.quick = options.quick
        self.rounds = 1 if options.quick else options.rounds
        self.own = options.own
        self.cache = Path(options.cache).expanduser().absolute()
        self.cache.mkdir(parents=True, exist_ok=True)
        self.lines: list[str] = []
        self.results: dict[str, Any] = {}
        self._corpus: corpus.Corpus | None = None

    @property
    def corpus(self) -> corpus.Corpus:
        if self._corpus is None:
            size, tokens = (1, 1_000_000) if self.quick else (12, 64_000_000)
            self._corpus = corpus.made(self.cache / f"corpus-{size}", size, tokens)
        return self._corpus

    def python(self, peer: peers.Peer) -> Path | None:
        return None if self.own else peers.python(self.cache, peer)

    def rows(self, title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """Print a table, and keep it for the results."""
        head = list(head)
        lines = [f"## {title}", "", line(head), line(["---"] * len(head)), *map(line, rows), ""]
        print("\n".join(lines), flush=True)
        self.lines += lines

    # ------------------------------------------------------------------------ parts

    def loaders(self) -> None:
        others = self.python(peers.READERS)
        pythons = {
            name: Path(sys.executable) if name.startswith(("atom", "torchtitan")) else others
            for name in readers.SUBJECTS
        }
        seconds = 0.3 if self.quick else 3
        found = self._by_turns(
            [name for name, python in pythons.items() if python is not None],
            lambda name: self._json(
                [pythons[name], PARTS_FOLDER / "readers.py", name, self.corpus.folder, LENGTH,
                 BATCH, seconds],
            ),
        )  # fmt: skip
        self.results["loaders"] = found
        rates = {
            name: [each["tokens"] / each["seconds"] for each in all_]
            for name, all_ in found.items()
        }
        self.rows(
            f"Loaders: million tokens/s of a core, {BATCH} sequences of {LENGTH:,} tokens",
            (
                "loader",
                "Mtokens/s",
                "per processor second",
                "torchtitan = 1",
                "atom concat = 1",
                "ready after, s",
            ),
            (
                (
                    name,
                    spread([1e-6 * each for each in rate]),
                    spread([1e-6 * each["tokens"] / each["processor"] for each in found[name]]),
                    ratio(rate, rates.get("torchtitan")),
                    ratio(rate, rates.get("atom concat")),
                    spread([each["opened"] for each in found[name]]),
                )
                for name, rate in rates.items()
            ),
        )

    def preparing(self) -> None:
        pythons = {
            "atom": Path(sys.executable),
            "datatrove": self.python(peers.DATATROVE),
            "dolma": self.python(peers.DOLMA),
        }
        few = self.corpus.folder / "few.jsonl"
        with self.corpus.text.open() as text, few.open("w") as file:
            file.writelines(next(text) for _ in range(8))

        def one(tool: str) -> dict[str, float]:
            python = pythons[tool]
            assert python is not None
            with tempfile.TemporaryDirectory() as scratch:
                start, whole = (
                    preparing.measure(tool, python, self.corpus, text, Path(scratch, "tool"))
                    for text in (few, self.corpus.text)
                )
            return whole | {
                "start": start["seconds"],
                "start_processor": start["processor"],
                "few": start["tokens"],
            }

        found = self._by_turns([tool for tool, python in pythons.items() if python], one)
        self.results["preparing"] = found
        # Of processor seconds, which other load changes least: all run on one core.
        rates = {
            tool: [
                (each["tokens"] - each["few"])
                / max(each["processor"] - each["start_processor"], 1e-3)
                for each in all_
            ]
            for tool, all_ in found.items()
        }
        counts = {tool: {int(each["tokens"]) for each in all_} for tool, all_ in found.items()}
        self.rows(
            "Preparing: thousand tokens per processor second, without the start",
            ("tool", "ktokens", "atom = 1", "start, s", "whole, s", "tokens"),
            (
                (
                    tool,
                    spread([1e-3 * each for each in rate]),
                    ratio(rate, rates["atom"]),
                    spread([each["start"] for each in found[tool]]),
                    spread([each["seconds"] for each in found[tool]]),
                    ", ".join(f"{count:,}" for count in sorted(counts[tool])),
                )
                for tool, rate in rates.items()
            ),
        )
        if len(set().union(*counts.values())) > 1:
            note = "Numbers of tokens differ: dolma strips white space from the ends of a text.\n"
            print(note)
            self.lines.append(note)

    def waiting(self) -> None:
        steps = 8 if self.quick else 40
        with tempfile.TemporaryDirectory() as scratch:
            found = self._by_turns(
                waiting.MODES,
                lambda mode: waiting.measure(mode, self.corpus, steps, Path(scratch, mode)),
            )
        self.results["waiting"] = found
        self.rows(
            "Waiting for data: two ranks, a tiny model",
            ("data", "share of a step, %", "ms a step", "seconds a step"),
            (
                (
                    mode,
                    spread([100 * each["share"] for each in all_]),
                    spread([each["data_ms"] for each in all_]),
                    spread([each["step_s"] for each in all_]),
                )
                for mode, all_ in found.items()
            ),
        )

    def scale(self) -> None:
        script = PARTS_FOLDER / "scale.py"

        def run(*arguments: object) -> dict[str, float]:
            return self._json([sys.executable, script, *arguments])

        powers = (4, 7) if self.quick else range(4, 11)
        ranks = (1, 64) if self.quick else (1, 8, 64, 512, 2048, 10_240)
        counts = (1, 10) if self.quick else (1, 10, 100, 1000)
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as scratch:
            for power in powers:
                folder = Path(scratch, f"{power}")
                subprocess.run(
                    [sys.executable, str(script), "make", str(folder), str(10**power)], check=True
                )
                rows.append(run("open", folder) | {"steps": run("steps", folder, 10_240, 300)})
            by_ranks = [run("ranks", folder, count, 1, 16) for count in ranks]
            mixed = [run("sources", Path(scratch, "mixed"), n, 1024, 200) for n in counts]
        found = ("order_us", "step_ms", "step_max_ms")
        self.results["scale"] = {"documents": rows, "ranks": by_ranks, "sources": mixed}
        self.rows(
            "Documents: one process, without torch; 10,240 lanes of 4,096 tokens",
            ("documents", "shards", "open, s", "check, s", "open, MB", "order, µs a document",
             "any step, ms", "highest", "peak MB"),
            (
                (
                    f"{row['documents']:.0e}", f"{row['shards']:,.0f}", f"{row['open_s']:.2f}",
                    f"{row['check_s']:.2f}", f"{row['open_mb']:.0f}",
                    *(f"{row['steps'][name]:.3f}" for name in found),
                    f"{max(row['peak_mb'], row['steps']['peak_mb']):.0f}",
                )
                for row in rows
            ),
        )  # fmt: skip
        self.rows(
            f"Ranks: {rows[-1]['documents']:.0e} documents; all sequences of a step differ",
            ("ranks", "find one sequence, µs", "sampled ranks", "resume and read a step, ms",
             "MB more for the sampled"),
            (
                (
                    f"{row['ranks']:,.0f}", f"{row['lane_us']:.0f}", f"{row['sampled']:.0f}",
                    f"{row['resume_ms']:.2f}", f"{row['mb']:.0f}",
                )
                for row in by_ranks
            ),
        )  # fmt: skip
        self.rows(
            "Sources of a mixture: 1,024 lanes",
            ("sources", "open, s", "a step's choices, µs", "count before a step, µs",
             "any step, ms", "MB"),
            (
                (
                    f"{row['sources']:,.0f}", f"{row['open_s']:.2f}", f"{row['choices_us']:.0f}",
                    f"{row['before_us']:.0f}", f"{row['step_ms']:.3f}", f"{row['mb']:.0f}",
                )
                for row in mixed
            ),
        )  # fmt: skip

    # ------------------------------------------------------------------------ runs

    def _by_turns(
        self, names: Iterable[str], measure: Callable[[str], dict[str, float]]
    ) -> Measured:
        """Measure each subject once a round; leave out one that fails, and say why."""
        found: Measured = {name: [] for name in names}
        for number in range(self.rounds):
            for name in list(found):
                try:
                    found[name].append(measure(name))
                except RuntimeError as error:
                    if name.startswith("atom"):
                        raise
                    print(f"{name} is left out: {error}", flush=True)
                    del found[name]
            print(f"round {number + 1} of {self.rounds}", flush=True)
        return found

    def _json(self, command: list[Any]) -> dict[str, float]:
        """Run a program and return the JSON of its last line."""
        environment = os.environ | {
            "HF_HOME": str(self.cache / "hub"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        done = subprocess.run(
            [str(word) for word in command], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{done.stdout[-1000:]}{done.stderr[-2000:]}")
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return result


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def spread(values: list[float]) -> str:
    """Return the median, and the range of several values."""
    digits = 1 if statistics.median(values) >= 10 else 3
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratio(values: list[float], others: list[float] | None) -> str:
    """Return how many times as large values are as those of the same rounds."""
    if others is None:
        return "–"
    return spread([one / other for one, other in zip(values, others, strict=True)])


PARTS = ("loaders", "preparing", "waiting", "scale")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only see whether it runs")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--own", action="store_true", help="leave out what must be installed")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each subject")
    parser.add_argument("--cache", default="~/.cache/atom-benchmarks", help="folder to keep")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/data.*")
    options = parser.parse_args()
    began = time.perf_counter()
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("atom-train", "torch", "torchtitan", "datasets", "tokenizers")
    )
    others = ", ".join(package for peer in peers.PEERS for package in peer.packages)
    about = [
        "# What ATOM's data costs",
        "",
        f"`python benchmarks/data.py{' --quick' if options.quick else ''}`: {date.today()}, "
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, no accelerator, Python "
        f"{platform.python_version()}, {versions}; others: {others}; load average at the start "
        f"{os.getloadavg()[0]:.1f}. Medians of {1 if options.quick else options.rounds} rounds "
        "(lowest to highest); ratios are of the same round.",
        "",
    ]
    print("\n".join(about), flush=True)
    benchmark = Benchmark(options)
    for part in options.part or PARTS:
        getattr(benchmark, part)()
    print(f"{time.perf_counter() - began:.0f} s")
    if options.write:
        results = HERE / "results"
        (results / "data.md").write_text("\n".join([*about, *benchmark.lines]))
        data = {"about": about[2], **benchmark.results}
        (results / "data.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
