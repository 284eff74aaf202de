"""The search of layouts: against trying all, against published layouts, and its explanation."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from atom.plan.candidates import Space, divisors
from atom.plan.device import named
from atom.plan.execution import COMPILED, FLASH2, ZERO1, Execution
from atom.plan.layout import Layout
from atom.plan.model import FULL, SELECTIVE
from atom.plan.search import Tried
from atom.plan.time.orders import interleaved
from atom.plan.transformer import described, transformer
from atom.plan.work import work

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
choosing: Any = importlib.import_module("plan_parts.choosing")

LLAMA = {"kv_heads": 8, "vocab": 128256}
DIMS = {
    "8B": LLAMA | {"layers": 32, "dim": 4096, "heads": 32, "ffn_dim": 14336},
    "70B": LLAMA | {"layers": 80, "dim": 8192, "heads": 64, "ffn_dim": 28672},
    "405B": LLAMA | {"layers": 126, "dim": 16384, "heads": 128, "ffn_dim": 53248},
    "small": LLAMA | {"layers": 6, "dim": 2048, "heads": 16, "ffn_dim": 8192},
}


def template(size: str, **values: Any) -> Layout:
    """Return a layout of a published job."""
    model = described(DIMS[size])
    pp, chunks = values.get("pp", 1), values.pop("chunks", 1)
    microbatches = values.get("local_batch_size", 1) // values.get("microbatch_size", 1)
    defaults: dict[str, Any] = {
        "seq_len": 8192,
        "stages": choosing.split(list(model.blocks), pp * chunks),
        "stages_of": tuple(tuple(range(r, pp * chunks, pp)) for r in range(pp)),
        "reshard": pp == 1,
        "order": interleaved(pp, chunks, microbatches) if pp > 1 else None,
        "execution": Execution(attention=FLASH2, fusion=COMPILED),
    }
    return Layout(**defaults | values)


PUBLISHED = {
    # pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md
    "table 1": ("8B", {"dp_shard": 8, "local_batch_size": 2, "checkpointing": SELECTIVE}),
    "table 3": ("8B", {"dp_shard": 128, "local_batch_size": 2, "checkpointing": SELECTIVE}),
    "table 4": ("70B", {"dp_shard": 32, "tp": 8, "local_batch_size": 16, "checkpointing": FULL}),
    "table 5, interleaved": (
        "405B",
        {
            "dp_shard": 8, "tp": 8, "pp": 8, "chunks": 2, "local_batch_size": 32,
            "microbatch_size": 4, "checkpointing": FULL,
        },
    ),
    # NVIDIA/dgxc-benchmarking, Llama 3.1 70B: sharded optimizer, pipeline of 4 with 5 chunks
    "dgxc 70B": (
        "70B",
        {
            "dp_replicate": 4, "tp": 4, "pp": 4, "chunks": 5, "local_batch_size": 32,
            "execution": Execution(sharding=ZERO1, saves_products=False),
        },
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("row", PUBLISHED)
def test_no_published_layout_is_better_by_more_than_3_percent(row: str) -> None:
    """In the estimate of both; ``plan_accuracy.py --auto`` does this for all rows."""
    size, values = PUBLISHED[row]
    model, device = described(DIMS[size]), named("h100_hbm2e_500w")
    published = choosing.sharded(template(size, **dict(values)), model)
    seconds = choosing.step(work(model), published, device).seconds
    found = choosing.searched(model, published, device, ranks=published.ranks)
    best = found.fitting[0].estimate
    assert best.step.seconds <= 1.03 * seconds
    assert best.memory.total <= 0.9 * device.memory
    # Bounds spare nearly all of the estimates.
    assert found.estimated < found.bounded / 20 + 20


def test_the_search_finds_what_trying_all_finds() -> None:
    model, device = described(DIMS["small"]), named("h100")
    given = template("small", dp_shard=16, local_batch_size=2)
    space = Space(ranks=16, batch=32, seq_len=8192, layers=6)
    every = []
    for shape in space.shapes():
        for candidate in space.candidates(shape):
            estimate = choosing.estimated(candidate, given, model, work(model), device)
            every.append(Tried(candidate, estimate))
    assert len(every) > 500
    fitting: dict[tuple[int, ...], Tried] = {}
    for tried in sorted((t for t in every if t.fits), key=lambda tried: tried.key):
        fitting.setdefault(tried.candidate.shape.degrees, tried)
    expected = sorted(fitting.values(), key=lambda tried: tried.key)[:10]
    found = choosing.searched(model, given, device, ranks=16, wanted=10)
    assert [t.candidate for t in found.fitting] == [t.candidate for t in expected]
    # The same again, whatever was asked in between.
    again = choosing.searched(model, given, device, ranks=16, wanted=10)
    assert [t.candidate for t in again.fitting] == [t.candidate for t in expected]


def test_what_is_wished_is_kept() -> None:
    wished = {"tp": 2, "pp": 2, "sequences": 1, "schedule": "1F1B", "shard": 4}
    space = Space(ranks=16, batch=32, seq_len=8192, layers=6, wished=wished, modes=[FULL])
    found = [c for shape in space.shapes() for c in space.candidates(shape)]
    assert found
    for candidate in found:
        shape = candidate.shape
        assert (shape.tp, shape.pp, shape.sequences, candidate.shard) == (2, 2, 1, 4)
        assert (candidate.mode, candidate.schedule, candidate.chunks) == (FULL, "1F1B", 1)
        assert shape.inner * candidate.shard * candidate.replicate == 16
        data = candidate.shard * candidate.replicate
        assert data * candidate.local_batch_size * candidate.accumulation == 32


def test_nothing_fits_and_the_closest_is_known() -> None:
    model, device = described(DIMS["405B"]), named("h100")
    found = choosing.searched(model, template("405B", dp_shard=8), device, ranks=8)
    assert not found.fitting
    assert found.closest is not None
    needed, _ = found.closest
    # 16 bytes a parameter over 8 ranks.
    assert needed > 16 * 405e9 / 8


def test_the_described_work_is_that_of_the_widths() -> None:
    for dims in DIMS.values():
        assert work(described(dims)) == transformer(dims)


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1]
