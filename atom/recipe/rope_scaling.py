"""Parameters of architectures that scale their rotary embedding (RoPE) to longer sequences.

An architecture derives its parameters from :class:`RopeScaling`, and passes them to
:func:`atom.titan.rotary.rotary`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, model_validator

from atom.architecture import MOST_TOKENS
from atom.errors import UserError
from atom.recipe.idle import Idle
from atom.recipe.validation import validated

KEY = "architecture.rope_scaling"

_WITH_FACTOR_1 = Idle("rope_factor", 1)
_OF_LLAMA = (Idle("rope_scaling", "none", "linear", "yarn"), _WITH_FACTOR_1)
_OF_YARN = (Idle("rope_scaling", "none", "linear", "llama3"), _WITH_FACTOR_1)

Kind = Literal["none", "linear", "llama3", "yarn"]

_LLAMA = ("low_freq_factor", "high_freq_factor")
_YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
_ORIGINAL = "original_max_position_embeddings"
_KEYS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", _ORIGINAL, *_LLAMA),
    "yarn": ("factor", _ORIGINAL, *_YARN),
}
"""Type -> its keys in a ``config.json``."""


class RopeScaling(BaseModel):
    """The parameters; ``rope_scaling`` may also be a section as in a ``config.json``."""

    rope_scaling: Annotated[Kind, _WITH_FACTOR_1] = Field(
        default="none",
        description="scaling of RoPE's frequencies: linear (https://arxiv.org/abs/2306.15595), "
        "llama3 (that of Llama 3.1) or yarn (https://arxiv.org/abs/2309.00071); or a section as in "
        "config.json: rope_scaling.type, .factor, .original_max_position_embeddings, …",
    )
    rope_factor: Annotated[float, Idle("rope_scaling", "none")] = Field(
        default=1.0, ge=1, description="factor by which the scaling extends the context; 1: none"
    )
    rope_original_seq_len: Annotated[
        int, Idle("rope_scaling", "none", "linear"), _WITH_FACTOR_1
    ] = Field(default=4096, gt=0, le=MOST_TOKENS, description="original context length, in tokens")
    rope_low_freq_factor: Annotated[float, *_OF_LLAMA] = Field(
        default=1.0,
        gt=0,
        description="llama3: rotations in the original length below which frequencies are scaled "
        "fully",
    )
    rope_high_freq_factor: Annotated[float, *_OF_LLAMA] = Field(
        default=4.0,
        gt=0,
        description="llama3: rotations in the original length above which frequencies stay",
    )
    rope_beta_fast: Annotated[float, *_OF_YARN] = Field(
        default=32.0,
        gt=0,
        description="rotations in the original length above which YaRN keeps a frequency",
    )
    rope_beta_slow: Annotated[float, *_OF_YARN] = Field(
        default=1.0,
        gt=0,
        description="rotations in the original length below which YaRN scales a frequency fully",
    )
    rope_truncate: Annotated[bool, *_OF_YARN] = Field(
        default=True, description="round the dimensions between which YaRN interpolates"
    )

    @model_validator(mode="before")
    @classmethod
    def _flattened(cls, values: Any) -> Any:
        """Accept the section of a ``config.json``, and ``llama``, the former name of ``llama3``."""
        if not isinstance(values, Mapping) or "rope_scaling" not in values:
            return values
        given = values["rope_scaling"]
        if isinstance(given, Mapping):
            section = cls._of_section(given)
            values = {k: v for k, v in values.items() if k != "rope_scaling"} | section
            if values.get("rope_factor", cls.model_fields["rope_factor"].default) == 1:
                raise UserError("is needed", valid="a number above 1", key=f"{KEY}.factor")
            return values
        names = {None: "none", "llama": "llama3", "default": "none"}
        return {**values, "rope_scaling": names.get(given, given)}

    @classmethod
    def _of_section(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        section = {k: v for k, v in given.items() if v is not None}
        kind = section.pop("type", None)
        kind = section.pop("rope_type", kind) or cls.model_fields["rope_scaling"].default
        if kind not in _KEYS:
            raise UserError(
                "is no scaling of RoPE that ATOM computes",
                valid=f"{', '.join(_KEYS)}, or {KEY}=none",
                key=f"{KEY}.type",
                value=kind,
            )
        for name, value in section.items():
            if name not in _KEYS[kind]:
                raise UserError(
                    f"is no key of RoPE scaling by {kind}",
                    valid=", ".join(_KEYS[kind]),
                    key=f"{KEY}.{name}",
                    value=value,
                )
        return {"rope_scaling": kind} | cls._renamed(section)

    @classmethod
    def _renamed(cls, section: dict[str, Any]) -> dict[str, Any]:
        scale, of_all = section.pop("mscale", None), section.pop("mscale_all_dim", None)
        if (scale is None) != (of_all is None):
            raise UserError(
                "mscale and mscale_all_dim belong together", valid="both, or neither", key=KEY
            )
        renamed: dict[str, Any] = {}
        for name, value in section.items():
            parameter = "rope_original_seq_len" if name == _ORIGINAL else f"rope_{name}"
            key, field = f"{KEY}.{name}", cls.model_fields.get(parameter)
            if field is None:
                raise UserError("this architecture has no such key", key=key, value=value)
            adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
            renamed[parameter] = validated(adapter, value, key=key, fields=())
        return renamed | ({} if scale is None else cls._of_mscale(scale, of_all, section))

    @classmethod
    def _of_mscale(cls, scale: Any, of_all: Any, section: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters that ``mscale`` and ``mscale_all_dim`` of a section mean."""
        if scale != of_all:
            raise UserError(f"must be mscale_all_dim={of_all}", key=f"{KEY}.mscale", value=scale)
        return {"rope_attention_factor": 1.0} if "attention_factor" not in section else {}

    @model_validator(mode="after")
    def _bands_fit(self) -> RopeScaling:
        for low, high in (
            ("rope_low_freq_factor", "rope_high_freq_factor"),
            ("rope_beta_slow", "rope_beta_fast"),
        ):
            if getattr(self, low) >= getattr(self, high):
                raise UserError(
                    f"must be below {high}={getattr(self, high)}",
                    key=f"architecture.{low}",
                    value=getattr(self, low),
                )
        return self

    @property
    def scaling(self) -> Kind:
        """The scaling; ``none`` if a factor of 1 turns off a family's own."""
        off = self.rope_factor == 1 and type(self).model_fields["rope_scaling"].default != "none"
        return "none" if off else self.rope_scaling

    @property
    def attention_factor(self) -> float:
        """The factor of rotated queries and of keys: 1 except with YaRN."""
        if self.scaling != "yarn":
            return 1.0
        given: float | None = getattr(self, "rope_attention_factor", None)
        return 0.1 * math.log(self.rope_factor) + 1.0 if given is None else given

    def rope_parameters(self, theta: float) -> dict[str, Any]:
        """Return ``rope_parameters`` of a ``config.json``."""
        if self.scaling == "none":
            return {"rope_type": "default", "rope_theta": theta}
        said: dict[str, Any] = {"rope_type": self.scaling, "rope_theta": theta}
        said["factor"] = self.rope_factor
        if self.scaling != "linear":
            said[_ORIGINAL] = self.rope_original_seq_len
        if self.scaling == "llama3":
            said |= {name: getattr(self, f"rope_{name}") for name in _LLAMA}
        if self.scaling == "yarn":
            said |= {name: getattr(self, f"rope_{name}") for name in ("beta_fast", "beta_slow")}
            if not self.rope_truncate:
                said["truncate"] = False
            if (given := getattr(self, "rope_attention_factor", None)) is not None:
                said["attention_factor"] = given
        return said


class SharpenedRopeScaling(RopeScaling):
    """The parameters of architectures with YaRN's attention factor as one number."""

    rope_attention_factor: Annotated[float | None, *_OF_YARN] = Field(
        default=None,
        gt=0,
        description="factor of YaRN on rotated queries and keys; null: 0.1 ln(rope_factor) + 1",
    )
