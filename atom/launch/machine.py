"""One machine of a run: how many ranks it starts, and where it meets the others."""

from __future__ import annotations

import errno
import socket
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atom.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousParameters

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

    @property
    def local_address(self) -> str | None:
        """The address that its ranks are to use; None to let torch find it."""
        return "127.0.0.1" if self.endpoint is None else None

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

    def rendezvous(self) -> RendezvousParameters:
        """Return how the agents of all machines meet.

        Every machine knows its place, so there is nothing to agree on: each asks the store on the
        first one twice, however many there are. With torch's ``c10d`` rendezvous they would all
        write one record in turn.
        """
        from torch.distributed.elastic.rendezvous import RendezvousParameters

        if self.endpoint is None:
            return RendezvousParameters(
                backend="c10d",
                endpoint="127.0.0.1:0",
                run_id=uuid.uuid4().hex,
                min_nodes=1,
                max_nodes=1,
                local_addr="127.0.0.1",
            )
        return RendezvousParameters(
            backend="static",
            endpoint=self.endpoint,
            run_id="atom",
            min_nodes=self.nodes,
            max_nodes=self.nodes,
            rank=self.node,
            timeout=_MEETING_SECONDS,
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
