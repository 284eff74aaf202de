"""Linear layers with a low-rank update beside their frozen weight.

Shape suffixes: B = sequences, L = tokens, G = groups of query heads, H = heads of a group, W =
width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import spmd_types as spmd
import torch
from torch import nn
from torchtitan.models.common.decoder_sharding import dense_param_placement
from torchtitan.models.common.linear import Linear
from torchtitan.protocols.module import Module
from torchtitan.protocols.sharding import ShardingConfig

A, B = "lora_a", "lora_b"
FUSED = "wqkv"
"""The layer that computes queries, keys and values together."""


class Update(Module):
    """The update of one weight: ``scale * B(A(x))``."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        in_features: int
        out_features: int
        rank: int
        scale: float
        base: ShardingConfig | None
        """The sharding of the layer that is updated."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, second = _shardings(config.base)
        self.scale = config.scale
        self.lora_a = Linear.Config(
            in_features=config.in_features,
            out_features=config.rank,
            sharding_config=first,
            param_init={"weight": _kaiming},
        ).build()
        self.lora_b = Linear.Config(
            in_features=config.rank,
            out_features=config.out_features,
            sharding_config=second,
            param_init={"weight": nn.init.zeros_},
        ).build()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        update: torch.Tensor = self.scale * self.lora_b(self.lora_a(input))
        return update


@cache
def adapted(layer: type[Linear]) -> Any:
    """Return the class of ``layer`` with an update."""

    class AdaptedLinear(layer):
        @dataclass(kw_only=True, slots=True)
        class Config(layer.Config):  # type: ignore[name-defined]
            rank: int
            scale: float

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            update = Update(_update(config, config.out_features))
            self.scale, self.lora_a, self.lora_b = update.scale, update.lora_a, update.lora_b

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = super().forward(input)
            return output + self.scale * self.lora_b(self.lora_a(input))

    return _named(AdaptedLinear, layer)


@cache
def adapted_fused(layer: type[Linear]) -> Any:
    """Return the class of ``layer``, a fused projection of queries, keys and values, with an update
    for each of those that are adapted, as if it were three layers.
    """

    class AdaptedFusedLinear(layer):
        @dataclass(kw_only=True, slots=True)
        class Config(layer.Config):  # type: ignore[name-defined]
            rank: int
            scale: float
            heads: dict[str, int]
            """Heads of a group, by part: those of queries, and one of keys and of values."""
            groups: int
            width: int
            parts: tuple[str, ...]

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.heads, self.width = config.heads, config.width
            for part in config.parts:
                rows = config.groups * config.heads[part] * config.width
                self.add_module(part, Update(_update(config, rows)))

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = super().forward(input)
            with spmd.local():  # as torchtitan splits it
                update = self._whole(input, output)
            return output + update

        def _whole(self, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            shape_BL, width = output.shape[:-1], self.width
            parts_BLGHW = []
            for part, heads in self.heads.items():
                groups = output.shape[-1] // (sum(self.heads.values()) * width)
                if hasattr(self, part):
                    update = getattr(self, part)(input).view(*shape_BL, groups, heads, width)
                else:
                    update = output.new_zeros(*shape_BL, groups, heads, width)
                parts_BLGHW.append(update)
            return torch.cat(parts_BLGHW, dim=-2).view(output.shape)

    return _named(AdaptedFusedLinear, layer)


def _named(made: type, layer: type) -> type:
    made.__name__ = made.__qualname__ = f"Adapted{layer.__name__}"
    made.Config.__qualname__ = f"{made.__name__}.Config"  # type: ignore[attr-defined]
    return made


def _update(config: Any, rows: int) -> Update.Config:
    return Update.Config(
        in_features=config.in_features,
        out_features=rows,
        rank=config.rank,
        scale=config.scale,
        base=config.sharding_config,
    )


def _kaiming(weight: torch.Tensor) -> None:
    """Draw A as PEFT does."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def _shardings(base: ShardingConfig | None) -> tuple[ShardingConfig | None, ShardingConfig | None]:
    """Return the shardings of A and B: B has the shards of a column-parallel layer, A those of a
    row-parallel one, and the other matrix is whole on every rank.
    """
    layout = base.state_shardings.get("weight") if base is not None else None
    if layout is None:
        return None, None
    whole, columns, rows = (
        dense_param_placement(tp=kind) for kind in (spmd.R, spmd.S(0), spmd.S(1))
    )
    kinds = {"whole": (whole, whole), "columns": (whole, columns), "rows": (rows, whole)}
    for name, known in (("whole", whole), ("columns", columns), ("rows", rows)):
        if layout == known:
            first, second = kinds[name]
            return (
                ShardingConfig(state_shardings={"weight": first}),
                ShardingConfig(state_shardings={"weight": second}),
            )
    raise NotImplementedError(f"a linear layer is sharded as {layout}, which no adapter supports")
