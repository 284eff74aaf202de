"""Scale the rotary embedding of Qwen3.5."""

from __future__ import annotations

from dataclasses import dataclass

from torchtitan.models.qwen3_5.rope import MRoPE

from atom.titan.rotary import Frequencies


class ScaledMRoPE(Frequencies, MRoPE):
    """torchtitan's rotary embedding of Qwen3.5 with every scaling."""

    @dataclass(kw_only=True, slots=True)
    class Config(MRoPE.Config):
        linear_factor: float = 1.0
        sharpness: float = 1.0
