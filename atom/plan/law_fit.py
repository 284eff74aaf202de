"""Fit a scaling law to finished runs, with confidence bands.

The objective is that of Hoffmann et al. (2022), appendix D.2: the sum of Huber losses of
``log L(N, D) - log L``. Levenberg and Marquardt's steps with Huber's weights minimize it, from many
starts and for all bootstrap samples at once, which scipy's L-BFGS does one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from atom.errors import UserError
from atom.plan.scaling import FLOPS, LossLaw, Optimum

Array = npt.NDArray[np.float64]

HUBER = 1e-3
"""Residual from which a run counts linearly (Hoffmann et al., appendix D.2)."""

LEAST_RUNS = 6
"""One more than the law has constants."""

SAMPLES = 1000
_STEPS = 200
_STARTS = list(product((0.2, 0.4, 0.8), (0.2, 0.4, 0.8), (0.3, 0.6, 0.9)))
"""alpha, beta, and E as a share of the lowest loss."""

_OFF_PATH = 0.2
"""Least standard deviation of log D around its line over log N, in nats: a factor of 1.2. On a line
only the sum of the two terms can be seen, not each."""

_SAME_TOKENS = 0.02
"""Relative difference of tokens up to which runs of one size are alternatives."""

CONSTANTS = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True, slots=True)
class Point:
    """A finished run: parameters, tokens, and loss in nats."""

    name: str
    parameters: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        return FLOPS * self.parameters * self.tokens


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: the fit to all runs.
        points: the runs.
        draws: constants of each bootstrap sample, [samples, 5], as in ``CONSTANTS``.
        failed: bootstrap samples that determine no law, which the bands leave out.
        held_out: loss of the run of most FLOPs as the others predict it; None with too few runs.
    """

    law: LossLaw
    points: Sequence[Point]
    draws: Array
    failed: int
    held_out: float | None

    @property
    def largest(self) -> Point:
        """The run of most FLOPs."""
        return max(self.points, key=lambda point: point.flops)

    @property
    def error(self) -> float:
        """Root mean square of the residuals of log loss."""
        found = [math.log(self.law.loss(p.parameters, p.tokens) / p.loss) for p in self.points]
        return math.sqrt(sum(each * each for each in found) / len(found))

    def band(self, constant: str, coverage: float = 0.95) -> tuple[float, float]:
        """Return the confidence band of a constant."""
        return _band(self.draws[:, CONSTANTS.index(constant)], coverage)

    def optimum(self, flops: float) -> Optimum:
        """Return how the law divides ``flops``."""
        return self.law.optimum(flops)

    def optimum_bands(self, flops: float, coverage: float = 0.95) -> dict[str, tuple[float, float]]:
        """Return confidence bands of the optimum: parameters, tokens and loss."""
        E, A, B, alpha, beta = self.draws.T
        with np.errstate(all="ignore"):
            ratio = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
            parameters = ratio * (flops / FLOPS) ** (beta / (alpha + beta))
            tokens = flops / FLOPS / parameters
            loss = E + A / parameters**alpha + B / tokens**beta
        return {
            "parameters": _band(parameters, coverage),
            "tokens": _band(tokens, coverage),
            "loss": _band(loss, coverage),
        }

    def loss_band(
        self, parameters: float, tokens: float, coverage: float = 0.95
    ) -> tuple[float, float]:
        """Return the confidence band of the predicted loss of a run."""
        E, A, B, alpha, beta = self.draws.T
        return _band(E + A / parameters**alpha + B / tokens**beta, coverage)


def fit(points: Sequence[Point], *, samples: int = SAMPLES, seed: int = 0) -> Fit:
    """Fit the law to ``points``; resample the runs for the bands.

    Raises:
        UserError: the runs cannot determine the law.
    """
    _check(points)
    constants = _constants(points)
    law = LossLaw("fit", f"fitted to {len(points)} runs", *constants)
    random = np.random.default_rng(seed)
    counts = random.multinomial(len(points), [1 / len(points)] * len(points), size=samples)
    data = _Data(points)
    found, _ = _minimize(data, data.inner(constants, samples), counts.astype(np.float64))
    draws = data.constants(found)
    usable = np.isfinite(draws).all(axis=1) & (draws > 0).all(axis=1)
    held_out = None
    others = sorted(points, key=lambda point: point.flops)
    largest, others = others[-1], others[:-1]
    if len(others) >= LEAST_RUNS and _off_path(others) >= _OFF_PATH:
        predicted = LossLaw("others", "", *_constants(others))
        held_out = float(predicted.loss(largest.parameters, largest.tokens))
    return Fit(law, points, draws[usable], int((~usable).sum()), held_out)


def groups(points: Sequence[Point]) -> list[list[Point]]:
    """Group runs of one size and number of tokens, the lowest loss first.

    They differ in settings such as the learning rate, and a law is of the best settings.
    """
    found: list[list[Point]] = []
    for point in sorted(points, key=lambda point: (point.parameters, point.tokens)):
        last = found[-1][0] if found else None
        if (
            last is not None
            and last.parameters == point.parameters
            and abs(point.tokens - last.tokens) <= _SAME_TOKENS * last.tokens
        ):
            found[-1].append(point)
        else:
            found.append([point])
    return [sorted(group, key=lambda point: point.loss) for group in found]


def _check(points: Sequence[Point]) -> None:
    for point in points:
        for name in ("parameters", "tokens", "loss"):
            value = getattr(point, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{point.name} has {name}={value}", valid="a number above 0")
    if len(points) < LEAST_RUNS:
        raise UserError(
            f"{len(points)} runs cannot determine the law's {len(CONSTANTS)} constants",
            valid=f"at least {LEAST_RUNS} finished runs",
        )
    for name in ("parameters", "tokens"):
        if len({getattr(point, name) for point in points}) < 3:
            raise UserError(
                f"the runs have fewer than 3 numbers of {name}",
                valid="runs of at least 3 sizes, and of 3 lengths",
            )
    if _off_path(points) < _OFF_PATH:
        raise UserError(
            "tokens grow with parameters in the same way in all runs, so their effects cannot be "
            "told apart",
            valid="runs of one size with different numbers of tokens, such as 1, 2 and 5 times",
        )


def _off_path(points: Sequence[Point]) -> float:
    x, z = (np.log([getattr(p, name) for p in points]) for name in ("parameters", "tokens"))
    if np.ptp(x) == 0:
        return float(z.std())
    return float((z - np.polyval(np.polyfit(x, z, 1), x)).std())


class _Data:
    """Runs around their geometric means, where the constants are nearly independent.

    The inner constants are log of the two terms at the means, log E, alpha and beta.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        n, d, loss = (
            np.log([getattr(p, name) for p in points]) for name in ("parameters", "tokens", "loss")
        )
        self.n_mean, self.d_mean = n.mean(), d.mean()
        self.x, self.z, self.y = n - self.n_mean, d - self.d_mean, loss

    def inner(self, constants: Sequence[float], copies: int) -> Array:
        E, A, B, alpha, beta = constants
        terms = math.log(A) - alpha * self.n_mean, math.log(B) - beta * self.d_mean
        return np.tile([*terms, math.log(E) if E > 0 else -50.0, alpha, beta], (copies, 1))

    def constants(self, inner: Array) -> Array:
        a, b, e, alpha, beta = inner.T
        with np.errstate(over="ignore"):
            found = np.exp(e), np.exp(a + alpha * self.n_mean), np.exp(b + beta * self.d_mean)
        return np.stack([*found, alpha, beta], axis=1)


def _constants(points: Sequence[Point]) -> list[float]:
    """Return the constants of the best fit of all starts."""
    data = _Data(points)
    lowest, middle = math.exp(data.y.min()), math.exp(data.y.mean())
    starts = []
    for alpha, beta, share in _STARTS:
        half = math.log((middle - share * lowest) / 2)
        starts.append([half, half, math.log(share * lowest), alpha, beta])
    found, objective = _minimize(data, np.array(starts), np.ones((len(starts), len(points))))
    best = data.constants(found[np.nanargmin(objective)][None])[0]
    if not (np.isfinite(best).all() and (best > 0).all()):
        raise UserError(
            "the loss of these runs does not fall with both parameters and tokens",
            valid="runs that ended at their lowest loss, with the same data and tokenizer",
        )
    return [float(each) for each in best]


def _minimize(data: _Data, inner: Array, counts: Array) -> tuple[Array, Array]:
    """Return where the objective is lowest from each row of ``inner``, and its values there.

    Args:
        data: the runs.
        inner: where to start: [starts, 5].
        counts: how often each run counts: [starts, runs].
    """
    inner, objectives = inner.copy(), np.full(len(inner), np.inf)
    at = np.arange(len(inner))  # the rows that have not settled
    damping = np.full(len(inner), 1e-3)
    with np.errstate(all="ignore"):
        for _ in range(_STEPS):
            shares, residual, objectives[at] = _evaluate(data, inner[at], counts[at])
            p, q, r = shares
            jacobian = np.stack([p, q, r, -p * data.x, -q * data.z], axis=2)
            weight = counts[at] * np.minimum(1, HUBER / np.maximum(np.abs(residual), 1e-300))
            weighted = jacobian * weight[:, :, None]
            gradient = (residual[:, None, :] @ weighted)[:, 0, :, None]
            hessian = jacobian.transpose(0, 2, 1) @ weighted
            diagonal = np.einsum("skk->sk", hessian)
            diagonal += damping[at, None] * diagonal + 1e-15
            step = np.linalg.solve(hessian, gradient)[:, :, 0]
            tried = inner[at] - np.clip(step, -2, 2)
            _, _, objective = _evaluate(data, tried, counts[at])
            gain = objectives[at] - objective
            better = gain > 0
            inner[at[better]] = tried[better]
            damping[at] = np.clip(damping[at] * np.where(better, 0.3, 5), 1e-12, 1e12)
            settled = np.where(better, gain <= 1e-9 * objective, damping[at] > 1e6)
            objectives[at[better]] = objective[better]
            at = at[~settled]
            if not at.size:
                break
    return inner, objectives


def _evaluate(data: _Data, inner: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Return the shares of the three terms in the loss, the residuals, and the objective."""
    a, b, e, alpha, beta = (column[:, None] for column in inner.T)
    terms = np.stack([a - alpha * data.x, b - beta * data.z, e + 0 * data.x])
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    residual = top + np.log(total) - data.y
    size = np.abs(residual)
    huber = np.where(size > HUBER, HUBER * (size - HUBER / 2), residual**2 / 2)
    return shares / total, residual, (counts * huber).sum(axis=1)


def _band(values: Array, coverage: float) -> tuple[float, float]:
    low, high = np.nanquantile(values, ((1 - coverage) / 2, (1 + coverage) / 2))
    return float(low), float(high)
