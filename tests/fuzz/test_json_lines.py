"""JSON lines of a dataset: documents, or a user's mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from damage import damaged, is_one_sentence, json_values
from hypothesis import strategies as st

from atom.data.dealing import dealt
from atom.errors import UserError
from atom_datasets import local
from atom_datasets.config import Local

pytestmark = pytest.mark.slow


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Records, most of them with text; lines ended in every way, bytes damaged."""
    parts = []
    for _ in range(draw(st.integers(0, 5))):
        record: Any = {"text": draw(st.text(max_size=20)), "id": draw(json_values)}
        if draw(st.integers(0, 3)) == 0:
            record["text"] = draw(json_values)
        if draw(st.integers(0, 7)) == 0:
            record = draw(json_values)
        line = json.dumps(record, ensure_ascii=draw(st.booleans()))
        parts.append(line.encode(errors="surrogatepass"))
        parts.append(draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b" \n", b""])))
    data = b"".join(parts)
    if draw(st.booleans()):
        data = draw(damaged(data))
    return draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"])) + data


@pytest.mark.parametrize("tolerated", [0.0, 0.5])
def test_json_lines(
    tolerated: float, fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    number = 0

    def check(content: bytes) -> None:
        nonlocal number
        number += 1
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(content)
        try:
            config = Local(path=str(path), max_bad_fraction=tolerated)
            source = dealt(local.source(config))
            source.check()
            for document in source.lane(0, 1, seed=0, epoch=0):
                document.text.encode()
        except UserError as error:
            is_one_sentence(error)
        finally:
            path.unlink()

    fuzz(files(), check)
