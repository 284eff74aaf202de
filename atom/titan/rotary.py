"""Rotary embeddings with every scaling of :class:`atom.recipe.rope_scaling.RopeScaling`.

For the modules of architecture plugins. A scaling that torchtitan's own module computes is left to
it, so that kernels fit; the others are computed here.

Shape suffixes: P = positions, F = frequencies, H = rotated width, 2 F.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.models.common.rope import ComplexRoPE, CosSinRoPE, RoPE, _yarn_inv_freq

from atom.recipe.rope_scaling import RopeScaling


def rotary(
    kind: type[RoPE],
    scaling: RopeScaling,
    *,
    dim: int,
    max_seq_len: int,
    theta: float,
    scaled: type[RoPE] | None = None,
    folded: float = 1.0,
    **more: Any,
) -> RoPE.Config:
    """Return the config of a rotary embedding.

    Args:
        kind: torchtitan's module.
        scaling: the architecture's parameters.
        dim: rotated width of a head.
        max_seq_len: number of positions.
        theta: base of the frequencies.
        scaled: the module with :class:`Frequencies`; None for that of ``kind`` here.
        folded: what attention itself multiplies rotated queries and keys by, for YaRN.
        more: further fields of the module's config.
    """
    name, factor = scaling.scaling, scaling.rope_factor
    sharpness = scaling.attention_factor / folded
    fields: dict[str, Any] = {"dim": dim, "max_seq_len": max_seq_len, "theta": theta} | more
    if name == "llama3":
        fields |= {
            "scaling": "llama",
            "scaling_factor": factor,
            "low_freq_factor": scaling.rope_low_freq_factor,
            "high_freq_factor": scaling.rope_high_freq_factor,
            "original_max_position_embeddings": scaling.rope_original_seq_len,
        }
    elif name == "yarn":
        fields |= {
            "scaling": "yarn",
            "rope_factor": factor,
            "beta_fast": scaling.rope_beta_fast,
            "beta_slow": scaling.rope_beta_slow,
            "original_seq_len": scaling.rope_original_seq_len,
            "truncate": scaling.rope_truncate,
        }
    elif name == "linear":
        fields |= {"linear_factor": factor}
    is_complex = issubclass(kind, ComplexRoPE)
    own = name == "linear" or (name == "llama3" and not is_complex) or sharpness != 1
    if not own:
        return kind.Config(**fields)
    return (scaled or _SCALED[kind]).Config(**fields, sharpness=sharpness)


class Frequencies:
    """The part of a rotary embedding that makes its table of all positions.

    Its config has ``linear_factor``, and ``sharpness``: the factor of rotated queries and keys.
    """

    config: Any

    def _precompute_cache(self) -> torch.Tensor:
        config = self.config
        frequencies_F = _frequencies(config) / config.linear_factor
        angles_PF = torch.outer(torch.arange(config.max_seq_len).float(), frequencies_F)
        if isinstance(self, ComplexRoPE):
            return torch.polar(torch.full_like(angles_PF, config.sharpness), angles_PF)
        angles_PH = torch.cat([angles_PF, angles_PF], dim=-1)
        return torch.cat([angles_PH.cos(), angles_PH.sin()], dim=-1) * config.sharpness


def _frequencies(config: Any) -> torch.Tensor:
    plain_F = 1.0 / config.theta ** (torch.arange(0, config.dim, 2).float() / config.dim)
    if config.scaling == "yarn":
        return _yarn_inv_freq(
            config.dim,
            config.theta,
            config.rope_factor,
            config.beta_fast,
            config.beta_slow,
            config.original_seq_len,
            config.truncate,
        )
    if config.scaling == "llama":
        low, high = config.low_freq_factor, config.high_freq_factor
        rotations_F = config.original_max_position_embeddings * plain_F / (2 * math.pi)
        kept_F = ((rotations_F - low) / (high - low)).clamp(0, 1)
        return plain_F * (kept_F + (1 - kept_F) / config.scaling_factor)
    return plain_F


class ScaledComplexRoPE(Frequencies, ComplexRoPE):
    """A rotary embedding of adjacent pairs with every scaling."""

    @dataclass(kw_only=True, slots=True)
    class Config(ComplexRoPE.Config):
        linear_factor: float = 1.0
        sharpness: float = 1.0


class ScaledCosSinRoPE(Frequencies, CosSinRoPE):
    """A rotary embedding of two halves with every scaling."""

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        linear_factor: float = 1.0
        sharpness: float = 1.0


_SCALED: dict[type[RoPE], type[RoPE]] = {
    ComplexRoPE: ScaledComplexRoPE,
    CosSinRoPE: ScaledCosSinRoPE,
}
