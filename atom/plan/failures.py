"""Describe what interrupts a run: failures by published rates, recovery, and checkpoint writes.

A node is eight devices: published rates are per node-day of eight GPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from atom.errors import UserError

DAY = 86400.0
DEVICES_PER_NODE = 8


@dataclass(frozen=True, slots=True)
class Published:
    """A published number: the default, its published range, and where it was published."""

    value: float
    low: float
    high: float
    source: str


RATE = Published(
    4e-3,
    2.3e-3,
    9e-3,
    "interruptions of a job per node-day: Llama 3 3.8e-3 unexpected, 4.2e-3 all (arXiv "
    "2407.21783); RSC-2 2.3e-3, RSC-1 6.5e-3 (arXiv 2410.21680); BLOOM 4.3e-3; FT-HSDP 2.3e-3 "
    "(arXiv 2602.00277); an H200 cloud 8.5e-3. Above the range: OPT 1.4e-2 (arXiv 2205.01068)",
)
DETECTION = Published(
    60, 60, 600, "ByteRobust detects in 60 s (arXiv 2509.16293); MegaScale detects and diagnoses "
    "in less than 10 minutes (arXiv 2402.15627)"
)  # fmt: skip
DIAGNOSIS = Published(
    math.sqrt(120 * 900), 120, 900, "ByteRobust localizes in 2 to 15 minutes (arXiv 2509.16293): "
    "their geometric mean"
)  # fmt: skip
RESTART = Published(
    222, 180, 600, "median recovery of OLMo Hybrid on 512 GPUs 3.7 minutes (Lambda, 2026); stalls "
    "of 3 and 10 minutes on 100,000 GPUs (arXiv 2602.00277)"
)  # fmt: skip
MANUAL_SHARE = Published(
    3 / 419, 3 / 466, 0.1, "3 of 419 unexpected interruptions of Llama 3 (arXiv 2407.21783); "
    "MegaScale recovers from over 90 % by itself (arXiv 2402.15627)"
)  # fmt: skip
MANUAL_SECONDS = Published(
    math.sqrt(5 * 10) * 3600, 5 * 3600, 10 * 3600, "outages of BLOOM of 5 to 10 hours: their "
    "geometric mean (https://huggingface.co/blog/bloom-megatron-deepspeed)"
)  # fmt: skip
NODE_SHARE = Published(
    321 / 419, 0.464, 321 / 419, "causes in a node, of 419 interruptions of Llama 3: all but "
    "software, network, watchdog and dependencies (arXiv 2407.21783, table 5); host replacements "
    "and other faults of hosts of an H200 cloud 46.4 % (GTC 2025)"
)  # fmt: skip
CHECKPOINT_BYTES = Published(
    13, 12.8, 13.1, "bytes a parameter: Llama 3.1 8B 13.1, 70B 13.0, 405B 12.8 "
    "(NVIDIA/dgxc-benchmarking, llama3.1/README.md)"
)  # fmt: skip
STORAGE = Published(
    100e9, 50e9, 2e12, "bytes/s of a whole job: a study of VAST Data 50 to 200 GB/s, their "
    "geometric mean; Llama 3 2 TB/s sustained (arXiv 2407.21783)"
)  # fmt: skip
STAGING = 64e9
"""Bytes/s from a device to its host: PCIe 5.0 x16, in one direction (NVIDIA H100 data sheet)."""

_TAIL = 1.645
"""Standard deviations from the median of a normal distribution to its 5 % and 95 % quantiles."""


@dataclass(frozen=True, slots=True)
class Failures:
    """How often a job is interrupted, and how long it takes until it trains again.

    Attributes:
        rate: interruptions per node-day while the job runs.
        sigma: standard deviation of the rate's logarithm among campaigns; 0: all have ``rate``.
        detection: seconds from the failure until the launcher ends the job.
        diagnosis: seconds until the failed node is found.
        restart: seconds from the start of processes to the first step, without loading.
        manual_share: share of interruptions that a person must repair.
        manual_seconds: seconds that such a repair adds.
        node_share: share of interruptions after which a node is replaced.
        spares: nodes in reserve; None: a replacement is always available.
        repair_seconds: seconds until a replaced node is in reserve again.
    """

    rate: float = RATE.value
    sigma: float = 0.0
    detection: float = DETECTION.value
    diagnosis: float = DIAGNOSIS.value
    restart: float = RESTART.value
    manual_share: float = MANUAL_SHARE.value
    manual_seconds: float = MANUAL_SECONDS.value
    node_share: float = NODE_SHARE.value
    spares: int | None = None
    repair_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("rate", "sigma", "detection", "diagnosis", "restart", "manual_seconds"):
            _not_negative(name, getattr(self, name))
        for name in ("manual_share", "node_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(valid="0 to 1", key=name, value=getattr(self, name))
        if self.spares is not None:
            _not_negative("spares", self.spares)
            if self.repair_seconds is None:
                raise UserError("is needed with spares", key="repair_seconds", value=None)
            _not_negative("repair_seconds", self.repair_seconds)

    def between(self, nodes: float) -> float:
        """Return the mean seconds from one interruption of ``nodes`` to the next."""
        return DAY / (self.rate * nodes) if self.rate and nodes else math.inf

    @property
    def outage(self) -> float:
        """Mean seconds from a failure until processes are started, without waiting for nodes."""
        return self.detection + self.diagnosis + self.manual_share * self.manual_seconds

    def uncertain(self, published: Published = RATE) -> Failures:
        """Return these with rates of which 90 % are within a range as wide as that published."""
        return replace(self, sigma=math.log(published.high / published.low) / (2 * _TAIL))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Seconds of a checkpoint.

    Attributes:
        pause: seconds that training waits for it.
        durable: seconds from its begin until it can be loaded.
        load: seconds to load it.
    """

    pause: float
    durable: float
    load: float

    def __post_init__(self) -> None:
        for name in ("pause", "durable", "load"):
            _not_negative(name, getattr(self, name))
        if self.durable < self.pause:
            raise UserError(
                f"must be at least pause={self.pause}", key="durable", value=self.durable
            )


def blocking(size: float, *, write: float = STORAGE.value, read: float | None = None) -> Checkpoint:
    """Return a checkpoint of ``size`` bytes that training waits for.

    Args:
        size: bytes.
        write: bytes/s of the whole job to storage.
        read: bytes/s from storage; None: as ``write``.
    """
    seconds = size / _positive("write", write)
    return Checkpoint(seconds, seconds, size / _positive("read", write if read is None else read))


def asynchronous(
    size: float,
    ranks: int,
    *,
    write: float = STORAGE.value,
    read: float | None = None,
    staging: float = STAGING,
) -> Checkpoint:
    """Return a checkpoint that training waits for only while it is copied to the hosts.

    Args:
        size: bytes.
        ranks: ranks, which copy equal parts.
        write: bytes/s of the whole job to storage.
        read: bytes/s from storage; None: as ``write``.
        staging: bytes/s from a device to its host.
    """
    pause = size / ranks / _positive("staging", staging)
    whole = blocking(size, write=write, read=read)
    return Checkpoint(pause, pause + whole.durable, whole.load)


def young(between: float, pause: float) -> float:
    """Return the best seconds of training between checkpoints, to first order.

    Young (1974), https://doi.org/10.1145/361147.361115.
    """
    return math.sqrt(2 * pause * between)


def daly(between: float, pause: float) -> float:
    """Return the best seconds of training between checkpoints, to higher order.

    Daly (2006), https://doi.org/10.1016/j.future.2004.11.016, equation 37.
    """
    if pause >= 2 * between:
        return between
    ratio = pause / (2 * between)
    return young(between, pause) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - pause


def expected(
    work: float, interval: float, checkpoint: Checkpoint, failures: Failures, nodes: float
) -> float:
    """Return the mean seconds of a campaign with blocking checkpoints and no lack of nodes.

    Daly (2006), equation 13, where failures interrupt training, checkpoints and restarts, and
    each adds the outage before its restart.

    Args:
        work: seconds of training without failures and checkpoints.
        interval: seconds of training between checkpoints.
        checkpoint: a blocking checkpoint.
        failures: what interrupts.
        nodes: nodes of eight devices.
    """
    between = failures.between(nodes)
    if math.isinf(between):
        return work * (1 + checkpoint.pause / interval)
    attempt = math.expm1((interval + checkpoint.pause) / between)
    again = math.exp((failures.restart + checkpoint.load) / between)
    return work / interval * (between + failures.outage) * again * attempt


def spares_needed(failures: Failures, nodes: float, *, risk: float = 1e-3) -> int:
    """Return the spare nodes with which a failure finds none in reserve at most with ``risk``.

    Nodes in repair are Poisson-distributed around failures a day times days of repair (Palm's
    theorem), whatever the distribution of the repair time.
    """
    if failures.repair_seconds is None:
        raise UserError("is needed for the number of spares", key="repair_seconds", value=None)
    mean = failures.node_share * failures.repair_seconds / failures.between(nodes)
    if mean > 700:  # e**-mean underflows; the normal approximation is within a node
        return math.ceil(mean + NormalDist().inv_cdf(1 - risk) * math.sqrt(mean) + 1)
    spares, fewer, term = 0, 0.0, math.exp(-mean)
    while 1 - fewer > risk:
        spares, fewer, term = spares + 1, fewer + term, term * mean / (spares + 1)
    return spares


def _positive(key: str, value: float) -> float:
    if not value > 0:
        raise UserError(valid="above 0", key=key, value=value)
    return value


def _not_negative(key: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise UserError(valid="a number from 0", key=key, value=value)
