"""Another account on the machine, and another host: what they find of a run at work."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from atom.errors import UserError
from atom.launch.rendezvous import tcp_store
from atom.run_dir import metrics

SMALL = (
    *("architecture=llama3_tiny", "architecture.dim=64", "tokenizer=bytes"),
    *("training.seq_len=64", "metrics.enable_tensorboard=false", "device=cpu"),
    *("training.steps=2000", "parallelism=fsdp", "launch.ranks=2"),
)
LISTENING = "0A"
NOBODY = 65534


def listening(processes: list[int]) -> list[tuple[str, int]]:
    """Return the addresses and ports at which any of ``processes`` listens."""
    sockets = set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").iterdir():
            try:
                sockets.add(str(link.readlink()))
            except FileNotFoundError:
                continue
    found = []
    for table, size in (("tcp", 4), ("tcp6", 16)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENING and f"socket:[{rest[5]}]" in sockets:
                digits, _, port = local.partition(":")
                # Words of four bytes, each in the machine's order.
                packed = b"".join(
                    int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder)
                    for i in range(0, 2 * size, 8)
                )
                family = socket.AF_INET if size == 4 else socket.AF_INET6
                found.append((socket.inet_ntop(family, packed), int(port, 16)))
    return found


@pytest.mark.slow
def test_a_run_on_one_machine_cannot_be_reached(
    warm: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    """Nothing of it listens where another host gets to, and its store is a file of the user's."""
    (tmp_path / "tmp").mkdir()
    process = warm.start(
        ["train", *SMALL, "run.dir=run"],
        cwd=tmp_path,
        environment=environment | {"TMPDIR": str(tmp_path / "tmp")},
    )
    try:
        _look_at(process, tmp_path)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _look_at(process: Any, tmp_path: Path) -> None:
    deadline = time.monotonic() + 300
    while metrics.last_step(tmp_path / "run" / metrics.FILE_NAME) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    doors = listening(members(process.pid))
    assert doors, "gloo listens"
    assert all(address in ("127.0.0.1", "::1") for address, _ in doors), doors
    for _, port in doors:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((own_address(), port), timeout=5).close()
    (store,) = (tmp_path / "tmp").glob("atom-*/store")
    assert stat.S_IMODE(store.parent.stat().st_mode) == 0o700
    if os.getuid() == 0:
        assert as_nobody(f"import pathlib; print(pathlib.Path({str(store)!r}).read_bytes())") != 0
        assert as_nobody("print('works')") == 0
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(300) == 75
    assert not list((tmp_path / "tmp").glob("atom-*")), "left behind"


def members(session: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(process.name)) == session:
                found.append(int(process.name))
        except ProcessLookupError:
            continue
    return found


def own_address() -> str:
    """Return an address of this machine that other hosts would use; a loopback one without any."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.2"
        return str(asked.getsockname()[0])


def as_nobody(code: str) -> int:
    return subprocess.run(
        ["/usr/bin/env", "python3", "-S", "-c", code],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        check=False,
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
    ).returncode


def test_the_first_of_several_machines_listens_at_one_address(port: int) -> None:
    store = tcp_store("127.0.0.1", port, 1, listen=True, seconds=5)
    store.set("key", "value")
    assert {address for address, at in listening([os.getpid()]) if at == port} == {"127.0.0.1"}
    assert tcp_store("127.0.0.1", port, 1, listen=False, seconds=5).get("key") == b"value"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()


def test_an_endpoint_of_another_machine_is_told(port: int) -> None:
    with pytest.raises(UserError, match=r"cannot listen at 192\.0\.2\.1"):
        tcp_store("192.0.2.1", port, 1, listen=True, seconds=1)


# What torch, gloo and ATOM import in every rank, under names of Python's own library.
SHADOWS = ("argparse", "json", "signal", "socket", "tempfile", "yaml", "torch")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["current folder", "run folder"])
def test_a_module_beside_the_run_is_not_imported(
    where: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    """A node is started in any folder: a file there must not be taken for Python's own module."""
    from atom.launch.submit import COMMAND

    run = tmp_path / "run"
    run.mkdir()
    folder = run if where == "run folder" else tmp_path
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    done = subprocess.run(
        [*COMMAND, str(run)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be read as a run" in done.stderr
    assert not (tmp_path / "canary").exists()


SAFE_OTHERWISE = {
    # Read by people, and started in a checkout.
    "atom/testing/matrix.py",
    "atom/testing/next_engine.py",
    # A sweep, printed for people.
    "atom/cli/plan_budget.py",
    # PYTHONSAFEPATH stands above it.
    "plugins/atom-launchers/atom_launchers/torchrun.py",
}


def test_every_command_of_a_launcher_leaves_the_current_folder_out() -> None:
    """Wherever a Python module is started by name, in code or in a script of a launcher."""
    top = Path(__file__).parents[2]
    wrong = []
    for path in [*top.glob("atom/**/*.py"), *top.glob("plugins/*/atom_*/**/*")]:
        if path.suffix not in (".py", ".sh", ".yaml"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            starts = '"-m"' in line or " -m atom." in line or " -m torch." in line
            safe = "-P" in line or "``" in line or 'prog="' in line or "ArgumentParser(" in line
            place = str(path.relative_to(top))
            if starts and not safe and place not in SAFE_OTHERWISE and "--multirun" not in line:
                wrong.append(f"{place}:{number}: {line.strip()}")
    assert not wrong, json.dumps(wrong, indent=1)
