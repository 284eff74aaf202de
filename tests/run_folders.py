"""Run folders as a finished run leaves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from atom.recipe.run import parse
from atom.run_dir import events
from atom.run_dir.metrics import StepMetrics

SECTIONS = {
    "architecture": {"name": "llama3", "dim": 64},
    "tokenizer": {"name": "bytes"},
    "optimizer": {"name": "AdamW"},
    "dataset": {"name": "stdlib"},
    "parallelism": {"name": "mesh"},
    "training": {"steps": 2, "seq_len": 64},
}


def row(step: int) -> str:
    numbers = {"grad_norm": 1.0, "lr": 1e-3, "tokens_per_second": 9.0, "step_seconds": 0.5}
    made = StepMetrics(step=step, loss=2.5, tokens_seen=512 * step, memory_gib=0.5, **numbers)
    return made.to_json()


def finished(place: Path) -> Path:
    """Write the folder of a run that has ended, as ATOM leaves it."""
    for name in ("logs", "tokenizer", "checkpoint/step-2", "history/1", "profile"):
        (place / name).mkdir(parents=True)
    parse(SECTIONS).write(place / "run.yaml")
    shutil.copy(place / "run.yaml", place / "history/1/run.yaml")
    (place / "metrics.jsonl").write_text(f"{row(1)}\n{row(2)}\n")
    events.record(place, events.STARTED, ranks=1, attempt=1)
    events.record(place, events.UNDER_WAY, step=1, seconds={"imports": 1.0})
    events.record(place, events.CHANGED, step=1, kept="history/1", settings={}, versions={})
    events.record(place, events.UNDER_WAY, step=2)
    events.record(place, events.FINISHED, step=2, tokens_seen=1024)
    line = {"time": "2026-01-01T00:00:00Z", "level": "info", "event": "hello"}
    for name in ("launcher", "rank_0"):
        (place / f"logs/{name}.jsonl").write_text(f"{json.dumps(line)}\n")
    (place / "logs/heartbeat").write_text(f"{2:<20}{2:<20}{1024:<20}\n")
    (place / "checkpoint/step-2/weights").write_bytes(b"123")
    manifest = {"step": 2, "model_only": False, "files": {"weights": [3, "0" * 64]}}
    (place / "checkpoint/step-2/manifest.json").write_text(json.dumps(manifest))
    for name in ("lock.json", "origins.json"):
        (place / name).write_text("{}")
    (place / "tokenizer/tokenizer.json").write_text("{}")
    (place / "profile/rank_0.json").write_text(json.dumps({"rank": 0, "steps": []}))
    (place / "running.json").write_text("{}\n")
    return place
