"""``metrics.jsonl`` and ``events.jsonl``: rows, or a user's mistake."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from damage import damaged, is_one_sentence, json_values
from hypothesis import strategies as st

from atom.errors import UserError
from atom.run_dir import events, metrics
from atom.run_dir.folder import RUN_FILE
from atom.run_dir.status import status

pytestmark = pytest.mark.slow

_EVENTS = sorted(
    value for name, value in vars(events).items() if name.isupper() and isinstance(value, str)
)
_FIELDS = ["time", "event", "host", "step", "ranks", "attempt", "reason", "seconds", "saved"]


def _row() -> dict[str, Any]:
    return {field.name: 1 for field in dataclasses.fields(metrics.StepMetrics)}


@st.composite
def lines(draw: st.DrawFn, sound: dict[str, Any]) -> bytes:
    """A few lines, most of them near to sound ones."""
    written = []
    for _ in range(draw(st.integers(1, 4))):
        row = dict(sound)
        for _ in range(draw(st.integers(0, 3))):
            row[draw(st.sampled_from([*sound, *_FIELDS]))] = draw(json_values)
        if "event" in sound and draw(st.booleans()):
            row["event"] = draw(st.sampled_from(_EVENTS))
        for name in draw(st.sets(st.sampled_from(sorted(sound)), max_size=2)):
            del row[name]
        written.append(json.dumps(row).encode() + draw(st.sampled_from([b"\n", b"\r\n", b""])))
    data = b"".join(written)
    return draw(st.just(data) | damaged(data) | st.binary(max_size=200))


def test_metrics_lines(fuzz: Any, tmp_path: Path) -> None:
    path = tmp_path / metrics.FILE_NAME

    def check(content: bytes) -> None:
        path.write_bytes(content)
        assert type(metrics.last_step(path)) is int
        assert all(
            isinstance(row, metrics.StepMetrics) for row in metrics.follow(path, lambda: True)
        )
        try:
            assert all(isinstance(row, metrics.StepMetrics) for row in metrics.read(path))
        except UserError as error:
            is_one_sentence(error)

    fuzz(lines(_row()), check)


def test_event_lines(fuzz: Any, tmp_path: Path) -> None:
    sound = {"time": "2026-01-01T00:00:00.000Z", "event": "started", "host": "a", "step": 3}

    (tmp_path / RUN_FILE).write_text(
        "architecture: {name: a}\ntokenizer: {name: a}\ndataset: {name: a}\n"
        "parallelism: {name: a}\n"
    )

    def check(content: bytes) -> None:
        (tmp_path / events.FILE_NAME).write_bytes(content)
        try:
            happened = events.read(tmp_path)
            assert all(isinstance(event, dict) for event in happened)
            events.stopped(tmp_path)
            events.asked_by(happened)
            status(tmp_path)
        except UserError as error:
            is_one_sentence(error)

    fuzz(lines(sound), check)
