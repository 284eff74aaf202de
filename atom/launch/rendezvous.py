"""Where agents and ranks meet, without a door that another account or host could use.

torch's default for one machine is a store that listens on all interfaces and holds a pickle, which
agents load. Here:

- **One machine**: the ranks meet in a file, in a folder that belongs to the user alone. Nothing
  listens.
- **Several machines**: the first one listens at the address that the endpoint names, and at no
  other. What the store holds is text and addresses; nothing in it is a pickle.

This module imports torch inside its functions: a launcher that only plans does without it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from atom.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore
    from torch.distributed.elastic.rendezvous import RendezvousHandler

LOOPBACK = "127.0.0.1"

_log = structlog.get_logger("atom")

_NAME_SECONDS = 120
"""How long the first machine waits for its own name to be known."""

_BACKLOG = 4096
"""Connections that may wait to be accepted: as many ranks come at once."""

_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
"""gloo listens on the interface of the machine's host name, unless this variable names another."""


@contextmanager
def meeting_file() -> Iterator[Path]:
    """Yield the path of a file that only this user can reach, for :func:`use_file`."""
    # mkdtemp makes a folder with the mode 0700.
    with tempfile.TemporaryDirectory(prefix="atom-") as folder:
        yield Path(folder, "store")


def use_file(path: Path) -> None:
    """Have ``init_process_group`` of this process meet the others in ``path``.

    torchtitan gives it no address, so that torch takes ``env://``: its handler is replaced, in this
    process only, which is a rank.
    """
    from torch.distributed import FileStore

    from atom.titan.compat.later import RENDEZVOUS

    def by_file(_url: str, timeout: timedelta, **_extra: Any) -> Iterator[tuple[Store, int, int]]:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = FileStore(str(path), ranks)
        store.set_timeout(timeout)
        yield store, rank, ranks

    RENDEZVOUS.apply({**RENDEZVOUS.original(), "env": by_file})
    os.environ.setdefault(_GLOO_INTERFACE, "lo")


def of_one_machine() -> RendezvousHandler:
    """Return the rendezvous of an agent that is alone: in its own memory."""
    from torch.distributed import HashStore

    return _handler(lambda: HashStore(), LOOPBACK, 0, rank=0, agents=1)


def of_machines(endpoint: str, rank: int, agents: int, *, seconds: float) -> RendezvousHandler:
    """Return the rendezvous of agents that each know their place, so have nothing to agree on.

    Args:
        endpoint: HOST:PORT of the first machine.
        rank: this machine's place, from 0, which listens.
        agents: the number of machines.
        seconds: how long machines wait for each other.
    """
    host, _, port = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")

    def connect() -> TCPStore:
        return tcp_store(host, int(port), agents, listen=rank == 0, seconds=seconds)

    return _handler(connect, host, int(port), rank=rank, agents=agents)


def tcp_store(host: str, port: int, clients: int, *, listen: bool, seconds: float) -> TCPStore:
    """Return a store at ``host:port``, served by this process if it is to ``listen``.

    Raises:
        UserError: ``host`` is no address of this machine, or the port is in use.
    """
    from torch.distributed import TCPStore

    timeout = timedelta(seconds=seconds)
    if not listen:
        return TCPStore(host, port, clients, is_master=False, timeout=timeout)
    return TCPStore(
        host,
        port,
        clients,
        is_master=True,
        timeout=timeout,
        multi_tenant=True,
        master_listen_fd=_listening(host, port, seconds).detach(),
    )


def _listening(host: str, port: int, seconds: float) -> socket.socket:
    """Return a socket that listens at the address of ``host``.

    Where a machine's own name is a loopback address to it (Debian's ``127.0.1.1``), the others
    reach it at one that cannot be told from here: then it listens at all, and the log says so.
    """
    try:
        family, place = _resolved(host, port, seconds)
        if ipaddress.ip_address(place).is_loopback and place != host and host != "localhost":
            _log.warning("the store listens at all addresses", name=host, resolves_to=place)
            place = ""
        return socket.create_server((place, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UserError(
            f"the first machine cannot listen at {host}:{port} ({error.strerror}); valid: an "
            "address of its own, and a free port (launcher.port, or MASTER_PORT)"
        ) from None


def _resolved(host: str, port: int, seconds: float) -> tuple[socket.AddressFamily, str]:
    """Return the address of ``host``; the name of a pod is known only a while after it starts."""
    until = time.monotonic() + min(seconds, _NAME_SECONDS)
    while True:
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return family, str(address[0])
        except socket.gaierror:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def _handler(connect: Any, host: str, port: int, *, rank: int, agents: int) -> RendezvousHandler:
    from torch.distributed.elastic.rendezvous import (
        RendezvousHandler,
        RendezvousInfo,
        RendezvousStoreInfo,
    )

    class Known(RendezvousHandler):
        """A rendezvous whose outcome is known before; the ranks use the agents' store."""

        _store: Store | None = None

        def get_backend(self) -> str:
            return "atom"

        @property
        def use_agent_store(self) -> bool:
            return agents > 1

        def next_rendezvous(self) -> RendezvousInfo:
            if self._store is None:
                self._store = connect()
            return RendezvousInfo(self._store, rank, agents, RendezvousStoreInfo(host, port))

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            """Leave it open: there is one meeting."""

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return "atom"

        def shutdown(self) -> bool:
            return True

    return Known()
