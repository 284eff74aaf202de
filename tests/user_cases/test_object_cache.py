"""The cache of objects of a store: its limit, what gives way, and what has changed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_server import ObjectServer

from atom.errors import UserError
from atom.io import object_cache, objects
from atom.io.copy_names import folder_of, path_of, readable, told_beside
from atom.io.object_cache import BLOCK, ObjectCache
from atom.io.objects import ObjectError
from atom.io.process import call
from atom.io.urls import Url


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    server.bucket("lab")
    yield server
    server.close()


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
        call(lambda: objects.upload(Path(__file__), Url("s3://none/a")))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
