"""Measure how far back each layer of a model attends, by perturbing its input.

Shape suffixes: B = sequences, L = tokens per sequence, D = width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atom.testing import models

if TYPE_CHECKING:
    import torch


def measured(model: Any, ids_BL: torch.Tensor, negligible: float) -> dict[int, int]:
    """Return layer -> the number of tokens, including itself, that a token attends to.

    The second sequence of each layer's input is a copy of the first with another first token:
    positions where the output differs attend to that token.

    Args:
        model: the model, on one rank.
        ids_BL: one sequence of one document.
        negligible: difference that rounding explains.
    """
    import torch

    seen: dict[int, int] = {}

    def changed(_layer: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        first_1LD = arguments[0][:1]
        other_1LD = first_1LD.clone()
        other_1LD[:, 0] = other_1LD[:, 0].flip(-1) + 1
        return torch.cat([first_1LD, other_1LD]), *arguments[1:]

    def looked_at(number: int) -> Any:
        def look(_layer: Any, _arguments: Any, output_BLD: torch.Tensor) -> None:
            difference_L = (output_BLD[0] - output_BLD[1]).abs().amax(dim=-1)
            reached = (difference_L > negligible).nonzero().flatten()
            seen[number] = int(reached[-1]) + 1 if len(reached) else 0

        return look

    hooks = []
    for name, layer in model.layers.items():
        hooks.append(layer.register_forward_pre_hook(changed))
        hooks.append(layer.register_forward_hook(looked_at(int(name))))
    try:
        with torch.no_grad():
            models.logits(model, ids_BL.repeat(2, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return seen
