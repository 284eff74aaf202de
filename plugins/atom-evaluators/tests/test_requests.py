"""Files of requests that cannot be scored are refused: no number comes of them."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from atom.errors import UserError

sys.path.append(str(Path(__file__).parent))

import made

from atom_evaluators import olmes

FIRST = made.request(0, 0, 0, "a", " x")
BAD = {
    "a right answer that is no choice": (
        [made.request(0, 0, 7, "a", " x"), made.request(0, 1, 7, "a", " y")],
        "document 0 of FILE has no choice 7, its right answer",
    ),
    "two right answers": (
        [FIRST, made.request(0, 1, 1, "a", " y")],
        "line 2 of FILE is wrong: document 0 has another right answer in an earlier line",
    ),
    "a right answer, and none": (
        [FIRST, made.request(0, 1, None, "a", " y")],
        "line 2 of FILE is wrong: document 0 has another right answer in an earlier line",
    ),
    "two texts of a choice": (
        [FIRST, made.request(0, 0, 0, "a", " y")],
        "line 2 of FILE is wrong: document 0 has another choice 0 in an earlier line",
    ),
    "half of a surrogate pair": (
        [made.request(0, 0, 0, "a", " \ud800")],
        "line 1 of FILE is no request: half of a surrogate pair is no text",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_requests(name: str, tmp_path: Path) -> None:
    lines, sentence = BAD[name]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError) as refused:
        olmes._questions(file, None)
    assert refused.value.sentence() == sentence.replace("FILE", str(file))


def test_damaged_compression(tmp_path: Path) -> None:
    """The stream is damaged behind gzip's header, which zlib finds."""
    file = tmp_path / "requests.jsonl.gz"
    content = bytearray(gzip.compress(json.dumps(FIRST).encode() * 50))
    content[20:40] = b"\xff" * 20
    file.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        olmes._questions(file, None)
