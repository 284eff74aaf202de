"""Define the small run that the kit trains: sections of :class:`atom.recipe.run.Run`, and its
layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from atom.errors import RunError, UserError
from atom.run_dir.metrics import StepMetrics
from atom.testing import partners, ranks

Sections = dict[str, Any]

STEPS = 3
RESUMED_STEPS = STEPS + 2
"""Steps of a run that resumes from the checkpoint of a run of ``STEPS``."""

SEQ_LEN = 64
"""Divisible as TP 2 x CP 2 and attention masks in blocks of 16 require."""

TOLERANCE = 2e-4
"""Maximum |difference in loss| between two layouts at every step, in float32. Observed:
about 1e-5.
"""

SINGLE = {"data_parallel_shard_degree": 1}
_TP = {"tensor_parallel_degree": 2}
_PP = {"pipeline_parallel_degree": 2, "pipeline_parallel_schedule": "1F1B"}
_CP = {"context_parallel_degree": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp": {"data_parallel_shard_degree": 2},
    "tp": SINGLE | _TP,
    "pp": SINGLE | _PP,
    "cp": SINGLE | _CP,
    "ep": {"data_parallel_shard_degree": 2, "expert_parallel_degree": 2},
    # On 8 ranks: FSDP shards the weights over the ranks of context parallelism.
    "4d": SINGLE | _TP | _PP | _CP,
}


def sections(
    architecture: Sections,
    parallelism: Sections | None = None,
    *,
    steps: int = STEPS,
    **changed: Any,
) -> Sections:
    """Return the small run of an architecture.

    Args:
        architecture: its name and parameters.
        parallelism: a strategy's name and parameters, or the parameters of the kit's own.
        steps: number of steps.
        changed: other sections, complete.
    """
    return {
        "architecture": architecture,
        "tokenizer": partners.TOKENIZER,
        "dataset": partners.DATASET,
        "parallelism": {"name": partners.PARALLELISM} | (parallelism or SINGLE),
        "device": "cpu",
        "launch": {"max_restarts": 0},
        "training": {
            "steps": steps,
            "seq_len": SEQ_LEN,
            "global_batch_size": 4,
            "disable_cuda_graphs": True,
        },
        "optimizer": {"name": "AdamW", "lr": 1e-3},
        "lr_scheduler": {"warmup_steps": 1, "total_steps": 20},
        "activation_checkpoint": {"mode": "none"},
        "checkpoint": {"enable": True, "interval": 500, "last_save_model_only": False},
        "metrics": {"log_freq": 1, "enable_tensorboard": False},
        "debug": {"seed": 0},
        # Three sequences at the last step: a pass of four has padding.
        "validation": {"sets": {"more": partners.DATASET}, "interval": STEPS, "tokens": 180},
    } | changed


def train(
    run: Sections, *, after: Sections | None = None, interpreted: bool = False
) -> list[StepMetrics]:
    """Train ``run`` on ranks of this machine; the test fails with the reason if the run is refused.

    With ``interpreted``, Triton kernels run in Triton's interpreter.
    """
    try:
        return ranks.shared(interpreted=interpreted).train(run, after=after)
    except (UserError, RunError) as error:
        pytest.fail(str(error), pytrace=False)


def assert_trains_alike(
    architecture: Sections, parallelism: Sections | None = None, **changed: Any
) -> None:
    """Assert that an architecture trains under a layout as on one rank.

    Args:
        architecture: its name and parameters.
        parallelism: the layout, as in :func:`sections`.
        changed: other sections of the run under the layout, complete.
    """
    rows = train(sections(architecture, parallelism, **changed))
    assert_same(rows, on_one_rank(architecture))


def on_one_rank(architecture: Sections, *, steps: int = STEPS) -> list[StepMetrics]:
    """Return the metrics of an architecture's run on one rank.

    One run serves every number of steps up to :data:`RESUMED_STEPS`.
    """
    return train(sections(architecture, steps=RESUMED_STEPS))[:steps]


def assert_same(
    rows: Sequence[StepMetrics], reference: Sequence[StepMetrics], *, tolerance: float = TOLERANCE
) -> None:
    """Assert that two runs have the same losses, gradient norms and validation losses."""
    assert [row.step for row in rows] == [row.step for row in reference]
    assert [row.tokens_seen for row in rows] == [row.tokens_seen for row in reference]
    losses, expected = [row.loss for row in rows], [row.loss for row in reference]
    assert losses == pytest.approx(expected, abs=tolerance), "another loss than on one rank"
    norms, expected = [row.grad_norm for row in rows], [row.grad_norm for row in reference]
    assert norms == pytest.approx(expected, rel=1e-3), "another gradient than on one rank"
    validated, on_one = (
        {
            (row.step, name): found.loss
            for row in each
            for name, found in (row.validation or {}).items()
        }
        for each in (rows, reference)
    )
    assert validated == pytest.approx(on_one, abs=tolerance), "another validation than on one rank"
    assert rows[-1].loss != rows[0].loss, "the weights do not change"
