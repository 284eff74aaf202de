"""Digest the tensors of a checkpoint so that the digest does not depend on the layout.

The digest of a tensor is the sum, modulo 2**64, of the bits of each element times an odd number for
its position in the whole tensor. Ranks digest the parts that they write, in any division, and the
parts add up. It detects differences; SHA-256 of the files detects tampering.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 15
"""Elements digested at once; they stay in a core's cache."""


def part(tensor: torch.Tensor, offsets: Sequence[int], shape: Sequence[int]) -> int:
    """Return the digest of a part of a tensor; the parts' digests add up to that of the whole.

    Args:
        tensor: the part, on any device.
        offsets: the position of its first element in the whole tensor.
        shape: the shape of the whole tensor.
    """
    if tensor.numel() == 0:
        return 0
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
        offsets, shape = [*offsets, 0], [*shape, 2]
    bits = tensor.detach().contiguous().reshape(-1).view(_BITS[tensor.element_size()])
    starts, length = _runs(list(tensor.shape), list(offsets), list(shape))
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    if length >= _CHUNK:
        places = 2 * torch.arange(_CHUNK, device=bits.device) + 1
        for number, start in enumerate(starts.tolist()):
            for begin in range(0, length, _CHUNK):
                at = number * length + begin
                values = bits[at : at + min(_CHUNK, length - begin)].to(torch.int64)
                total += (values * places[: len(values)]).sum() + 2 * (start + begin) * values.sum()
    else:
        rows = max(1, _CHUNK // length)
        places = 2 * torch.arange(length, device=bits.device) + 1
        doubled = 2 * starts.to(bits.device)
        table = bits.view(-1, length)
        for first in range(0, len(table), rows):
            values = table[first : first + rows].to(torch.int64)
            total += (values * places).sum()
            total += (values.sum(1) * doubled[first : first + rows]).sum()
    return int(total) % 2**64


def _runs(sizes: list[int], offsets: list[int], shape: list[int]) -> tuple[torch.Tensor, int]:
    """Return the starts and the length of runs of elements that are adjacent in the whole."""
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    dims = len(sizes)
    # The dimensions after this one are whole.
    while dims > 1 and sizes[dims - 1] == shape[dims - 1]:
        dims -= 1
    starts = torch.tensor([sum(o * s for o, s in zip(offsets, strides, strict=True))])
    for dim in range(max(dims - 1, 0)):
        steps = torch.arange(sizes[dim]) * strides[dim]
        starts = (starts[:, None] + steps).reshape(-1)
    return starts, math.prod(sizes[max(dims - 1, 0) :])


def content(tensors: Mapping[str, tuple[str, Sequence[int], int]], left_out: Iterable[str]) -> Any:
    """Return the content of ``tensors.json``.

    Args:
        tensors: name -> dtype, shape and digest of each tensor.
        left_out: prefixes of tensors that depend on the layout.
    """
    prefixes = tuple(left_out)
    listed = {
        name: [dtype, list(shape), f"{digest % 2**64:016x}"]
        for name, (dtype, shape, digest) in sorted(tensors.items())
        if not name.startswith(prefixes)
    }
    return {"digest": root(listed), "tensors": listed}


def root(listed: dict[str, Any]) -> str:
    """Return one digest of all tensors: the SHA-256 of their names, dtypes, shapes and digests."""
    text = json.dumps(listed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
