"""Train on two ranks with the real command, and return the share of a step that waits for data."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

from corpus import Corpus, atom

WARM = 3
"""Steps that are left out: the first ones fill the queue of what is read ahead."""

MODES = ("prepared", "text")


def measure(mode: str, corpus: Corpus, steps: int, scratch: Path) -> dict[str, float]:
    """Return the medians of a run's ``data_seconds`` and ``step_seconds``, and the share."""
    shutil.rmtree(scratch, ignore_errors=True)
    if mode == "prepared":
        dataset = ("dataset=prepared", f"dataset.path={corpus.repeated}")
    else:
        dataset = ("dataset=local", f"dataset.path={corpus.text}")
    atom(
        *("train", f"run.dir={scratch}", "device=cpu", *dataset, "tokenizer=hf"),
        *(f"tokenizer.path={corpus.tokenizer}", "architecture=llama3_tiny", "kernels=reference"),
        *("parallelism=fsdp", "launch.ranks=2", "training.seq_len=256"),
        *("training.global_batch_size=8", f"training.steps={steps}", "checkpoint.enable=false"),
        *("metrics.enable_tensorboard=false", "lr_scheduler.warmup_steps=2"),
        OMP_NUM_THREADS="1",
    )
    rows = [json.loads(line) for line in (scratch / "metrics.jsonl").read_text().splitlines()]
    waited = [row["data_seconds"] for row in rows[WARM:]]
    whole = [row["step_seconds"] for row in rows[WARM:]]
    shutil.rmtree(scratch)
    return {
        "data_ms": 1e3 * statistics.median(waited),
        "step_s": statistics.median(whole),
        "share": sum(waited) / sum(whole),
    }
