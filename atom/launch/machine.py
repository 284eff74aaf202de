"""Describe one machine of a run: how many ranks it starts, and its rendezvous endpoint."""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atom.errors import UserError
from atom.launch import rendezvous

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler

_MEETING_SECONDS = 900
"""How long machines wait for each other; some load their environment from a slow disk."""

_PORT_SECONDS = 30
"""How long the first machine waits for its port; ranks of an earlier attempt may still be ending.
"""


@dataclass(frozen=True)
class Machine:
    """A machine and its position among ``nodes``.

    Attributes:
        ranks: number of ranks that it starts; equal on all machines.
        node: its index, from 0.
        endpoint: HOST:PORT of the first machine; None for a single machine.
    """

    ranks: int
    nodes: int = 1
    node: int = 0
    endpoint: str | None = None

    @property
    def first_rank(self) -> int:
        """The number of its first rank; ranks are numbered machine by machine."""
        return self.node * self.ranks

    def wait_for_port(self, seconds: float = _PORT_SECONDS) -> None:
        """Wait until the port of the endpoint is free, on the machine that listens on it.

        Raises:
            UserError: the port is still in use after ``seconds``.
        """
        if self.node != 0 or self.endpoint is None:
            return
        port = int(self.endpoint.rpartition(":")[2])
        until = time.monotonic() + seconds
        while _taken(port):
            if time.monotonic() > until:
                raise UserError(
                    f"--endpoint {self.endpoint}: port {port} of this machine is in use",
                    valid="a free one (launcher.port)",
                )
            time.sleep(0.1)

    def rendezvous(self) -> RendezvousHandler:
        """Return the rendezvous of all machines' agents.

        Each agent knows its own position, so it sends the first machine's store two requests,
        regardless of the number of agents."""
        if self.endpoint is None:
            return rendezvous.of_one_machine()
        return rendezvous.of_machines(
            self.endpoint, self.node, self.nodes, seconds=_MEETING_SECONDS
        )


def _taken(port: int) -> bool:
    """Return whether a process listens on ``port``, at any address of this machine."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        with socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6
        ):
            return False
    except OSError as error:
        return error.errno == errno.EADDRINUSE
