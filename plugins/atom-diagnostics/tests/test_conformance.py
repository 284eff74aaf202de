"""The callbacks change no loss, measure alike in every layout, and resume from checkpoints."""

from __future__ import annotations

import math
from typing import Any

import pytest

from atom.testing import conformance, runs
from atom.testing.suites.callback import NAME

NORMS = {"interval": 1, "alert": {"factor": 1e6, "least": 1}}
EXPERTS = {"interval": 1, "each": True, "alert": {"dead": 1.0}}
ATTENTION = {"interval": 1, "alert": {"above": 1e6}}
HISTOGRAMS = {"interval": 1}
PARAMETERS = {"norms": NORMS, "experts": EXPERTS, "attention": ATTENTION}
PARAMETERS["histograms"] = HISTOGRAMS
MIXTURE = {
    "name": "qwen3_moe",
    **{"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16},
    **{"moe_hidden_dim": 32, "num_experts": 8, "top_k": 2},
}

TestNorms = conformance("callback:norms", **NORMS)
TestEma = conformance("callback:ema", decay=0.5).having(architecture=MIXTURE)
TestExperts = conformance("callback:experts", **EXPERTS).having(architecture=MIXTURE)
TestAttention = conformance("callback:attention", **ATTENTION)
TestHistograms = conformance("callback:histograms", **HISTOGRAMS)

Layout = dict[str, Any]


def values(layout: Layout, callback: str, architecture: Any, **more: Any) -> list[Any]:
    """Return the rows of a run that the suite of the callback trains, or of one like it."""
    sections = {"callbacks": {NAME: {"name": callback} | PARAMETERS[callback]}}
    return runs.train(runs.sections(dict(architecture), layout, steps=4, **sections, **more))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["single", "fsdp", "tp", "pp"])
def test_squares_of_gradients_add_up(layout: str) -> None:
    """They are those of ``grad_norm``, which torch computes on its own."""
    rows = values(runs.LAYOUTS.get(layout) or {}, "norms", TestNorms.architecture)
    for row in rows:
        norms = [v for k, v in row.callbacks[NAME].items() if k.startswith("gradient/")]
        assert math.hypot(*norms) == pytest.approx(row.grad_norm, rel=1e-5)


@pytest.mark.slow
def test_recomputation_and_accumulation_count_once() -> None:
    """Under context parallelism, with blocks recomputed in the backward pass, two passes a step,
    and experts on both ranks."""
    layout = runs.LAYOUTS["cp"] | {"expert_parallel_degree": 2}
    training = runs.sections({})["training"] | {"steps": 4, "local_batch_size": 2}
    for callback in ("norms", "experts", "attention"):
        mode = "selective" if callback == "attention" else "full"
        changed = {"training": training, "activation_checkpoint": {"mode": mode}}
        rows = values(layout, callback, MIXTURE, **changed)
        for row, expected in zip(rows, values({}, callback, MIXTURE), strict=True):
            assert row.callbacks[NAME] == pytest.approx(expected.callbacks[NAME], rel=1e-3)
            assert row.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
            norms = [v for k, v in row.callbacks[NAME].items() if k.startswith("gradient/")]
            assert not norms or math.hypot(*norms) == pytest.approx(row.grad_norm, rel=1e-5)
