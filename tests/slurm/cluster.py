"""A real Slurm of three nodes on this machine: its own daemons, key and configuration."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("n1", "n2", "n3")

CONFIG = """
ClusterName=atom
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SchedulerType=sched/backfill
MpiDefault=none
ReturnToService=2
SlurmdTimeout=6
KillWait=4
OverTimeLimit=0
EnforcePartLimits=ALL
MailProg=/bin/true
{nodes}
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=60 State=UP OverSubscribe=FORCE:4
"""


def missing() -> str | None:
    """Return why there can be no cluster here, or None."""
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        return f"Slurm is not installed: there is no {', '.join(absent)}"
    return None if os.geteuid() == 0 else "a Slurm of its own needs root"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """The daemons, from :meth:`start` to :meth:`stop`.

    Args:
        place: an empty folder for all that they write.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {"SLURM_CONF": str(place / "slurm.conf")}
        """What a command of Slurm needs to find this cluster."""

    def start(self) -> None:
        """Start the daemons, and wait until all nodes are idle."""
        host = socket.gethostname().partition(".")[0]
        self._place.chmod(0o755)
        # Below those that the system gives to others.
        port = 20000 + os.getpid() % 1000 * 10
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + number} CPUs=8"
            for number, name in enumerate(NODES, 1)
        )
        (self._place / "slurm.conf").write_text(
            CONFIG.format(host=host, port=port, place=self._place, nodes=nodes)
        )
        for name in ("state", "munge", *(f"spool-{name}" for name in NODES)):
            (self._place / name).mkdir(mode=0o755)
        self._start_munge()
        config = str(self._place / "slurm.conf")
        self._daemon("slurmctld", "slurmctld", "-D", "-c", "-f", config)
        for name in NODES:
            self.start_node(name)
        self.wait_for(lambda: self.states() == dict.fromkeys(NODES, "idle"), 120)

    def _start_munge(self) -> None:
        place = self._place / "munge"
        key = place / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        user = pwd.getpwnam("munge")
        for path in (place, key):
            os.chown(path, user.pw_uid, user.pw_gid)
        self._daemon(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={place}/socket", f"--pid-file={place}/pid", f"--seed-file={place}/seed"),
            *(f"--log-file={place}/log",),
            user="munge",
            group="munge",
        )
        self.wait_for((place / "socket").exists, 60)

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        config = str(self._place / "slurm.conf")
        self._daemon(name, "slurmd", "-D", "-N", name, "-f", config)

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon and all that runs there, as if it had lost power."""
        daemon = self._daemons.pop(name)
        for pid in self.processes(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.kill()
        daemon.wait()

    def processes(self, name: str) -> list[int]:
        """Return the processes of steps on a node: each has the node's name in its environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (path / "environ").read_bytes().split(b"\0")
                command = (path / "cmdline").read_bytes()
                ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode() in environment
                named = f"SLURMD_NODENAME={name}".encode() in environment
                stepd = b"slurmstepd" in command and f"spool-{name}".encode() in command
                if (ours and named) or stepd:
                    found.append(int(path.name))
        return found

    def stop(self) -> None:
        """End every daemon, and what is left of jobs."""
        for name in NODES:
            for pid in self.processes(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for daemon in reversed(list(self._daemons.values())):
            daemon.kill()
            daemon.wait()

    def states(self) -> dict[str, str]:
        """Return the state of every node."""
        lines = self.call("sinfo", "-h", "-N", "-o", "%N %T", check=False).splitlines()
        found = (line.split() for line in lines)
        return {line[0]: line[1] for line in found}

    def call(self, *command: str, check: bool = True) -> str:
        """Run a command of Slurm; return what it prints."""
        done = subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def wait_for(self, what: Callable[[], bool], seconds: float) -> None:
        """Wait until ``what`` is so."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.call("squeue", check=False)
            time.sleep(0.5)

    def _daemon(self, name: str, program: str, *arguments: str, **options: str) -> None:
        found = _program(program)
        assert found is not None
        log = (self._place / f"{name}.err").open("ab")
        self._daemons[name] = subprocess.Popen(
            [found, *arguments],
            env=os.environ | self.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **options,  # type: ignore[arg-type]
        )
