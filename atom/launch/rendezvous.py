"""Set up rendezvous for agents and ranks so that no other account or host can connect.

torch's default for one machine is a store that listens on all interfaces and holds a pickle, which
agents load. Here:

- **One machine**: the ranks use a file store in a folder that only the user can read. Nothing
  listens.
- **Several machines**: the first one listens only on the address that the endpoint names. The store
  holds text and addresses; nothing in it is a pickle.

This module imports torch inside its functions, because a launcher that only plans does not need it.
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
"""How long the first machine waits until its own name resolves."""

_BACKLOG = 4096
"""Length of the accept queue; all ranks connect at the same time."""

_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
"""gloo listens on the interface of the machine's host name, unless this variable names another."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a folder of this machine that only this user can access, removed afterwards."""
    # mkdtemp creates a folder with mode 0700.
    with tempfile.TemporaryDirectory(prefix="atom-") as folder:
        yield Path(folder)


def use_file(path: Path) -> None:
    """Make ``init_process_group`` of this process use the file store at ``path``.

    torchtitan passes no address, so torch uses ``env://``. This replaces the handler of ``env://``
    in this process, which is a rank.
    """
    from torch.distributed import FileStore

    from atom.titan.compat.register_ranks import RENDEZVOUS

    def by_file(_url: str, timeout: timedelta, **_extra: Any) -> Iterator[tuple[Store, int, int]]:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = FileStore(str(path), ranks)
        store.set_timeout(timeout)
        yield store, rank, ranks

    RENDEZVOUS.apply({**RENDEZVOUS.original(), "env": by_file})
    os.environ.setdefault(_GLOO_INTERFACE, "lo")


def of_one_machine() -> RendezvousHandler:
    """Return the in-memory rendezvous of a single agent."""
    from torch.distributed import HashStore

    return _handler(lambda: HashStore(), LOOPBACK, 0, rank=0, agents=1)


def of_machines(endpoint: str, rank: int, agents: int, *, seconds: float) -> RendezvousHandler:
    """Return the rendezvous of agents that know their positions and need no agreement.

    Args:
        endpoint: HOST:PORT of the first machine.
        rank: this machine's index, from 0; machine 0 listens.
        agents: the number of machines.
        seconds: how long machines wait for each other.
    """
    host, _, port = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")

    def connect() -> TCPStore:
        return tcp_store(host, int(port), agents, listen=rank == 0, seconds=seconds)

    return _handler(connect, host, int(port), rank=rank, agents=agents)


def tcp_store(host: str, port: int, clients: int, *, listen: bool, seconds: float) -> TCPStore:
    """Return a store at ``host:port``; this process serves it if ``listen`` is true.

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
    """Return a socket that listens on the address of ``host``.

    If the machine's own name resolves to a loopback address (Debian's ``127.0.1.1``), the address
    that other machines use is unknown. The socket then listens on all addresses and the log says
    so.
    """
    try:
        family, place = _resolved(host, port, seconds)
        if ipaddress.ip_address(place).is_loopback and place != host and host != "localhost":
            _log.warning("the store listens at all addresses", name=host, resolves_to=place)
            place = ""
        return socket.create_server((place, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UserError(
            f"the first machine cannot listen at {host}:{port} ({error.strerror})",
            valid="an address of its own, and a free port (launcher.port, or MASTER_PORT)",
        ) from None


def _resolved(host: str, port: int, seconds: float) -> tuple[socket.AddressFamily, str]:
    """Return the address of ``host``; retry, since the name of a pod resolves some time after its
    start.
    """
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
        """A rendezvous with a known outcome; the ranks use the agents' store."""

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
            """Do nothing: there is only one rendezvous."""

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return "atom"

        def shutdown(self) -> bool:
            return True

    return Known()
