"""Which device a run is given."""

from __future__ import annotations

import pytest
import torch

from atom.errors import UserError
from atom.recipe.run import parse
from atom.titan.compat import device
from atom.titan.preflight import preflight


def run(wanted: str, ranks: int | None = None, **degrees: int):
    named = {f"{name}_degree": degree for name, degree in degrees.items()}
    sections = {
        kind: {"name": "any"} for kind in ("architecture", "tokenizer", "dataset", "optimizer")
    }
    sections |= {"parallelism": {"name": "any", **named}, "launch": {"ranks": ranks}}
    return parse(sections | {"device": wanted})


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    def have(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return have


@pytest.mark.parametrize(
    ("count", "degrees", "ranks", "expected"),
    [
        (0, {}, None, "cpu"),
        (1, {}, None, "cuda"),
        (1, {"tensor_parallel": 2, "context_parallel": 2}, None, "cpu"),
        (4, {"tensor_parallel": 2, "context_parallel": 2}, None, "cuda"),
        (4, {"tensor_parallel": 2, "data_parallel_shard": -1}, None, "cuda"),
        (4, {"tensor_parallel": 2}, 8, "cpu"),
    ],
)
def test_auto_is_the_gpus_if_they_are_enough(gpus, count, degrees, ranks, expected) -> None:
    gpus(count)
    assert preflight._device(run("auto", ranks, **degrees), joined=None) == expected


def test_ranks_that_were_started_around_atom_use_the_gpus(gpus) -> None:
    gpus(1)
    assert preflight._device(run("auto", tensor_parallel=2), joined=2) == "cuda"


def test_cuda_is_never_replaced(gpus) -> None:
    gpus(1)
    assert preflight._device(run("cuda", tensor_parallel=8), joined=None) == "cuda"
    gpus(0)
    with pytest.raises(UserError, match="no CUDA device"):
        device.pick("cuda")
