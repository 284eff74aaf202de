"""One machine of a run: how many ranks it starts, and where it meets the others."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousParameters

_MEETING_SECONDS = 900
"""How long machines wait for each other: some read their environment from a slow disk."""


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
