"""Report from a hanging rank: stack traces, and the flight recorder's trace.

The main thread may be in a call that never returns, in which Python runs no signal handlers.
faulthandler still prints the stacks. The byte that Python's C handler writes wakes a thread, which
saves the trace.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading

import structlog

log = structlog.get_logger("atom")


def tell_on(number: signal.Signals, rank: int) -> None:
    """Handle the signal: print all threads' stacks to stderr, save the flight recorder's trace.

    The trace shows the pending collectives. It goes to the folder that torch uses on a timeout
    (``comm.save_traces_folder``), unless ``comm.trace_buf_size`` is 0.

    Call this in the main thread.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    faulthandler.register(number, file=2, all_threads=True, chain=True)
    threading.Thread(target=_wait, args=(read, number, rank), name="atom-hang", daemon=True).start()


def _wait(read: int, number: signal.Signals, rank: int) -> None:
    while heard := os.read(read, 1):
        if heard[0] == number:
            try:
                save_trace(rank)
            except Exception:
                log.exception("no flight recorder trace")


def save_trace(rank: int) -> None:
    """Save the flight recorder's trace of this process, in the format of ``torchfrtrace``."""
    if "torch.distributed" not in sys.modules or os.environ.get("TORCH_FR_BUFFER_SIZE", "0") == "0":
        return
    import torch.distributed as dist
    from torch._C import _distributed_c10d as c10d

    if dist.is_initialized():
        backend = "nccl" if "nccl" in dist.get_backend() else "gloo"
        c10d._dump_fr_trace_file(rank, backend=backend)
