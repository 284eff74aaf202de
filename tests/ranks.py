"""Run a function of a test's file on several ranks, without the command.

The ranks are forked from a process of their own: autograd refuses to run in the fork of a process
that has used it, as another test of the same pytest worker may have done.
"""

from __future__ import annotations

import multiprocessing
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable

import torch.distributed

SECONDS = 120


def run(file: str, function: str, ranks: int) -> None:
    """Call ``function(rank)`` of a test's file on each rank, in a process group over gloo.

    Raises:
        AssertionError: a rank failed; with what the ranks printed.
    """
    done = subprocess.run(
        [sys.executable, __file__, file, function, str(ranks)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=2 * SECONDS,
    )
    assert done.returncode == 0, done.stdout


def _fork(file: str, function: str, ranks: int) -> bool:
    call = runpy.run_path(file)[function]
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        processes = [
            context.Process(target=_rank, args=(call, rank, ranks, store)) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
            if process.is_alive():
                process.kill()
    return all(process.exitcode == 0 for process in processes)


def _rank(call: Callable[[int], None], rank: int, ranks: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    call(rank)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(not _fork(sys.argv[1], sys.argv[2], int(sys.argv[3])))
