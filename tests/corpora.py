"""Small copies of public corpora: their folders, suffixes, columns and cards.

A row's text is the path of its file and its number there.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hub
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import yaml

ROWS = 3

Row = dict[str, Any]
Configs = Mapping[str, Mapping[str, str]]
"""Name of a subset -> split -> pattern."""

_WEB = {"id": "<urn:uuid:0>", "dump": "CC-MAIN-2024-10", "url": "http://a", "token_count": 9}
_MATH = {"url": "http://a", "metadata": "{}", "score": 3.5, "int_score": 3, "token_count": 9}
_CODE = {"max_stars_repo_name": "a/b", "max_stars_repo_path": "c", "max_stars_count": 1}
_DCLM = {
    "url": "http://a", "bff_contained_ngram_count_before_dedupe": 1, "previous_word_count": 9,
    "metadata": {"WARC-Type": "response"}, "language_id_whole_page_fasttext": {"en": 0.9},
}  # fmt: skip
_DOLMA = {"id": "0", "source": "s", "added": "2024", "created": None, "metadata": {"year": 2020}}


@dataclass(frozen=True)
class Corpus:
    """A dataset of the Hub: its files with the other columns of their rows, and its card."""

    files: Mapping[str, Row]
    configs: Configs = field(default_factory=dict)
    features: tuple[str, ...] = ()
    column: str = "text"
    gated: bool = False


def _one(*names: str, path: str = "{}/*", **others: str) -> Configs:
    return {name: {"train": path.format(name)} for name in names} | {
        name: {"train": pattern} for name, pattern in others.items()
    }


CORPORA = {
    "HuggingFaceFW/fineweb": Corpus(
        {
            "data/CC-MAIN-2024-10/000_00000.parquet": _WEB,
            "sample/10BT/000_00000.parquet": _WEB,
        },
        _one(default="data/*/*") | {"sample-10BT": {"train": "sample/10BT/*"}},
    ),
    "HuggingFaceFW/fineweb-edu": Corpus(
        {
            "data/CC-MAIN-2024-10/train-00000-of-00020.parquet": _WEB | {"score": 2.5},
            "data/CC-MAIN-2024-18/train-00000-of-00020.parquet": _WEB | {"score": 2.5},
            "sample/10BT/000_00000.parquet": _WEB | {"score": 2.5},
        },
        _one(default="data/*/*") | {"sample-10BT": {"train": "sample/10BT/*"}},
    ),
    "HuggingFaceFW/fineweb-2": Corpus(
        {
            f"data/{name}/{split}/000_00000.parquet": _WEB | {"minhash_cluster_size": 2}
            for name in ("fra_Latn", "kor_Hang", "hin_Deva", "tha_Thai")
            for split in ("train", "test")
        },
        {
            name: {split: f"data/{name}/{split}/*" for split in ("train", "test")}
            for name in ("fra_Latn", "kor_Hang", "hin_Deva", "tha_Thai")
        },
    ),
    "epfml/FineWeb2-HQ": Corpus(
        {f"{name}/000_00000.parquet": _WEB | {"embeddings": [[0.5]]} for name in ("fra_Latn",)},
        _one("fra_Latn"),
    ),
    "mlfoundations/dclm-baseline-1.0": Corpus(
        {
            f"global-shard_0{n}_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst": _DCLM
            for n in (1, 2)
        }
    ),
    "allenai/dolma3_mix-6T": Corpus(
        {
            "data/common_crawl-health-0019/shard_00000000.jsonl.zst": _DOLMA,
            "data/stack_edu-Java/shard_00000000.jsonl.zst": _DOLMA | {"attributes": None},
            "data/dolma1_7-wiki-en/00000.jsonl.zst": _DOLMA | {"version": "v1"},
        },
        _one(default="data/**/*.jsonl.zst"),
        features=("id", "text", "metadata", "source", "version", "attributes"),
    ),
    "allenai/dolma3_dolmino_mix-100B-1125": Corpus(
        {
            "data/ingredient1-math/shard_00000000.jsonl.zst": _DOLMA | {"problem": "p"},
            "data/ingredient1-code/shard_00000000.jsonl.zst": {"id": 1, "repo": {"name": "a"}},
        },
        _one(default="data/**/*"),
        features=("id", "text", "metadata", "source"),
    ),
    "allenai/olmo-mix-1124": Corpus(
        {
            "data/dclm/raw/global-shard_01_of_10/shard_00000000_processed.jsonl.zstd": _DCLM,
            "data/wiki/wiki-0000.json.gz": _DOLMA,
            "data/arxiv/train/arxiv-train-0000.json.gz": _DOLMA | {"metadata": {"arxiv_id": "1"}},
            "data/starcoder/v1-decon-100_to_20k/documents/ada-0000.json.gz": _DOLMA,
        },
        _one("dclm", "arxiv", "starcoder", path="data/{}/**/*")
        | _one("wiki", path="data/{}/*")
        | _one(default="data/**/*"),
        features=("text", "added", "created", "id", "metadata", "source"),
    ),
    "allenai/dolmino-mix-1124": Corpus(
        {
            "data/dclm/0000/dclm-0000.json.zst": _DCLM,
            "data/flan/tulu_flan-0000.json.gz": _DOLMA,
            "data/pes2o/pes2o-0000.json.gz": _DOLMA,
            "data/wiki/wiki-0000.json.gz": _DOLMA,
            "data/stackexchange/stackexchange-0000.json.gz": _DOLMA,
            "data/math/tinyGSM-MIND/2students/part000.000000.jsonl.gz": {"id": "0"},
            "data/math/gsm8k/main/train/0.jsonl.zst": {"question": "q", "answer": "a"},
            "data/math/tulu_math/personahub_math_v5/train_0000.jsonl": {"prompt": "p"},
        },
        _one(default="data/**/*")
        | _one("dclm", "math", path="data/{}/**/*")
        | _one("flan", "pes2o", "wiki", "stackexchange", path="data/{}/*"),
    ),
    "bigcode/the-stack-dedup": Corpus(
        {
            f"data/{name}/train-00000-of-00206.parquet": _CODE | {"lang": name, "size": 9}
            for name in ("python", "rust")
        },
        column="content",
        gated=True,
    ),
    "bigcode/starcoderdata": Corpus(
        {f"{name}/train-00000-of-00059.parquet": _CODE | {"id": "0"} for name in ("python", "c")},
        column="content",
        gated=True,
    ),
    "HuggingFaceTB/finemath": Corpus(
        {
            f"{name}/train-00000-of-00128.parquet": _MATH
            for name in ("finemath-3plus", "finemath-4plus", "infiwebmath-3plus")
        },
        _one("finemath-3plus", "finemath-4plus", "infiwebmath-3plus", path="{}/train-*"),
    ),
    "HuggingFaceTB/smollm-corpus": Corpus(
        {
            "cosmopedia-v2/train-00000-of-00104.parquet": {"prompt": "p", "format": "story"},
            "fineweb-edu-dedup/train-00000-of-00234.parquet": {"id": "0", "metadata": {"a": 1}},
        },
        _one("cosmopedia-v2", "fineweb-edu-dedup", path="{}/train-*"),
    ),
}
"""Name on the Hub -> a small copy."""

DOLMA = Corpus(
    {
        "books/books-0000.json.gz": _DOLMA,
        "algebraic-stack/algebraic-stack-train-0000.json.gz": _DOLMA | {"metadata": {"size": 9}},
        "wiki/wiki-0000.json.gz": _DOLMA | {"metadata": {"length": 9}},
    }
)
"""Dolma as it is downloaded; in the names of a part of its files is the name of a split."""


def texts(*files: str) -> list[str]:
    """Return the texts of files, sorted."""
    return sorted(f"{file} row {row}" for file in files for row in range(ROWS))


def write(corpus: Corpus, folder: Path, commit: str = "") -> None:
    """Write a corpus to a folder, with its card if it has a commit."""
    for name, others in corpus.files.items():
        rows = [{corpus.column: f"{name} row {row}", **others} for row in range(ROWS)]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            _write_lines(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    if commit:
        (folder / "README.md").write_text(_card(corpus))
        (folder / hub.COMMIT).write_text(commit)
        if corpus.gated:
            (folder / hub.GATED).touch()


def _write_lines(path: Path, lines: bytes) -> None:
    match path.suffix:
        case ".gz":
            lines = gzip.compress(lines)
        case ".zst" | ".zstd":
            lines = pa.compress(lines, codec="zstd", asbytes=True)
    path.write_bytes(lines)


def _card(corpus: Corpus) -> str:
    features = [{"name": name, "dtype": "string"} for name in corpus.features]
    configs = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": path} for split, path in splits.items()],
        }
        | ({"features": features} if features else {})
        for name, splits in corpus.configs.items()
    ]
    head = {"license": "other"} | ({"configs": configs} if configs else {})
    return f"---\n{yaml.safe_dump(head)}---\n# A small copy\n"
