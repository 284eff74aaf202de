"""``architecture.logit_soft_cap`` caps the logits of every family, in every layout and loss."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, LLAMA, saver

from atom.registry.host import Host
from atom.testing import models, runs

CAP = 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_capped(family: str) -> None:
    """``cap tanh(logits / cap)`` of the logits that the same weights have without a cap."""
    host = Host.load()
    capped = models.subject(host, FAMILIES[family] | {"logit_soft_cap": CAP})
    assert capped.parts.hf_config is None, "an export would lose the cap"
    plain = models.subject(host, FAMILIES[family]).model()
    model = capped.model()
    model.load_state_dict(plain.state_dict())
    ids_BL = capped.tokens(2)
    with torch.no_grad():
        found_BLV, uncapped_BLV = models.logits(model, ids_BL), models.logits(plain, ids_BL)
    assert uncapped_BLV.abs().max() > CAP
    assert torch.allclose(found_BLV, CAP * (uncapped_BLV / CAP).tanh(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp", "pp"])
def test_layouts_train_alike(layout: str) -> None:
    """In chunks, with the cap before z-loss."""
    architecture = LLAMA | {"logit_soft_cap": CAP}
    one, many = (
        runs.train(runs.sections(architecture, degrees, loss={"z_loss": 0.1, "num_chunks": pieces}))
        for degrees, pieces in ((runs.SINGLE, 1), (runs.LAYOUTS[layout], 4))
    )
    runs.assert_same(many, one, tolerance=1e-5)
    assert [row.z_loss for row in many] == pytest.approx([row.z_loss for row in one], rel=1e-5)


@pytest.mark.slow
def test_an_export_that_would_lose_the_cap_is_refused(
    atom: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run = saver(tmp_path)(LLAMA | {"logit_soft_cap": CAP})
    done = atom("export", str(run), "--to", "hf", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"atom: architecture.logit_soft_cap={CAP}: "), sentence
    assert not (tmp_path / "out").exists()
