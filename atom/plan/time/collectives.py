"""Predict the time of collectives and of sends.

A ring over n ranks moves (n - 1) / n of a tensor of S bytes (twice for an all-reduce):

    t = latency + (n - 1) / n S / B + ramp S / (S + 16 MiB).

In a node B is 80 % of NVLink's bandwidth. Between nodes every NIC of the group's ranks in a node
carries a ring, so B is the least of NVLink's and (ranks of the group in a node) x (a NIC's
bandwidth): a group over all ranks of DGX nodes reaches 380 GB/s, a group with one rank a node one
NIC's 50. The latency of a ring grows with its hops.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from atom.plan.constants import (
    BASE_NETWORK,
    HOP_NETWORK,
    HOP_NODE,
    LATENCY_NODE,
    LINK,
    POINT_TO_POINT,
    RAMP_BYTES,
    RAMP_NODE,
    Constants,
)
from atom.plan.device import DeviceDescription


@lru_cache(maxsize=65536)
def gather(
    size: float, ranks: int, stride: int, device: DeviceDescription, constants: Constants
) -> float:
    """Return the seconds of an all-gather to, or a reduce-scatter of, ``size`` bytes.

    Args:
        size: bytes of the whole tensor.
        ranks: ranks of the group.
        stride: distance of its ranks.
        device: with its links.
        constants: of the model.
    """
    if ranks == 1 or not size:
        return 0.0
    node = device.devices_per_node
    local = max(min(ranks, node // stride), 1)
    nodes = ceil(ranks / local)
    bandwidth = device.node_bandwidth * LINK
    latency = device.latency or LATENCY_NODE
    if nodes > 1:
        rails = local * device.network_bandwidth * constants.network
        bandwidth = min(bandwidth, rails) if local > 1 else rails
        ring = HOP_NETWORK * nodes + HOP_NODE * (ranks - nodes)
        latency = BASE_NETWORK + min(ring, HOP_NETWORK * 4 * ranks.bit_length() ** 1.5)
    ramp = RAMP_NODE * size / (size + RAMP_BYTES)
    return latency + (ranks - 1) / ranks * size / bandwidth + ramp


def all_reduce(
    size: float, ranks: int, stride: int, device: DeviceDescription, constants: Constants
) -> float:
    """Return the seconds of an all-reduce of ``size`` bytes: a reduce-scatter and a gather."""
    return 2 * gather(size, ranks, stride, device, constants)


def all_to_all(
    size: float,
    copies: int,
    ranks: int,
    stride: int,
    device: DeviceDescription,
    constants: Constants,
    *,
    once: bool,
) -> float:
    """Return the seconds for each rank to send ``size`` bytes to ``copies`` ranks, evenly chosen.

    With ``once``, a node is sent one copy for all of its ranks: of n nodes, k copies reach
    n (1 - (1 - 1 / n)^k) on average.
    """
    if ranks == 1 or not size or not copies:
        return 0.0
    local = max(min(ranks, device.devices_per_node // stride), 1)
    nodes = ranks / local
    reached = nodes * (1 - (1 - 1 / nodes) ** copies) if once else float(copies)
    inside = size * copies * (local - 1) / local / (device.node_bandwidth * LINK)
    outside = size * reached * (nodes - 1) / nodes
    outside /= device.network_bandwidth * constants.network
    size *= copies
    latency = (device.latency or LATENCY_NODE) if local == ranks else BASE_NETWORK + HOP_NETWORK
    return latency + max(inside, outside) + RAMP_NODE * size / (size + RAMP_BYTES)


def send(size: float, *, inside: bool, device: DeviceDescription, constants: Constants) -> float:
    """Return the seconds of a send of ``size`` bytes to a rank of the same or another node."""
    if inside:
        return max(POINT_TO_POINT, device.latency) + size / (device.node_bandwidth * LINK)
    return POINT_TO_POINT + size / (device.network_bandwidth * constants.network)
