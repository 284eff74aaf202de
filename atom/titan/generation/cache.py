"""Compute the next tokens of several texts from what layers keep of the earlier ones.

A cache works at the boundary of operations, for any model. Attention modules of torchtitan, and
kernels that replace them, get their keys and values after norms and rotation: the cache stores
these, and attends to all earlier ones under the rows of the mask that the model itself makes for
the whole text. A module with another kind of memory defines ``with_state(state, …)``: the arguments
of its ``forward`` after a state, None at the beginning of a text, and the result with the next
state, a tuple of tensors of shape (B, …).

Shape suffixes: B = texts, L = new tokens of each, T = tokens so far, V = vocabulary, D = width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from torchtitan.models.common.attention import (
    FlexAttention,
    ScaledDotProductAttention,
    VarlenAttention,
)
from torchtitan.models.common.rope import RoPE

from atom.titan.checks.output_layers import beside_layer
from atom.titan.generation.attention import KeysAndValues
from atom.titan.generation.mask_rows import Place
from atom.titan.generation.rotation import Rotation
from atom.titan.weights import forward

WITH_STATE = "with_state"

_ATTENTION = (FlexAttention, VarlenAttention, ScaledDotProductAttention)

_LEAST = 256
"""Tokens that a cache has memory for at first; it doubles."""


_made: WeakKeyDictionary[Any, tuple[int, dict[str, Any]]] = WeakKeyDictionary()
"""Model -> the capacity of its last cache, and the masks for it."""


class State:
    """The state of a module that defines ``with_state``."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.state: tuple[torch.Tensor, ...] | None = None

    def forward(self, *arguments: Any, **others: Any) -> Any:
        """Compute the module's forward, from the state and into it."""
        result, self.state = self._module.with_state(self.state, *arguments, **others)
        return result

    def keep(self, rows_B: torch.Tensor) -> None:
        """Keep some texts, in the given order."""
        if self.state is not None:
            self.state = tuple(each[rows_B] for each in self.state)

    def join(self, parts: Sequence[State]) -> None:
        """Hold the texts of several states."""
        states = [part.state for part in parts if part.state is not None]
        if states:
            self.state = tuple(torch.cat(each) for each in zip(*states, strict=True))


class Cache:
    """What a model keeps of some texts.

    Attributes:
        lengths: the number of tokens of each text.

    Args:
        model: a whole model.
        reach: the maximum number of tokens of a text; None if the model has none.
    """

    def __init__(self, model: Any, reach: int | None) -> None:
        self.lengths: list[int] = []
        self._model = model
        self._reach = reach
        self._place = Place()
        self._layers: list[tuple[Any, State | KeysAndValues]] = list(self._kept_by(model))
        self._rotations = [
            (module, Rotation(module, self._place))
            for module in model.modules()
            if isinstance(module, RoPE) and type(module).forward is RoPE.forward
        ]
        self._masks: dict[str, Any] = {}
        self._capacity = 0

    def _kept_by(self, module: nn.Module) -> Iterator[tuple[Any, State | KeysAndValues]]:
        for child in module.children():
            if hasattr(child, WITH_STATE):
                yield child, State(child)
            elif isinstance(child, _ATTENTION):
                yield child, KeysAndValues(child, self._place)
            else:
                yield from self._kept_by(child)

    @torch.inference_mode()
    def extend(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Add as many tokens to each text; return the logits after the last ones, (B, V).

        An exception, such as Ctrl-C, leaves the cache useless.
        """
        starts = self.lengths or [0] * len(ids)
        length = len(ids[0])
        device = next(self._model.parameters()).device
        ids_BL = torch.tensor(ids, device=device)
        positions_BL = (
            torch.tensor(starts, device=device)[:, None] + torch.arange(length, device=device)[None]
        )
        self._make_room(max(starts) + length)
        self._place.move(starts, length, self._capacity)
        arguments = self._arguments(positions_BL)
        with self._attached():
            logits_BV = last_logits(self._model, ids_BL, arguments)
        self.lengths = [start + length for start in starts]
        return logits_BV

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some texts, in the given order."""
        self.lengths = [self.lengths[row] for row in rows]
        for module, layer in self._layers:
            layer.keep(torch.tensor(rows, device=_device(module, self._model)))

    def join(self, parts: Sequence[Cache]) -> None:
        """Hold the texts of several caches of the same model."""
        self.lengths = [length for part in parts for length in part.lengths]
        self._capacity = max(part._capacity for part in parts)
        for number, (_, layer) in enumerate(self._layers):
            layer.join([part._layers[number][1] for part in parts])  # type: ignore[misc]

    def _make_room(self, tokens: int) -> None:
        if tokens > self._capacity:
            wanted = max(_LEAST, 2 * self._capacity, tokens)
            self._capacity = (
                wanted if self._reach is None else max(tokens, min(wanted, self._reach))
            )
            self._masks = {}
            self._place.forget()

    def _arguments(self, positions_BL: torch.Tensor) -> dict[str, Any]:
        """Return the arguments of the model beside the tokens.

        Masks of blocks take longer to make than a short prompt to compute, which therefore gets
        those of all texts.
        """
        masks = self._masks_of_all(positions_BL.device)
        if not self.lengths:
            short = positions_BL.shape[1] <= _LEAST
            if not short or not any(map(_has_blocks, masks.values())):
                return forward.arguments(self._model, positions_BL)
        return masks | {"positions": positions_BL}

    def _masks_of_all(self, device: torch.device) -> dict[str, Any]:
        """Return the model's masks for texts as long as there is memory for; all have the same."""
        if not self._masks:
            capacity, masks = _made.get(self._model, (0, {}))
            if capacity != self._capacity:
                positions_1T = torch.arange(self._capacity, device=device)[None]
                masks = forward.arguments(self._model, positions_1T)
                _made[self._model] = self._capacity, masks
            self._masks = masks
        return self._masks

    @contextmanager
    def _attached(self) -> Iterator[None]:
        attached = [*self._layers, *self._rotations]
        before = [module.__dict__.get("forward") for module, _ in attached]
        for module, layer in attached:
            module.forward = layer.forward
        try:
            yield
        finally:
            for (module, _), own in zip(attached, before, strict=True):
                if own is None:
                    del module.forward
                else:
                    module.forward = own


class Recomputed:
    """The texts themselves, for a model that cannot be cached; each step computes all tokens.

    It has the interface of :class:`Cache`.
    """

    def __init__(self, model: Any, reach: int | None = None) -> None:  # noqa: ARG002
        self._model = model
        self._texts: list[list[int]] = []

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each text."""
        return [len(text) for text in self._texts]

    @torch.inference_mode()
    def extend(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Add as many tokens to each text; return the logits after the last ones, (B, V)."""
        self._add(ids)
        device = next(self._model.parameters()).device
        rows: list[torch.Tensor] = []
        for text in self._texts:
            ids_1L = torch.tensor([text], device=device)
            positions_1L = torch.arange(len(text), device=device)[None]
            rows.append(
                last_logits(self._model, ids_1L, forward.arguments(self._model, positions_1L))
            )
        return torch.cat(rows)

    def _add(self, ids: Sequence[Sequence[int]]) -> None:
        texts = self._texts or [[] for _ in ids]
        self._texts = [[*text, *more] for text, more in zip(texts, ids, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some texts, in the given order."""
        self._texts = [self._texts[row] for row in rows]

    def join(self, parts: Sequence[Recomputed]) -> None:
        """Hold the texts of several of these."""
        self._texts = [text for part in parts for text in part._texts]


class RecomputedBy(Recomputed):
    """Texts whose logits a function computes, padded at their end: attention is causal.

    Args:
        forward: (ids_BL, positions_BL) -> logits_BLV.
        device: the device of the ids.
    """

    def __init__(self, forward: Callable[..., torch.Tensor], device: str) -> None:
        super().__init__(None)
        self._forward, self._device = forward, device

    @torch.inference_mode()
    def extend(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Add tokens to each text; return the logits after the last ones, (B, V)."""
        self._add(ids)
        longest = max(self.lengths)
        padded = [[*text, *[0] * (longest - len(text))] for text in self._texts]
        ids_BL = torch.tensor(padded, device=self._device)
        positions_BL = torch.arange(longest, device=self._device).expand(len(padded), -1)
        logits_BLV = self._forward(ids_BL, positions_BL.contiguous())
        return logits_BLV[torch.arange(len(padded)), torch.tensor(self.lengths) - 1]


def last_logits(model: Any, ids_BL: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    """Return the logits after the last token of each text, (B, V), and compute no others."""
    head = getattr(model, "lm_head", None)
    # Ranks that share a model compute its parts in its own forward alone.
    if dist.is_initialized() or head is None or beside_layer(model, head) is not None:
        whole_BLV: torch.Tensor = model(ids_BL, **arguments)
        return whole_BLV[:, -1]
    before = model._skip_lm_head
    model._skip_lm_head = True
    try:
        hidden_BLD = model(ids_BL, **arguments)
    finally:
        model._skip_lm_head = before
    logits_B1V: torch.Tensor = head(hidden_BLD[:, -1:])
    return logits_B1V[:, 0]


def _has_blocks(masks: Any) -> bool:
    each = masks.values() if isinstance(masks, dict) else (masks,)
    return any(isinstance(mask, BlockMask) for mask in each)


def _device(module: nn.Module, model: nn.Module) -> torch.device:
    return next(module.parameters(), next(model.parameters())).device
