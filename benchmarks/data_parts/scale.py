"""Measure time and memory on token shards of up to 10¹⁰ documents.

    python benchmarks/data_parts/scale.py make FOLDER DOCUMENTS
    python benchmarks/data_parts/scale.py open|steps|sources|ranks FOLDER ...

Each measurement has a process of its own and prints a line of JSON. ``open`` and ``steps`` import
no torch.

The files of a corpus are hard links to the three files of one shard, whose tokens are a hole: 60 TB
of tokens need 24 MB of disk, and a process opens, maps and searches as many files as if all were
real. The digests of large shards are invented, as a start verifies none of them. All
shards share pages of the page cache: times are those of a corpus in memory, not of a cold disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from atom.plugin import Document, Example

SHARD = 1_000_000
"""Documents of a shard."""

TOKENS = 1500
"""Mean tokens of a document."""

VOCABULARY = 100_352
LENGTH = 4096
ZERO = "0" * 64


def megabytes(field: str = "VmHWM") -> float:
    """Return the peak resident memory of this process in MB, or another field of its status."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024 / 1e6


def make(folder: Path, documents: int) -> None:
    """Write shards of ``documents`` documents, and their manifest last."""
    from atom.data import manifest as manifests
    from atom.data.manifest import MadeBy, Manifest, Shard, TokenizerOf
    from atom.data.shards import DOCUMENT

    folder.mkdir(parents=True)
    rows = min(documents, SHARD)
    shards = documents // rows
    lengths = np.random.default_rng(0).integers(2, 2 * TOKENS - 2, rows)
    lengths[-1] += TOKENS * rows - lengths.sum() if lengths.sum() < TOKENS * rows else 0
    records = np.empty(rows, dtype=DOCUMENT)
    records["tokens"], records["ids"] = np.cumsum(lengths), 8 * np.arange(1, rows + 1)
    tokens = int(records["tokens"][-1])
    first = [folder / manifests.name_of(0, kind) for kind in manifests.SUFFIXES]
    with first[0].open("wb") as file:
        file.truncate(4 * tokens)
    first[1].write_bytes(records.tobytes())
    first[2].write_bytes(b"".join(b"%08d" % row for row in range(rows)))
    for number in range(1, shards):
        for path in first:
            os.link(path, folder / manifests.name_of(number, path.suffix[1:]))
    # A start verifies small shards.
    digests = [digest_of(path) for path in first] if rows < SHARD // 10 else None
    each = [
        Shard(
            documents=rows,
            tokens=tokens,
            bytes=4 * tokens,
            ids_bytes=8 * rows,
            sha256=digests
            or [hashlib.sha256(f"{number} {kind}".encode()).hexdigest() for kind in range(3)],
        )
        for number in range(shards)
    ]
    digest = manifests.tokenizer_digest(VOCABULARY, {"tokenizer.json": ZERO})
    Manifest(
        digest=manifests.content_digest("uint32", digest, each),
        dtype="uint32",
        documents=rows * shards,
        tokens=tokens * shards,
        bytes=4 * tokens * shards,
        left_out=manifests.LeftOut(),
        tokenizer=TokenizerOf(
            name="hf", digest=digest, vocab_size=VOCABULARY, files={"tokenizer.json": ZERO}
        ),
        source=MadeBy(name="synthetic", digest=ZERO),
        shards=each,
    ).write(folder)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Unused:
    """An encoder of a source that needs none."""

    def encode(self, _: Document, /) -> Example | None:
        raise AssertionError("tokens are stored")


def source(folder: str) -> Any:
    """Return the source of ``dataset=prepared``, dealt to lanes."""
    from atom.data.dealing import dealt
    from atom_datasets.config import Prepared
    from atom_datasets.prepared import source

    return dealt(source(Prepared(path=folder)))


def opening(folder: str) -> dict[str, float]:
    """Measure what the launcher does (the check) and what each rank does (the opening)."""
    shards = source(folder)
    before = megabytes()
    begin = time.perf_counter()
    documents = shards.documents()
    opened = time.perf_counter()
    found = {
        "documents": float(len(documents)),
        "shards": float(len(documents.manifest.shards)),
        "open_s": opened - begin,
        "open_mb": megabytes() - before,
    }
    begin = time.perf_counter()
    shards.check()
    return found | {"check_s": time.perf_counter() - begin, "peak_mb": megabytes()}


def steps(folder: str, lanes: int, samples: int) -> dict[str, float]:
    """Measure how long it takes to find documents of the order, and the sequences of any step."""
    from atom.data.dealing import indices
    from atom.data.lanes import Lane, Reading, Sources

    shards = source(folder)
    count = len(shards.documents())
    order = indices(count, 0, min(lanes, max(count // 10_000, 1)), 0, 0, 0, 2)
    number, seconds = timed(lambda: sum(1 for _ in islice(order, 100_000)))
    found = {"order_us": 1e6 * seconds / number}
    # A step is found by a lane that has read nothing: as a run does when it resumes.
    reading = Reading(source=shards, seed=0, lanes=lanes, seq_len=LENGTH, packing="windows")
    sources = Sources(reading)
    last = count * TOKENS // (lanes * LENGTH)
    rng = np.random.default_rng(0)

    def one(step: int) -> float:
        lane = Lane(int(rng.integers(lanes)), reading, sources, Unused())
        begin = time.perf_counter()
        lane.skip(step)
        lane.parts()
        return time.perf_counter() - begin

    first, *later = [one(int(step)) for step in rng.integers(0, max(2 * last, 2), samples + 1)]
    found |= {"first_ms": 1e3 * first, "step_ms": 1e3 * statistics.median(later)}
    return found | {"step_max_ms": 1e3 * max(later), "peak_mb": megabytes()}


@dataclass(frozen=True)
class Mixed:
    """A mixture of ``count`` sources, the folders of which differ in their weights alone."""

    folders: tuple[str, ...]

    def mixture(self, **_: int) -> Any:
        from atom.plugin import Mixture, Stage

        names = [f"source{number}" for number in range(len(self.folders))]
        weights = {name: 1.0 + number % 7 for number, name in enumerate(names)}
        sources = dict(zip(names, map(source, self.folders), strict=True))
        return Mixture(sources=sources, stages=(Stage(name="main", step=0, weights=weights),))


def sources(folder: str, count: int, lanes: int, samples: int) -> dict[str, float]:
    """Measure a mixture of ``count`` sources: its schedule, and the sequences of any step."""
    from atom.data.lanes import Lane, Reading, Sources

    folders = tuple(folder_of(folder, number) for number in range(count))
    for each in folders:
        if not Path(each).exists():
            make(Path(each), 100)
    before, begin = megabytes(), time.perf_counter()
    mixture: Any = Mixed(folders)  # of what a source has, this is all that is used
    reading = Reading(source=mixture, seed=0, lanes=lanes, seq_len=LENGTH, packing="windows")
    mixed = Sources(reading)
    made = time.perf_counter() - begin
    assert mixed.schedule is not None
    rng = np.random.default_rng(0)
    numbers = [int(step) for step in rng.integers(0, 10**9, samples)]
    schedule = mixed.schedule
    _, choosing = timed(lambda: [schedule.choices(step) for step in numbers])
    _, counting = timed(lambda: [schedule.before(step, count - 1) for step in numbers])
    lane = Lane(lanes // 2, reading, mixed, Unused())
    for _ in range(samples):  # every source has been opened
        lane.parts()
    times = []
    for step in numbers[:50]:
        lane = Lane(lanes // 2, reading, mixed, Unused())
        begin = time.perf_counter()
        lane.skip(step)
        lane.parts()
        times.append(time.perf_counter() - begin)
    return {
        "sources": float(count),
        "open_s": made,
        "choices_us": 1e6 * choosing / samples,
        "before_us": 1e6 * counting / samples,
        "step_ms": 1e3 * statistics.median(times),
        "mb": megabytes() - before,
    }


def folder_of(folder: str, number: int) -> str:
    return f"{folder}/source{number:04}"


def ranks(folder: str, count: int, share: int, sampled: int) -> dict[str, float]:
    """Read one step as ``count`` ranks do, of ``share`` sequences each.

    The sequences of all lanes are found without their tokens, and must differ. The sampled ranks
    read with the real loader, and must read those of their lanes.
    """
    from atom.data.lanes import Lane, Reading, Sources

    step, lanes = 123_456, count * share
    shards = source(folder)
    reading = Reading(source=shards, seed=0, lanes=lanes, seq_len=LENGTH, packing="windows")
    shared = Sources(reading)
    begin = time.perf_counter()
    spans, seen = [], set()
    for number in range(lanes):
        lane = Lane(number, reading, shared, Unused())
        lane.skip(step)
        parts = lane.parts()
        seen |= {(part.epoch, part.document.index, part.begin) for part in parts}
        spans.append([part.span for part in parts])
    found = {"ranks": float(count), "lane_us": 1e6 * (time.perf_counter() - begin) / lanes}
    if len(seen) != sum(map(len, spans)):
        sys.exit("two lanes of a step have the same part of a document")

    from atom.titan.train.data import DocumentLoader

    config = DocumentLoader.Config(
        source=shards, seed=0, global_batch_size=lanes, packing="windows", vocab_size=VOCABULARY
    )
    before, times = megabytes("VmRSS"), []
    for rank in np.linspace(0, count - 1, min(sampled, count)).astype(int).tolist():
        begin = time.perf_counter()
        loader: Any = config.build(
            dp_world_size=count, dp_rank=rank, tokenizer=Unused(), seq_len=LENGTH,
            local_batch_size=1,
        )  # fmt: skip
        state = loader.state_dict()
        for value in state.values():
            value[1] = step
        loader.load_state_dict(state)
        for _ in islice(iter(loader), share):
            pass
        times.append(time.perf_counter() - begin)
        own = range(rank * share, (rank + 1) * share)
        if loader.samples() != {number: spans[number] for number in own}:
            sys.exit(f"rank {rank} reads other sequences than its lanes have")
    found |= {"sampled": float(len(times)), "resume_ms": 1e3 * statistics.median(times)}
    return found | {"mb": megabytes("VmRSS") - before}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def main(arguments: list[str]) -> Iterator[dict[str, float]]:
    what, folder, *numbers = arguments
    values = [int(number) for number in numbers]
    if what == "make":
        make(Path(folder), *values)
    else:
        measured: dict[str, Callable[..., dict[str, float]]]
        measured = {"open": opening, "steps": steps, "sources": sources, "ranks": ranks}
        yield measured[what](folder, *values)


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(json.dumps(line))
