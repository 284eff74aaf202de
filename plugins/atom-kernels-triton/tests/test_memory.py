"""What output layer and loss need as one: counted with tensors that have shapes and no memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from atom_kernels_torch.functions import linear_cross_entropy as reference
from atom_kernels_triton.cross_entropy import linear_cross_entropy

WIDTH, VOCABULARY = 4096, 128256
"""Of Llama 3 8B."""


class Peak(TorchDispatchMode):
    """The most bytes that storages have at once, beside those of ``inputs``."""

    def __init__(self, *inputs: torch.Tensor) -> None:
        super().__init__()
        self._inputs = {each.untyped_storage()._cdata for each in inputs}
        self._alive: dict[int, Any] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if not isinstance(each, torch.Tensor):
                continue
            storage = each.untyped_storage()
            if storage._cdata not in self._inputs:
                self._alive[storage._cdata] = (ref(storage), storage.nbytes())
        self._alive = {key: one for key, one in self._alive.items() if one[0]() is not None}
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return result


def peak(function: Callable[..., torch.Tensor], rows: int) -> int:
    """Return the bytes beside the inputs of a forward and a backward pass in bfloat16."""
    with FakeTensorMode():
        x = torch.empty(rows, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(VOCABULARY, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.zeros(rows, dtype=torch.long)
        with Peak(x, weight, labels) as counted:
            function(x, weight, labels).backward()
    return counted.bytes


@pytest.mark.parametrize("rows", [8192, 16384])
def test_it_needs_a_fifth_of_what_the_plain_one_does(rows: int) -> None:
    plain, fused = peak(reference, rows), peak(linear_cross_entropy, rows)
    assert plain >= 3 * rows * VOCABULARY * 2  # logits, in float32 too, and their gradient
    assert fused >= VOCABULARY * WIDTH * 2  # the weight's gradient
    assert plain / fused >= 5
