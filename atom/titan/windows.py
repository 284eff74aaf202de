"""Check that layers keep their attention windows, with variable-length attention, too.

FlexAttention gets a window through its mask. Variable-length attention takes no mask: its window is
in its own configuration, and only the model can set it there.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchtitan.config.override import derive
from torchtitan.models.common.attention import FlexAttention, VarlenAttention

from atom.errors import UserError


def of_layers(model: Any) -> dict[int, int]:
    """Return the window of each layer in tokens, from a model's config: 0 for full attention.

    Layers without softmax attention are left out.
    """
    attentions = [getattr(layer, "attention", None) for layer in getattr(model, "layers", ())]
    return {
        number: getattr(attention, "sliding_window_size", None) or 0
        for number, attention in enumerate(attentions)
        if hasattr(attention, "inner_attention")
    }


def in_masks_alone(model: Any) -> frozenset[int]:
    """Return the windows that variable-length attention in this model would ignore.

    The model is built with it on the meta device, up to the last layer with a new window.
    """
    windows = of_layers(model)
    wanted = frozenset(windows.values()) - {0}
    if not wanted:
        return frozenset()
    needed = 1 + max(min(n for n, w in windows.items() if w == each) for each in wanted)
    shorter = copy(model)
    shorter.layers = [copy(layer) for layer in model.layers[:needed]]
    for layer in shorter.layers:
        layer.attention = copy(layer.attention)
        inner = getattr(layer.attention, "inner_attention", None)
        if isinstance(inner, FlexAttention.Config):
            layer.attention.inner_attention = derive(inner, _Bare.Config)
    try:
        with torch.device("meta"):
            built = shorter.build()
        lost = _lost(of_layers(shorter), built)
    except Exception:  # a model that cannot be built with it does not support it
        return wanted
    return frozenset(lost.values())


def check(config: Any, model: nn.Module) -> None:
    """Refuse a model that has lost an attention window of its config.

    Args:
        config: the model's, with its kernels in place.
        model: as built from it.

    Raises:
        UserError: names the layer.
    """
    for layer, window in _lost(of_layers(config), model).items():
        raise UserError(
            f"layer {layer} of the model has a window of {window} tokens, which this kernel does "
            "not get",
            valid="a kernel that takes masks, such as flex",
            key="kernels.attention",
        )


def _lost(windows: dict[int, int], model: Any) -> dict[int, int]:
    """Return layer -> window for layers with another window in variable-length attention."""
    lost = {}
    for name, module in model.named_modules():
        if not isinstance(module, VarlenAttention) or not name.startswith("layers."):
            continue
        layer = int(name.split(".")[1])
        if (window := windows.get(layer, 0)) and tuple(module.window_size) != (window - 1, 0):
            lost[layer] = window
    return lost


class _Bare(VarlenAttention):
    """Variable-length attention that only stores its window and requires no device."""

    @dataclass(kw_only=True, slots=True)
    class Config(VarlenAttention.Config):
        pass

    def __init__(self, config: Config) -> None:
        super(VarlenAttention, self).__init__()
        self.window_size = config.window_size
