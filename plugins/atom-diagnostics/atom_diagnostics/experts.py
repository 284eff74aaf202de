"""Measure the routing of tokens to experts, over the whole batch."""

from __future__ import annotations

import math
from typing import Any

import torch

from atom.plugin import CallbackContext, TrainerCallback, Training
from atom_diagnostics import layers
from atom_diagnostics.config import Experts
from atom_diagnostics.measuring import Measuring


def callback(config: Experts, context: CallbackContext) -> TrainerCallback:
    """Return the callback of a run."""
    return Routing(config, context.steps)


class Routing(Measuring):
    """Logs values of each layer with experts, of all tokens of a step.

    ===========================  ================================================================
    ``highest_load/LAYER``       share of the busiest expert, in units of an equal share
    ``dead/LAYER``               number of experts without a token
    ``load_entropy/LAYER``       entropy of the shares of all experts, 1 if they are equal
    ``router_entropy/LAYER``     mean entropy of a token's scores, 1 if all experts score alike
    ``load/LAYER.EXPERT``        share of an expert, in units of an equal share (``each=true``)
    ===========================  ================================================================
    """

    def __init__(self, config: Experts, last_step: int) -> None:
        super().__init__(config.interval, last_step)
        self.config = config
        self._named: set[str] = set()

    def on_start(self, training: Training) -> None:
        self._routers = _routers(training)
        self._layers = layers.all_layers(layer for layer, _ in self._routers)
        here = {layer: router.num_experts for layer, router in self._routers}
        self._experts: dict[str, int] = {}
        for found in layers.of_all_ranks(here):
            self._experts |= found
        if not self._layers:
            training.alert("the model has no experts; nothing is measured")

    def before_step(self, training: Training) -> None:
        self._due = bool(self._layers) and self.wants_row(training.step)
        if self._due:
            # A layer has its experts' tokens, the sum of its tokens' entropies, and its tokens.
            self._sums = layers.Sums(self._layers, training.device, self._most + 2)
            hooks = [(router, self._adder(layer, router)) for layer, router in self._routers]
            self._hooks = layers.Hooks(training, hooks)

    def after_backward(self, training: Training) -> None:
        if not self._due:
            return
        values: dict[str, float] = {}
        reasons = []
        for layer, totals in zip(self._layers, self._sums.totals(), strict=True):
            *tokens, entropy, number = totals
            if not number:
                continue
            count = self._experts[layer]
            tokens = tokens[:count]
            routed = sum(tokens)
            shares = [each / routed for each in tokens]
            dead = tokens.count(0)
            values[f"highest_load/{layer}"] = max(shares) * count
            values[f"dead/{layer}"] = dead
            values[f"load_entropy/{layer}"] = _entropy(shares)
            values[f"router_entropy/{layer}"] = entropy / number
            if self.config.each:
                values |= {f"load/{layer}.{i}": each * count for i, each in enumerate(shares)}
            if (reason := self._judged(layer, dead, count)) is not None:
                reasons.append(reason)
        if not values:
            training.alert("no routing could be measured: a compiled model calls no hooks")
        training.log(values)
        for reason in reasons:
            training.alert(reason)
        if reasons and self.config.alert is not None and self.config.alert.stop:
            training.stop(reasons[0])

    def state_dict(self) -> dict[str, Any]:
        return {"named": sorted(self._named)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._named = set(state["named"])

    @property
    def _most(self) -> int:
        return max(self._experts.values())

    def _judged(self, layer: str, dead: int, count: int) -> str | None:
        """Return a sentence about a layer with dead experts, when it is the first time."""
        alert = self.config.alert
        if alert is None or dead < alert.dead * count:
            self._named.discard(layer)
            return None
        if layer in self._named:
            return None
        self._named.add(layer)
        return f"{dead} of {count} experts of {layer} get no token"

    def _adder(self, layer: str, router: Any) -> Any:
        def add(called: layers.Call) -> None:
            ids, scores = (layers.local(tensor) for tensor in called.output[1:3])
            experts = router.num_experts
            tokens = torch.bincount(ids.flatten(), minlength=self._most)
            parts = scores.double() / scores.sum(-1, keepdim=True).double()
            entropies = -torch.special.xlogy(parts, parts).sum(-1) / math.log(max(experts, 2))
            self._sums.add(layer, [torch.cat([tokens, entropies.sum()[None]])], entropies.numel())

        return add


def _routers(training: Training) -> list[tuple[str, Any]]:
    """Return this rank's routers, each with its layer: they choose ``top_k`` of ``num_experts``."""
    return [
        (layers.layer_of(name), module)
        for part in training.model_parts
        for name, module in part.named_modules()
        if hasattr(module, "num_experts") and hasattr(module, "top_k") and hasattr(module, "gate")
    ]


def _entropy(shares: list[float]) -> float:
    total = -sum(share * math.log(share) for share in shares if share)
    return total / math.log(max(len(shares), 2))
