"""Runs with the kernels, in Triton's interpreter, beside runs with the references."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
import yaml

from atom.errors import UserError
from atom.testing import ranks, runs

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
"""|difference in loss| in float32, beside losses of about 6."""

REFERENCE = {"default": "reference"}
HOPPER: dict[str, Any] = yaml.safe_load(
    (resources.files("atom_kernels_triton") / "conf/kernels/hopper.yaml").read_text()
)
LLAMA = {
    "name": "llama3",
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 32,
}
"""Of the package atom-llama."""


def sections(
    kernels: dict[str, Any],
    layout: dict[str, Any] | None = None,
    *,
    steps: int = 3,
    **changed: Any,
) -> runs.Sections:
    """Return a run of few tokens, because the interpreter is slow."""
    few = {"steps": steps, "seq_len": 32, "global_batch_size": 2}
    usual = runs.sections(LLAMA)
    given = {
        "training": usual["training"] | few,
        "validation": usual["validation"] | {"tokens": 90},
        "optimizer": {"name": "AdamW", "lr": 1e-2},
        "kernels": kernels,
    }
    return runs.sections(LLAMA, layout, **given, **changed)


def losses(run: runs.Sections, after: runs.Sections | None = None) -> list[float]:
    return [row.loss for row in runs.train(run, after=after, interpreted=True)]


def validation_loss(run: runs.Sections) -> float:
    """Return the loss of the validation set after the last step."""
    results = runs.train(run, interpreted=True)[-1].validation
    assert results is not None
    return results["more"].loss


def chosen(run: runs.Sections, after: runs.Sections | None = None) -> dict[str, str]:
    """Return the kernel of each operation that the lock of a run names."""
    place = ranks.shared(interpreted=True).place(run, after)
    resolved = json.loads((place / "lock.json").read_text())
    return {row["operation"]: row["kernel"] for row in resolved["kernels"]}


def test_kernels_can_be_swapped_in_the_middle_of_a_run() -> None:
    """Two steps with the references and one with the kernels: the losses of three of the first."""
    before, swapped = sections(REFERENCE, steps=2), sections(HOPPER)
    found = losses(swapped, after=before)
    kernels = chosen(swapped, after=before)
    assert kernels["rms_norm"] == kernels["rope"] == kernels["feed_forward"] == "triton"
    assert kernels["linear_cross_entropy"] == "triton"
    assert "cross_entropy" not in kernels
    assert "triton" not in chosen(before).values()
    assert found[:2] == losses(before), "the run was not resumed"
    assert found == pytest.approx(losses(sections(REFERENCE)), abs=TOLERANCE)
    assert len(found) == 3


def test_without_the_interpreter_a_cpu_refuses_them() -> None:
    run = sections({"default": "auto", "rms_norm": "triton"})
    with pytest.raises(UserError, match="TRITON_INTERPRET=1"):
        ranks.shared().train(run)
    assert not ranks.shared().place(run).exists()


@pytest.mark.parametrize(
    "given",
    [
        {"layout": runs.LAYOUTS["pp"]},
        {"layout": runs.LAYOUTS["cp"]},
        {"compile": {"enable": True}},
    ],
    ids=["pp", "cp", "compiled"],
)
def test_all_of_them_under_a_layout(given: dict[str, Any]) -> None:
    """Together, where the suite of a kernel has each by itself: the losses of one rank with the
    references, and that of validation. Blocks are compiled as one graph: the compiler takes each
    kernel as it is."""
    run, reference = sections(HOPPER, **given), sections(REFERENCE)
    found = losses(run)
    assert chosen(run)["linear_cross_entropy"] == "triton"
    assert found == pytest.approx(losses(reference), abs=TOLERANCE)
    assert validation_loss(run) == pytest.approx(validation_loss(reference), abs=TOLERANCE)
