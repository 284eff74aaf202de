"""``huggingface``: lanes dealt over shards, read from local shards as the Hub has them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.errors import UserError
from atom_datasets import huggingface, labels, local
from atom_datasets.config import HuggingFace, Local

SHARDS, ROWS = 5, 600  # more rows than are read at a time


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for shard in range(SHARDS):
        rows = [{"text": f"{shard}:{row}", "n": row} for row in range(ROWS + shard)]
        rows[7]["text"] = None
        path = folder / f"train-{shard}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def made(path: Path | str, **parameters: object) -> huggingface.HuggingFaceSource:
    return huggingface.source(HuggingFace.model_validate({"path": str(path)} | parameters))


def texts(
    source: huggingface.HuggingFaceSource, lane: int, lanes: int, start: int = 0
) -> list[str]:
    return [d.text for d in source.lane(lane, lanes, seed=0, epoch=0, start=start)]


@given(
    shards=st.integers(1, 12),
    lanes=st.integers(1, 12),
    rows=st.integers(0, 40),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_every_row_is_dealt_once(shards: int, lanes: int, rows: int, seed: int, epoch: int) -> None:
    dealt = [huggingface.dealt(shards, n, lanes, seed=seed, epoch=epoch) for n in range(lanes)]
    read = Counter(
        (part.shard, row)
        for part in chain.from_iterable(dealt)
        for row in range(part.first, rows, part.step)
    )
    assert read == Counter({(shard, row): 1 for shard in range(shards) for row in range(rows)})
    opened = [len({part.shard for part in parts}) for parts in dealt]
    assert max(opened) <= -(-shards // lanes)


def test_neighbours_share_shards() -> None:
    dealt = [huggingface.dealt(2, lane, 8, seed=0, epoch=0) for lane in range(8)]
    assert [{part.shard for part in parts} for parts in dealt[:4]] == [{dealt[0][0].shard}] * 4


def test_passes_and_seeds_are_dealt_otherwise() -> None:
    for shards, lanes in ((20, 4), (2, 20), (1, 20)):
        orders = {
            str([huggingface.dealt(shards, lane, lanes, seed=s, epoch=e) for lane in range(lanes)])
            for s in range(3)
            for e in range(3)
        }
        assert len(orders) == 9


@pytest.mark.parametrize("lanes", [1, 2, 5, 16])
def test_a_pass_has_every_row_once(lanes: int, folder: Path) -> None:
    source = made(folder)
    source.check()
    read = [texts(source, lane, lanes) for lane in range(lanes)]
    for lane in range(lanes):
        assert read[lane] == [
            "" if row == 7 else f"{part.shard}:{row}"
            for part in huggingface.dealt(SHARDS, lane, lanes, seed=0, epoch=0)
            for row in range(part.first, ROWS + part.shard, part.step)
        ]
    assert sum(map(len, read)) == sum(ROWS + shard for shard in range(SHARDS))


def test_a_lane_opens_its_own_shards_and_no_others(folder: Path) -> None:
    source = made(folder)
    (own,) = huggingface.dealt(SHARDS, 2, SHARDS, seed=0, epoch=0)
    source.check()
    for path in folder.iterdir():
        if path.name != f"train-{own.shard}.jsonl":
            path.unlink()
    assert texts(source, 2, SHARDS)[0] == f"{own.shard}:0"
    with pytest.raises(FileNotFoundError):
        texts(source, 3, SHARDS)


def test_ids_name_shard_and_row(folder: Path) -> None:
    document = next(made(folder).lane(0, 1, seed=0, epoch=0, start=9))
    shard, row = document.text.split(":")
    assert document.id == f"{folder}/train shard {shard} row {row}"


def test_the_digest_is_of_what_the_files_hold(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert made(folder).check() == made(moved).check()
    file = sorted(path for path in moved.iterdir() if path.is_file())[0]
    assert file.name in made(moved).parts()
    file.write_text(file.read_text().replace("0:0", "0-0"))
    huggingface._opened.cache_clear()
    assert made(folder).check() != made(moved).check()


def test_the_source_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(made("a/b"))) == made("a/b")


@pytest.mark.parametrize(
    ("patterns", "shards"),
    [("train-1.jsonl", [1]), ("**/*-[23].jsonl", [2, 3]), (["train-4*", "train-0*"], [0, 4])],
)
def test_files_are_read_by_patterns(patterns: object, shards: list[int], folder: Path) -> None:
    source = made(folder, data_files=patterns)
    source.check()
    assert {text.partition(":")[0] for text in texts(source, 0, 1) if text} == set(map(str, shards))
    others = f"files that are in no split: {SHARDS - len(shards)}"
    assert source.contents().left_out[0].startswith(others)


def test_names_of_splits_do_not_choose_where_patterns_do(tmp_path: Path) -> None:
    """Of files with and without ``train`` in their names, ``datasets`` reads the former alone."""
    for name in ("math-train-0.jsonl", "web-0.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    assert texts(made(tmp_path), 0, 1) == ["math-train-0.jsonl"]
    assert len(texts(made(tmp_path, data_files="**/*.jsonl"), 0, 1)) == 2


def test_labels_are_told_and_change_nothing(folder: Path) -> None:
    labelled = made(folder, licence="CC0", origin="a test")
    assert labelled.check() == made(folder).check()
    told = labelled.contents()
    assert (told.licence, told.origin) == ("CC0", "a test")
    assert (made(folder).contents().licence, made(folder).contents().origin) == (None, None)
    assert [labels.changed(key, {}, {}, None) for key in ("licence", "origin", "path")] == [
        "harmless", "harmless", "refused"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("each", "together"),
    [
        ({"a": None, "b": None}, None),
        ({"a": "MIT", "b": "MIT"}, "MIT"),
        ({"a": "MIT", "b": None, "c": "MIT"}, "MIT (a, c); unknown (b)"),
    ],
)
def test_labels_of_several(each: dict[str, str | None], together: str | None) -> None:
    assert labels.joined(each) == together


# ---------------------------------------------------------------------------- mistakes


def mistake(source: huggingface.HuggingFaceSource) -> UserError:
    with pytest.raises(UserError) as error:
        source.check()
    assert "\n" not in str(error.value)
    return error.value


def test_a_column_that_is_not_there(folder: Path) -> None:
    error = mistake(made(folder, text_field="txt"))
    assert (error.key, error.value) == ("dataset.text_field", "txt")
    assert "did you mean text?" in str(error)


def test_a_column_that_is_no_text(folder: Path) -> None:
    error = mistake(made(folder, text_field="n"))
    assert error.key == "dataset.text_field"
    assert "holds 0 and no text in line 1 of" in str(error)


def test_a_split_or_subset_that_is_not_there(folder: Path) -> None:
    assert "Available splits: ['train']" in str(mistake(made(folder, split="trian")))
    assert "Available: ['default']" in str(mistake(made(folder, subset="english")))


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        ("*.csv", "*.csv: no file of "),
        (["train-*", "valid-*"], "valid-*: no file of "),  # datasets leaves it out
        ("../*.jsonl", "../*.jsonl: leads out of the dataset"),
        ("hf://datasets/a/b/*", "hf://datasets/a/b/*: leads out of the dataset"),
    ],
)
def test_patterns_that_match_nothing(patterns: object, problem: str, folder: Path) -> None:
    error = mistake(made(folder, data_files=patterns))
    assert str(error).startswith(f"dataset.data_files={problem}")


def test_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    error = mistake(made(tmp_path))
    assert (error.key, error.value) == ("dataset.path", str(tmp_path))


@pytest.mark.slow
def test_the_hub_out_of_reach(tmp_path: Path) -> None:
    script = """
from atom.errors import UserError
from atom_datasets.config import HuggingFace
from atom_datasets.huggingface import source
try:
    source(HuggingFace(path="allenai/c4", subset="en")).check()
except UserError as error:
    print(error)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("dataset.path=allenai/c4: cannot be streamed: Couldn't reach")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


class Records(NamedTuple):
    records: bool = True


CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"{number}?"},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": call}]},
        ],
        "n": number,
    }
    for number, call in enumerate([{"x": 1}, {"y": "NA"}, {}])
]


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_rows_are_records(form: str, tmp_path: Path) -> None:
    """Nulls with which a table fills rows up are no part of a record."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = tmp_path / "data"
    place.mkdir()
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(CHATS), place / "train.parquet")
    elif form == "json":
        (place / "train.json").write_text(json.dumps(CHATS))
    else:
        lines = "".join(json.dumps(row) + "\n" for row in CHATS)
        (place / "train.jsonl").write_text(lines)
    source = records(place)
    source.check()
    documents = list(source.lane(0, 1, seed=0, epoch=0))
    assert [each.record for each in documents] == CHATS
    assert documents[1].id == f"{place}/train shard 0 row 1"
    if form != "json":
        read = local.source(Local(path=str(place)), Records()).documents()
        assert [read[number].record for number in range(len(read))] == CHATS


def test_a_table_of_text_is_of_records_too(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('prompt,completion\n2+2=,4\nnull?,"NA"\n')
    found = [each.record for each in records(tmp_path).lane(0, 1, seed=0, epoch=0)]
    assert found == [{"prompt": "2+2=", "completion": "4"}, {"prompt": "null?", "completion": "NA"}]


def test_a_text_field_has_no_effect_on_records(folder: Path) -> None:
    with pytest.raises(UserError, match="has no effect on records"):
        records(folder, text_field="n").check()
    assert records(folder).check() != made(folder).check()


def records(path: Path, **parameters: object) -> huggingface.HuggingFaceSource:
    return replace(made(path, **parameters), records=True)
