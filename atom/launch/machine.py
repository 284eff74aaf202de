"""One machine of a run: how many ranks it starts, and where it meets the others."""

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
"""How long machines wait for each other: some read their environment from a slow disk."""

_PORT_SECONDS = 30
"""How long the first one waits for its port: ranks of an attempt before may be about to end."""


@dataclass(frozen=True)
class Machine:
    """A machine, and its place among ``nodes``.

    Attributes:
        ranks: that it starts; those of the other machines are as many.
        node: which one it is, from 0.
        endpoint: HOST:PORT of the first one; None where there is one alone.
    """

    ranks: int
    nodes: int = 1
    node: int = 0
    endpoint: str | None = None

    @property
    def first_rank(self) -> int:
        """The number of its first rank: ranks are numbered machine by machine."""
        return self.node * self.ranks

    def wait_for_port(self, seconds: float = _PORT_SECONDS) -> None:
        """Wait until the port of the endpoint is free, on the machine that listens at it.

        Raises:
            UserError: it is not by then.
        """
        if self.node != 0 or self.endpoint is None:
            return
        port = int(self.endpoint.rpartition(":")[2])
        until = time.monotonic() + seconds
        while _taken(port):
            if time.monotonic() > until:
                raise UserError(
                    f"--endpoint {self.endpoint}: port {port} of this machine is in use; valid: "
                    "a free one (launcher.port)"
                )
            time.sleep(0.5)

    def rendezvous(self) -> RendezvousHandler:
        """Return how the agents of all machines meet: each knows its place, so each asks the store
        on the first one twice, however many there are."""
        if self.endpoint is None:
            return rendezvous.of_one_machine()
        return rendezvous.of_machines(
            self.endpoint, self.node, self.nodes, seconds=_MEETING_SECONDS
        )


def _taken(port: int) -> bool:
    """Return whether something listens at ``port``, at whatever address of this machine."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        with socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6
        ):
            return False
    except OSError as error:
        return error.errno == errno.EADDRINUSE
