"""Data, shards and tokenizers in a store: a real S3 server, a web server, and a small Hub."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_server import Fault, ObjectServer

from atom.data.manifest import read as read_manifest
from atom.errors import UserError
from atom.io import object_cache, objects
from atom.io.copy_names import folder_of, path_of, readable, told_beside
from atom.io.object_cache import BLOCK, ObjectCache
from atom.io.objects import ObjectError
from atom.io.process import call
from atom.io.urls import Url

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


# ---------------------------------------------------------------------------- the cache


@pytest.fixture
def here(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process read objects."""
    for name, value in (server.environment | {"ATOM_OBJECT_SECONDS": "1"}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("here")
def test_the_cache_has_a_limit(server: ObjectServer, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(12 * BLOCK + 7)
    server.put("lab", "large", content)
    found = objects.find(Url("s3://lab/large"))
    assert found is not None
    cache = ObjectCache(tmp_path / "cache", 4 * BLOCK)
    rng = random.Random(2)
    for _ in range(60):
        begin, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        assert cache.read(found, begin, end) == content[begin:end]
        assert size_of(tmp_path / "cache") <= 4 * BLOCK + 4096


@pytest.mark.usefixtures("here")
def test_a_copy_in_use_stays_and_another_gives_way(server: ObjectServer, tmp_path: Path) -> None:
    """The copies of a process that has ended are the first to be removed."""
    for name in "abc":
        server.put("lab", f"copies/{name}", name.encode() * 1000)
    found = [objects.find(Url(f"s3://lab/copies/{name}")) for name in "abc"]
    first, mine, next_one = (each for each in found if each is not None)
    call(lambda: ObjectCache(tmp_path, 2500).copy(first) and None)
    cache = ObjectCache(tmp_path, 2500)
    kept = cache.copy(mine)
    assert cache.path(first.url).is_file()
    third = cache.copy(next_one)
    assert not cache.path(first.url).exists()
    assert (kept.read_bytes(), third.read_bytes()) == (b"b" * 1000, b"c" * 1000)
    with pytest.raises(UserError, match="the copies in use do not fit"):
        cache.copy(first)


@pytest.mark.usefixtures("here")
def test_an_object_that_changes_is_noticed(server: ObjectServer, tmp_path: Path) -> None:
    server.put("lab", "changing", b"a" * 1000)
    found = objects.find(Url("s3://lab/changing"))
    assert found is not None
    server.put("lab", "changing", b"b" * 1000)
    for read in (
        lambda cache: cache.read(found, 0, 10),
        lambda cache: cache.copy(found),
    ):
        with pytest.raises(ObjectError, match="s3://lab/changing: has changed under the run"):
            read(ObjectCache(tmp_path, 1 << 20))
    assert not [path for path in (tmp_path / "copies").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("here")
def test_a_block_is_of_the_version_that_was_found(server: ObjectServer, tmp_path: Path) -> None:
    """Also within the minute after a check, in which later blocks came from the new object."""
    for url in ("s3://lab/blocks", f"{server.address}/web/lab/blocks"):
        server.put("lab", "blocks", b"a" * (2 * BLOCK))
        found = objects.find(Url(url))
        assert found is not None
        cache = ObjectCache(tmp_path, 8 * BLOCK)
        assert cache.read(found, 0, 4) == b"aaaa"
        server.put("lab", "blocks", b"b" * (2 * BLOCK))
        with pytest.raises(ObjectError, match="has changed under the run"):
            cache.read(found, BLOCK, BLOCK + 4)
        server.put("lab", "blocks", b"b" * 10)
        with pytest.raises(ObjectError, match="has changed under the run"):
            cache.read(found, BLOCK, BLOCK + 4)


def test_each_object_has_a_copy_of_its_own(tmp_path: Path) -> None:
    """Also those whose names differ in what a disk does not tell apart, or cannot hold."""
    urls = [
        *("s3://lab/x/a", "s3://lab/x//a", "s3://lab/x/a/b", "s3://lab/x/a//b", "s3://lab/x/../a"),
        *("s3://lab/x/.a", "s3://lab/x/%2Ea", "s3://lab/x/a.part", "s3://lab/x/.a.part"),
        *("s3://lab/x/\u00e9", "s3://lab/x/e\u0301", "s3://lab/x/\ud800", "s3://lab/x/a\n"),
        *(f"s3://lab/x/{'n' * 999}{end}" for end in "12"),
        *("https://lab/x/a", "https://lab/x/a?v=1", "https://lab/x/a?v=2", "https://lab/x/?v=1/a"),
    ]
    paths = {path_of(Url(url)) for url in urls}
    assert len(paths) == len(urls)
    folders = {parent for path in paths for parent in path.parents}
    assert not folders & paths, "a copy lies where another one needs a folder"
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        assert not told_beside(tmp_path / path).exists()
        (tmp_path / path).write_bytes(b"")
        told_beside(tmp_path / path).write_bytes(b"")
    assert sum(each.is_file() for each in tmp_path.rglob("*")) == 2 * len(urls)
    for url in ("s3://lab/x//\u00e9 1.jsonl", "https://lab/x/a.jsonl?v=1", "s3://lab/x/50%2F/.a"):
        assert readable(f"{path_of(Url(url))}: line 1") == f"{url}: line 1"
    assert readable(f"{folder_of(Url('s3://lab/x'))} holds") == "s3://lab/x holds"


@pytest.mark.usefixtures("here")
def test_a_copy_of_a_removed_object_is_removed(server: ObjectServer, tmp_path: Path) -> None:
    """A tokenizer's optional files and files beside a source are looked for by name."""
    cache = ObjectCache(tmp_path, 1 << 20)
    server.put("lab", "removed", b"a")
    copy = cache.copy_at(Url("s3://lab/removed"))
    assert copy is not None
    assert copy.is_file()
    server.remove("lab", "removed")
    assert cache.copy_at(Url("s3://lab/removed")) is None
    assert not copy.exists()


@pytest.mark.usefixtures("here")
def test_a_cache_that_cannot_be_written_is_a_sentence(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of a store and one of the cache pass from a child to its parent."""
    server.put("lab", "copied", b"a")
    found = objects.find(Url("s3://lab/copied"))
    assert found is not None
    cache = ObjectCache(tmp_path, 1 << 20)
    told_beside(cache.path(found.url)).mkdir(parents=True)
    with pytest.raises(UserError, match="cannot keep a copy"):
        call(lambda: cache.copy(found) and None)
    assert not cache.path(found.url).exists(), "a copy that is nobody's is left"
    shutil.rmtree(tmp_path / "used")
    shutil.rmtree(tmp_path / "locks")
    for act in (lambda: cache.copy(found), lambda: cache.read(found, 0, 1)):
        with pytest.raises(UserError, match="cannot be written: No such file"):
            call(lambda act=act: act() and None)
    monkeypatch.setenv("ATOM_OBJECT_CACHE_GIB", "1e308")
    monkeypatch.setenv("ATOM_CACHE", str(tmp_path / "huge"))
    assert object_cache.shared().copy(found).read_bytes() == b"a"
    with pytest.raises(ObjectError, match="cannot be written: The specified bucket"):
        call(lambda: objects.write(Url("s3://none/a"), b"a"))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
