"""Token files that others have written train as the dataset that they were made of."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from atom.data.dealing import dealt
from atom.data.shards import TokenShards

BYTES = "tokenizer=bytes"
SMALL = "training.seq_len=64 training.global_batch_size=4 architecture.n_layers=2"
TRAIN = f"{SMALL} architecture.dim=64 device=cpu metrics=none training.steps=3".split()


@pytest.fixture(scope="module")
def folder(atom: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, its token shards, and their documents in the other formats."""
    folder = tmp_path_factory.mktemp("tokens")
    lines = [json.dumps({"text": f"line {n} of a text" * (n % 7)}) for n in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    local = ("dataset=local", f"dataset.path={folder}/text.jsonl")
    result = atom("data", "prepare", *local, BYTES, "--out", str(folder / "shards"))
    assert result.returncode == 0, result.stderr
    shards = TokenShards(folder / "shards")
    documents = [shards[number].tokens for number in range(len(shards))]
    ids = np.concatenate(documents)
    sizes = np.array([len(each) for each in documents])
    ends = np.cumsum(sizes)
    ids.astype("<u2").tofile(folder / "a.bin")
    with (folder / "a.idx").open("wb") as file:
        file.write(b"MMIDIDX\0\0\1\0\0\0\0\0\0\0\x08")
        np.array([len(sizes), len(sizes) + 1], "<u8").tofile(file)
        sizes.astype("<i4").tofile(file)
        ((ends - sizes) * 2).astype("<i8").tofile(file)
        np.arange(len(sizes) + 1).astype("<i8").tofile(file)
    ids.astype("<u4").tofile(folder / "a.npy")
    pairs = zip(ends - sizes, ends, strict=True)
    described = "".join(f"{begin},{end},x,y,0\n" for begin, end in pairs)
    (folder / "a.csv.gz").write_bytes(gzip.compress(described.encode()))
    np.array([1, 2, 3, 4, 999, 3], "<u2").tofile(folder / "a.beyond.npy")
    column = pa.array([each.tolist() for each in documents], pa.list_(pa.int64()))
    pq.write_table(pa.table({"input_ids": column}), folder / "a.parquet")
    return folder


FORMATS = {
    "megatron": {"path": "a.idx"},
    "npy": {"path": "a.npy", "dtype": "uint32"},
    "parquet": {"path": "a.parquet"},
}


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["concat", "windows"])
def test_every_format_gives_the_sequences_of_the_shards(packing: str, folder: Path) -> None:
    """Inputs, labels and positions of eight steps, over more than an epoch."""
    from atom.titan.train.data import DocumentLoader
    from atom_datasets import prepared, tokens
    from atom_datasets.config import Prepared, Tokens

    def rows(source: Any) -> list[bytes]:
        source = dealt(source)
        source.check()
        config = DocumentLoader.Config(
            source=source, seed=3, global_batch_size=4, packing=packing, vocab_size=259
        )
        loader = config.build(
            dp_world_size=1,
            dp_rank=0,
            tokenizer=None,
            seq_len=64,
            local_batch_size=4,
            snapshot_every_n_steps=None,
        )
        steps = islice(iter(loader), 8)
        return [
            b"".join(each.numpy().tobytes() for each in (*inputs.values(), labels))
            for inputs, labels in steps
        ]

    expected = rows(prepared.source(Prepared(path=str(folder / "shards"))))
    context: Any = SimpleNamespace(cache=folder / "cache")
    for name, parameters in FORMATS.items():
        chosen = parameters | {"path": str(folder / parameters["path"])}
        assert rows(tokens.source(Tokens.model_validate(chosen), context)) == expected, name


@pytest.mark.slow
def test_two_ranks_train_on_megatrons_files(atom: Callable, folder: Path, tmp_path: Path) -> None:
    """Bitwise the losses of the text that was tokenized."""
    losses = {}
    for name, line in (
        ("local", f"dataset=local dataset.path={folder}/text.jsonl"),
        ("tokens", f"dataset=tokens dataset.path={folder}/a"),
    ):
        run = tmp_path / name
        line = f"{line} run.dir={run} launch.ranks=2 parallelism=fsdp"
        result = atom("train", *line.split(), BYTES, *TRAIN, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        rows = (run / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(row)["loss"] for row in rows]
        if name == "tokens":
            assert "left out: the check of the tokenizer (the files do not" in result.stdout
    assert len(losses["local"]) == 3
    assert losses["tokens"] == losses["local"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [
        ("a.bin", "dataset.path={}/a.bin", "a.bin: it has"),
        (None, "dataset.path={}/a.npy", "a.npy does not say the type of its ids"),
        (None, "dataset.path={}/a.npy dataset.dtype=uint16", "dataset.dtype=uint16"),
        (None, "dataset.path={}/a.idx tokenizer=bpe", "tokenizer.name=bpe"),
        # The last document; a run of one step would not have met it.
        (
            None,
            "dataset.path={}/a.beyond.npy dataset.dtype=uint16 dataset.eos_id=3 training.steps=1",
            "a.beyond.npy#1 has the id 999, and the tokenizer has the ids 0 to 319",
        ),
        (None, "dataset.path={}/nowhere", "there is no such file or folder"),
    ],
)
def test_training_refuses(
    change: str | None,
    arguments: str,
    says: str,
    folder: Path,
    forked: Callable,
    tmp_path: Path,
) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in folder.glob("a.*"):
        (copied / path.name).write_bytes(path.read_bytes()[: -1 if path.name == change else None])
    line = ["dataset=tokens", BYTES, *TRAIN, *arguments.format(copied).split()]
    result = forked("train", *line, f"run.dir={tmp_path / 'run'}", timeout=60)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert says in result.stderr
    assert not (tmp_path / "run").exists()
