"""The committed launches, as a compiler has them for an H100. ``test_compiled.py`` runs this in a
process of its own, as Triton keeps what it has compiled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from atom.testing.compiler import HOPPER, Compiled, compiling
from atom_kernels_triton import cross_entropy, feed_forward, rms_norm, rope, tuning

CAPABILITY = ".".join(map(str, HOPPER))
WIDE = 16
"""Bytes that a thread reads and writes at once, at the most."""


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(kernel: str, width: int, *_: object, **__: object) -> tuning.Launch:
        return tuning.listed(kernel, CAPABILITY, width) or tuning.guess(width)

    for module in (rms_norm, feed_forward, cross_entropy):
        monkeypatch.setattr(module, "launch", launch)


def made(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)


def checked(every: list[Compiled], kernels: int) -> None:
    assert len(every) == kernels
    for kernel in every:
        assert not kernel.spilled, kernel
        narrow = {size: n for size, n in kernel.accesses.items() if size < WIDE}
        assert kernel.accesses.get(WIDE, 0) >= 2 * sum(narrow.values()), kernel


@pytest.mark.parametrize("width", [row["width"] for row in tuning.table()["rms_norm"][CAPABILITY]])
def test_rms_norm(width: int) -> None:
    with compiling(HOPPER) as every:
        rms_norm.rms_norm(made(8, width), made(width), 1e-5).sum().backward()
    checked(every, 2)


def test_silu_mul() -> None:
    with compiling(HOPPER) as every:
        feed_forward.silu_mul(made(8, 14336), made(8, 14336)).sum().backward()
    checked(every, 2)


@pytest.mark.parametrize("halves", [False, True])
def test_rope(halves: bool) -> None:
    cache = torch.ones(16, 256) if halves else torch.ones(16, 64, dtype=torch.complex64)
    with compiling(HOPPER) as every:
        rope.rope(made(1, 16, 32, 128), made(1, 16, 8, 128), cache, None, halves=halves)
    checked(every, 1)


def test_cross_entropy() -> None:
    logits, labels = torch.empty(8, 128256, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.long)
    with compiling(HOPPER) as every:
        cross_entropy._cross_entropy_(logits, labels, torch.ones(()), True)
    checked(every, 1)


def test_every_row_of_the_table_is_looked_at() -> None:
    table = json.loads(Path(tuning.__file__).with_name("tuning.json").read_text())["kernels"]
    assert table.keys() == {
        "rms_norm", "rms_norm_backward", "silu_mul", "silu_mul_backward", "cross_entropy"
    }  # fmt: skip
    widths = [[row["width"] for row in table[name][CAPABILITY]] for name in table]
    assert widths[0] == widths[1]
    assert widths[2:] == [[feed_forward._WIDEST], [feed_forward._WIDEST], [cross_entropy._WIDEST]]
