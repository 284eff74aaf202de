"""Measure the largest attention logit of each layer, the same on every layout."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torchtitan.models.common.attention import (
    FlexAttention,
    ScaledDotProductAttention,
    VarlenAttention,
)

from atom.plugin import CallbackContext, TrainerCallback, Training
from atom_diagnostics import layers
from atom_diagnostics.config import Attention
from atom_diagnostics.logits import Masks, largest
from atom_diagnostics.measuring import Measuring

_NODES = (FlexAttention, VarlenAttention, ScaledDotProductAttention)
"""The modules that every attention kernel replaces; those of kernels derive from them."""


def callback(config: Attention, context: CallbackContext) -> TrainerCallback:
    """Return the callback of a run."""
    return LargestLogits(config, context.steps)


class LargestLogits(Measuring):
    """Logs ``logit/LAYER``: the largest q·k · scale of a visible key, over the whole batch.

    The logits are computed again from the queries and keys that the attention kernel gets, in
    float32 and in blocks of queries. A ``score_mod``, such as a soft cap, is not applied.
    """

    def __init__(self, config: Attention, last_step: int) -> None:
        super().__init__(config.interval, last_step)
        self.config = config
        self._named: set[str] = set()

    def on_start(self, training: Training) -> None:
        self._nodes = [
            (layers.layer_of(name), module)
            for part in training.model_parts
            for name, module in part.named_modules()
            if isinstance(module, _NODES)
        ]
        self._layers = layers.all_layers(layer for layer, _ in self._nodes)
        if not self._layers:
            training.alert("the model has no softmax attention; nothing is measured")

    def before_step(self, training: Training) -> None:
        self._due = bool(self._layers) and self.wants_row(training.step)
        if self._due:
            # A layer has its largest logit, and 1 if a logit is NaN, which a maximum may lose.
            found = torch.tensor([-math.inf, 0.0], device=training.device)
            self._found = found.repeat(len(self._layers), 1)
            hooks = [(node, self._adder(layer, node, training)) for layer, node in self._nodes]
            self._hooks = layers.Hooks(training, hooks)

    def before_forward(self, training: Training, inputs: dict[str, Any]) -> None:
        self._masks = Masks()
        super().before_forward(training, inputs)

    def after_backward(self, training: Training) -> None:
        if not self._due:
            return
        self._masks = Masks()
        dist.all_reduce(self._found, op=dist.ReduceOp.MAX)
        rows = zip(self._layers, self._found.tolist(), strict=True)
        values = {layer: math.nan if lost else logit for layer, (logit, lost) in rows}
        values = {layer: value for layer, value in values.items() if value != -math.inf}
        if not values:
            training.alert("no logit could be measured: a compiled model calls no hooks")
        training.log({f"logit/{layer}": value for layer, value in values.items()})
        if self.config.alert is not None and (reason := self._judged(values)) is not None:
            training.alert(reason)
            if self.config.alert.stop:
                training.stop(reason)

    def state_dict(self) -> dict[str, Any]:
        return {"named": sorted(self._named)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._named = set(state["named"])

    def _judged(self, values: dict[str, float]) -> str | None:
        """Return a sentence about layers with too large a logit that were not named before."""
        assert self.config.alert is not None
        above = {k: v for k, v in values.items() if not v <= self.config.alert.above}
        new = [layer for layer in above if layer not in self._named]
        self._named = set(above)
        if not new:
            return None
        named = ", ".join(f"{layer} ({above[layer]:.3g})" for layer in new[:3])
        others = f", and {len(new) - 3} more" if len(new) > 3 else ""
        return f"attention logit above {self.config.alert.above:g}: {named}{others}"

    def _adder(self, layer: str, node: Any, training: Training) -> Any:
        row = self._found[self._layers.index(layer)]

        def add(called: layers.Call) -> None:
            named = dict(zip(("q_BLNH", "k_BLNH"), called.inputs, strict=False)) | called.keywords
            q_BLNH, k_BSMH = (layers.local(named[name]) for name in ("q_BLNH", "k_BLNH"))
            k_BSMH = _whole(k_BSMH, training)
            hidden = self._masks.hidden(node, called.keywords, q_BLNH, k_BSMH)
            logit = largest(q_BLNH, k_BSMH, hidden, called.keywords.get("scale"))
            lost = logit.isnan().to(row.dtype)
            torch.maximum(row, torch.stack([logit.nan_to_num(-math.inf, math.inf), lost]), out=row)

        return add


def _whole(k_BSMH: torch.Tensor, training: Training) -> torch.Tensor:
    """Return the keys of all ranks of context parallelism, in the order that the masks assume."""
    if not training.parallel_dims.cp_enabled:
        return k_BSMH
    group = training.parallel_dims.get_mesh("cp").get_group()
    parts = [torch.empty_like(k_BSMH) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, k_BSMH.contiguous(), group=group)
    return torch.cat(parts, dim=1)
