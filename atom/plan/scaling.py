"""Divide a budget of FLOPs between parameters and tokens by a scaling law.

A law is a YAML file in ``atom/plan/laws/``, or of the user, with its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from atom.errors import UserError, nearest
from atom.io import yaml_data

FOLDER = Path(__file__).parent / "laws"
DEFAULT = "besiroglu"
FLOPS = 6.0
"""FLOPs of training for a parameter and a token: 2 forward, 4 backward (Kaplan et al., 2020,
https://arxiv.org/abs/2001.08361, section 2.1). Attention's own are left out."""

_SIZES = np.geomspace(1e5, 1e15, 4001)
"""Numbers of parameters that are tried where no formula gives the optimum: 0.6 % apart."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """How a law divides a budget; ``loss`` is None for a law that predicts none."""

    flops: float
    parameters: float
    tokens: float
    loss: float | None


@dataclass(frozen=True, slots=True)
class LossLaw:
    """Loss in nats of N parameters after D tokens: E + A / N^alpha + B / D^beta.

    Attributes:
        name: of the law.
        source: where its constants were published.
        repeated_tokens: R*_D of Muennighoff et al. (2023): repetitions until repeated tokens are
            worth 1 - 1/e of new ones on average; None: the law knows no repetition.
        excess_parameters: R*_N, the same for parameters beyond the optimum of the unique tokens.
    """

    name: str
    source: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    repeated_tokens: float | None = None
    excess_parameters: float | None = None

    def __post_init__(self) -> None:
        for name in ("E", "A", "B", "alpha", "beta"):
            _in_range(self.name, name, getattr(self, name), zero=name == "E")
        if (self.repeated_tokens is None) != (self.excess_parameters is None):
            raise UserError(
                f"the law {self.name} has repeated_tokens or excess_parameters alone", valid="both"
            )

    def loss(self, parameters: Any, tokens: Any, unique: float | None = None) -> Any:
        """Return the loss; ``unique`` tokens are repeated until there are ``tokens``.

        Raises:
            UserError: tokens repeat, and the law knows no repetition.
        """
        if unique is not None and np.max(tokens) > unique:
            parameters, tokens = self._effective(np.asarray(parameters), np.asarray(tokens), unique)
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def _effective(self, parameters: Any, tokens: Any, unique: float) -> tuple[Any, Any]:
        if self.repeated_tokens is None or self.excess_parameters is None:
            knowing = [name for name in names() if getattr(named(name), "repeated_tokens", None)]
            raise UserError(
                f"the law {self.name} does not know what repeated tokens are worth",
                key="plan.unique_tokens",
                value=f"{unique:g}",
                valid=f"law={', '.join(knowing)}",
            )
        own = np.minimum(tokens, unique)
        # The parameters that the law finds best for the unique tokens, or fewer.
        best = np.minimum(self._for_tokens(own), parameters)
        return (
            _worth(best, parameters, self.excess_parameters),
            _worth(own, tokens, self.repeated_tokens),
        )

    def _for_tokens(self, tokens: Any) -> Any:
        """Return the parameters of which ``tokens`` are the best number."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return (ratio * tokens**self.beta) ** (1 / self.alpha)

    def tokens_for(self, parameters: float) -> float:
        """Return the best number of tokens for ``parameters``."""
        ratio = self.beta * self.B / (self.alpha * self.A)
        return float((ratio * parameters**self.alpha) ** (1 / self.beta))

    def optimum(self, flops: float, unique: float | None = None) -> Optimum:
        """Return the lowest loss of ``flops``, by the formula of Hoffmann et al. (2022), eq. 4.

        Args:
            flops: FLOPs of training.
            unique: tokens that there are; None: no limit.
        """
        pairs = flops / FLOPS
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * pairs ** (self.beta / (self.alpha + self.beta))
        tokens = pairs / parameters
        if unique is not None and tokens > unique:
            sizes = _SIZES[pairs / _SIZES > 1]
            losses = self.loss(sizes, pairs / sizes, unique)
            parameters = float(sizes[int(np.argmin(losses))])
            tokens = pairs / parameters
        loss = float(self.loss(parameters, tokens, unique))
        return Optimum(flops, float(parameters), float(tokens), loss)


@dataclass(frozen=True, slots=True)
class TokensLaw:
    """The best number of tokens of C FLOPs: coefficient · C^exponent; it predicts no loss.

    Attributes:
        name: of the law.
        source: where its constants were published.
    """

    name: str
    source: str
    coefficient: float
    exponent: float

    def __post_init__(self) -> None:
        _in_range(self.name, "coefficient", self.coefficient)
        _in_range(self.name, "exponent", self.exponent)
        if self.exponent >= 1:
            raise UserError(f"the law {self.name} has exponent={self.exponent:g}", valid="below 1")

    def tokens_for(self, parameters: float) -> float:
        """Return the best number of tokens for ``parameters``."""
        # D = c (6 N D)^e
        return float(
            (self.coefficient * (FLOPS * parameters) ** self.exponent) ** (1 / (1 - self.exponent))
        )

    def optimum(self, flops: float, unique: float | None = None) -> Optimum:
        """Return the division of ``flops``.

        Raises:
            UserError: it needs more tokens than there are ``unique`` ones.
        """
        tokens = self.coefficient * flops**self.exponent
        if unique is not None and tokens > unique:
            raise UserError(
                f"the law {self.name} needs {tokens:.3g} tokens and does not know what repeated "
                "tokens are worth",
                key="plan.unique_tokens",
                value=f"{unique:g}",
            )
        return Optimum(flops, flops / FLOPS / tokens, tokens, None)


Law = LossLaw | TokensLaw
_FORMS: dict[str, type[LossLaw] | type[TokensLaw]] = {"loss": LossLaw, "tokens": TokensLaw}


def names() -> list[str]:
    """Return the names of the laws that ATOM ships."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def named(name: str) -> Law:
    """Return the law ``name``: one that ATOM ships, or a YAML file.

    Raises:
        UserError: there is none, or the file is no law.
    """
    if name in names():
        return _law(name, yaml_data.load((FOLDER / f"{name}.yaml").read_text(), name))
    if not name.endswith((".yaml", ".yml")):
        raise UserError(
            f"there is no such law; {nearest(name, [*names(), 'FILE.yaml'])}", key="law", value=name
        )
    try:
        text = yaml_data.text_of(Path(name), what="a law")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", key="law", value=name) from None
    return _law(name, yaml_data.load(text, name))


def _law(name: str, data: Any) -> Law:
    form = data.pop("form", None) if isinstance(data, dict) else None
    if form not in _FORMS:
        raise UserError(
            f"{name} is no law: form={form!r}", valid=f"form: {' or '.join(_FORMS)}, and constants"
        )
    known = {field.name: field for field in fields(_FORMS[form]) if field.name != "name"}
    for key, value in data.items():
        if key not in known:
            raise UserError(f"{name} has the unknown key {key}; {nearest(str(key), known)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key != "source" and not number:
            raise UserError(f"{name} has {key}: {value}", valid="a number")
    missing = [
        key
        for key in known
        if key not in data and key not in ("repeated_tokens", "excess_parameters")
    ]
    if missing:
        raise UserError(f"{name} lacks {', '.join(missing)}", valid="all constants of the law")
    constants: dict[str, Any] = {
        key: str(value) if key == "source" else float(value) for key, value in data.items()
    }
    return _FORMS[form](name=name, **constants)


def _worth(first: Any, all_: Any, decay: float) -> Any:
    """Return how much ``first``, repeated until there are ``all_``, is worth (eqs. 5 and 6)."""
    return first + first * decay * -np.expm1(-(all_ / first - 1) / decay)


def _in_range(law: str, name: str, value: float, *, zero: bool = False) -> None:
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise UserError(f"the law {law} has {name}={value:g}", valid="a number above 0")
