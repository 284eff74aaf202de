"""Check that nodes reach each other at full speed before the ranks start; print one line per node.

``python -m atom.launch.links [--gpus N] NAME=ADDRESS …`` runs on every node at the same time. Each
node runs an all-reduce with one neighbour, then with the other, on every GPU (NCCL) or, without
GPUs, in one process (gloo). It prints ``atom-links NODE ok``, or the problem if it failed with both
neighbours; after one failure the neighbour is the suspect. The duration does not depend on the
number of nodes.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from functools import partial
from typing import NamedTuple

from atom.io.process import Child

PORTS = 512
"""Each pair of a round uses its own port, in case several nodes share a host."""


class Pair(NamedTuple):
    """Two nodes that run an all-reduce together; the first one serves the store."""

    first: int
    second: int


def pair_of(node: int, nodes: int, turn: int) -> Pair | None:
    """Return the pair that ``node`` belongs to, or None if it has no partner in this turn.

    Turn 0 pairs 0-1, 2-3, …; turn 1 pairs 1-2, 3-4, … and the last with 0. With an odd number of
    nodes, a different node is left without a partner in each turn.
    """
    shifted = (node - turn) % nodes
    first, second = shifted & ~1, shifted | 1
    if second >= nodes:
        return None
    return Pair((first + turn) % nodes, (second + turn) % nodes)


def turns(nodes: int) -> int:
    """Return the number of turns after which every node has had two different partners."""
    return 1 if nodes == 2 else 2 + nodes % 2


def main(arguments: list[str]) -> int:
    """Print one line about this node; return 0 in every case."""
    options = _parser().parse_args(arguments)
    names, addresses = zip(*(text.rsplit("=", 1) for text in options.nodes), strict=True)
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    begin, complaints, met = time.monotonic(), [], 0
    for turn in range(turns(len(names))):
        pair = pair_of(names.index(name), len(names), turn)
        if pair is None:
            continue
        met += 1
        place = pair.index(names.index(name))
        endpoint = f"{addresses[pair.first]}:{options.port + turn * PORTS + pair.first % PORTS}"
        # Nodes that finish early wait for nodes that their partner delayed.
        deadline = begin + (turn + 1) * options.seconds
        wrong = _meet(endpoint, place, options.gpus, options.least, deadline)
        if wrong is not None:
            complaints.append(f"all-reduce with {names[pair[1 - place]]} {wrong}")
    bad = "; ".join(complaints) if len(complaints) == met else ""
    print(f"atom-links {name} {f'bad: {bad}' if bad else 'ok'}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m atom.launch.links", description=__doc__)
    parser.add_argument("nodes", nargs="+", metavar="NAME=ADDRESS", help="the same on every node")
    parser.add_argument("--gpus", type=int, default=0, help="of a node; 0: on the CPU")
    parser.add_argument("--port", type=int, default=26000, help="the first of 1,536")
    parser.add_argument("--seconds", type=float, default=120, help="for a pair, imports included")
    parser.add_argument("--least", type=float, default=0, help="GB/s of each GPU that it must be")
    parser.add_argument("--node", help="ignored")
    return parser


def _meet(endpoint: str, place: int, gpus: int, least: float, deadline: float) -> str | None:
    """Run the all-reduce with the other node of a pair, one process per GPU; return the problem or
    None.
    """
    # A process that is forked here has imported torch, which takes longer than the all-reduce.
    from atom.launch import all_reduce

    local, device = max(gpus, 1), "cuda" if gpus else "cpu"
    ranks = range(place * local, (place + 1) * local)
    processes = [
        Child(partial(all_reduce.main, endpoint, rank, 2 * local, device)) for rank in ranks
    ]
    found = [_outcome(process, least, deadline) for process in processes]
    return next(filter(None, found), None)


def _outcome(process: Child[float], least: float, deadline: float) -> str | None:
    if not process.wait(max(deadline - time.monotonic(), 0)):
        process.terminate()
        return "does not return"
    try:
        rate = process.result()
    except Exception as error:
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        return f"fails ({last[0]})"
    return f"runs at {rate:.2f} GB/s, {least:g} wanted" if rate < least else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
