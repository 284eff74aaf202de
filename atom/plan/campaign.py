"""Simulate campaigns: the days that a run takes with failures, restarts and checkpoints.

Many campaigns are simulated at once, from one interruption to the next. Failures come at a
constant rate while the ranks start, load or train; an outage is not interrupted again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from atom.errors import UserError
from atom.plan.failures import DAY, Checkpoint, Failures, daly

Array = npt.NDArray[np.float64]

_HOPELESS = 15.0
"""Mean times between failures that one attempt to reach a checkpoint may take: more than e**15
attempts would be needed."""

_TRIED = np.geomspace(0.25, 4, 17)
"""Intervals tried, as multiples of Daly's."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """A run of months, as the simulation needs it.

    Attributes:
        step_seconds: seconds of a step without checkpoints.
        steps: steps of the whole run.
        nodes: nodes of eight devices; spare nodes come on top.
        checkpoint: seconds of a checkpoint.
        interval: steps between checkpoints; None: the best by :func:`interval_steps`.
        failures: what interrupts.
    """

    step_seconds: float
    steps: int
    nodes: float
    checkpoint: Checkpoint
    interval: int | None = None
    failures: Failures = field(default_factory=Failures)

    def __post_init__(self) -> None:
        for name in ("step_seconds", "steps", "nodes"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise UserError(valid="above 0", key=name, value=getattr(self, name))
        if self.interval is not None and self.interval < 1:
            raise UserError(valid="a whole number from 1", key="interval", value=self.interval)

    @property
    def work(self) -> float:
        """Seconds of training without failures and checkpoints."""
        return self.steps * self.step_seconds


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds of each simulated campaign, and where they went.

    ``wall`` is the sum of ``work`` and of all others.

    Attributes:
        work: seconds of training that counted, the same in all campaigns.
        wall: seconds from the start to the last checkpoint.
        lost: trained again after a failure.
        paused: waiting for checkpoints.
        restarting: starting ranks and loading.
        outage: detection, diagnosis and manual repair.
        waiting: waiting for a node to be repaired.
        interruptions: their number.
        interval: steps between checkpoints.
    """

    work: float
    wall: Array
    lost: Array
    paused: Array
    restarting: Array
    outage: Array
    waiting: Array
    interruptions: npt.NDArray[np.int64]
    interval: int

    @property
    def effective(self) -> Array:
        """Effective training time ratio (ETTR, goodput): the share of time that counted."""
        return self.work / self.wall

    def days(self, *quantiles: float) -> list[float]:
        """Return quantiles of the finishing day, counted from the start."""
        return [float(q) for q in np.quantile(self.wall, quantiles) / DAY]

    def to_json(self) -> dict[str, object]:
        """Return means, and the quantiles 5 %, 50 % and 95 % of the finishing day."""
        shares = ("lost", "paused", "restarting", "outage", "waiting")
        return {
            "campaigns": len(self.wall),
            "interval_steps": self.interval,
            "goodput": float(self.effective.mean()),
            "goodput_p5_p95": [float(q) for q in np.quantile(self.effective, (0.05, 0.95))],
            "days_p5_p50_p95": self.days(0.05, 0.5, 0.95),
            "interruptions": float(self.interruptions.mean()),
            "shares": {name: float((getattr(self, name) / self.wall).mean()) for name in shares},
        }


def interval_steps(campaign: Campaign) -> int:
    """Return the best whole number of steps between checkpoints by Daly's formula.

    A write must end before the next begins, and an interval has at least one step.
    """
    saved = campaign.checkpoint
    best = daly(campaign.failures.between(campaign.nodes), saved.pause)
    return max(round(min(best, campaign.work) / campaign.step_seconds), _least(campaign))


def _least(campaign: Campaign) -> int:
    """Return the fewest steps in which a write ends, at least one."""
    writing = campaign.checkpoint.durable - campaign.checkpoint.pause
    return max(math.ceil(writing / campaign.step_seconds), 1)


def best_interval(campaign: Campaign, *, campaigns: int = 200, seed: int = 0) -> int:
    """Return the steps between checkpoints with the shortest simulated campaigns.

    Every interval meets the same failures.
    """
    middle = interval_steps(campaign)
    tried = {max(round(middle * factor), _least(campaign)) for factor in _TRIED}

    def mean(steps: int) -> float:
        found = simulate(replace(campaign, interval=steps), campaigns=campaigns, seed=seed)
        return float(found.wall.mean())

    return min(sorted(tried), key=mean)


def simulate(campaign: Campaign, *, campaigns: int = 1000, seed: int = 0) -> Outcome:
    """Simulate ``campaigns`` campaigns; the same ``seed`` gives the same ones.

    Raises:
        UserError: failures come too often for a campaign to end, or a write takes longer than the
            interval.
    """
    saved, failures, step = campaign.checkpoint, campaign.failures, campaign.step_seconds
    every = interval_steps(campaign) if campaign.interval is None else campaign.interval
    interval = every * step
    cycle = interval + saved.pause
    if every < _least(campaign):
        raise UserError(
            f"a checkpoint takes {saved.durable:.0f} s and would not end before the next",
            key="interval",
            value=every,
            valid=f"at least {_least(campaign)}",
        )
    random = np.random.default_rng(seed)
    rate = failures.rate * np.exp(failures.sigma * random.standard_normal(campaigns))
    with np.errstate(divide="ignore"):
        between = DAY / (rate * campaign.nodes)
    attempt = failures.restart + saved.load + min(interval, campaign.work) + saved.durable
    if attempt > _HOPELESS * between.min():
        raise UserError(
            f"a failure comes every {between.min():.0f} s, and {attempt:.0f} s pass from a restart "
            "to the next checkpoint: the run would not end"
        )

    wall, lost, paused, restarting, outage, waiting = np.zeros((6, campaigns))
    interruptions = np.zeros(campaigns, dtype=np.int64)
    done = np.zeros(campaigns, dtype=np.int64)  # steps in the newest checkpoint
    startup = np.full(campaigns, failures.restart)
    ready = np.zeros((campaigns, failures.spares)) if failures.spares else None
    at = np.arange(campaigns)
    while at.size:
        # Every campaign draws each time, so that all intervals meet the same failures.
        until = random.standard_exponential(campaigns)[at] * between[at]
        manual = random.random(campaigns)[at] < failures.manual_share
        of_node = random.random(campaigns)[at] < failures.node_share
        left = campaign.steps - done[at]
        pauses = (left - 1) // every
        last = left * step + pauses * saved.pause + saved.durable
        ran = np.clip(until - startup[at], 0, None)

        ends = ran >= last
        over = at[ends]
        wall[over] += startup[over] + last[ends]
        restarting[over] += startup[over]
        paused[over] += pauses[ends] * saved.pause + saved.durable

        fails, at = ~ends, at[~ends]
        ran, until, left, pauses = ran[fails], until[fails], left[fails], pauses[fails]
        cycles = np.floor(ran / cycle)
        trained = np.minimum(
            cycles * interval + np.minimum(ran - cycles * cycle, interval), left * step
        )
        kept = np.clip(np.floor((ran + saved.pause - saved.durable) / cycle), 0, pauses)
        wall[at] += until
        restarting[at] += np.minimum(until, startup[at])
        lost[at] += trained - kept * interval
        paused[at] += ran - trained
        done[at] += (kept * every).astype(np.int64)
        interruptions[at] += 1
        stopped = failures.detection + failures.diagnosis + manual[fails] * failures.manual_seconds
        outage[at] += stopped
        wall[at] += stopped
        wait = _wait(ready, at, wall[at], of_node[fails], failures)
        waiting[at] += wait
        wall[at] += wait
        startup[at] = failures.restart + saved.load
    return Outcome(
        campaign.work, wall, lost, paused, restarting, outage, waiting, interruptions, every
    )


def _wait(
    ready: Array | None,
    at: npt.NDArray[np.int64],
    now: Array,
    replaced: npt.NDArray[np.bool_],
    failures: Failures,
) -> Array:
    """Return the seconds that campaigns ``at`` wait for a node; take it from ``ready``.

    ``ready`` holds when each spare node can be used next: [campaigns, spares].
    """
    wait = np.zeros(len(at))
    if failures.spares is None or not replaced.any():
        return wait
    assert failures.repair_seconds is not None
    if ready is None:
        wait[replaced] = failures.repair_seconds
        return wait
    who = at[replaced]
    spare = ready[who].argmin(axis=1)
    wait[replaced] = np.clip(ready[who, spare] - now[replaced], 0, None)
    # The node that failed takes the place of the spare, once it is repaired.
    ready[who, spare] = now[replaced] + failures.repair_seconds
    return wait
