"""The cluster, for all tests of this folder."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import cluster as slurm


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    """A Slurm of three nodes; skipped with the reason where there can be none."""
    if (reason := slurm.missing()) is not None:
        pytest.skip(reason)
    # Not below pytest's own folder: munge wants every folder above its socket to be safe.
    place = Path(tempfile.mkdtemp(prefix="atom-slurm-"))
    found = slurm.Cluster(place)
    try:
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(place, ignore_errors=True)
