"""The datasets keep the promises of their kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from token_data import write_megatron

from atom.plugin import Document
from atom.testing import conformance, token_shards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what ``datasets`` caches out of the user's own cache, in other processes too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def texts(folder: Path) -> dict[str, object]:
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"line of {number}\n" * (1 + number * 3))
    return {"path": str(folder), "max_chars": 256}


def more_text(folder: Path) -> dict[str, object]:
    (folder / "3.txt").write_text("line of 4\n" * 10)
    return {"path": str(folder)}


def records(folder: Path) -> dict[str, object]:
    for shard in range(3):
        lines = [json.dumps({"text": f"record {n} of {shard}"}) for n in range(20 + shard)]
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return {"path": str(folder)}


def another_record(folder: Path) -> dict[str, object]:
    with (folder / "1.jsonl").open("a") as stream:
        stream.write('\n{"text": "one more"}')
    return {"path": str(folder)}


def bad_record(folder: Path) -> tuple[dict[str, object], str, int]:
    parameters = records(folder)
    with (folder / "1.jsonl").open("a") as stream:
        stream.write('\n{"text": \n{"text": "good"}')
    return parameters, "1.jsonl", 22


def parquet(folder: Path) -> dict[str, object]:
    for split, rows in (("train", 20), ("test", 10)):
        for shard in range(5):
            column = [f"{split} {shard} {row}" for row in range(rows + shard)]
            pq.write_table(pa.table({"content": column}), folder / f"{split}-{shard}.parquet")
    return {"path": str(folder), "text_field": "content"}


def shards(folder: Path) -> dict[str, object]:
    documents = [
        Document(f"text {number} " * (1 + number % 7), f"row {number}") for number in range(50)
    ]
    token_shards.write(folder, [documents[:20], documents[20:21], [], documents[21:]])
    return {"path": str(folder)}


def another_shard(folder: Path) -> dict[str, object]:
    token_shards.write(folder / "other", [[Document("text 0 ", f"row {n}") for n in range(50)]])
    return {"path": str(folder / "other")}


def token_files(folder: Path) -> dict[str, object]:
    for shard in range(2):
        documents = [[shard, number, *range(number % 23)] for number in range(20 + shard)]
        write_megatron(folder, documents, name=str(shard))
    return {"path": str(folder)}


def another_document(folder: Path) -> dict[str, object]:
    write_megatron(folder, [[1, number] for number in range(9)], name="1")
    return {"path": str(folder)}


TestStdlibChat = conformance("dataset:stdlib_chat").having(change=lambda _: {"longest": 60})
TestStdlibPairs = conformance("dataset:stdlib_pairs").having(change=lambda _: {"longest": 60})
TestStdlib = conformance("dataset:stdlib").having(change=lambda _: {"max_chars": 2000})
TestLocalText = conformance("dataset:local").having(sample=texts, change=more_text)
TestLocalRecords = conformance("dataset:local").having(
    sample=records, change=another_record, bad_sample=bad_record
)
TestTokens = conformance("dataset:tokens").having(sample=token_files, change=another_document)
TestHuggingFace = conformance("dataset:huggingface").having(
    sample=parquet, change=lambda folder: {"path": str(folder), "split": "test"}
)
TestPrepared = conformance("dataset:prepared").having(sample=shards, change=another_shard)


def two_sources(folder: Path) -> dict[str, object]:
    """Return a mixture of texts, and of a nested mixture of records with another stage."""
    for name in ("web", "books", "code"):
        (folder / name).mkdir()
    for name, weight in (("web", 3), ("code", 1)):
        for number in range(20):
            (folder / name / f"{number}.txt").write_text(f"{name} {number} " * weight * 3)
    parameters = records(folder / "books")
    nested = {
        "books": {"name": "local", **parameters, "weight": 2},
        "code": {"name": "local", "path": str(folder / "code"), "weight": 1},
    }
    return {
        "sources": {
            "web": {"name": "local", "path": str(folder / "web"), "weight": 0.6},
            "rest": {"name": "mixture", "sources": nested, "weight": 0.4},
        },
        "stages": {"anneal": {"from_step": 4, "weights": {"web": 1, "rest": 3}}},
    }


def another_page(folder: Path) -> dict[str, object]:
    for part in list(folder.iterdir()):
        shutil.rmtree(part)
    parameters = two_sources(folder)
    (folder / "code" / "3.txt").write_text("another page")
    return parameters


def bad_in_mixture(folder: Path) -> tuple[dict[str, object], str, int]:
    parameters, file, line = bad_record(folder)
    source = {"name": "local", **parameters, "weight": 1}
    return {"sources": {"only": source}, "stages": {}}, file, line


TestMixture = conformance("dataset:mixture").having(
    sample=two_sources, change=another_page, bad_sample=bad_in_mixture, weighted=True
)
