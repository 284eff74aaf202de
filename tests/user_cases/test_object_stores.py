"""Data, shards and tokenizers in a store: a real S3 server, a web server, and a small Hub."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_server import Fault, ObjectServer

from atom.data.manifest import read as read_manifest

TINY = (
    *("training.seq_len=64", "training.global_batch_size=4", "training.steps=3"),
    *("architecture.n_layers=2", "architecture.dim=64", "device=cpu", "metrics=none"),
)
BPE = ("tokenizer=bpe", "tokenizer.vocab_size=300")
TEXTS = [f"document {number} " + "of a few words " * (number % 23) for number in range(600)]
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    server.bucket("lab")
    server.put("lab", "corpus/a.jsonl", JSONL[: len(JSONL) // 2].encode())
    yield server
    server.close()


@pytest.fixture(autouse=True)
def without_faults(server: ObjectServer) -> Iterator[None]:
    yield
    server.faults = []


@pytest.fixture
def cached(tmp_path: Path) -> dict[str, str]:
    """A cache of its own."""
    return {"ATOM_CACHE": str(tmp_path / "cache")}


Prepared = tuple[Path, str]


@pytest.fixture(scope="module")
def prepared(
    atom: Callable, server: ObjectServer, tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    """The same shards on disk, and in a store whose server fails now and then."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "corpus.jsonl").write_text(JSONL)
    server.put("lab", "text/corpus.jsonl", JSONL.encode())
    server.faults = [
        Fault("503", "/lab/text/", times=1),
        Fault("cut", "/lab/text/", times=1),
        Fault("503", "/lab/shards/", "PUT", times=2),
    ]
    for source, out, extra in (
        (str(folder / "corpus.jsonl"), str(folder / "shards"), {}),
        ("s3://lab/text", "s3://lab/shards", {"ATOM_CACHE": str(folder / "cache")}),
    ):
        words = ("dataset=local", f"dataset.path={source}", *BPE, "--out", out, "--workers", "2")
        done = atom("data", "prepare", *words, cwd=folder, **server.environment, **extra)
        assert done.returncode == 0, done.stderr
        assert f"{out}: 600 documents" in done.stderr + done.stdout
    assert all(fault.seen > fault.times for fault in server.faults), "a fault has not been met"
    return folder / "shards", "s3://lab/shards"


def test_shards_in_a_store_are_those_on_disk(
    server: ObjectServer, prepared: Prepared, forked: Callable, cached: dict[str, str]
) -> None:
    local, url = prepared
    manifest = read_manifest(local)
    names = [f"{number:05}.{kind}" for number in range(len(manifest.shards)) for kind in KINDS]
    names += [f"tokenizer/{path.name}" for path in (local / "tokenizer").iterdir()]
    stored = server.keys("lab", "shards/")
    # The state of the preparation has been removed.
    assert stored == sorted(f"shards/{name}" for name in [*names, "manifest.json"])
    for name in names:
        if name.endswith((".tokens", ".json")):  # the id of a document begins with its file
            assert server.get("lab", f"shards/{name}") == (local / name).read_bytes()
    ids = server.get("lab", "shards/00000.ids").decode()
    assert ids.startswith("s3://lab/text/corpus.jsonl:1s3://lab/text/corpus.jsonl:2")
    verified = forked("data", "verify", url, **server.environment, **cached)
    assert verified.returncode == 0, verified.stderr
    assert f"{url}: {len(manifest.shards)} shards are whole" in verified.stdout
    shown = forked("data", "inspect", url, **server.environment, **cached)
    assert f"{manifest.tokens:,} (" in shown.stdout


KINDS = ("tokens", "documents", "ids")


def test_training_on_a_store_equals_training_on_a_disk(
    rows: Callable,
    atom: Callable,
    server: ObjectServer,
    prepared: Prepared,
    tmp_path: Path,
    cached: dict[str, str],
) -> None:
    """On two ranks, with a server that fails, and each block read once by the machine."""
    local, url = prepared
    server.requests.clear()
    server.faults = [
        Fault("503", ".tokens", times=2),
        Fault("slow", ".documents", times=1),
        Fault("cut", "00003.tokens", times=1),
        Fault("short", "00001.tokens", times=1),
    ]
    losses = {}
    for name, folder in (("disk", str(local)), ("store", url)):
        words = (
            *("dataset=prepared", f"dataset.path={folder}"),
            *("tokenizer=hf", f"tokenizer.path={folder}/tokenizer"),
            *(*TINY, "parallelism.data_parallel_shard_degree=2", f"run.dir={tmp_path / name}"),
        )
        done = atom("train", *words, cwd=tmp_path, **server.environment, **cached)
        assert done.returncode == 0, done.stderr
        losses[name] = [(row["loss"], row["data"]) for row in rows(tmp_path / name)]
    assert losses["disk"] == losses["store"]
    ranges = {
        path: count
        for (method, path), count in server.requests.items()
        if method == "GET" and path.endswith((".tokens", ".documents"))
    }
    failed = sum(fault.times for fault in server.faults)
    # Before the run, digests are computed of whole shards; each rank needs them by blocks after.
    assert sum(ranges.values()) <= 2 * len(ranges) + failed, ranges


def test_text_is_read_from_each_kind_of_place(
    atom: Callable, server: ObjectServer, tmp_path: Path, cached: dict[str, str]
) -> None:
    """The digest of the data is that of the same file on disk."""
    content = gzip.compress(JSONL.encode(), mtime=0)
    server.put("lab", "few/some.jsonl.gz", content)
    (tmp_path / "some.jsonl.gz").write_bytes(content)
    digests = []
    for number, path in enumerate(
        (
            str(tmp_path / "some.jsonl.gz"),
            "s3://lab/few/*.gz",
            f"{server.address}/web/lab/few/some.jsonl.gz",
            "hf://datasets/o/lab/few",
        )
    ):
        words = ("dataset=local", f"dataset.path={path}", "tokenizer=bytes", "--out", f"{number}")
        done = atom("data", "prepare", *words, cwd=tmp_path, **server.environment, **cached)
        assert done.returncode == 0, done.stderr
        manifest = read_manifest(tmp_path / str(number))
        assert manifest.documents == 600
        digests.append(manifest.source.digest)
    assert len(set(digests)) == 1


def test_token_files_are_read_from_a_store(
    forked: Callable, server: ObjectServer, tmp_path: Path, cached: dict[str, str]
) -> None:
    """With the file that belongs to the one that is named."""
    ids = np.arange(1, 4001, dtype="<u2") % 250
    server.put("lab", "flat/part.npy", ids.tobytes())
    rows = "".join(f"{begin},{begin + 100},x,x,x\n" for begin in range(0, 4000, 100))
    server.put("lab", "flat/part.csv.gz", gzip.compress(rows.encode()))
    table = pa.table({"input_ids": [[1, 2, 3, 4]] * 900})
    pq.write_table(table, tmp_path / "ids.parquet")
    server.put("lab", "lists/ids.parquet", (tmp_path / "ids.parquet").read_bytes())
    for path, more in (
        ("s3://lab/flat/part.npy", ["dataset.dtype=uint16"]),
        ("s3://lab/lists", []),
    ):
        words = ("dataset=tokens", f"dataset.path={path}", "tokenizer=bytes", *TINY, *more)
        done = forked("train", *words, "--dry-run", cwd=tmp_path, **server.environment, **cached)
        assert done.returncode == 0, done.stderr
    copies = Path(cached["ATOM_CACHE"], "objects/copies/s3%/lab%")
    assert (copies / "flat%/part.csv.gz").is_file()
    assert (copies / "lists%/ids.parquet").is_file()


# ---------------------------------------------------------------------------- refusals

LOCAL = "dataset=local dataset.path={} tokenizer=bytes"
REFUSALS = {
    "nothing there": (LOCAL.format("s3://lab/none"), None, "dataset.path=s3://lab/none (command "
        "line): there is no such object, and no object below it"),
    "no match": (LOCAL.format("s3://lab/corpus/*.txt"), None, "no object matches this pattern"),
    "no bucket": (LOCAL.format("s3://"), None, "has an empty part"),
    "unknown scheme": (LOCAL.format("ftp://x/y"), None, "there is no scheme ftp://; valid: a path"),
    "a chain": (LOCAL.format("s3://x/y::file://z"), None, "holds :: or a character"),
    "a parent": (LOCAL.format("s3://lab/../y"), None, "a part . or .."),
    "a user": (LOCAL.format("https://someone@server/y"), None, "holds a user's name"),
    "no name of a bucket": (LOCAL.format("s3://a:b/y"), None, "no bucket can have the name a:b"),
    "a run": ("dataset=stdlib tokenizer=bytes run.dir=s3://lab/runs", None, "run.dir=s3://lab/runs "
        "(command line): is a URL, and runs are on a disk; valid: a path"),
    "a checkpoint": ("dataset=stdlib tokenizer=bytes resume.from=s3://lab/run@3", None, "resume."
        "from=s3://lab/run@3 (command line): is a URL"),
    "no repository": (LOCAL.format("hf://x"), None, "names no repository"),
    "not on the web": (LOCAL.format("{address}/web/lab/none"), None, "there is no such object"),
    "no server": (LOCAL.format("http://127.0.0.1:1/x.jsonl"), None, "there is no connection to "
        "its server (given up after"),
    "no version": (LOCAL.format("{address}/web/lab/corpus/a.jsonl"), Fault("nameless", "/web/",
        "HEAD"), "its server says neither ETag nor Last-Modified"),
    "hanging": (LOCAL.format("s3://lab/corpus/a.jsonl"), Fault("slow", "a.jsonl", "HEAD"),
        "its server does not answer in time"),
    "down": (LOCAL.format("s3://lab/corpus/a.jsonl"), Fault("503", "a.jsonl"), "dataset.path=s3://"
        "lab/corpus/a.jsonl (command line): cannot be read: Service Unavailable (given up after"),
    "denied": (LOCAL.format("s3://lab/corpus/a.jsonl"), Fault("403", "a.jsonl", "HEAD"),
        "access is denied"),
    "truncated": (LOCAL.format("s3://lab/corpus/a.jsonl"), Fault("short", "a.jsonl"),
        "cannot be read: "),
    "no tokenizer": ("dataset=stdlib tokenizer=hf tokenizer.path=s3://lab/corpus", None,
        "tokenizer.path=s3://lab/corpus (command line): "),
    "no shards": ("dataset=prepared dataset.path=s3://lab/corpus tokenizer=bytes", None,
        "s3://lab/corpus has no manifest.json"),
    "too large": (LOCAL.format("s3://lab/corpus/a.jsonl"), None, "GiB, and the copies "
        "in use do not fit; valid: more in ATOM_OBJECT_CACHE_GIB"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "fault", "sentence"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_a_store_cannot_give_is_refused(
    forked: Callable,
    server: ObjectServer,
    tmp_path: Path,
    cached: dict[str, str],
    words: str,
    fault: Fault | None,
    sentence: str,
    request: pytest.FixtureRequest,
) -> None:
    """In one sentence, with nothing written."""
    server.faults = [fault] if fault else []
    small = {"ATOM_OBJECT_CACHE_GIB": "1e-6"} if "too large" in request.node.callspec.id else {}
    place = tmp_path / "place"
    place.mkdir()
    given = [word.format(address=server.address) for word in words.split()]
    done = forked(
        "train",
        *given,
        *TINY,
        cwd=place,
        ATOM_OBJECT_SECONDS="0.5",
        **server.environment,
        **cached,
        **small,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("atom: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert sentence in done.stderr
    assert not list(place.iterdir())


def test_an_altered_shard_is_refused(
    forked: Callable,
    server: ObjectServer,
    prepared: Prepared,
    cached: dict[str, str],
    tmp_path: Path,
) -> None:
    _, url = prepared
    whole = server.get("lab", "shards/00002.tokens")
    words = ("train", "dataset=prepared", f"dataset.path={url}", "tokenizer=hf")
    words = (*words, f"tokenizer.path={url}/tokenizer", *TINY)
    try:
        for content, problem in (
            (whole[:-2], "00002.tokens: is truncated: it has"),
            (whole[:-2] + b"\0\0", "00002.tokens: is altered: its digest is not"),
        ):
            server.put("lab", "shards/00002.tokens", content)
            done = forked(*words, cwd=tmp_path, **server.environment, **cached)
            assert done.returncode == 2, done.stdout
            assert f"{url}/{problem}" in done.stderr
    finally:
        server.put("lab", "shards/00002.tokens", whole)


def test_a_preparation_resumes_on_another_machine(
    atom: Callable, server: ObjectServer, tmp_path: Path
) -> None:
    """One has a cache of its own, so nothing of the first is on its disk."""
    words = ("data", "prepare", "dataset=local", "dataset.path=s3://lab/text/corpus.jsonl")
    words = (*words, "tokenizer=bytes", "--out", "s3://lab/resumed", "--workers", "1")
    server.put("lab", "text/corpus.jsonl", JSONL.encode())
    server.faults = [Fault("403", "resumed/00004", "PUT")]
    first = atom(*words, cwd=tmp_path, ATOM_CACHE=str(tmp_path / "one"), **server.environment)
    assert first.returncode == 1
    assert "s3://lab/resumed/00004.tokens: cannot be written: access is denied" in first.stderr
    assert "the same command resumes" in first.stderr
    assert "resumed/.preparing/00003.json" in server.keys("lab", "resumed/")
    server.faults = []
    server.requests.clear()
    other = ("--out", "s3://lab/resumed", "tokenizer.pad_to=512")
    refused = atom(*words, *other, cwd=tmp_path, **server.environment)
    assert refused.returncode == 2
    assert "holds shards made of something else" in refused.stderr
    second = atom(*words, cwd=tmp_path, ATOM_CACHE=str(tmp_path / "two"), **server.environment)
    assert second.returncode == 0, second.stderr
    written = {path for method, path in server.requests if method == "PUT"}
    assert "/lab/resumed/00003.tokens" not in written
    assert "/lab/resumed/00004.tokens" in written
    assert not [key for key in server.keys("lab", "resumed/") if ".preparing" in key]
    whole = atom("data", "verify", "s3://lab/resumed", cwd=tmp_path, **server.environment)
    assert whole.returncode == 0, whole.stderr
    assert not list((tmp_path / "two" / "preparing").iterdir()), "files are left in the cache"


def test_a_store_that_ends_under_a_run(
    atom: Callable,
    server: ObjectServer,
    prepared: Prepared,
    cached: dict[str, str],
    tmp_path: Path,
) -> None:
    """A run that finds a server of no answer ends with a sentence that names the object."""
    _, url = prepared
    server.faults = [Fault("503", ".tokens", times=-1)]
    server.faults[0].seen = 0
    done = atom(
        "train",
        "dataset=prepared",
        f"dataset.path={url}",
        "tokenizer=hf",
        f"tokenizer.path={url}/tokenizer",
        *TINY,
        cwd=tmp_path,
        ATOM_OBJECT_SECONDS="1",
        **server.environment,
        **cached,
    )
    assert done.returncode == 2
    assert re.search(r"s3://lab/shards/\d+\.tokens: .*given up after \d+ tries", done.stderr)
