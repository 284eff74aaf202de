"""Install what others use for data, each in an environment of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """An environment: its packages with their versions, and the package that must be importable."""

    name: str
    packages: tuple[str, ...]
    module: str


READERS = Peer(
    "readers",
    # OLMo-core 3.0.0 wants a torch below 2.14, so that it cannot share ATOM's.
    ("torch==2.13.0", "ai2-olmo-core==3.0.0", "megatron-core==0.16.1"),
    "olmo_core.data, megatron.core.datasets.gpt_dataset",
)
DATATROVE = Peer(
    "datatrove",
    ("datatrove==0.10.1", "tokenizers==0.23.3", "orjson==3.13.0", "fasteners==0.20"),
    "datatrove.pipeline.tokens, orjson, fasteners",
)
# dolma 1.2.1 wants tokenizers of at most 0.19.1 and numpy below 2. pip does not find the versions
# of the last two in twenty minutes.
DOLMA = Peer("dolma", ("dolma==1.2.1", "aiobotocore==2.5.4", "boto3==1.28.17"), "dolma.cli")
PEERS = (READERS, DATATROVE, DOLMA)


def python(cache: Path, peer: Peer) -> Path | None:
    """Return the Python of a peer's environment, made on first use, or None if that fails."""
    folder = cache / "environments" / peer.name
    found, done = folder / "bin" / "python", folder / "installed"
    if done.exists() and done.read_text() == " ".join(peer.packages):
        return found
    print(f"installing {', '.join(peer.packages)} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    log = (cache / f"{peer.name}.log").open("w")
    commands = (
        [str(found), "-m", "pip", "install", "--quiet", *peer.packages],
        [str(found), "-c", f"import {peer.module}"],
    )
    for command in commands:
        if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
            print(f"{peer.name} is left out: see {log.name}", flush=True)
            return None
    done.write_text(" ".join(peer.packages))
    return found
