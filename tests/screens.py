"""Screens of a run to look at, in a pipe and in a process of their own."""

from __future__ import annotations

import io
import sys
import textwrap
from pathlib import Path

from atom.run_dir.metrics import StepMetrics
from atom.watch.screen import Header, Screen

HEADER = Header(
    run_dir="outputs/2026-11-24/16-14-50",
    model="llama3_tiny (llama3)",
    parameters=6_123_456,
    tokenizer="bpe",
    vocab_size=4096,
    dataset="stdlib",
    device="cpu",
    ranks=16,
    layout=[("dp_replicate", 1), ("dp_shard", 2), ("tp", 2), ("pp", 2), ("cp", 2)],
    schedule="1F1B",
    batch="8 sequences × 256 tokens = 2,048 tokens a step",
    steps=50,
    kernels=[
        ("attention", "sdpa"),
        *((name, "torch") for name in ("rms_norm", "rope", "swiglu", "cross_entropy", "linear")),
        ("optimizer", "fused"),
    ],
    resumed_from=None,
)


def row(step: int, loss: float | None = None, mfu: float | None = None) -> StepMetrics:
    return StepMetrics(
        step=step,
        loss=10 - step / 10 if loss is None else loss,
        grad_norm=1.234,
        lr=3e-4,
        tokens_seen=2048 * step,
        tokens_per_second=12_345.4,
        step_seconds=0.45,
        memory_gib=1.21,
        mfu=mfu,
    )


class Piped:
    """A screen whose stream is no terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self._stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        self.screen = Screen(self._stream)

    @property
    def text(self) -> str:
        self._stream.flush()
        return self._stream.buffer.getvalue().decode(self._stream.encoding)  # type: ignore[attr-defined]


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from atom.watch.screen import Screen
from screens import HEADER, row

screen = Screen(verbose="-v" in sys.argv)
"""


def script(body: str) -> list[str]:
    head = SCRIPT.format(tests=str(Path(__file__).parent))
    return [sys.executable, "-c", head + textwrap.dedent(body)]


WHOLE_RUN = """
screen.header(HEADER)
screen.starting("starting 16 ranks")
time.sleep(0.1)
for step in range(1, 51):
    screen.step(row(step))
    time.sleep(0.3 if step == 25 else 0)
    if step == 7:
        screen.note("a note")
screen.close()
screen.summary([row(step) for step in range(1, 51)], "outputs/none", 27.2)
"""
